"""The source of a table's changes, checked before anything is read."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.shards import Page, StreamDescription
from cdc_pipeline.aws.table import TableDescription, describe_backups
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.reading import StreamProtocol, StreamsProtocol
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.entries import StreamRef
from cdc_pipeline.core.log.lineage import Shard
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, MIRROR_VIEWS

if TYPE_CHECKING:
    from cdc_pipeline.capture.sources.firehose_files import FileSource


@dataclass(frozen=True)
class Source:
    """A table's current stream: table, stream, and the means to read it.

    `reader`: completes the events of a stream without new images. `created_us`: distinguishes
    streams of one ARN. `losses`: counts the records that DynamoDB could not write to the stream,
    None for streams without losses. `clock_offset_us`: lead of this machine's clock over AWS's,
    None: unknown. `files`: objects to read instead of shards, None for streams, and for a channel
    that is gone. `target`: the table that records in such objects must belong to.
    """

    table: str
    table_id: str
    arn: str
    view_type: str
    shards: "ShardSource"
    reader: ItemReader | None = None
    transport: str = DYNAMODB_STREAMS
    reading: StreamProtocol = field(default_factory=StreamsProtocol)
    created_us: int = 0
    losses: "Losses | None" = None
    clock_offset_us: Callable[[], int | None] = lambda: None
    files: "FileSource | None" = None
    target: Target | None = None

    @property
    def full_images(self) -> bool:
        """Whether the stream's events contain the new item."""
        return self.view_type in MIRROR_VIEWS

    def is_same_stream(self, stream: StreamRef) -> bool:
        """Whether this is the stream that a log follows, of the same table."""
        identity = (self.transport, self.arn, self.created_us, self.table_id)
        return identity == (stream.transport, stream.arn, stream.created_us, stream.table_id)

    def is_followed(self, stream: StreamRef) -> bool:
        """Whether a log that follows `stream` continues with this one, without a gap."""
        return self.is_same_stream(stream) and not stream.off

    def ref(self, listed: StreamDescription, generation: int, recorded_us: int) -> StreamRef:
        """Return the reference to this stream for a log that begins to follow it."""
        return StreamRef(
            self.table_id,
            self.arn,
            self.view_type,
            generation,
            recorded_us,
            self.transport,
            retention_hours=listed.retention_hours,
            created_us=self.created_us,
        )


class Losses(Protocol):
    """Counts of records that DynamoDB could not write to a table's stream."""

    @property
    def late_us(self) -> int:
        """Delay, in µs, after which the losses of a time are known."""
        ...

    def count(self, from_us: int, to_us: int) -> int:
        """Count records lost in [from_us, to_us), whole minutes; raises `SourceError`."""
        ...


class ShardSource(Protocol):
    """A stream of shards; errors as documented in `aws.shards.ShardClient`."""

    def describe(self, arn: str) -> StreamDescription:
        """List all shards of the stream."""
        ...

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        """List the visible children of an ended shard; None: only `describe` lists shards."""
        ...

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """Return an iterator after a sequence number, or at the start of a shard."""
        ...

    def read(self, iterator: str) -> Page:
        """Read the next page of a shard."""
        ...


def require_stream(table: TableDescription, *, complete_by_read: bool = False) -> None:
    """Raise `SourceError` if a table's stream cannot be mirrored."""
    if table.stream_arn is None:
        raise SourceError(
            f"table {table.name}: its stream is off",
            fix=f"aws dynamodb update-table --table-name {table.name} --stream-specification "
            "StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES",
        )
    if table.view_type not in MIRROR_VIEWS and not complete_by_read:
        raise SourceError(
            f"table {table.name}: its stream has view type {table.view_type}, which lacks new "
            f"images; a mirror needs one of {', '.join(MIRROR_VIEWS)}",
            fix="disable the stream and enable it with NEW_AND_OLD_IMAGES, or set "
            "`complete_by_read: true` for the table (reads every changed item)",
        )


def require_backups(aws: AwsSession, name: str) -> None:
    """Raise `SourceError` if point-in-time recovery is off: exports need it."""
    if not describe_backups(aws, name).enabled:
        raise SourceError(
            f"table {name}: point-in-time recovery is off, so it cannot be exported",
            fix=f"aws dynamodb update-continuous-backups --table-name {name} "
            "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true",
        )
