"""Preflight: readiness of the lake and of each table for capture, and the costs.

Puts and deletes small objects, changes nothing else. Not tried, because they would cost or change
something: exports, writes to Glue, reads of items.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.cloudwatch import channel_ages, failed_to_replicate
from cdc_pipeline.aws.kinesis import WRITTEN_TO, KinesisStreams, active_destination, destinations
from cdc_pipeline.aws.kinesis_channels import DELIVERING, channel_arn, find_channel
from cdc_pipeline.aws.s3.output import sse_parameters
from cdc_pipeline.aws.shards import client_of
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.aws.table import TableDescription, describe_backups, describe_table
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
from cdc_pipeline.core.plans.iam import (
    S3Location,
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
from cdc_pipeline.settings.table import Table
from cdc_pipeline.setup.bulk_puts import check_bulk_puts
from cdc_pipeline.setup.findings import PIPELINE, AwsProbe, FailedCheckError, Finding, Remedy, allow
from cdc_pipeline.setup.preflight_files import check_files
from cdc_pipeline.setup.preflight_lake import check_lake, export_place, trial_key
from cdc_pipeline.snapshot.export import export_target

_PARALLEL = 16
_FULL_VIEW = f"StreamEnabled=true,StreamViewType={NEW_AND_OLD_IMAGES}"


@dataclass
class TableReport:
    """State and findings of a table. Sizes are up to six hours old; costs are list prices in USD.

    `stream_usd`: per month, reads of changes at the interval of the settings while changes are
    few. `recovery_usd`: per month, point-in-time recovery.
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
    def is_ready(self) -> bool:
        """Whether all checks passed."""
        return all(finding.green for finding in self.findings)

    def finding(self, check: str) -> Finding | None:
        """Return the finding of a check, None if the check did not run."""
        return next((finding for finding in self.findings if finding.check == check), None)


@dataclass(frozen=True)
class PreflightReport:
    """Findings of the lake and of each table."""

    lake: list[Finding]
    tables: list[TableReport]

    @property
    def is_ready(self) -> bool:
        """Whether all checks passed."""
        findings = [*self.lake, *(f for table in self.tables for f in table.findings)]
        return all(finding.green for finding in findings)


def preflight(lake: Lake, tables: Sequence[Table]) -> PreflightReport:
    """Check the lake once and the tables in parallel."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        lake_findings = pool.submit(check_lake, lake.table(tables[0]))
        reports = list(pool.map(lambda table: _check_table(lake.table(table)), tables))
    return PreflightReport(lake_findings.result(), reports)


def remedies(report: PreflightReport) -> list[tuple[TableReport, Remedy]]:
    """Return the remedies that `turn_on` can apply, by table."""
    return [
        (table, finding.remedy)
        for table in report.tables
        for finding in table.findings
        if finding.remedy
    ]


def turn_on(lake: Lake, needed: Sequence[tuple[TableReport, Remedy]]) -> list[str]:
    """Enable streams and recovery; return a message for each failure."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        messages = pool.map(lambda pair: _turn_on(lake, *pair), needed)
        return [message for message in messages if message]


def _turn_on(lake: Lake, report: TableReport, remedy: Remedy) -> str | None:
    table = lake.table(lake.settings.table(report.table))
    client, name = table.source.client("dynamodb"), table.name
    probe = AwsProbe(_who(table.settings), turn_on_statements([_source_table(table, report)]))
    try:
        if remedy == "stream":
            with probe.check("stream", "dynamodb:UpdateTable", f"stream of table {name}"):
                stream = {"StreamEnabled": True, "StreamViewType": NEW_AND_OLD_IMAGES}
                client.update_table(TableName=name, StreamSpecification=stream)
                client.get_waiter("table_exists").wait(
                    TableName=name, WaiterConfig={"Delay": 2, "MaxAttempts": 60}
                )
        else:
            action = "dynamodb:UpdateContinuousBackups"
            with probe.check("recovery", action, f"recovery of table {name}"):
                client.update_continuous_backups(
                    TableName=name,
                    PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
                )
    except FailedCheckError as failed:
        finding = failed.finding
        return f"{finding.found}\n  Fix: {finding.fix}" if finding.fix else finding.found
    return None


