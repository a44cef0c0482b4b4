"""Preflight of one table apart from its stream: access, recovery, exports."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.output import sse_parameters
from cdc_pipeline.aws.table import TableDescription, describe_backups, describe_table
from cdc_pipeline.core.plans.iam import (
    SourceTable,
    bucket_policy,
    export_statements,
    lake_statements,
    role_statements,
    source_statements,
    trust_policy,
)
from cdc_pipeline.core.plans.prices import EXPORT_USD_PER_GB, RECOVERY_USD_PER_GB_MONTH
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.table import Table
from cdc_pipeline.setup.checks.findings import PIPELINE, AwsProbe, FailedCheckError, Finding, allow
from cdc_pipeline.setup.checks.lake import export_place, trial_key
from cdc_pipeline.setup.checks.report import TableReport
from cdc_pipeline.snapshot.export import export_target


@dataclass(frozen=True)
class ReachedTable:
    """A table that was described: what its checks need, and the report they fill.

    `probe`: calls of its source.
    """

    table: TableLake
    report: TableReport
    source: AwsSession
    probe: AwsProbe
    described: TableDescription

    def command(self, command: str) -> str:
        """Return a command of AWS's CLI on the table, as part of a fix."""
        region = self.report.region
        return f"aws dynamodb {command} --table-name {self.table.name} --region {region}"


def reach_table(table: TableLake, report: TableReport) -> ReachedTable:
    """Check access to the account and the table, the preconditions of all other checks."""
    source = table.source
    try:
        with _assumer(table.settings).check("access", "sts:AssumeRole", f"table {table.name}"):
            report.account = source.account()
            report.region = source.client("dynamodb").meta.region_name
    except FailedCheckError as failed:
        raise FailedCheckError(_with_trust(table, failed.finding)) from None
    report.findings.append(Finding("access", True, f"{report.account} {report.region}"))
    probe = AwsProbe(who_reads(table.settings), source_statements([source_table(table, report)]))
    with probe.check("table", "dynamodb:DescribeTable", f"table {table.name}"):
        described = describe_table(source, table.name)
    report.key = ", ".join(f"{name} {kind}" for name, kind in described.key_types.items())
    report.items, report.bytes = described.item_count, described.bytes
    report.export_usd = described.bytes / 1e9 * EXPORT_USD_PER_GB
    report.recovery_usd = described.bytes / 1e9 * RECOVERY_USD_PER_GB_MONTH
    notes = [report.key, described.global_note] if described.global_note else [report.key]
    report.findings.append(Finding("table", True, "; ".join(notes)))
    return ReachedTable(table, report, source, probe, described)


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


def check_recovery(reached: ReachedTable) -> Iterator[Finding]:
    """Check that point-in-time recovery is on, and report the earliest restorable time."""
    name = reached.table.name
    action = "dynamodb:DescribeContinuousBackups"
    with reached.probe.check("recovery", action, f"recovery of table {name}"):
        window = describe_backups(reached.source, name)
    if window.enabled:
        earliest = f"{window.earliest:%Y-%m-%d %H:%M}" if window.earliest else "now"
        yield Finding("recovery", True, f"since {earliest}")
        return
    fix = reached.command("update-continuous-backups")
    fix += " --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
    yield Finding("recovery", False, "off", fix, "recovery")


def check_export_access(reached: ReachedTable) -> Iterator[Finding]:
    """Check that a role of another account can write exports and the pipeline can read them."""
    role = reached.table.settings.role_arn
    if role is None:
        return
    place = export_place(reached.table)
    target = {"Bucket": place.bucket, "Key": trial_key(place)}
    what = f"s3://{place.bucket}/{target['Key']}"
    writer = AwsProbe(role, export_statements([place]))
    reader = AwsProbe(PIPELINE, lake_statements(place, []))
    try:
        with writer.check("exports", "s3:PutObject", f"writing {what} as {role}"):
            reached.source.client("s3").put_object(
                **target,
                Body=b"preflight",
                # Needs s3:PutObjectAcl, as exports do.
                ACL="bucket-owner-full-control",
                ExpectedBucketOwner=reached.table.export_owner(),
                **sse_parameters(export_target(reached.table).kms_key),
            )
    except FailedCheckError as failed:
        policy = json.dumps(bucket_policy(place, [role])["Statement"][0])
        fix = failed.finding.fix
        if (fix or "").startswith(allow(role)):
            fix = f"{fix}; and to the policy of bucket {place.bucket}: {policy}"
        yield Finding("exports", False, failed.finding.found, fix)
        return
    s3 = reached.table.lake.aws.client("s3")
    try:
        with reader.check("exports", "s3:GetObject", f"reading {what}"):
            s3.get_object(**target)["Body"].read()
    finally:
        with reader.check("exports", "s3:DeleteObject", f"deleting {what}"):
            s3.delete_object(**target)
    yield Finding("exports", True, f"the role may write to {place.bucket}")


def who_reads(table: Table) -> str:
    """Return the role that reads a table."""
    return table.role_arn or PIPELINE


def source_table(table: TableLake, report: TableReport) -> SourceTable:
    """Return the table for statements of IAM; placeholders for what is not known yet."""
    region, account = report.region or "REGION", report.account or "ACCOUNT"
    partition = table.source.partition
    return SourceTable(table.name, region, account, table.settings.transport, partition=partition)
