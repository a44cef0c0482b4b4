"""What differs between transports in reading a shard: its records, its clock, its pace."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from cdc_pipeline.aws.shards import Page
from cdc_pipeline.capture.sources.kinesis_records import kinesis_sequence_number, parse_envelopes
from cdc_pipeline.capture.sources.streams_records import parse_records, sequence_number
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.log.entries import ShardState, StreamRef


@dataclass(frozen=True)
class Parsed:
    """What the records of a page are. `skipped`: those that are of no concern to the table."""

    changes: list[Change]
    unreadable: list[tuple[str, bytes]]
    skipped: int = 0


class ReadTo(NamedTuple):
    """Times in µs up to which a shard has been read, 0: the page does not tell.

    `tip_us`: nothing that was there to be read then is left. `written_us`: every change written
    before has been read, those that were still on their way included.
    """

    tip_us: int = 0
    written_us: int = 0


class Reading(Protocol):
    """How a transport's pages are understood."""

    def of_former(self, table_id: str) -> "Reading":
        """The same for a former table of that name, whose keys nobody knows."""
        ...

    @property
    def trims_silently(self) -> bool:
        """Whether a position that is gone raises nothing: reading begins at what is left."""
        ...

    @property
    def comes_back(self) -> bool:
        """Whether a stream that was off may be written to again under its name."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether a shard's records come in the order of their times.

        Then each tells how far its shard has been read, whatever was thought before, and only empty
        reads tell where it ends for now.
        """
        ...

    def parse(self, page: Page, stream: StreamRef, shard: ShardState) -> Parsed:
        """The changes of a page; raises `SourceError` where it must not be read on."""
        ...

    def last(self, page: Page) -> str | None:
        """The checkpoint behind a page, None if no record of it could be one."""
        ...

    def begins(self, page: Page, starting: str | None) -> bool:
        """Whether the page surely begins with the first record that its shard ever had."""
        ...

    def read_to(
        self, page: Page, changes: Sequence[Change], asked_us: int, quiet_us: int
    ) -> ReadTo:
        """How far a page that was asked for at `asked_us` takes its shard.

        `quiet_us`: when the first of as many empty reads in a row as count began, 0: not so many.
        """
        ...

    def pause(self, page: Page, poll_seconds: float) -> float | None:
        """Seconds to wait before the shard is read again, None: not at all."""
        ...

    def listing_lag_seconds(self, configured: float) -> float:
        """How much younger than a listing the changes may be that are in shards it lacks."""
        ...

    def listing_seconds(self, shards: int) -> float:
        """How long a whole listing of so many shards serves; children are asked for meanwhile."""
        ...


_SHARDS_PER_REQUEST = 100
_LISTING_SECONDS = 600


@dataclass(frozen=True)
class StreamsReading:
    """DynamoDB Streams: the records of a shard are in the order of their write times.

    `target`: whose keys the records must have, None: those of a table that is gone.
    """

    target: Target | None = None

    def of_former(self, table_id: str) -> "StreamsReading":
        """See `Reading`; a stream is one table's, so its id is not needed."""
        return replace(self, target=None)

    trims_silently = False
    comes_back = False
    in_order = True

    def parse(self, page: Page, stream: StreamRef, shard: ShardState) -> Parsed:
        """By `capture.sources.streams_records`."""
        return Parsed(*parse_records(page.records, stream, shard, self.target))

    def last(self, page: Page) -> str | None:
        """The last sequence number; without one, the same records are read again."""
        numbers = map(sequence_number, reversed(page.records))
        return next((number for number in numbers if number is not None), None)

    def begins(self, page: Page, starting: str | None) -> bool:
        """A listing calls a shard's first record by its number."""
        first = next((n for raw in page.records if (n := sequence_number(raw))), None)
        return first is not None and first == starting

    def read_to(
        self, page: Page, changes: Sequence[Change], asked_us: int, quiet_us: int
    ) -> ReadTo:
        """Up to the last record; a quiet shard up to its first of some empty reads in a row."""
        read_to_us = changes[-1].write_time_us if changes else 0 if page.records else quiet_us
        return ReadTo(read_to_us, read_to_us)

    def pause(self, page: Page, poll_seconds: float) -> float | None:
        """None while there is something to read."""
        return None if page.records else poll_seconds

    def listing_lag_seconds(self, configured: float) -> float:
        """AWS gives no bound, so it is a setting."""
        return configured

    def listing_seconds(self, shards: int) -> float:
        """A second for each request that it takes, so a tenth of AWS's ten a second; at most 600.

        What takes one request is listed whenever there is something to ask.
        """
        return min(shards // _SHARDS_PER_REQUEST, _LISTING_SECONDS)


_READS_PER_SECOND = 5
_BYTES_PER_SECOND = 2 << 20
_LISTING_LAG_SECONDS = 10


@dataclass(frozen=True)
class KinesisReading:
    """Kinesis: duplicates and disorder, so that only AWS's own word tells how far a shard is read.

    `target`: whose records count; a stream may hold other tables', too. `encodings`: how often
    binary is base64-encoded. `late_seconds`: how much later than it was written a change may come.
    """

    target: Target
    encodings: int = 2
    late_seconds: float = 60

    def of_former(self, table_id: str) -> "KinesisReading":
        """See `Reading`."""
        return replace(self, target=replace(self.target, table_id=table_id, key_types={}))

    trims_silently = True
    comes_back = True
    in_order = False

    def parse(self, page: Page, stream: StreamRef, shard: ShardState) -> Parsed:
        """By `capture.sources.kinesis_records`."""
        found = parse_envelopes(
            page.records,
            target=self.target,
            shard_id=shard.shard_id,
            encodings=self.encodings,
        )
        return Parsed(*found)

    def last(self, page: Page) -> str | None:
        """The last sequence number; without one, the same records are read again."""
        numbers = map(kinesis_sequence_number, reversed(page.records))
        return next((number for number in numbers if number is not None), None)

    def begins(self, page: Page, starting: str | None) -> bool:
        """A listing gives the number that a shard's numbers begin above, not its first record's."""
        return False

    def read_to(
        self, page: Page, changes: Sequence[Change], asked_us: int, quiet_us: int
    ) -> ReadTo:
        """By MillisBehindLatest, never by the times of records."""
        if page.behind_ms is None:
            return ReadTo()
        tip_us = asked_us - page.behind_ms * 1000
        return ReadTo(tip_us, max(0, tip_us - int(self.late_seconds * 1_000_000)))

    def pause(self, page: Page, poll_seconds: float) -> float | None:
        """AWS allows 5 reads and 2 MiB a second and shard, and blocks who asks for more."""
        at_tip = not page.records and not page.behind_ms
        # Three bytes of data are four in the answer.
        size = page.size * 3 / 4 if page.records else 0
        needed = max(1 / _READS_PER_SECOND, size / _BYTES_PER_SECOND)
        return poll_seconds if at_tip else needed

    def listing_lag_seconds(self, configured: float) -> float:
        """ListShards is consistent; a change is late by itself."""
        return min(configured, _LISTING_LAG_SECONDS) + self.late_seconds

    def listing_seconds(self, shards: int) -> float:
        """0: a request lists 1000 shards, and AWS allows a thousand requests a second."""
        return 0