def _check_table(table: TableLake) -> TableReport:
    report = TableReport(
        table.safe_name, table.name, table.settings.transport, table.settings.role_arn
    )
    try:
        checks = _reach_table(table, report)
    except FailedCheckError as failed:
        report.findings.append(failed.finding)
        return report
    for check in (
        checks.recovery,
        _TRANSPORTS[table.settings.transport](checks),
        checks.bulk_puts,
        checks.export_access,
    ):
        try:
            report.findings += check()
        except FailedCheckError as failed:
            report.findings.append(failed.finding)
    return report


def _reach_table(table: TableLake, report: TableReport) -> "_TableChecks":
    """Check access to the account and the table, the preconditions of all other checks."""
    source = table.source
    try:
        with _assumer(table.settings).check("access", "sts:AssumeRole", f"table {table.name}"):
            report.account = source.account()
            report.region = source.client("dynamodb").meta.region_name
    except FailedCheckError as failed:
        raise FailedCheckError(_with_trust(table, failed.finding)) from None
    report.findings.append(Finding("access", True, f"{report.account} {report.region}"))
    probe = AwsProbe(_who(table.settings), source_statements([_source_table(table, report)]))
    with probe.check("table", "dynamodb:DescribeTable", f"table {table.name}"):
        described = describe_table(source, table.name)
    report.key = ", ".join(f"{name} {kind}" for name, kind in described.key_types.items())
    report.items, report.bytes = described.item_count, described.bytes
    report.export_usd = described.bytes / 1e9 * EXPORT_USD_PER_GB
    report.recovery_usd = described.bytes / 1e9 * RECOVERY_USD_PER_GB_MONTH
    notes = [report.key, described.global_note] if described.global_note else [report.key]
    report.findings.append(Finding("table", True, "; ".join(notes)))
    return _TableChecks(table, report, source, probe, described)


def _assumer(table: Table) -> AwsProbe:
    return AwsProbe(PIPELINE, role_statements([table.role_arn] if table.role_arn else []))


def _with_trust(table: TableLake, denial: Finding) -> Finding:
    """Add the role's trust policy to the fix: it may be the reason of a denied AssumeRole, too."""
    if not (table.settings.role_arn and denial.fix and denial.fix.startswith(allow(PIPELINE))):
        return denial
    trust = trust_policy(
        table.lake.aws.account(), table.settings.external_id, table.lake.aws.partition
    )
    statement = trust["Statement"][0]
    role = table.settings.role_arn
    fix = f"{denial.fix}; and to the trust policy of {role}: {json.dumps(statement)}"
    return replace(denial, fix=fix)


