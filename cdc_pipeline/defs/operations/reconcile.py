"""Reconciliation in Dagster: asset checks that read the source, and their schedules.

They read from DynamoDB and may wait for capture, so they have runs of their own: "Execute" in the
UI, or the schedule. Their asset is the source, which no run materialises: a run plans the checks of
the assets it materialises, and a planned check without a result would hide the last result.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import grid, known
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.signatures import fixed_signature
from cdc_pipeline.defs.tables.checks import CheckOutcome
from cdc_pipeline.defs.tables.table import schedule_status, source_key
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import TableLake
    from cdc_pipeline.reconcile.reconcile import ReconcileReport

_CheckFunction = Callable[["TableLake", RunContext], CheckOutcome]
_MOST_KEYS = 20
_MOST_PROBLEMS = 20


def export_verified(table: "TableLake", context: RunContext) -> CheckOutcome:
    """The baseline's export matches its manifests (counts, MD5), and its staged rows match it."""
    from cdc_pipeline.snapshot.verify_export import verify_export

    report = verify_export(table, context=context)
    metadata = {
        "export_arn": report.export_arn,
        "files": report.files,
        "bytes": report.bytes,
        "items": report.items,
        "staged_rows": report.staged_rows,
        "gone": report.gone,
        "problems": _problems(report.problems),
    }
    severity = dg.AssetCheckSeverity.ERROR if report.problems else dg.AssetCheckSeverity.WARN
    return CheckOutcome(not report.problems and not report.gone, known(metadata), severity)


def sample_matches_source(table: "TableLake", context: RunContext) -> CheckOutcome:
    """Sampled items equal the source by consistent reads; no file is missing or truncated."""
    from cdc_pipeline.reconcile.reconcile import reconcile_sample

    items = table.lake.settings.reconcile.sample
    return _outcome(table.settings, reconcile_sample(table, items, export=False, context=context))


def all_items_match_source(table: "TableLake", context: RunContext) -> CheckOutcome:
    """Every item equals a fresh export (AWS charges it); every file has its written content."""
    from cdc_pipeline.reconcile.reconcile import reconcile_full

    return _outcome(table.settings, reconcile_full(table, context=context))


def _outcome(table: Table, report: "ReconcileReport") -> CheckOutcome:
    rows = [(d.kind, d.key, d.order_key or "-") for d in report.differences[:_MOST_KEYS]]
    metadata: dict[str, Any] = {
        "items_compared": report.compared,
        "differences": sum(report.counts.values()),
        "changed_whenever_read": report.unsettled,
        "files": report.files.files,
        "damaged": len(report.files.damages),
        "seconds": round(report.seconds, 2),
        "export_arn": report.export_arn,
        "not_compared": report.unreadable,
        "differing_items": grid(("kind", "key", "order key in the lake"), rows) if rows else None,
        "problems": _problems([str(damage) for damage in report.files.damages]),
    }
    if report.counts or report.unreadable:
        metadata["fix"] = f"cdc-pipeline reconcile {table.safe_name} --full --repair"
    passed = not (report.counts or report.unreadable or report.files.damages)
    return CheckOutcome(passed, known(metadata))


def _problems(problems: list[str]) -> dg.MarkdownMetadataValue | None:
    if not problems:
        return None
    return dg.MetadataValue.md("\n".join(f"- {problem}" for problem in problems[:_MOST_PROBLEMS]))


_SAMPLED: tuple[_CheckFunction, ...] = (export_verified, sample_matches_source)
_FULL: tuple[_CheckFunction, ...] = (all_items_match_source,)


def build_reconcile_defs(settings: Settings) -> dg.Definitions:
    """Build the checks of all tables, and a job with a schedule per kind enabled in settings."""
    options = settings.reconcile
    parts = [_build(settings, "reconcile", _SAMPLED, options.schedule)]
    if options.full_schedule:
        parts.append(_build(settings, "reconcile_full", _FULL, options.full_schedule))
    return dg.Definitions.merge(*parts)


def _build(
    settings: Settings, name: str, functions: tuple[_CheckFunction, ...], cron: str | None
) -> dg.Definitions:
    checks = [_check(table, function) for table in settings.tables for function in functions]
    job = dg.define_asset_job(
        name,
        selection=dg.AssetSelection.checks(*checks),
        description="Compares the lake with its sources.",
    )
    schedules = []
    if cron:
        schedules.append(
            dg.ScheduleDefinition(
                name=name,
                job=job,
                cron_schedule=cron,
                execution_timezone="UTC",
                default_status=schedule_status(settings),
                description="Compares the lake with its sources.",
            )
        )
    return dg.Definitions(asset_checks=checks, jobs=[job], schedules=schedules)


def _check(table: Table, run_check: _CheckFunction) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name=run_check.__name__,
        asset=source_key(table),
        description=(run_check.__doc__ or "").strip(),
    )
    @fixed_signature
    def check(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
        with readable_failures():
            try:
                outcome = run_check(lake.open().table(table), RunContext(context.log.info))
            except NotReadyError as error:
                metadata = {"not_compared": str(error)}
                outcome = CheckOutcome(False, metadata, dg.AssetCheckSeverity.WARN)
        return dg.AssetCheckResult(
            passed=outcome.passed, severity=outcome.severity, metadata=outcome.metadata
        )

    return check
