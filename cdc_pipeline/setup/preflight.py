"""Preflight: whether each table and the lake are as capture needs them, and what that costs.

Changes nothing but for small objects that are put and deleted again. Not tried, because it would
cost or change something: exports, writing to Glue, reading items.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from cdc_pipeline.aws.channels import DELIVERING, channel_arn, find_channel
from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.cloudwatch import channel_ages, failed_to_replicate
from cdc_pipeline.aws.kinesis import WRITTEN_TO, KinesisStreams, active_destination, destinations
from cdc_pipeline.aws.s3.output import sse_parameters
from cdc_pipeline.aws.shards import client_of
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.aws.table import TableDescription, describe_backups, describe_table
from cdc_pipeline.capture.shards.shard_reader import polls_needed
from cdc_pipeline.capture.sources.channel import folders
from cdc_pipeline.capture.sources.firehose_listing import target_of
from cdc_pipeline.capture.sources.source import ShardSource
from cdc_pipeline.core.errors import (
    ExpiredIteratorError,
    ShardGoneError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.core.plans.iam import (
    Place,
    SourceTable,
    bucket_policy,
    export_statements,
    lake_statements,
    role_statements,
    source_statements,
    trust_policy,
    turn_on_statements,
)
from cdc_pipeline.core.plans.prices import (
    EXPORT_USD_PER_GB,
    RECOVERY_USD_PER_GB_MONTH,
    kinesis_usd,
    stream_reads_usd,
)
from cdc_pipeline.core.transports import (
    DYNAMODB_STREAMS,
    FIREHOSE,
    KINESIS,
    KINESIS_CHANNEL,
    MIRROR_VIEWS,
    NEW_AND_OLD_IMAGES,
)
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.model import Table
from cdc_pipeline.setup.bulk_puts import look_at_bulk_puts
from cdc_pipeline.setup.findings import PIPELINE, Asker, Finding, RedError, Remedy, allow
from cdc_pipeline.setup.preflight_files import look_at_files
from cdc_pipeline.setup.preflight_lake import export_place, look_at_lake, probe_key
from cdc_pipeline.snapshot.export import export_target

_PARALLEL = 16
_FULL_VIEW = f"StreamEnabled=true,StreamViewType={NEW_AND_OLD_IMAGES}"


@dataclass
class TableReport:
    """A table as it was found. Sizes are some six hours old; costs are list prices in USD.

    `stream_usd`: per month, of reading the changes at the settings' pace while there are few.
    `recovery_usd`: per month, of point-in-time recovery.
    """

    table: str
    name: str
    transport: str
    role_arn: str | None
    account: str | None = None
    region: str | None = None
    key: str | None = None
    items: int | None = None
    bytes: int | None = None
    export_usd: float | None = None
    recovery_usd: float | None = None
    stream_usd: float | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_green(self) -> bool:
        """Whether nothing that was looked at is wrong."""
        return all(finding.green for finding in self.findings)

    def finding(self, check: str) -> Finding | None:
        """What a check found, None if it was not made."""
        return next((found for found in self.findings if found.check == check), None)


@dataclass(frozen=True)
class Report:
    """The lake's findings, and those of each table."""

    lake: list[Finding]
    tables: list[TableReport]

    @property
    def is_green(self) -> bool:
        """Whether nothing that was looked at is wrong."""
        findings = [*self.lake, *(found for table in self.tables for found in table.findings)]
        return all(finding.green for finding in findings)


def preflight(lake: Lake, tables: Sequence[Table]) -> Report:
    """Look at the lake once and at the tables side by side."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        of_lake = pool.submit(look_at_lake, lake.table(tables[0]))
        reports = list(pool.map(lambda table: _look_at_table(lake.table(table)), tables))
    return Report(of_lake.result(), reports)


def remedies(report: Report) -> list[tuple[TableReport, Remedy]]:
    """What can be turned on, by table."""
    return [
        (table, finding.remedy)
        for table in report.tables
        for finding in table.findings
        if finding.remedy
    ]


def turn_on(lake: Lake, wanted: Sequence[tuple[TableReport, Remedy]]) -> list[str]:
    """Turn streams and recovery on; returns in words what could not be."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return [red for red in pool.map(lambda one: _turn_on(lake, *one), wanted) if red]


