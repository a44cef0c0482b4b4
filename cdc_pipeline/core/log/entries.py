"""What entries of the capture log are made of: streams, shards, objects, baselines, gaps, heals."""

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
"""Of changes from before capture began: earlier than every baseline, so no state shows them."""
FIRST_GENERATION = 1
"""In which capture begins."""


@dataclass(frozen=True)
class StreamRef:
    """Which stream is captured. `recorded_us`: its positions were recorded before (time of P).

    `transport`: as in the settings. `arn`: of a DynamoDB or Kinesis stream, or where Firehose's
    files are. `since_us`: changes written before came another way and are left out.
    `retention_hours`: how long it keeps a record. `created_us`: tells streams of one ARN apart.
    `off`: the table was seen not to write to it, so changes are missing even if it does again.
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
        """Whether its events hold the new item."""
        return self.view_type in MIRROR_VIEWS

    @property
    def retention_us(self) -> int:
        """How long it keeps a record; older ones may vanish any moment."""
        return self.retention_hours * 3_600_000_000


@dataclass(frozen=True)
class Cut:
    """A switch of transports on its way: the old one counts before `at_us`, `transport` from then.

    A whole second, because DynamoDB Streams tells no more than that of a write time and Kinesis up
    to microseconds: both divide their changes alike, as both report one clock, that of the write.
    (Did they not, the check `unbroken_chain` would show it.)
    """

    transport: str
    at_us: int


@dataclass(frozen=True)
class ShardState:
    """How far one shard has been landed.

    `sequence_number`: the last one read, None before the first. `read_to_us`: every change
    written to this shard before that time has been read. `finished` means closed and read to
    its end, and nothing else; `lost`: gone before that, its rest is in a gap. `adjacent_id`: the
    other parent of a shard that two were merged into.
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
    `through`: of an object made by compaction, the last entry whose rows it holds.
    `crc32`: of its bytes; None in logs of older versions.
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
    """One JSON-lines object of records that could not be read, with counts by reason.

    `was`: an erasure counts it again, and these counts of it are in the log's sums by now.
    """

    key: str
    rows: int
    reasons: dict[str, int]
    was: dict[str, int] | None = None


@dataclass(frozen=True)
class SourceFile:
    """An object that Firehose wrote, as far as its records have landed.

    `etag`: of the version that was read. `arrived`: the day that its folder stands for. `rows`: its
    records so far, quarantined ones and `others` (of other tables) too. `days`: the write days of
    its changes. `legacy_us`: the newest time of its rows that an older Lambda made, 0: it has none.
    `whole`: all of it; of a large one, parts land in several entries. `unread`: it could not be
    read as long as its folder was looked at, so it is tried again by its name.
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
    """A full export on its way to being the baseline of a generation.

    `recorded_us`: time(P); the stream positions it hands over to were recorded before, and all that
    had landed then was written before. `export_time_us`: T. `snapshot_id`: the Iceberg snapshot of
    `<table>_snapshot` that holds its verified items; None until it is staged. `attempt` counts
    exports of it that failed. `shadow`: held beside the live baseline until somebody decides;
    `discarded`: decided against.
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
        """Whether its items are verified and in the lake, and may be shown to readers."""
        return self.snapshot_id is not None and not self.shadow and not self.discarded


@dataclass(frozen=True)
class Gap:
    """Changes that were accepted in a time range and can no longer be read from the stream.

    Everything written to `shards` before `from_us` has been read, and everything written from
    `to_us` on can be read again, both by AWS's clock: they lie `margin_us` outside of what the
    writer's clock said, 0 in logs of older versions. `heal_generation` is reserved for what heals
    it: later than all that landed before the gap, earlier than all that lands after it. `entry`:
    the log entry that opened it, which is its name.

    Backfills open and heal a gap in one entry: of a day "before capture", and of "objects lost"
    from the lake, whose changes land in the generation that they had (`repair.backfill`).

    "not replicated": DynamoDB counted records that it could not write to Kinesis; no shard lost
    them, so `shards` is empty. "not delivered": a Kinesis channel gave up records that its stream
    does not hold any more.
    """

    cause: Cause
    shards: tuple[str, ...]
    from_us: int
    to_us: int
    heal_generation: int
    entry: int = 0
    margin_us: int = 0

    def __str__(self) -> str:
        """What happened, for people."""
        return f"{self.cause}, {len(self.shards)} shards" if self.shards else self.cause


@dataclass(frozen=True)
class HealWindow:
    """One incremental export of a heal: changes written in [from_us, to_us).

    `attempt` counts exports of it that failed; `files`: data files whose lines have landed;
    `done`: all of them, or an export that was not needed.
    """

    from_us: int
    to_us: int
    attempt: int = 0
    export_arn: str | None = None
    files: tuple[str, ...] = ()
    done: bool = False


@dataclass(frozen=True)
class Heal:
    """How far the healing of a gap is. `gap`: the entry that opened it.

    `also`: earlier gaps that it heals, too, because they overlap. `reread`: items read again by
    key, because an insert and a delete within a window leave no line; None until that is done.
    `healed`: everything that the gaps lost has landed.
    """

    gap: int
    windows: tuple[HealWindow, ...]
    reread: int | None = None
    healed: bool = False
    also: tuple[int, ...] = ()


@dataclass(frozen=True)
class Late:
    """Changes that landed although everything of their time was said to have landed before.

    `behind_us`: how much older than the watermark the oldest of them was.
    """

    rows: int
    behind_us: int


NOTHING_LATE = Late(0, 0)


@dataclass(frozen=True)
class Removed:
    """What an erasure removed in one place of the lake: files touched or deleted, and rows."""

    place: str
    files: int
    rows: int


@dataclass(frozen=True)
class Erasure:
    """An item that was erased on request: its suppression, and the record of what was done.

    It is in the log because whoever lands anything must have seen it: an entry stands only on
    those before it. `key_hash`: HMAC-SHA256 of the item's canonical key under `salt`, both in hex;
    nothing else of the item is kept. Changes of that key written at `until_us` or before never
    land again. `by`: who asked. `done_us`: when a scan of every file found nothing of the item;
    None: not finished, and `removed` is as far as it has come.
    """

    key_hash: str
    salt: str
    until_us: int
    by: str
    removed: tuple[Removed, ...] = ()
    done_us: int | None = None
