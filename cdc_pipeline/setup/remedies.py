"""Remedies of preflight: streams and point-in-time recovery that it can enable."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cdc_pipeline.core.plans.iam import turn_on_statements
from cdc_pipeline.core.transports import NEW_AND_OLD_IMAGES
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.setup.checks.findings import AwsProbe, FailedCheckError, Remedy
from cdc_pipeline.setup.checks.report import PreflightReport, TableReport
from cdc_pipeline.setup.checks.table import source_table, who_reads

_PARALLEL = 16


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
    probe = AwsProbe(who_reads(table.settings), turn_on_statements([source_table(table, report)]))
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
