"""Differences between transports in reading a shard: records, clock, pace."""

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
    """The parsed records of a page. `skipped`: number of records of other tables."""

    changes: Sequence[Change]
    unreadable: list[tuple[str, bytes]]
    skipped: int = 0


class ReadTo(NamedTuple):
    """Times, in µs, up to which a shard has been read; 0: unknown from the page.

    `tip_us`: every record in the shard at that time has been read. `written_us`: every change
    written before has been read, including changes that arrived in the shard later.
    """

    tip_us: int = 0
    written_us: int = 0


class StreamProtocol(Protocol):
    """How the pages of a transport are interpreted."""

    def of_former(self, table_id: str) -> "StreamProtocol":
        """Return the same for a former table of that name, whose keys are unknown."""
        ...

    @property
    def trims_silently(self) -> bool:
        """Whether reading from a trimmed position starts at the oldest record, without an error."""
        ...

    @property
    def comes_back(self) -> bool:
        """Whether a disabled stream may be enabled again under the same name."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether a shard's records come in the order of their times.

        If so, each record sets the time up to which its shard has been read, also to an earlier
        one, and only empty reads show the tip.
        """
        ...

    def parse(self, page: Page, stream: StreamRef, shard: ShardState) -> Parsed:
        """Parse the records of a page; raises `SourceError` if the shard must not be read on."""
        ...

    def last(self, page: Page) -> str | None:
        """Return the checkpoint after a page, None if none of its records can be one."""
        ...

    def begins(self, page: Page, starting: str | None) -> bool:
        """Whether the page certainly begins with the first record of its shard."""
        ...

    def read_to(
        self, page: Page, changes: Sequence[Change], asked_us: int, quiet_us: int
    ) -> ReadTo:
        """Return the times up to which a page, requested at `asked_us`, reads its shard.

        `quiet_us`: start of the first of the required empty reads in a row, 0: too few of them.
        """
        ...

    def pause(self, page: Page, poll_seconds: float) -> float | None:
        """Return the seconds to wait before the next read of the shard; None: no wait."""
        ...

    def listing_lag_seconds(self, configured: float) -> float:
        """Return the age, in seconds, from which all changes are in the shards of a listing."""
        ...

    def listing_seconds(self, shards: int) -> float:
        """Return the seconds between whole listings; children are requested in between."""
        ...


_SHARDS_PER_REQUEST = 100
_LISTING_SECONDS = 600


@dataclass(frozen=True)
class StreamsProtocol:
    """DynamoDB Streams: the records of a shard are in the order of their write times.

    `target`: the table whose keys the records must have, None: a table that is gone.
    """

    target: Target | None = None

    def of_former(self, table_id: str) -> "StreamsProtocol":
        """See `Reading`; a stream belongs to one table, so the id is not needed."""
        return replace(self, target=None)

    trims_silently = False
    comes_back = False
    in_order = True

    def parse(self, page: Page, stream: StreamRef, shard: ShardState) -> Parsed:
        """Parse with `capture.sources.streams_records`."""
        return Parsed(*parse_records(page.records, stream, shard, self.target))

    def last(self, page: Page) -> str | None:
        """Return the last sequence number; without one, the same records are read again."""
        numbers = map(sequence_number, reversed(page.records))
        return next((number for number in numbers if number is not None), None)

    def begins(self, page: Page, starting: str | None) -> bool:
        """A listing contains the number of a shard's first record."""
        first = next((n for raw in page.records if (n := sequence_number(raw))), None)
        return first is not None and first == starting

    def read_to(
        self, page: Page, changes: Sequence[Change], asked_us: int, quiet_us: int
    ) -> ReadTo:
        """Up to the last record; in a quiet shard, up to the first of the empty reads in a row."""
        read_to_us = changes[-1].write_time_us if changes else 0 if page.records else quiet_us
        return ReadTo(read_to_us, read_to_us)

    def pause(self, page: Page, poll_seconds: float) -> float | None:
        """Wait only after an empty page."""
        return None if page.records else poll_seconds

    def listing_lag_seconds(self, configured: float) -> float:
        """AWS documents no bound, so it is a setting."""
        return configured

    def listing_seconds(self, shards: int) -> float:
        """One second for each request of a listing, a tenth of AWS's ten a second; at most 600.

        A stream listed with one request is listed again instead of requests for children.
        """
        return min(shards // _SHARDS_PER_REQUEST, _LISTING_SECONDS)


_READS_PER_SECOND = 5
_BYTES_PER_SECOND = 2 << 20
_LISTING_LAG_SECONDS = 10


@dataclass(frozen=True)
class KinesisProtocol:
    """Kinesis: records repeat and lack order, so only AWS's MillisBehindLatest shows progress.

    `target`: the table whose records count; a stream may hold records of other tables.
    `encodings`: how many times binary is base64-encoded. `late_seconds`: longest delay of a change
    after its write.
    """

    target: Target
    encodings: int = 2
    late_seconds: float = 60

    def of_former(self, table_id: str) -> "KinesisProtocol":
        """See `Reading`."""
        return replace(self, target=replace(self.target, table_id=table_id, key_types={}))

    trims_silently = True
    comes_back = True
    in_order = False

    def parse(self, page: Page, stream: StreamRef, shard: ShardState) -> Parsed:
        """Parse with `capture.sources.kinesis_records`."""
        parsed = parse_envelopes(
            page.records,
            target=self.target,
            shard_id=shard.shard_id,
            encodings=self.encodings,
        )
        return Parsed(*parsed)

    def last(self, page: Page) -> str | None:
        """Return the last sequence number; without one, the same records are read again."""
        numbers = map(kinesis_sequence_number, reversed(page.records))
        return next((number for number in numbers if number is not None), None)

    def begins(self, page: Page, starting: str | None) -> bool:
        """A listing contains a lower bound of a shard's numbers, not that of its first record."""
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
        """AWS allows 5 reads and 2 MiB a second and shard, and blocks clients above that."""
        is_at_tip = not page.records and not page.behind_ms
        # Base64: three bytes of data are four in the answer.
        size = page.size * 3 / 4 if page.records else 0
        needed = max(1 / _READS_PER_SECOND, size / _BYTES_PER_SECOND)
        return poll_seconds if is_at_tip else needed

    def listing_lag_seconds(self, configured: float) -> float:
        """ListShards is consistent; the lateness of changes comes on top."""
        return min(configured, _LISTING_LAG_SECONDS) + self.late_seconds

    def listing_seconds(self, shards: int) -> float:
        """0: a request lists 1000 shards, and AWS allows a thousand requests a second."""
        return 0
