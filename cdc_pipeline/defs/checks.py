"""Asset checks of raw_stream: nothing unreadable, no gap, far from the stream's retention."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from cdc_pipeline.core.capture_log import LogState
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import moment
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import Table

_RETENTION_HOURS = 24  # DynamoDB Streams


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    passed: bool
    metadata: dict[str, Any]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR


def quarantine(lake: Lake, table: Table, state: LogState) -> Finding:
    """Every record that the stream returned could be understood and has landed."""
    reasons: dict[str, int] = {}
    for quarantined in state.quarantined.values():
        for reason, count in quarantined.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    metadata: dict[str, Any] = {"records": sum(reasons.values())}
    if reasons:
        rows = [(reason, str(count)) for reason, count in sorted(reasons.items())]
        metadata["reasons"] = _grid(("reason", "records"), rows)
        metadata["folder"] = lake.store.uri(TablePaths(lake.database, table.safe_name).quarantine)
    return Finding(not reasons, metadata)


def gaps(lake: Lake, table: Table, state: LogState) -> Finding:
    """No change was lost between what was read and what could still be read."""
    newest = state.staged.generation if state.staged else 0
    found = state.open_gaps(newest)
    metadata: dict[str, Any] = {"gaps": len(found)}
    if found:
        rows = [
            (str(g.entry), g.cause, str(len(g.shards)), _utc(g.from_us), _utc(g.to_us))
            for g in found
        ]
        metadata["missing"] = _grid(("entry", "cause", "shards", "from", "to"), rows)
        metadata["fix"] = f"materialise {table.safe_name}/pitr_export: a new baseline behind it"
    return Finding(not found, metadata)


def retention(lake: Lake, table: Table, state: LogState) -> Finding:
    """The oldest change that may be unread is far from the 24 hours after which AWS trims it."""
    if not state.watermark_us:
        return Finding(True, {"note": "nothing has been read yet"})
    behind = max(0.0, (lake.log(table).now_us() - state.watermark_us) / 3_600_000_000)
    options = lake.settings.capture
    metadata = {
        "hours_behind": round(behind, 3),
        "hours_left": round(_RETENTION_HOURS - behind, 3),
        "oldest_unread": moment(state.watermark_us),
    }
    severe = behind >= options.fail_hours
    severity = dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN
    return Finding(behind < options.warn_hours, metadata, severity)


CHECKS: dict[str, Callable[[Lake, Table, LogState], Finding]] = {
    "no_quarantined_records": quarantine,
    "no_open_gaps": gaps,
    "retention_budget": retention,
}


def build_checks(table: Table) -> list[dg.AssetChecksDefinition]:
    """The checks of one table's raw_stream."""
    return [_check(table, name, find) for name, find in CHECKS.items()]


def _check(
    table: Table, name: str, find: Callable[[Lake, Table, LogState], Finding]
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name=name,
        asset=dg.AssetKey([table.safe_name, "raw_stream"]),
        description=(find.__doc__ or "").strip(),
    )
    def check(lake: LakeResource) -> dg.AssetCheckResult:
        with readable_failures():
            opened = lake.open()
            found = find(opened, table, opened.log(table).load())
        return dg.AssetCheckResult(
            passed=found.passed, severity=found.severity, metadata=found.metadata
        )

    return check


def report_checks(instance: dg.DagsterInstance, lake: Lake, table: Table) -> None:
    """Record the checks as they are now; for runs that are no asset runs, and for sensors."""
    state = lake.log(table).load()
    for name, find in CHECKS.items():
        found = find(lake, table, state)
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey([table.safe_name, "raw_stream"]),
                check_name=name,
                passed=found.passed,
                severity=found.severity,
                metadata=found.metadata,
            )
        )


def _grid(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> dg.MarkdownMetadataValue:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _utc(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"
