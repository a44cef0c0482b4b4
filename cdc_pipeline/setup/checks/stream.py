"""Preflight of a table's changes: its stream, or the folders they are delivered to."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cdc_pipeline.aws.cloudwatch import channel_ages, failed_to_replicate
from cdc_pipeline.aws.kinesis import WRITTEN_TO, KinesisStreams, active_destination, destinations
from cdc_pipeline.aws.kinesis_channels import DELIVERING, channel_arn, find_channel
from cdc_pipeline.aws.shards import client_of
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.passes import reads_per_pass
from cdc_pipeline.capture.shards.shard_reader import polls_needed
from cdc_pipeline.capture.sources.firehose_listing import target_of
from cdc_pipeline.capture.sources.kinesis_channel import channel_folders
from cdc_pipeline.capture.sources.source import ShardSource
from cdc_pipeline.core.errors import (
    ExpiredIteratorError,
    ShardGoneError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.core.plans.iam import S3Location, lake_statements
from cdc_pipeline.core.plans.prices import kinesis_usd, stream_reads_usd
from cdc_pipeline.core.transports import (
    DYNAMODB_STREAMS,
    FIREHOSE,
    KINESIS,
    KINESIS_CHANNEL,
    MIRROR_VIEWS,
    NEW_AND_OLD_IMAGES,
)
from cdc_pipeline.setup.checks.findings import PIPELINE, AwsProbe, Finding
from cdc_pipeline.setup.checks.firehose_files import check_files
from cdc_pipeline.setup.checks.table import ReachedTable, source_table

_FULL_VIEW = f"StreamEnabled=true,StreamViewType={NEW_AND_OLD_IMAGES}"


def check_stream(reached: ReachedTable) -> Iterator[Finding]:
    """Check the source of changes of the table's transport."""
    return _TRANSPORTS[reached.table.settings.transport](reached)


def _dynamodb_stream(reached: ReachedTable) -> Iterator[Finding]:
    """Check that the table's stream is on, has new images and can be read."""
    described, update = reached.described, reached.command("update-table")
    turn_on = f"{update} --stream-specification {_FULL_VIEW}"
    if described.stream_arn is None:
        yield Finding("stream", False, "off", turn_on, "stream")
        return
    view = str(described.view_type)
    if view not in MIRROR_VIEWS and not reached.table.settings.complete_by_read:
        off = f"{update} --stream-specification StreamEnabled=false"
        wait = reached.command("wait table-exists")
        fix = f"`complete_by_read: true` in the settings, or {off} && {wait} && {turn_on}"
        yield Finding("stream", False, f"{view} lacks new images", fix)
        return
    streams = DynamoDBStreams(reached.source)
    shards = _read_page(reached, streams, described.stream_arn, "dynamodb:DescribeStream")
    options = reached.table.lake.settings.capture
    # A capture reads each open shard until enough reads in a row are empty.
    reads = polls_needed(options.empty_polls, options.interval_seconds * 1_000_000)
    reached.report.stream_usd = stream_reads_usd(shards, options.interval_seconds, reads)
    served = reads_per_pass(options.empty_polls, options.interval_seconds)
    reached.report.served_stream_usd = stream_reads_usd(shards, options.interval_seconds, served)
    yield Finding("stream", True, f"{_shards(shards)}, {view}")


def _read_page(reached: ReachedTable, streams: ShardSource, arn: str, listing: str) -> int:
    """Read one page of a stream, return its number of open shards.

    `listing`: the action that lists shards.
    """
    what, service = f"stream {arn}", listing.partition(":")[0]
    with reached.probe.check("stream", listing, what):
        shards = streams.describe(arn).shards
    try:
        for shard in shards[-1:]:
            with reached.probe.check("stream", f"{service}:GetShardIterator", what):
                iterator = streams.iterator(arn, shard.shard_id, None)
            with reached.probe.check("stream", f"{service}:GetRecords", what):
                streams.read(iterator)
    except (ShardGoneError, TrimmedDataError, ExpiredIteratorError):
        pass  # the call was allowed, which is all this check needs
    return sum(shard.ending is None for shard in shards)