def _turn_on(lake: Lake, report: TableReport, remedy: Remedy) -> str | None:
    table = lake.settings.table(report.table)
    client, name = lake.table(table).source.client("dynamodb"), table.name
    asker = Asker(_who(table), turn_on_statements([_source_table(lake.table(table), report)]))
    try:
        if remedy == "stream":
            with asker.asking("stream", "dynamodb:UpdateTable", f"stream of table {name}"):
                wanted = {"StreamEnabled": True, "StreamViewType": NEW_AND_OLD_IMAGES}
                client.update_table(TableName=name, StreamSpecification=wanted)
                client.get_waiter("table_exists").wait(
                    TableName=name, WaiterConfig={"Delay": 2, "MaxAttempts": 60}
                )
        else:
            action = "dynamodb:UpdateContinuousBackups"
            with asker.asking("recovery", action, f"recovery of table {name}"):
                client.update_continuous_backups(
                    TableName=name,
                    PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
                )
    except RedError as red:
        found = red.finding
        return f"{found.found}\n  Fix: {found.fix}" if found.fix else found.found
    return None


def _look_at_table(table: TableLake) -> TableReport:
    report = TableReport(
        table.safe_name, table.name, table.settings.transport, table.settings.role_arn
    )
    try:
        look = _begin(table, report)
    except RedError as red:
        report.findings.append(red.finding)
        return report
    for check in (
        look.recovery,
        _TRANSPORTS[table.settings.transport](look),
        look.bulk_puts,
        look.export_access,
    ):
        try:
            report.findings += check()
        except RedError as red:
            report.findings.append(red.finding)
    return report


def _begin(table: TableLake, report: TableReport) -> "_Look":
    """Reach the account and the table, without which nothing else can be looked at."""
    source = table.source
    try:
        with _assumer(table.settings).asking("access", "sts:AssumeRole", f"table {table.name}"):
            report.account = source.account()
            report.region = source.client("dynamodb").meta.region_name
    except RedError as red:
        raise RedError(_with_trust(table, red.finding)) from None
    report.findings.append(Finding("access", True, f"{report.account} {report.region}"))
    asker = Asker(_who(table.settings), source_statements([_source_table(table, report)]))
    with asker.asking("table", "dynamodb:DescribeTable", f"table {table.name}"):
        described = describe_table(source, table.name)
    report.key = ", ".join(f"{name} {kind}" for name, kind in described.key_types.items())
    report.items, report.bytes = described.item_count, described.bytes
    report.export_usd = described.bytes / 1e9 * EXPORT_USD_PER_GB
    report.recovery_usd = described.bytes / 1e9 * RECOVERY_USD_PER_GB_MONTH
    told = [report.key, described.global_note] if described.global_note else [report.key]
    report.findings.append(Finding("table", True, "; ".join(told)))
    return _Look(table, report, source, asker, described)


def _assumer(table: Table) -> Asker:
    return Asker(PIPELINE, role_statements([table.role_arn] if table.role_arn else []))


def _with_trust(table: TableLake, red: Finding) -> Finding:
    """A role that was not assumed may be closed by its own trust policy as well."""
    if not (table.settings.role_arn and red.fix and red.fix.startswith(allow(PIPELINE))):
        return red
    trust = trust_policy(
        table.lake.aws.account(), table.settings.external_id, table.lake.aws.partition
    )
    statement = trust["Statement"][0]
    fix = (
        f"{red.fix}; and to the trust policy of {table.settings.role_arn}: {json.dumps(statement)}"
    )
    return replace(red, fix=fix)


