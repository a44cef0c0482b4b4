"""Parts of capture log entries: streams, shards, objects, baselines, gaps, heals, erasures."""

from dataclasses import dataclass
from typing import Literal

from cdc_pipeline.core.names import entry_number
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, MIRROR_VIEWS

ShardStatus = Literal["reading", "finished", "lost"]
Cause = Literal[
    "trimmed",
    "head trimmed",
    "shard vanished",
    "new stream",
    "table recreated",
    "before capture",
    "objects lost",
    "not replicated",
    "not delivered",
]

PAST_GENERATION = 0
"""Generation of changes from before capture began: below every baseline, so no state shows them."""
FIRST_GENERATION = 1
"""Generation in which capture begins."""


@dataclass(frozen=True)
class StreamRef:
    """The captured stream.

    `recorded_us`: upper bound of the time when its positions were recorded (time of P).
    `transport`: as in the settings. `arn`: of a DynamoDB or Kinesis stream, or the location of
    Firehose's files. `since_us`: changes written before this time came by another transport and
    are left out. `retention_hours`: how long the stream keeps a record. `created_us`: distinguishes
    streams of one ARN. `off`: the table was observed not to write to the stream, so changes are
    missing even if it writes again.
    """

    table_id: str
    arn: str
    view_type: str
    generation: int
    recorded_us: int
    transport: str = DYNAMODB_STREAMS
    since_us: int = 0
    retention_hours: int = 24
    created_us: int = 0
    off: bool = False

    @property
    def full_images(self) -> bool:
        """Whether its events contain the new item."""
        return self.view_type in MIRROR_VIEWS

    @property
    def retention_us(self) -> int:
        """How long it keeps a record, in µs; older records may disappear at any moment."""
        return self.retention_hours * 3_600_000_000


@dataclass(frozen=True)
class Cutover:
    """A pending switch of transports: the old one counts before `at_us`, `transport` from then on.

    `at_us` is a whole second, because DynamoDB Streams reports write times in seconds, and Kinesis
    in units down to microseconds. Both then divide the changes alike, because both report the clock
    of the write. (A difference would fail the check `unbroken_chain`.)
    """

    transport: str
    at_us: int


@dataclass(frozen=True)
class ShardState:
    """How far one shard has been landed.

    `sequence_number`: of the last record read, None before the first. `read_to_us`: every change
    written to this shard before that time has been read. `finished`: closed and read to its end,
    nothing else; `lost`: gone before its end, the rest is in a gap. `adjacent_id`: the second
    parent of a merged shard.
    """

    shard_id: str
    parent_id: str | None
    depth: int
    status: ShardStatus = "reading"
    sequence_number: str | None = None
    read_to_us: int = 0
    rows: int = 0
    adjacent_id: str | None = None


@dataclass(frozen=True)
class LandedObject:
    """One Parquet object of the landing zone; `key` is relative to the lake root.

    `bare`: its events lack new images; reads of the items complete them in a later entry.
    `through`: for a compacted object, the last entry whose rows it contains; else 0. `crc32`: of
    its bytes; None in logs of older versions.
    """

    key: str
    day: str
    rows: int
    bytes: int
    generation: int
    min_write_us: int
    max_write_us: int
    min_position: str
    max_position: str
    shards: tuple[str, ...]
    bare: bool = False
    through: int = 0
    crc32: int | None = None

    @property
    def entry(self) -> int:
        """The log entry that added this object's rows, the last one of a compacted object."""
        return self.through or entry_number(self.key) or 0


@dataclass(frozen=True)
class QuarantinedObject:
    """One JSON-lines object of unreadable records, with counts by reason.

    `was`: set when an erasure counts the object again: its former counts, which the log's sums
    already contain.
    """

    key: str
    rows: int
    reasons: dict[str, int]
    was: dict[str, int] | None = None


@dataclass(frozen=True)
class SourceFile:
    """An object that Firehose wrote, as far as its records have landed.

    `etag`: of the version that was read. `arrived`: the day of its folder. `rows`: records landed
    so far, including quarantined ones and `others` (of other tables). `days`: the write days of
    its changes. `legacy_us`: the newest time of its rows from an older Lambda, 0: none. `whole`:
    all records have landed; parts of a large object land in several entries. `unread`: unreadable
    while its folder was listed, so it is tried again by its name.
    """

    uri: str
    etag: str
    bytes: int
    arrived: str
    rows: int = 0
    others: int = 0
    days: tuple[str, ...] = ()
    legacy_us: int = 0
    whole: bool = False
    unread: bool = False