def _kinesis(reached: ReachedTable) -> Iterator[Finding]:
    """Check that the table writes to a Kinesis stream and the stream can be read."""
    name = reached.table.name
    action = "dynamodb:DescribeKinesisStreamingDestination"
    with reached.probe.check("stream", action, f"Kinesis destination of table {name}"):
        statuses = destinations(reached.source, name)
    active = [arn for arn, status in statuses.items() if status in WRITTEN_TO]
    if not active:
        listed = ", ".join(f"{arn} is {status}" for arn, status in statuses.items())
        source = source_table(reached.table, reached.report)
        arn = next(iter(statuses), source.kinesis_streams.replace("*", "STREAM"))
        fix = (
            f"{reached.command('enable-kinesis-streaming-destination')} --stream-arn {arn} "
            "--enable-kinesis-streaming-configuration "
            "ApproximateCreationDateTimePrecision=MICROSECOND"
        )
        yield Finding("stream", False, listed or "no Kinesis destination", fix)
        return
    streams = KinesisStreams(reached.source, name)
    with reached.probe.check("stream", "kinesis:DescribeStreamSummary", f"stream {active[0]}"):
        kinesis = client_of(reached.source, "kinesis")
        answer = kinesis.describe_stream_summary(StreamARN=active[0])
    summary = answer["StreamDescriptionSummary"]
    status, mode = summary["StreamStatus"], summary.get("StreamModeDetails", {})
    if status not in WRITTEN_TO:
        yield Finding("stream", False, f"{active[0]} is {status}", "wait until it is ACTIVE")
        return
    shards = _read_page(reached, streams, active[0], "kinesis:ListShards")
    with reached.probe.check("stream", "cloudwatch:GetMetricStatistics", "skipped records"):
        failed_to_replicate(reached.source, name, 0, 60_000_000)
    on_demand = mode.get("StreamMode") == "ON_DEMAND"
    reached.report.stream_usd = kinesis_usd(shards, on_demand=on_demand)
    stream, hours = active[0].rpartition("/")[2], summary["RetentionPeriodHours"]
    unusual = unusual_settings(summary)
    yield Finding("stream", True, f"{stream}: {_shards(shards)}, {hours} h{unusual}")


def _kinesis_channel(reached: ReachedTable) -> Iterator[Finding]:
    """Check that a channel delivers the table's stream to folders that can be read."""
    name, chosen = reached.table.name, reached.table.settings.kinesis_channel
    action = "dynamodb:DescribeKinesisStreamingDestination"
    with reached.probe.check("stream", action, f"Kinesis destination of table {name}"):
        stream_arn = active_destination(reached.source, name)
    stream = f"stream {stream_arn.rpartition('/')[2]}"
    with reached.probe.check("stream", "kinesis:DescribeStreamSummary", stream):
        kinesis = client_of(reached.source, "kinesis")
        answer = kinesis.describe_stream_summary(StreamARN=stream_arn)
    summary = answer["StreamDescriptionSummary"]
    mode = summary.get("StreamModeDetails", {}).get("StreamMode")
    if mode != "ON_DEMAND":
        command = f"aws kinesis update-stream-mode --stream-arn {stream_arn}"
        fix = f"{command} --stream-mode-details StreamMode=ON_DEMAND"
        yield Finding("stream", False, f"{stream} is {mode}; channels need ON_DEMAND", fix)
        return
    if summary.get("KeyId", "").endswith("alias/aws/kinesis"):
        fix = (
            "encrypt it with a key of your own, or stop encryption: aws kinesis "
            "stop-stream-encryption"
        )
        problem = f"{stream} has the key alias/aws/kinesis, which channels do not support"
        yield Finding("stream", False, problem, fix)
        return
    with reached.probe.check("stream", "kinesis:ListChannels", stream):
        arn = channel_arn(reached.source, stream_arn, chosen.channel)
    with reached.probe.check("stream", "kinesis:DescribeChannel", stream):
        channel = find_channel(reached.source, stream_arn, arn)
    title = f"channel {channel.name} of {stream}"
    if channel.status not in DELIVERING:
        fix = "wait until it is ACTIVE; if it FAILED, delete it and create it again"
        reason = f": {channel.reason}" if channel.reason else ""
        yield Finding("stream", False, f"{title} is {channel.status}{reason}", fix)
        return
    record_format = channel.record_format(stream_arn)
    if record_format not in ("JSON", "STRING", "BYTE_ARRAY"):
        fix = "create it with RecordFormatType JSON, which delivers records unchanged"
        yield Finding("stream", False, f"{title} takes records as {record_format}", fix)
        return
    try:
        places = channel_folders(channel, stream_arn)
    except SourceError as error:
        yield Finding("stream", False, error.message, error.fix)
        return
    if chosen.measured:
        where = {"StreamName": stream_arn.rpartition("/")[2], "ChannelName": channel.name}
        where["ChannelId"] = channel.channel_id
        with reached.probe.check("stream", "cloudwatch:GetMetricStatistics", "delivery"):
            channel_ages(reached.source, where, 0, 60_000_000)
    empty = [place for place in places if not _read_folder(reached, place)]
    note = ", which is empty" if places[0] in empty else ""
    reached.report.stream_usd = kinesis_usd(0, on_demand=True)
    yield Finding(
        "stream",
        True,
        f"{title}: {record_format}, {channel.compression}, every {channel.freshness_seconds} s "
        f"to {places[0]}{note}",
    )


