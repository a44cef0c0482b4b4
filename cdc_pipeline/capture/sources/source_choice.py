"""Which stream a table's changes come from, by its settings or by its log."""

from dataclasses import replace

from cdc_pipeline.aws.client.session import code_behind
from cdc_pipeline.aws.kinesis import KinesisStreams, active_destination
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.aws.table import TableDescription, describe_table
from cdc_pipeline.capture.sources.channel import followed_channel, open_channel
from cdc_pipeline.capture.sources.firehose_files import FirehoseFiles
from cdc_pipeline.capture.sources.firehose_listing import open_files, target_of
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.reading import KinesisReading, StreamsReading
from cdc_pipeline.capture.sources.replication import ReplicationMetric, replication_late_us
from cdc_pipeline.capture.sources.source import Source, table_with_stream
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import ShardGoneError, SourceError
from cdc_pipeline.core.log.entries import StreamRef
from cdc_pipeline.core.transports import (
    DYNAMODB_STREAMS,
    FIREHOSE,
    KINESIS,
    KINESIS_CHANNEL,
    NEW_AND_OLD_IMAGES,
)
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.model import Table


def open_source(lake: Lake, table: Table, transport: str | None = None) -> Source:
    """The stream of a table, checked to be one that can be mirrored; raises `SourceError`.

    `transport`: another one than the settings say.
    """
    aws = lake.source(table)
    if (transport or table.transport) == FIREHOSE:
        return _firehose(lake, table)
    if (transport or table.transport) == KINESIS_CHANNEL:
        return open_channel(lake, table)
    if (transport or table.transport) == KINESIS:
        arn = active_destination(aws, table.name)
        found = describe_table(aws, table.name)
        shards = KinesisStreams(aws, table.name)
        created_us = _created_us(shards, table, arn)
        return _kinesis(lake, table, shards, found.table_id, arn, created_us, found)
    found = described_table(lake, table, DYNAMODB_STREAMS)
    assert found.stream_arn  # table_with_stream saw to it
    return Source(
        table=table.name,
        table_id=found.table_id,
        arn=found.stream_arn,
        view_type=found.view_type or "",
        shards=DynamoDBStreams(aws),
        reader=_reader(lake, table, found),
        reading=StreamsReading(target_of(found)),
        clock_offset_us=aws.clock_offset.offset_us,
    )


def described_table(lake: Lake, table: Table, transport: str | None = None) -> TableDescription:
    """The table, known to have what its transport needs of it; raises `SourceError`."""
    aws = lake.source(table)
    if (transport or table.transport) != DYNAMODB_STREAMS:
        return describe_table(aws, table.name)
    return table_with_stream(aws, table.name, complete_by_read=table.complete_by_read)


def followed_source(lake: Lake, table: Table, stream: StreamRef) -> Source:
    """The stream that a log follows, whatever has become of it since; raises `SourceError`."""
    if stream.transport == KINESIS:
        shards = KinesisStreams(lake.source(table), table.name)
        try:
            found = describe_table(lake.source(table), table.name)
        except SourceError as error:
            if code_behind(error) != "ResourceNotFoundException":
                raise
            found = None
        return _kinesis(lake, table, shards, stream.table_id, stream.arn, stream.created_us, found)
    if stream.transport == FIREHOSE:
        return _firehose(lake, table)
    if stream.transport == KINESIS_CHANNEL:
        return followed_channel(lake, table, stream)
    aws = lake.source(table)
    return Source(
        table.name,
        stream.table_id,
        stream.arn,
        stream.view_type,
        DynamoDBStreams(aws),
        clock_offset_us=aws.clock_offset.offset_us,
    )


def with_measured_lateness(
    lake: Lake, table: Table, source: Source
) -> tuple[Source, tuple[str, ...]]:
    """A source that is about to be read, as late as DynamoDB is; and what to tell about that.

    Of Kinesis, one request of CloudWatch; others as they are.
    """
    reading = source.reading
    if not isinstance(reading, KinesisReading):
        return source, ()
    late = replication_late_us(lake.source(table), table, lake.log(table).now_us())
    measured = replace(reading, late_seconds=late.us / 1_000_000)
    return replace(source, reading=measured), late.warnings


def _firehose(lake: Lake, table: Table) -> Source:
    source = open_files(lake, table)
    assert table.firehose is not None  # the settings say so
    return replace(source, files=FirehoseFiles(lake, table, table.firehose))


def _kinesis(
    lake: Lake,
    table: Table,
    shards: KinesisStreams,
    table_id: str,
    arn: str,
    created_us: int,
    found: TableDescription | None,
) -> Source:
    settings = table.kinesis
    target = Target(table.name, table_id, {})
    if found is not None:
        # Of a table that was made again, the keys may be others than they were.
        target = replace(target_of(found), table_id=table_id)
        target = target if found.table_id == table_id else replace(target, key_types={})
    metric_us = int(settings.metric_minutes * 60_000_000)
    return Source(
        table=table.name,
        table_id=table_id,
        arn=arn,
        view_type=NEW_AND_OLD_IMAGES,
        shards=shards,
        # Where the order of changes cannot be told, their item is read.
        reader=_reader(lake, table, found) if found else None,
        transport=KINESIS,
        reading=KinesisReading(target, settings.binary_encodings, settings.late_seconds),
        created_us=created_us,
        losses=ReplicationMetric(lake.source(table), table.name, metric_us),
        clock_offset_us=lake.source(table).clock_offset.offset_us,
    )


def _reader(lake: Lake, table: Table, found: TableDescription) -> ItemReader:
    pace = lake.settings.capture.reads_per_second
    return ItemReader(lake.source(table), table.name, found.key_names, pace)


def _created_us(shards: KinesisStreams, table: Table, arn: str) -> int:
    try:
        return shards.created_us(arn)
    except ShardGoneError as error:
        raise SourceError(
            f"table {table.name}: the Kinesis stream that it writes to is gone: {error}",
            fix=f"aws dynamodb disable-kinesis-streaming-destination --table-name {table.name} "
            f"--stream-arn {arn}, then enable it with a stream that exists",
        ) from error