@dataclass(frozen=True)
class _Look:
    """A look at a table that is there; each method is a check and yields what it finds."""

    table: TableLake
    report: TableReport
    source: AwsSession
    asker: Asker
    described: TableDescription

    def recovery(self) -> Iterator[Finding]:
        """Whether point-in-time recovery is on, and what it can restore."""
        name = self.table.name
        asked = "dynamodb:DescribeContinuousBackups"
        with self.asker.asking("recovery", asked, f"recovery of table {name}"):
            window = describe_backups(self.source, name)
        if window.enabled:
            earliest = f"{window.earliest:%Y-%m-%d %H:%M}" if window.earliest else "now"
            yield Finding("recovery", True, f"since {earliest}")
            return
        fix = self._command("update-continuous-backups")
        fix += " --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
        yield Finding("recovery", False, "off", fix, "recovery")

    def stream(self) -> Iterator[Finding]:
        """Whether the table's own stream is on, has new images and may be read."""
        described, update = self.described, self._command("update-table")
        turn_on = f"{update} --stream-specification {_FULL_VIEW}"
        if described.stream_arn is None:
            yield Finding("stream", False, "off", turn_on, "stream")
            return
        view = str(described.view_type)
        if view not in MIRROR_VIEWS and not self.table.settings.complete_by_read:
            off = f"{update} --stream-specification StreamEnabled=false"
            wait = self._command("wait table-exists")
            fix = f"`complete_by_read: true` in the settings, or {off} && {wait} && {turn_on}"
            yield Finding("stream", False, f"{view} lacks new images", fix)
            return
        streams = DynamoDBStreams(self.source)
        shards = self._read(streams, described.stream_arn, "dynamodb:DescribeStream")
        options = self.table.lake.settings.capture
        # Each capture reads every open shard until it is empty often enough in a row.
        reads = polls_needed(options.empty_polls, options.interval_seconds * 1_000_000)
        self.report.stream_usd = stream_reads_usd(shards, options.interval_seconds, reads)
        yield Finding("stream", True, f"{_shards(shards)}, {view}")

    def _read(self, streams: ShardSource, arn: str, listing: str) -> int:
        """Read a page of a stream, whose shards the action `listing` lists; its open shards."""
        what, service = f"stream {arn}", listing.partition(":")[0]
        with self.asker.asking("stream", listing, what):
            shards = streams.describe(arn).shards
        try:
            for shard in shards[-1:]:
                with self.asker.asking("stream", f"{service}:GetShardIterator", what):
                    iterator = streams.iterator(arn, shard.shard_id, None)
                with self.asker.asking("stream", f"{service}:GetRecords", what):
                    streams.read(iterator)
        except (ShardGoneError, TrimmedDataError, ExpiredIteratorError):
            pass  # it may be read, which is what was asked
        return sum(shard.ending is None for shard in shards)

    def kinesis(self) -> Iterator[Finding]:
        """Whether the table writes to a Kinesis stream that can be read."""
        name = self.table.name
        asked = "dynamodb:DescribeKinesisStreamingDestination"
        with self.asker.asking("stream", asked, f"Kinesis destination of table {name}"):
            found = destinations(self.source, name)
        active = [arn for arn, status in found.items() if status in WRITTEN_TO]
        if not active:
            told = ", ".join(f"{arn} is {status}" for arn, status in found.items())
            source = _source_table(self.table, self.report)
            arn = next(iter(found), source.kinesis_streams.replace("*", "STREAM"))
            fix = (
                f"{self._command('enable-kinesis-streaming-destination')} --stream-arn {arn} "
                "--enable-kinesis-streaming-configuration "
                "ApproximateCreationDateTimePrecision=MICROSECOND"
            )
            yield Finding("stream", False, told or "no Kinesis destination", fix)
            return
        streams = KinesisStreams(self.source, name)
        with self.asker.asking("stream", "kinesis:DescribeStreamSummary", f"stream {active[0]}"):
            kinesis = client_of(self.source, "kinesis")
            answer = kinesis.describe_stream_summary(StreamARN=active[0])
        summary = answer["StreamDescriptionSummary"]
        status, mode = summary["StreamStatus"], summary.get("StreamModeDetails", {})
        if status not in WRITTEN_TO:
            yield Finding("stream", False, f"{active[0]} is {status}", "wait until it is ACTIVE")
            return
        shards = self._read(streams, active[0], "kinesis:ListShards")
        with self.asker.asking("stream", "cloudwatch:GetMetricStatistics", "skipped records"):
            failed_to_replicate(self.source, name, 0, 60_000_000)
        on_demand = mode.get("StreamMode") == "ON_DEMAND"
        self.report.stream_usd = kinesis_usd(shards, on_demand=on_demand)
        stream, hours = active[0].rpartition("/")[2], summary["RetentionPeriodHours"]
        yield Finding("stream", True, f"{stream}: {_shards(shards)}, {hours} h{_unusual(summary)}")

    def kinesis_channel(self) -> Iterator[Finding]:
        """Whether a channel delivers the table's stream to where it can be read."""
        name, chosen = self.table.name, self.table.settings.kinesis_channel
        asked = "dynamodb:DescribeKinesisStreamingDestination"
        with self.asker.asking("stream", asked, f"Kinesis destination of table {name}"):
            stream_arn = active_destination(self.source, name)
        stream = f"stream {stream_arn.rpartition('/')[2]}"
        with self.asker.asking("stream", "kinesis:DescribeStreamSummary", stream):
            kinesis = client_of(self.source, "kinesis")
            answer = kinesis.describe_stream_summary(StreamARN=stream_arn)
        summary = answer["StreamDescriptionSummary"]
        mode = summary.get("StreamModeDetails", {}).get("StreamMode")
        if mode != "ON_DEMAND":
            command = f"aws kinesis update-stream-mode --stream-arn {stream_arn}"
            fix = f"{command} --stream-mode-details StreamMode=ON_DEMAND"
            yield Finding("stream", False, f"{stream} is {mode}; channels need ON_DEMAND", fix)
            return
        if summary.get("KeyId", "").endswith("alias/aws/kinesis"):
            fix = "encrypt it with a key of your own, or not: aws kinesis stop-stream-encryption"
            told = f"{stream} has the key alias/aws/kinesis, with which it gets no channel"
            yield Finding("stream", False, told, fix)
            return
        with self.asker.asking("stream", "kinesis:ListChannels", stream):
            arn = channel_arn(self.source, stream_arn, chosen.channel)
        with self.asker.asking("stream", "kinesis:DescribeChannel", stream):
            channel = find_channel(self.source, stream_arn, arn)
        told = f"channel {channel.name} of {stream}"
        if channel.status not in DELIVERING:
            fix = "wait until it is ACTIVE; one that FAILED is deleted and created again"
            reason = f": {channel.reason}" if channel.reason else ""
            yield Finding("stream", False, f"{told} is {channel.status}{reason}", fix)
            return
        taken = channel.record_format(stream_arn)
        if taken not in ("JSON", "STRING", "BYTE_ARRAY"):
            fix = "create it with RecordFormatType JSON, which delivers records as they were put"
            yield Finding("stream", False, f"{told} takes records as {taken}", fix)
            return
        try:
            places = folders(channel, stream_arn)
        except SourceError as error:
            yield Finding("stream", False, error.message, error.fix)
            return
        if chosen.measured:
            where = {"StreamName": stream_arn.rpartition("/")[2], "ChannelName": channel.name}
            where["ChannelId"] = channel.channel_id
            with self.asker.asking("stream", "cloudwatch:GetMetricStatistics", "delivery"):
                channel_ages(self.source, where, 0, 60_000_000)
        empty = [place for place in places if not self._read_folder(place)]
        note = ", which is empty" if places[0] in empty else ""
        self.report.stream_usd = kinesis_usd(0, on_demand=True)
        yield Finding(
            "stream",
            True,
            f"{told}: {taken}, {channel.compression}, every {channel.freshness_seconds} s to "
            f"{places[0]}{note}",
        )

    def firehose(self) -> Iterator[Finding]:
        """Whether the folders that Firehose writes to can be listed, and what is in them read."""
        chosen = self.table.settings.firehose
        prefixes = [*chosen.prefixes, *chosen.error_prefixes] if chosen else []
        empty = [prefix for prefix in prefixes if not self._read_folder(prefix)]
        yield Finding("stream", True, f"{len(prefixes)} folders, {len(empty)} of them empty")
        if chosen is not None:
            yield from look_at_files(self.table.lake.aws, chosen, target_of(self.described))

    def _read_folder(self, prefix: str) -> bool:
        """Whether there is an object, of which a byte is read."""
        bucket, key = split_s3(prefix)
        asker = Asker(
            PIPELINE, lake_statements(None, [Place(bucket, key, self.table.lake.aws.partition)])
        )
        s3 = self.table.lake.aws.client("s3")
        with asker.asking("stream", "s3:ListBucket", prefix):
            found = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", ())
        for entry in found:
            with asker.asking("stream", "s3:GetObject", prefix):
                part = {"Range": "bytes=0-0"} if entry["Size"] else {}
                s3.get_object(Bucket=bucket, Key=entry["Key"], **part)["Body"].read()
        return bool(found)

    def bulk_puts(self) -> Iterator[Finding]:
        """Which ran since the newest baseline, where botocore can ask."""
        log = self.table.log
        found = look_at_bulk_puts(self.source, self.table.settings, self.described, log.load)
        if found is not None:
            yield found

    def export_access(self) -> Iterator[Finding]:
        """Whether a role of another account may write where its exports go, and we read that."""
        role = self.table.settings.role_arn
        if role is None:
            return
        place = export_place(self.table)
        named = {"Bucket": place.bucket, "Key": probe_key(place)}
        what = f"s3://{place.bucket}/{named['Key']}"
        writer = Asker(role, export_statements([place]))
        ours = Asker(PIPELINE, lake_statements(place, []))
        try:
            with writer.asking("exports", "s3:PutObject", f"writing {what} as {role}"):
                self.source.client("s3").put_object(
                    **named,
                    Body=b"preflight",
                    # Needs s3:PutObjectAcl, as exports do.
                    ACL="bucket-owner-full-control",
                    ExpectedBucketOwner=self.table.export_owner(),
                    **sse_parameters(export_target(self.table).kms_key),
                )
        except RedError as red:
            policy = json.dumps(bucket_policy(place, [role])["Statement"][0])
            fix = f"{red.finding.fix}; and to the policy of bucket {place.bucket}: {policy}"
            denied = (red.finding.fix or "").startswith(allow(role))
            yield Finding("exports", False, red.finding.found, fix if denied else red.finding.fix)
            return
        s3 = self.table.lake.aws.client("s3")
        try:
            with ours.asking("exports", "s3:GetObject", f"reading {what}"):
                s3.get_object(**named)["Body"].read()
        finally:
            with ours.asking("exports", "s3:DeleteObject", f"deleting {what}"):
                s3.delete_object(**named)
        yield Finding("exports", True, f"the role may write to {place.bucket}")

    def _command(self, command: str) -> str:
        region = self.report.region
        return f"aws dynamodb {command} --table-name {self.table.name} --region {region}"