@dataclass(frozen=True)
class _TableChecks:
    """Checks of an existing table; each public method is a check and yields its findings."""

    table: TableLake
    report: TableReport
    source: AwsSession
    probe: AwsProbe
    described: TableDescription

    def recovery(self) -> Iterator[Finding]:
        """Check that point-in-time recovery is on, and report the earliest restorable time."""
        name = self.table.name
        action = "dynamodb:DescribeContinuousBackups"
        with self.probe.check("recovery", action, f"recovery of table {name}"):
            window = describe_backups(self.source, name)
        if window.enabled:
            earliest = f"{window.earliest:%Y-%m-%d %H:%M}" if window.earliest else "now"
            yield Finding("recovery", True, f"since {earliest}")
            return
        fix = self._command("update-continuous-backups")
        fix += " --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
        yield Finding("recovery", False, "off", fix, "recovery")

    def stream(self) -> Iterator[Finding]:
        """Check that the table's stream is on, has new images and can be read."""
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
        # A capture reads each open shard until enough reads in a row are empty.
        reads = polls_needed(options.empty_polls, options.interval_seconds * 1_000_000)
        self.report.stream_usd = stream_reads_usd(shards, options.interval_seconds, reads)
        yield Finding("stream", True, f"{_shards(shards)}, {view}")

    def _read(self, streams: ShardSource, arn: str, listing: str) -> int:
        """Read one page of a stream, return its number of open shards.

        `listing`: the action that lists shards.
        """
        what, service = f"stream {arn}", listing.partition(":")[0]
        with self.probe.check("stream", listing, what):
            shards = streams.describe(arn).shards
        try:
            for shard in shards[-1:]:
                with self.probe.check("stream", f"{service}:GetShardIterator", what):
                    iterator = streams.iterator(arn, shard.shard_id, None)
                with self.probe.check("stream", f"{service}:GetRecords", what):
                    streams.read(iterator)
        except (ShardGoneError, TrimmedDataError, ExpiredIteratorError):
            pass  # the call was allowed, which is all this check needs
        return sum(shard.ending is None for shard in shards)

    def kinesis(self) -> Iterator[Finding]:
        """Check that the table writes to a Kinesis stream and the stream can be read."""
        name = self.table.name
        action = "dynamodb:DescribeKinesisStreamingDestination"
        with self.probe.check("stream", action, f"Kinesis destination of table {name}"):
            statuses = destinations(self.source, name)
        active = [arn for arn, status in statuses.items() if status in WRITTEN_TO]
        if not active:
            listed = ", ".join(f"{arn} is {status}" for arn, status in statuses.items())
            source = _source_table(self.table, self.report)
            arn = next(iter(statuses), source.kinesis_streams.replace("*", "STREAM"))
            fix = (
                f"{self._command('enable-kinesis-streaming-destination')} --stream-arn {arn} "
                "--enable-kinesis-streaming-configuration "
                "ApproximateCreationDateTimePrecision=MICROSECOND"
            )
            yield Finding("stream", False, listed or "no Kinesis destination", fix)
            return
        streams = KinesisStreams(self.source, name)
        with self.probe.check("stream", "kinesis:DescribeStreamSummary", f"stream {active[0]}"):
            kinesis = client_of(self.source, "kinesis")
            answer = kinesis.describe_stream_summary(StreamARN=active[0])
        summary = answer["StreamDescriptionSummary"]
        status, mode = summary["StreamStatus"], summary.get("StreamModeDetails", {})
        if status not in WRITTEN_TO:
            yield Finding("stream", False, f"{active[0]} is {status}", "wait until it is ACTIVE")
            return
        shards = self._read(streams, active[0], "kinesis:ListShards")
        with self.probe.check("stream", "cloudwatch:GetMetricStatistics", "skipped records"):
            failed_to_replicate(self.source, name, 0, 60_000_000)
        on_demand = mode.get("StreamMode") == "ON_DEMAND"
        self.report.stream_usd = kinesis_usd(shards, on_demand=on_demand)
        stream, hours = active[0].rpartition("/")[2], summary["RetentionPeriodHours"]
        unusual = _unusual_settings(summary)
        yield Finding("stream", True, f"{stream}: {_shards(shards)}, {hours} h{unusual}")

    def kinesis_channel(self) -> Iterator[Finding]:
        """Check that a channel delivers the table's stream to folders that can be read."""
        name, chosen = self.table.name, self.table.settings.kinesis_channel
        action = "dynamodb:DescribeKinesisStreamingDestination"
        with self.probe.check("stream", action, f"Kinesis destination of table {name}"):
            stream_arn = active_destination(self.source, name)
        stream = f"stream {stream_arn.rpartition('/')[2]}"
        with self.probe.check("stream", "kinesis:DescribeStreamSummary", stream):
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
            fix = (
                "encrypt it with a key of your own, or stop encryption: aws kinesis "
                "stop-stream-encryption"
            )
            problem = f"{stream} has the key alias/aws/kinesis, which channels do not support"
            yield Finding("stream", False, problem, fix)
            return
        with self.probe.check("stream", "kinesis:ListChannels", stream):
            arn = channel_arn(self.source, stream_arn, chosen.channel)
        with self.probe.check("stream", "kinesis:DescribeChannel", stream):
            channel = find_channel(self.source, stream_arn, arn)
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
            with self.probe.check("stream", "cloudwatch:GetMetricStatistics", "delivery"):
                channel_ages(self.source, where, 0, 60_000_000)
        empty = [place for place in places if not self._read_folder(place)]
        note = ", which is empty" if places[0] in empty else ""
        self.report.stream_usd = kinesis_usd(0, on_demand=True)
        yield Finding(
            "stream",
            True,
            f"{title}: {record_format}, {channel.compression}, every {channel.freshness_seconds} s "
            f"to {places[0]}{note}",
        )

    def firehose(self) -> Iterator[Finding]:
        """Check that Firehose's folders can be listed and their objects read."""
        chosen = self.table.settings.firehose
        prefixes = [*chosen.prefixes, *chosen.error_prefixes] if chosen else []
        empty = [prefix for prefix in prefixes if not self._read_folder(prefix)]
        yield Finding("stream", True, f"{len(prefixes)} folders, {len(empty)} of them empty")
        if chosen is not None:
            yield from check_files(self.table.lake.aws, chosen, target_of(self.described))

    def _read_folder(self, prefix: str) -> bool:
        """Read a byte of one object in the folder; return whether there is one."""
        bucket, key = split_s3(prefix)
        probe = AwsProbe(
            PIPELINE,
            lake_statements(None, [S3Location(bucket, key, self.table.lake.aws.partition)]),
        )
        s3 = self.table.lake.aws.client("s3")
        with probe.check("stream", "s3:ListBucket", prefix):
            entries = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", ())
        for entry in entries:
            with probe.check("stream", "s3:GetObject", prefix):
                part = {"Range": "bytes=0-0"} if entry["Size"] else {}
                s3.get_object(Bucket=bucket, Key=entry["Key"], **part)["Body"].read()
        return bool(entries)

    def bulk_puts(self) -> Iterator[Finding]:
        """List the bulk puts since the newest baseline, if botocore has the call."""
        log = self.table.log
        finding = check_bulk_puts(self.source, self.table.settings, self.described, log.load)
        if finding is not None:
            yield finding

    def export_access(self) -> Iterator[Finding]:
        """Check that a role of another account can write exports and the pipeline can read them."""
        role = self.table.settings.role_arn
        if role is None:
            return
        place = export_place(self.table)
        target = {"Bucket": place.bucket, "Key": trial_key(place)}
        what = f"s3://{place.bucket}/{target['Key']}"
        writer = AwsProbe(role, export_statements([place]))
        reader = AwsProbe(PIPELINE, lake_statements(place, []))
        try:
            with writer.check("exports", "s3:PutObject", f"writing {what} as {role}"):
                self.source.client("s3").put_object(
                    **target,
                    Body=b"preflight",
                    # Needs s3:PutObjectAcl, as exports do.
                    ACL="bucket-owner-full-control",
                    ExpectedBucketOwner=self.table.export_owner(),
                    **sse_parameters(export_target(self.table).kms_key),
                )
        except FailedCheckError as failed:
            policy = json.dumps(bucket_policy(place, [role])["Statement"][0])
            fix = failed.finding.fix
            if (fix or "").startswith(allow(role)):
                fix = f"{fix}; and to the policy of bucket {place.bucket}: {policy}"
            yield Finding("exports", False, failed.finding.found, fix)
            return
        s3 = self.table.lake.aws.client("s3")
        try:
            with reader.check("exports", "s3:GetObject", f"reading {what}"):
                s3.get_object(**target)["Body"].read()
        finally:
            with reader.check("exports", "s3:DeleteObject", f"deleting {what}"):
                s3.delete_object(**target)
        yield Finding("exports", True, f"the role may write to {place.bucket}")

    def _command(self, command: str) -> str:
        region = self.report.region
        return f"aws dynamodb {command} --table-name {self.table.name} --region {region}"


_TRANSPORTS: dict[str, Callable[[_TableChecks], Callable[[], Iterator[Finding]]]] = {
    DYNAMODB_STREAMS: lambda checks: checks.stream,
    KINESIS: lambda checks: checks.kinesis,
    FIREHOSE: lambda checks: checks.firehose,
    KINESIS_CHANNEL: lambda checks: checks.kinesis_channel,
}


def _unusual_settings(summary: Mapping[str, Any]) -> str:
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


def _who(table: Table) -> str:
    return table.role_arn or PIPELINE


def _source_table(table: TableLake, report: TableReport) -> SourceTable:
    region, account = report.region or "REGION", report.account or "ACCOUNT"
    partition = table.source.partition
    return SourceTable(table.name, region, account, table.settings.transport, partition=partition)
