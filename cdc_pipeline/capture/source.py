"""What capture needs of a table's source, checked before anything is read."""

from dataclasses import dataclass
from typing import Protocol

from cdc_pipeline.aws.session import AwsSession
from cdc_pipeline.aws.streams import Page, StreamDescription
from cdc_pipeline.aws.table import TableDescription, describe_backups, describe_table
from cdc_pipeline.capture.completion import ItemReader
from cdc_pipeline.core.changes import DYNAMODB_STREAMS
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log_parts import MIRROR_VIEWS


@dataclass(frozen=True)
class Source:
    """A table's stream as it is now: which table, which stream, and how to read it.

    `reader` completes the events of a stream without new images.
    """

    table: str
    table_id: str
    arn: str
    view_type: str
    shards: "ShardSource"
    reader: ItemReader | None = None
    transport: str = DYNAMODB_STREAMS

    @property
    def full_images(self) -> bool:
        """Whether the stream's events hold the new item."""
        return self.view_type in MIRROR_VIEWS


class ShardSource(Protocol):
    """A stream of shards; errors as `aws.streams.DynamoDBStreams` documents them."""

    def describe(self, arn: str) -> StreamDescription:
        """All shards that the stream lists now."""
        ...

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """Where to read on behind a sequence number, or from a shard's start."""
        ...

    def read(self, iterator: str) -> Page:
        """The next page of a shard."""
        ...


def table_with_stream(
    aws: AwsSession, name: str, *, complete_by_read: bool = False
) -> TableDescription:
    """The table, known to have a stream that a mirror can be made from; raises `SourceError`."""
    table = describe_table(aws, name)
    if table.stream_arn is None:
        raise SourceError(
            f"table {name}: its stream is off",
            fix=f"aws dynamodb update-table --table-name {name} --stream-specification "
            "StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES",
        )
    if table.view_type not in MIRROR_VIEWS and not complete_by_read:
        raise SourceError(
            f"table {name}: its stream has view type {table.view_type}, which lacks new images; "
            f"a mirror needs one of {', '.join(MIRROR_VIEWS)}",
            fix="disable the stream and enable it with NEW_AND_OLD_IMAGES, or set "
            "`complete_by_read: true` for the table (reads every changed item)",
        )
    return table


def require_backups(aws: AwsSession, name: str) -> None:
    """Point-in-time recovery must be on for exports; raises `SourceError`."""
    if not describe_backups(aws, name).enabled:
        raise SourceError(
            f"table {name}: point-in-time recovery is off, so it cannot be exported",
            fix=f"aws dynamodb update-continuous-backups --table-name {name} "
            "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true",
        )