def _firehose(reached: ReachedTable) -> Iterator[Finding]:
    """Check that Firehose's folders can be listed and their objects read."""
    chosen = reached.table.settings.firehose
    prefixes = [*chosen.prefixes, *chosen.error_prefixes] if chosen else []
    empty = [prefix for prefix in prefixes if not _read_folder(reached, prefix)]
    yield Finding("stream", True, f"{len(prefixes)} folders, {len(empty)} of them empty")
    if chosen is not None:
        yield from check_files(reached.table.lake.aws, chosen, target_of(reached.described))


def _read_folder(reached: ReachedTable, prefix: str) -> bool:
    """Read a byte of one object in the folder; return whether there is one."""
    bucket, key = split_s3(prefix)
    probe = AwsProbe(
        PIPELINE,
        lake_statements(None, [S3Location(bucket, key, reached.table.lake.aws.partition)]),
    )
    s3 = reached.table.lake.aws.client("s3")
    with probe.check("stream", "s3:ListBucket", prefix):
        entries = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", ())
    for entry in entries:
        with probe.check("stream", "s3:GetObject", prefix):
            part = {"Range": "bytes=0-0"} if entry["Size"] else {}
            s3.get_object(Bucket=bucket, Key=entry["Key"], **part)["Body"].read()
    return bool(entries)


_TRANSPORTS: dict[str, Callable[[ReachedTable], Iterator[Finding]]] = {
    DYNAMODB_STREAMS: _dynamodb_stream,
    KINESIS: _kinesis,
    FIREHOSE: _firehose,
    KINESIS_CHANNEL: _kinesis_channel,
}


def unusual_settings(summary: Mapping[str, Any]) -> str:
    """Describe settings of a Kinesis stream other than the defaults; none of them is a problem.

    Records are at most 1 MiB unless changed by UpdateMaxRecordSize; with the strategy AUTO,
    partition keys are ignored (botocore model: kinesis).
    """
    unusual = ""
    kib = summary.get("MaxRecordSizeInKiB", 1024)
    if kib != 1024:
        unusual += f", records up to {kib / 1024:g} MiB"
    if summary.get("RecordDistributionStrategy") == "AUTO":
        unusual += ", any record in any shard (order is by write time in any case)"
    return unusual


def _shards(count: int) -> str:
    return "1 open shard" if count == 1 else f"{count} open shards"
