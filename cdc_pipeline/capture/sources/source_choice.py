"""Choice of the stream that a table's changes come from, by its settings or by its log."""

from dataclasses import replace
from typing import NamedTuple

from cdc_pipeline.aws.client.session import cause_code
from cdc_pipeline.aws.kinesis import KinesisStreams, active_destination
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.aws.table import TableDescription, describe_table
from cdc_pipeline.capture.sources.firehose_files import FirehoseFiles
from cdc_pipeline.capture.sources.firehose_listing import open_firehose, target_of
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.kinesis_channel import followed_channel, open_channel
from cdc_pipeline.capture.sources.reading import KinesisProtocol, StreamsProtocol
from cdc_pipeline.capture.sources.replication import ReplicationMetric, replication_late_us
from cdc_pipeline.capture.sources.source import Source, require_stream
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
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.table import Table


def open_source(
    table: TableLake,
    transport: str | None = None,
    described: TableDescription | None = None,
) -> Source:
    """Open the stream of a table; raises `SourceError` if it cannot be mirrored.

    `transport`: instead of the one in the settings. `described`: the table, if it was described
    just now; a stream that was enabled again since would be missed.
    """
    aws = table.source
    chosen = transport or table.settings.transport
    if chosen == FIREHOSE:
        return _firehose(table, described)
    if chosen == KINESIS_CHANNEL:
        return open_channel(table, described)
    if chosen == KINESIS:
        arn = active_destination(aws, table.name)
        described = described or describe_table(aws, table.name)
        shards = KinesisStreams(aws, table.name)
        created_us = _created_us(shards, table.settings, arn)
        stream = _KinesisStream(described.table_id, arn, created_us)
        return _kinesis(table, shards, stream, described)
    described = described_table(table, DYNAMODB_STREAMS, described)
    assert described.stream_arn  # checked by require_stream
    return Source(
        table=table.name,
        table_id=described.table_id,
        arn=described.stream_arn,
        view_type=described.view_type or "",
        shards=DynamoDBStreams(aws),
        reader=_reader(table, described),
        reading=StreamsProtocol(target_of(described)),
        clock_offset_us=aws.clock_offset.offset_us,
    )


def described_table(
    table: TableLake,
    transport: str | None = None,
    described: TableDescription | None = None,
) -> TableDescription:
    """Describe a table, unless `described`; raises `SourceError` without a stream to mirror."""
    described = described or describe_table(table.source, table.name)
    if (transport or table.settings.transport) == DYNAMODB_STREAMS:
        require_stream(described, complete_by_read=table.settings.complete_by_read)
    return described


def followed_source(table: TableLake, stream: StreamRef) -> Source:
    """Open the stream that a log follows, even if it is disabled or gone; raises `SourceError`."""
    if stream.transport == KINESIS:
        shards = KinesisStreams(table.source, table.name)
        try:
            described = describe_table(table.source, table.name)
        except SourceError as error:
            if cause_code(error) != "ResourceNotFoundException":
                raise
            described = None
        followed = _KinesisStream(stream.table_id, stream.arn, stream.created_us)
        return _kinesis(table, shards, followed, described)
    if stream.transport == FIREHOSE:
        return _firehose(table)
    if stream.transport == KINESIS_CHANNEL:
        return followed_channel(table, stream)
    aws = table.source
    return Source(
        table.name,
        stream.table_id,
        stream.arn,
        stream.view_type,
        DynamoDBStreams(aws),
        clock_offset_us=aws.clock_offset.offset_us,
    )


def with_measured_lateness(table: TableLake, source: Source) -> tuple[Source, tuple[str, ...]]:
    """Return a source with DynamoDB's measured lateness, and warnings.

    One request to CloudWatch for Kinesis; other sources are returned unchanged.
    """
    reading = source.reading
    if not isinstance(reading, KinesisProtocol):
        return source, ()
    late = replication_late_us(table.source, table.settings, table.log.now_us())
    measured = replace(reading, late_seconds=late.us / 1_000_000)
    return replace(source, reading=measured), late.warnings


def _firehose(table: TableLake, described: TableDescription | None = None) -> Source:
    source = open_firehose(table, described)
    assert table.settings.firehose is not None  # the settings require it
    return replace(source, files=FirehoseFiles(table, table.settings.firehose))


class _KinesisStream(NamedTuple):
    """Identity of a table's Kinesis stream; see `StreamRef`."""

    table_id: str
    arn: str
    created_us: int


def _kinesis(
    table: TableLake,
    shards: KinesisStreams,
    stream: _KinesisStream,
    described: TableDescription | None,
) -> Source:
    settings = table.settings.kinesis
    target = Target(table.name, stream.table_id, {})
    if described is not None:
        # A table that was created again may have other keys.
        target = replace(target_of(described), table_id=stream.table_id)
        is_same_table = described.table_id == stream.table_id
        target = target if is_same_table else replace(target, key_types={})
    metric_us = int(settings.metric_minutes * 60_000_000)
    return Source(
        table=table.name,
        table_id=stream.table_id,
        arn=stream.arn,
        view_type=NEW_AND_OLD_IMAGES,
        shards=shards,
        # Reads the item where the order of its changes cannot be decided.
        reader=_reader(table, described) if described else None,
        transport=KINESIS,
        reading=KinesisProtocol(target, settings.binary_encodings, settings.late_seconds),
        created_us=stream.created_us,
        losses=ReplicationMetric(table.source, table.name, metric_us),
        clock_offset_us=table.source.clock_offset.offset_us,
    )


def _reader(table: TableLake, described: TableDescription) -> ItemReader:
    pace = table.lake.settings.capture.reads_per_second
    return ItemReader(table.source, table.name, described.key_names, pace)


def _created_us(shards: KinesisStreams, table: Table, arn: str) -> int:
    try:
        return shards.created_us(arn)
    except ShardGoneError as error:
        raise SourceError(
            f"table {table.name}: its Kinesis stream is gone: {error}",
            fix=f"aws dynamodb disable-kinesis-streaming-destination --table-name {table.name} "
            f"--stream-arn {arn}, then enable it with a stream that exists",
        ) from error
