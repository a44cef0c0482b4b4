"""Preflight: readiness of the lake and of each table for capture, and the costs.

Puts and deletes small objects, changes nothing else. Not tried, because they would cost or change
something: exports, writes to Glue, reads of items.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cdc_pipeline.core.plans.prices import Requests, idle_table, served_table
from cdc_pipeline.core.transports import FIREHOSE, KINESIS_CHANNEL
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.table import Table
from cdc_pipeline.setup.checks.bulk_puts import check_bulk_puts
from cdc_pipeline.setup.checks.findings import FailedCheckError, Finding
from cdc_pipeline.setup.checks.lake import check_lake
from cdc_pipeline.setup.checks.report import PreflightReport, TableReport
from cdc_pipeline.setup.checks.stream import check_stream
from cdc_pipeline.setup.checks.table import (
    ReachedTable,
    check_export_access,
    check_recovery,
    reach_table,
)

_PARALLEL = 16


def preflight(lake: Lake, tables: Sequence[Table]) -> PreflightReport:
    """Check the lake once and the tables in parallel."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        lake_findings = pool.submit(check_lake, lake.table(tables[0]))
        reports = list(pool.map(lambda table: _check_table(lake.table(table)), tables))
    return PreflightReport(lake_findings.result(), reports)


def _check_table(table: TableLake) -> TableReport:
    report = TableReport(
        table.safe_name, table.name, table.settings.transport, table.settings.role_arn
    )
    report.requests_usd = _requests_usd(table, idle_table)
    report.served_requests_usd = _requests_usd(table, served_table)
    try:
        reached = reach_table(table, report)
    except FailedCheckError as failed:
        report.findings.append(failed.finding)
        return report
    for check in (check_recovery, check_stream, _list_bulk_puts, check_export_access):
        try:
            report.findings += check(reached)
        except FailedCheckError as failed:
            report.findings.append(failed.finding)
    return report


def _requests_usd(table: TableLake, requests: Callable[..., Requests]) -> float:
    """Return USD per month of requests to the lake for a table in which nothing happens."""
    settings = table.lake.settings
    if not settings.is_s3:
        return 0.0
    files = {FIREHOSE: table.settings.firehose, KINESIS_CHANNEL: table.settings.kinesis_channel}
    source = files.get(table.settings.transport) or settings.capture
    return requests(
        source.interval_seconds,
        partitions_seconds=settings.schedules.glue_seconds,
        derive_minutes=settings.current_state.derive_minutes,
        has_glue=settings.has_glue,
    ).usd


def _list_bulk_puts(reached: ReachedTable) -> Iterator[Finding]:
    """List the bulk puts since the newest baseline, if botocore has the call."""
    log = reached.table.log
    finding = check_bulk_puts(reached.source, reached.table.settings, reached.described, log.load)
    if finding is not None:
        yield finding