_TRANSPORTS: dict[str, Callable[[_Look], Callable[[], Iterator[Finding]]]] = {
    DYNAMODB_STREAMS: lambda look: look.stream,
    KINESIS: lambda look: look.kinesis,
    FIREHOSE: lambda look: look.firehose,
    KINESIS_CHANNEL: lambda look: look.kinesis_channel,
}


def _unusual(summary: Mapping[str, Any]) -> str:
    """What a Kinesis stream's summary tells beyond the usual; none of it is in the way.

    Records are of 1 MiB at most unless the stream was told otherwise (UpdateMaxRecordSize); with
    the strategy AUTO, partition keys are ignored (botocore model: kinesis).
    """
    told = ""
    kib = summary.get("MaxRecordSizeInKiB", 1024)
    if kib != 1024:
        told += f", records up to {kib / 1024:g} MiB"
    if summary.get("RecordDistributionStrategy") == "AUTO":
        told += ", any record in any shard (order is by write time all the same)"
    return told


def _shards(count: int) -> str:
    return "1 open shard" if count == 1 else f"{count} open shards"


def _who(table: Table) -> str:
    return table.role_arn or PIPELINE


def _source_table(table: TableLake, report: TableReport) -> SourceTable:
    region, account = report.region or "REGION", report.account or "ACCOUNT"
    partition = table.source.partition
    return SourceTable(table.name, region, account, table.settings.transport, partition=partition)