@dataclass(frozen=True)
class Baseline:
    """A full export that is, or will be, the baseline of a generation.

    `recorded_us`: time(P); the stream positions at the handover were recorded before it, and
    everything landed by then was written before it. `export_time_us`: T. `snapshot_id`: the Iceberg
    snapshot of `<table>_snapshot` with its verified items; None until it is staged. `attempt`:
    number of failed exports. `shadow`: kept beside the live baseline until a person decides;
    `discarded`: rejected by that decision.
    """

    generation: int
    recorded_us: int
    export_time_us: int
    attempt: int = 0
    export_arn: str | None = None
    snapshot_id: int | None = None
    items: int | None = None
    bytes: int | None = None
    staged_us: int | None = None
    shadow: bool = False
    discarded: bool = False

    @property
    def is_staged(self) -> bool:
        """Whether its items are verified, in the lake, and visible to readers."""
        return self.snapshot_id is not None and not self.shadow and not self.discarded


@dataclass(frozen=True)
class Gap:
    """Changes of a time range that can no longer be read from the stream.

    Everything written to `shards` before `from_us` has been read, and everything written from
    `to_us` on can be read again, both by AWS's clock: the bounds lie `margin_us` outside of the
    writer's clock readings, 0 in logs of older versions. `heal_generation`: reserved for the heal,
    above the generation of everything landed before the gap, below that of everything after it.
    `entry`: the log entry that opened the gap; it identifies the gap.

    A backfill opens and heals a gap in one entry: for a day "before capture", or for "objects lost"
    from the lake, whose changes land in their former generation (`repair.backfill`).

    "not replicated": DynamoDB counted records that it could not write to Kinesis; no shard lost
    them, so `shards` is empty. "not delivered": a Kinesis channel failed to deliver records that
    its stream no longer holds.
    """

    cause: Cause
    shards: tuple[str, ...]
    from_us: int
    to_us: int
    heal_generation: int
    entry: int = 0
    margin_us: int = 0

    def __str__(self) -> str:
        """Cause and number of shards, for people."""
        return f"{self.cause}, {len(self.shards)} shards" if self.shards else self.cause


@dataclass(frozen=True)
class HealWindow:
    """One incremental export of a heal: changes written in [from_us, to_us).

    `attempt`: number of failed exports; `files`: data files whose lines have landed; `done`: all
    files have landed, or no export was needed.
    """

    from_us: int
    to_us: int
    attempt: int = 0
    export_arn: str | None = None
    files: tuple[str, ...] = ()
    done: bool = False


@dataclass(frozen=True)
class Heal:
    """Progress of healing a gap. `gap`: the entry that opened it.

    `also`: earlier overlapping gaps, healed together with it. `reread`: number of items read again
    by key, because an insert and a delete within a window leave no line; None: not yet read.
    `healed`: all lost changes of the gaps have landed.
    """

    gap: int
    windows: tuple[HealWindow, ...]
    reread: int | None = None
    healed: bool = False
    also: tuple[int, ...] = ()


@dataclass(frozen=True)
class LateChanges:
    """Changes that landed below the watermark, which had counted their time as complete.

    `behind_us`: how far the oldest of them was below the watermark.
    """

    rows: int
    behind_us: int


NOTHING_LATE = LateChanges(0, 0)


@dataclass(frozen=True)
class RemovedRows:
    """Result of an erasure in one place of the lake: files changed or deleted, rows removed."""

    place: str
    files: int
    rows: int


@dataclass(frozen=True)
class Erasure:
    """An item erased on request: its suppression rule, and the record of the erasure.

    It is in the log because every writer must apply it before landing anything: an entry is valid
    only after all entries before it. `key_hash`: HMAC-SHA256 of the item's canonical key under
    `salt`, both in hex; nothing else of the item is kept. Changes of that key written at `until_us`
    or before never land again. `by`: the requester. `done_us`: when a scan of every file found no
    trace of the item; None: unfinished, with the progress in `removed`.
    """

    key_hash: str
    salt: str
    until_us: int
    by: str
    removed: tuple[RemovedRows, ...] = ()
    done_us: int | None = None
