"""A table whose changes a Kinesis channel writes to S3: its objects, and its dead letters.

A channel delivers the records written to its stream while it is ACTIVE, exactly once and
unchanged; its objects are read like Firehose's. The dead letter of a record that it gives up does
not contain the record but only its number, so the record is read from the stream again, and lands
like any other. A record that the stream does not hold any more is a gap.

One channel is one source: another one, or one created again under the same name, delivers only
later records, so there is a gap in between (`capture.landing.gaps`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, BinaryIO

from cdc_pipeline.aws.cloudwatch import channel_ages
from cdc_pipeline.aws.kinesis import (
    MOST_RETENTION_US,
    WRITTEN_TO,
    KinesisStreams,
    active_destination,
    destinations,
)
from cdc_pipeline.aws.kinesis_channels import DELIVERING, Channel, describe_channel, find_channel
from cdc_pipeline.aws.s3.objects import SourceBucket
from cdc_pipeline.aws.shards import Page, StreamDescription
from cdc_pipeline.aws.table import TableDescription, describe_table
from cdc_pipeline.capture.sources.firehose_files import (
    CoveredTime,
    LostRecord,
    covered_by_lag,
    covered_by_metrics,
)
from cdc_pipeline.capture.sources.firehose_listing import ArrivedObject, arrived_since, target_of
from cdc_pipeline.capture.sources.firehose_objects import (
    BROKEN,
    CUT_OFF,
    Record,
    open_unpacked,
    records,
)
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.kinesis_records import parse_envelopes
from cdc_pipeline.capture.sources.replication import ReplicationMetric
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.json_stream import pieces
from cdc_pipeline.core.changes.kinesis_channel import DeadLetter, dead_letter, folder_of, has_days
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import ShardGoneError, SourceError, UnreadableError
from cdc_pipeline.core.log.entries import StreamRef
from cdc_pipeline.core.log.lineage import Shard
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.delivery_lag import Ages
from cdc_pipeline.core.transports import KINESIS_CHANNEL, NEW_AND_OLD_IMAGES
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.log import CaptureLog, Parts
from cdc_pipeline.settings.table import Firehose


@dataclass(frozen=True)
class ChannelShards:
    """Placeholder for the shards of a stream: a channel has none."""

    table: TableLake

    def describe(self, arn: str) -> StreamDescription:
        """Describe the channel: ENABLED while it delivers and the table writes to its stream.

        Raises `ShardGoneError` if there is no channel of that ARN.
        """
        aws = self.table.source
        channel = describe_channel(aws, arn)
        if channel is None:
            raise ShardGoneError(f"channel {arn} is gone")
        states = destinations(aws, self.table.name)
        is_written = any(states.get(stream) in WRITTEN_TO for stream, _ in channel.streams)
        is_on = is_written and channel.status in DELIVERING
        return StreamDescription(arn, "ENABLED" if is_on else "DISABLED", NEW_AND_OLD_IMAGES, [])

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        """None: there is no lineage."""
        return None

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """Raises `ShardGoneError`."""
        raise ShardGoneError(f"{arn} has no shards")

    def read(self, iterator: str) -> Page:
        """Raises `ShardGoneError`."""
        raise ShardGoneError(f"{iterator} is of no shard")


def open_channel(table: TableLake, described: TableDescription | None = None) -> Source:
    """Open a table whose changes a channel delivers, described now if not yet.

    Raises `SourceError`.
    """
    aws = table.source
    stream = active_destination(aws, table.name)
    channel = find_channel(aws, stream, table.settings.kinesis_channel.channel)
    if channel.status not in DELIVERING:
        raise SourceError(
            f"table {table.name}: channel {channel.name} is {channel.status}"
            + (f": {channel.reason}" if channel.reason else ""),
            fix="wait until it is ACTIVE; delete a FAILED one and create it again",
        )
    return _source(table, channel, stream, described)


def followed_channel(table: TableLake, stream: StreamRef) -> Source:
    """Open the channel that a log follows; the objects of one that is gone cannot be found."""
    aws = table.source
    channel = describe_channel(aws, stream.arn)
    if channel is not None and channel.created_us == stream.created_us:
        states = destinations(aws, table.name)
        streams = [arn for arn, _ in channel.streams]
        source = _source(table, channel, next((a for a in streams if a in states), streams[0]))
        return replace(source, table_id=stream.table_id)
    return Source(
        table.name,
        stream.table_id,
        stream.arn,
        NEW_AND_OLD_IMAGES,
        ChannelShards(table),
        transport=KINESIS_CHANNEL,
        created_us=stream.created_us,
    )


def record_disabled(table: TableLake, log: CaptureLog, state: LogState) -> None:
    """Log that the followed channel receives no changes any more, so that they are missing."""

    def off(now: LogState) -> Parts | None:
        if now.stream is None or now.stream.off:
            return None
        try:
            listed = ChannelShards(table).describe(now.stream.arn)
        except ShardGoneError:
            return None  # a new one differs in its name or its time of creation
        return None if listed.status == "ENABLED" else {"stream": replace(now.stream, off=True)}

    log.commit(state, off)


def _source(
    table: TableLake,
    channel: Channel,
    stream_arn: str,
    described: TableDescription | None = None,
) -> Source:
    aws = table.source
    described = described or describe_table(aws, table.name)
    pace = table.lake.settings.capture.reads_per_second
    metric_us = int(table.settings.kinesis.metric_minutes * 60_000_000)
    return Source(
        table=table.name,
        table_id=described.table_id,
        arn=channel.arn,
        view_type=NEW_AND_OLD_IMAGES,
        shards=ChannelShards(table),
        reader=ItemReader(aws, table.name, described.key_names, pace),
        transport=KINESIS_CHANNEL,
        created_us=channel.created_us,
        losses=ReplicationMetric(aws, table.name, metric_us),
        clock_offset_us=aws.clock_offset.offset_us,
        files=ChannelFiles(table, channel, stream_arn),
        target=target_of(described),
    )


def channel_folders(channel: Channel, stream_arn: str) -> tuple[str, str]:
    """Return the folders of a channel's objects and dead letters, as s3://bucket/prefix.

    Raises `SourceError` if the dead letters are among the objects.
    """
    stream = stream_arn.rpartition("/")[2]
    names = {"channel": channel.name, "channel_id": channel.channel_id, "stream": stream}
    folder = folder_of(channel.template, **names)
    data = f"s3://{channel.bucket}/{folder}"
    errors = f"s3://{channel.error_bucket}/{channel.error_prefix}"
    if errors.startswith(data):
        raise SourceError(
            f"channel {channel.name}: its dead letters ({errors}) are among its objects ({data})",
            fix="create it with an ErrorOutputPrefix beside the folder of its objects",
        )
    return data, errors


@dataclass(frozen=True)
class ChannelFiles:
    """Objects of one stream of a channel (`capture.sources.firehose_files.FileSource`)."""

    table: TableLake
    channel: Channel
    stream_arn: str

    @property
    def window_days(self) -> int:
        """See `FileSource`."""
        return self.table.settings.kinesis_channel.window_days

    @property
    def folders(self) -> Firehose:
        """Folders of its objects in the form of Firehose's settings; raises `SourceError`."""
        return Firehose.model_construct(
            prefixes=[channel_folders(self.channel, self.stream_arn)[0]],
            error_prefixes=[],
            layout=None if has_days(self.channel.template) else "last_modified",
            window_days=self.window_days,
        )

    @property
    def named_prefixes(self) -> Sequence[str]:
        """See `FileSource`: AWS reports the folder, so an empty one means an idle stream."""
        return ()

    def dimensions(self, stream_arn: str | None = None) -> dict[str, str]:
        """Return the dimensions of its metrics in CloudWatch."""
        return {
            "StreamName": (stream_arn or self.stream_arn).rpartition("/")[2],
            "ChannelName": self.channel.name,
            "ChannelId": self.channel.channel_id,
        }

    def arrived(self, since: date, now_us: int) -> list[ArrivedObject]:
        """See `FileSource`: objects, then dead letters."""
        objects = arrived_since(self.table.lake.aws, self.folders, since, now_us)
        letters = [letter for letter in self.letters() if letter.day >= since]
        return [*objects, *sorted(letters, key=lambda a: (a.day, a.object.modified, a.uri))]

    def letters(self) -> Iterator[ArrivedObject]:
        """List all dead letters: they are few, and in folders of any form.

        Their day is the day of their writing; the log keeps them by it.
        """
        bucket = SourceBucket(self.table.lake.aws, self.channel.error_bucket)
        for letter in bucket.objects(self.channel.error_prefix):
            if not letter.key.endswith("/"):
                yield ArrivedObject(bucket, letter, letter.modified.date())

    def records(
        self, arrived: ArrivedObject, file: BinaryIO, target: Target
    ) -> Iterator[Record | LostRecord]:
        """See `FileSource`."""
        _, errors = channel_folders(self.channel, self.stream_arn)
        if arrived.uri.startswith(errors):
            yield from self._dead_letters(arrived, file, target)
            return
        for record in records(file, arrived.uri, target):
            # The content is the same as in Firehose's objects; only the transport differs.
            change = record.change and record.change._replace(transport=KINESIS_CHANNEL)
            yield record._replace(change=change)

    def reached(self, listed_us: int) -> CoveredTime:
        """By the channel's metric if it is measured, else `lag_minutes` ago."""
        chosen = self.table.settings.kinesis_channel
        if not chosen.measured:
            return covered_by_lag(chosen.lag_minutes, listed_us)
        aws = self.table.source

        def ages(from_us: int) -> list[Ages]:
            return [channel_ages(aws, self.dimensions(), from_us, listed_us)]

        return covered_by_metrics(aws, self.table.settings, ages, chosen.lag_minutes, listed_us)

    # Dead letters

    def _dead_letters(
        self, arrived: ArrivedObject, file: BinaryIO, target: Target
    ) -> Iterator[Record | LostRecord]:
        try:
            for value, raw in pieces(open_unpacked(file)):
                yield self._dead_letter(arrived, value, raw, target)
        except BROKEN:
            yield Record(None, (CUT_OFF, arrived.uri.encode()), False, 0)

    def _dead_letter(
        self, arrived: ArrivedObject, value: Any, raw: bytes, target: Target
    ) -> Record | LostRecord:
        try:
            letter = dead_letter(value)
        except UnreadableError as error:
            return Record(None, (error.reason, raw), False, len(raw))
        if letter.stream_arn not in (None, self.stream_arn):
            return Record(None, None, False, len(raw))
        return self._read_again(arrived, letter, target)

    def _read_again(
        self, arrived: ArrivedObject, letter: DeadLetter, target: Target
    ) -> Record | LostRecord:
        """Read the record of a dead letter from the stream; raises `SourceError`."""
        streams = KinesisStreams(self.table.source, self.table.name)
        try:
            raw, retention_us = streams.record_at(
                self.stream_arn, letter.shard_id, letter.sequence_number
            )
        except ShardGoneError:
            raw, retention_us = None, MOST_RETENTION_US
        if raw is None:
            # A channel may have tried for the whole retention of the stream, and delivers no record
            # older than itself.
            given_up_us = round(arrived.object.modified.timestamp() * 1_000_000)
            return LostRecord(max(given_up_us - retention_us, self.channel.created_us))
        changes, unreadable, _ = parse_envelopes(
            [raw],
            target=target,
            shard_id=letter.shard_id,
            encodings=self.table.settings.kinesis.binary_encodings,
        )
        change = changes[0]._replace(transport=KINESIS_CHANNEL) if changes else None
        return Record(change, unreadable[0] if unreadable else None, False, len(raw))
