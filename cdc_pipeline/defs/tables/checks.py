"""Asset checks: nothing is lost, columns hold all values, queries see fresh data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.items.columns import without_columns
from cdc_pipeline.core.log.coverage import clock_warning, coverage
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.transports import FIREHOSE, IN_FILES, KINESIS_CHANNEL
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import grid, moment, timeline
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.signatures import fixed_signature
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.table import Table

_CheckFunction = Callable[[TableLake, LogState], "CheckOutcome"]
_LONGEST_NAME = 80
_MOST_ROWS = 50
_LATE_SHOWS_US = 24 * 3600 * 1_000_000
CURRENT_STATE = "current_state"


@dataclass(frozen=True)
class CheckOutcome:
    """The outcome of one check."""

    passed: bool
    metadata: dict[str, Any]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR


def quarantine(table: TableLake, state: LogState) -> CheckOutcome:
    """Every record of the stream could be parsed and has landed."""
    reasons = state.quarantined_reasons
    metadata: dict[str, Any] = {"records": sum(reasons.values())}
    if reasons:
        rows = [(reason, str(count)) for reason, count in sorted(reasons.items())]
        metadata["reasons"] = grid(("reason", "records"), rows)
        metadata["folder"] = table.lake.store.uri(
            TablePaths(table.lake.database, table.safe_name).quarantine
        )
    return CheckOutcome(not reasons, metadata)


def gaps(table: TableLake, state: LogState) -> CheckOutcome:
    """No changes were lost: every change was read before AWS trimmed it, or healed since."""
    newest = state.staged.generation if state.staged else 0
    open_gaps = state.open_gaps(newest)
    metadata: dict[str, Any] = {"gaps": len(open_gaps)}
    ledger = coverage(state, table.log.now_us())
    if ledger:
        metadata["timeline"] = timeline(ledger)
    if open_gaps:
        rows = [
            (str(g.entry), g.cause, str(len(g.shards)), time_text(g.from_us), time_text(g.to_us))
            for g in open_gaps
        ]
        metadata["missing"] = grid(("entry", "cause", "shards", "from", "to"), rows)
        metadata["fix"] = f"cdc-pipeline heal {table.safe_name}, or the job heal"
    return CheckOutcome(not open_gaps, metadata)


def retention(table: TableLake, state: LogState) -> CheckOutcome:
    """The oldest change not yet read is well below the age at which AWS trims it."""
    if not state.watermark_us:
        return CheckOutcome(True, {"note": "nothing has been read yet"})
    behind = max(0.0, (table.log.now_us() - state.watermark_us) / 3_600_000_000)
    options = table.lake.settings.capture
    if table.settings.transport in IN_FILES:
        note = "the objects remain in S3, so no change is about to be lost"
        metadata: dict[str, Any] = {"hours_behind": round(behind, 3), "note": note}
        return CheckOutcome(behind < options.warn_hours, metadata, dg.AssetCheckSeverity.WARN)
    kept_hours = state.stream.retention_hours if state.stream else 24
    metadata = {
        "hours_behind": round(behind, 3),
        "hours_left": round(kept_hours - behind, 3),
        "oldest_unread": moment(state.watermark_us),
    }
    is_severe = behind >= options.fail_hours
    severity = dg.AssetCheckSeverity.ERROR if is_severe else dg.AssetCheckSeverity.WARN
    return CheckOutcome(behind < options.warn_hours, metadata, severity)


def watermark(table: TableLake, state: LogState) -> CheckOutcome:
    """No change arrived after its time had been reported as complete, and clocks agree."""
    warning = clock_warning(state.clock_offset_us)
    offset_us = state.clock_offset_us
    metadata: dict[str, Any] = {"late_changes": state.late.rows}
    if offset_us is not None:
        metadata["clock_ahead_seconds"] = round(offset_us / 1e6, 1)
    if warning:
        metadata["clock"] = warning
    if state.late.rows:
        metadata["most_seconds_late"] = round(state.late.behind_us / 1e6, 1)
        metadata["last_late_at"] = moment(state.late_at_us)
        metadata["note"] = (
            "they have landed and nothing is lost, but data reported as complete before they "
            "arrived was not; it is rebuilt: cdc of their days, current_state"
        )
        metadata["fix"] = (
            "correct the clock"
            if warning
            else "raise capture.empty_polls or capture.listing_lag_seconds (DynamoDB Streams), "
            "kinesis.late_seconds, firehose.lag_minutes"
        )
    recent_us = table.log.now_us() - _LATE_SHOWS_US
    passed = warning is None and (not state.late.rows or state.late_at_us < recent_us)
    return CheckOutcome(passed, metadata, dg.AssetCheckSeverity.WARN)


def delivered_all(table: TableLake, state: LogState) -> CheckOutcome:
    """All records that the channel counted as delivered in the last day are in objects read."""
    from cdc_pipeline.capture.firehose.channel_counts import compare_counts

    try:
        counts = compare_counts(table, state, table.log.now_us())
    except SourceError as error:
        note = {"note": f"not compared: {error}"}
        return CheckOutcome(False, note, dg.AssetCheckSeverity.WARN)
    if counts is None:
        return CheckOutcome(True, {"note": "no channel is followed"})
    metadata: dict[str, Any] = {
        "from": moment(counts.from_us),
        "to": moment(counts.to_us),
        "records_delivered": counts.delivered,
        "records_found": counts.found,
        "records_missing_at_least": counts.missing,
        "records_failed": counts.failed,
        "dead_letters_found": counts.letters,
        "dead_letters_missing_at_least": counts.lost,
        "objects_unread": counts.unread,
    }
    if counts.missing or counts.lost:
        name = table.safe_name
        metadata["fix"] = (
            f"materialise the day of {name}/raw_stream, which lists its folders again; if records "
            f"are still missing, materialise {name}/pitr_export: a new baseline contains them"
        )
    return CheckOutcome(not counts.missing and not counts.lost, metadata)


def deletes(table: TableLake, state: LogState) -> CheckOutcome:
    """current_state contains no rows of an older Lambda, which leaves out deletes."""
    if not state.legacy_us:
        return CheckOutcome(True, {"note": "no rows of an older Lambda"})
    since_us = state.staged.recorded_us if state.staged else state.began_us
    metadata = {
        "newest_such_row": moment(state.legacy_us),
        "note": "rows of uuid, op, time_stamp, data have no keys of deletes and no sets or binary",
        "fix": "deploy the Lambda of infra/, then take a new baseline: materialise "
        f"{table.safe_name}/pitr_export",
    }
    return CheckOutcome(state.legacy_us < since_us, metadata, dg.AssetCheckSeverity.WARN)


def type_conflicts(table: TableLake, state: LogState) -> CheckOutcome:
    """Every published value fits its attribute's column; others are kept exactly in `_rescued`."""
    from cdc_pipeline.lake.engine.item_table import published_conflicts
    from cdc_pipeline.lake.state.base import published_base

    base = published_base(table)
    if base is None:
        return CheckOutcome(True, {"note": "nothing has been published yet"})
    conflicts = published_conflicts(base.table)
    metadata: dict[str, Any] = {
        "attributes": len(conflicts),
        "rescued_values": sum(conflict.rescued for conflict in conflicts),
    }
    if conflicts:
        worst = sorted(conflicts, key=lambda conflict: -conflict.rescued)[:_MOST_ROWS]
        rows = [
            (repr(c.attribute), c.column.type, _counts(c.values), str(c.rescued)) for c in worst
        ]
        headings = ("attribute", "column type", "values by DynamoDB type", "rescued")
        metadata["conflicts"] = grid(headings, rows)
        metadata["fix"] = (
            "set the type under the table's `columns` in the settings, or read `_rescued` and "
            "`_item`; nothing is lost"
        )
    return CheckOutcome(not conflicts, metadata, dg.AssetCheckSeverity.WARN)


def columns_for_all(table: TableLake, state: LogState) -> CheckOutcome:
    """Every attribute has a column, unless `max_columns` limits them; all are in `_item`."""
    from cdc_pipeline.lake.engine.item_table import prior_columns, prior_stats
    from cdc_pipeline.lake.state.base import published_base

    base = published_base(table)
    if base is None:
        return CheckOutcome(True, {"note": "nothing has been published yet"})
    columns = prior_columns(base.table)
    left = without_columns(columns, prior_stats(base.table))
    metadata: dict[str, Any] = {
        "columns": len(columns),
        "attributes_without_column": len(left),
        "values_without_column": sum(left.values()),
    }
    if left:
        most = sorted(left.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_ROWS]
        rows = [(repr(name[:_LONGEST_NAME]), str(count)) for name, count in most]
        metadata["most_frequent"] = grid(("attribute", "values"), rows)
        metadata["fix"] = (
            "nothing is lost: `_item` has all values exactly. If attribute names are data (ids, "
            "dates), use a map instead; for more columns, or to accept this limit, set "
            "`max_columns` in the table's settings, or a type under `columns` for attributes that "
            "need a column"
        )
    passed = not left or table.settings.max_columns is not None
    return CheckOutcome(passed, metadata, dg.AssetCheckSeverity.WARN)


def chain(table: TableLake, state: LogState) -> CheckOutcome:
    """The old image of each change equals the new image of the item's previous change."""
    from cdc_pipeline.lake.publish.image_chain import check_chain

    since = datetime.now(UTC).date() - timedelta(days=1)
    result = check_chain(table, since)
    metadata: dict[str, Any] = {
        "pairs_compared": result.links,
        "breaks": result.breaks,
        "explained_by_gaps": result.in_gaps,
        "since": since.isoformat(),
    }
    if result.examples:
        rows = [
            (b.key, time_text(b.from_us), time_text(b.to_us), b.order_key) for b in result.examples
        ]
        headings = ("SHA-256 of the key", "change before", "change after", "its order key")
        metadata["examples"] = grid(headings, rows)
        metadata["fix"] = f"compare with the source: materialise {table.safe_name}/pitr_export"
    return CheckOutcome(not result.breaks, metadata)


def fresh(table: TableLake, state: LogState) -> CheckOutcome:
    """The data that queries see in current_state is fresh enough; a quiet table is not late."""
    from cdc_pipeline.lake.iceberg.properties import table_property
    from cdc_pipeline.lake.state.base import published_base

    base = published_base(table)
    if base is None:
        return CheckOutcome(True, {"note": "nothing has been published yet"})
    now_us, limits = table.log.now_us(), table.lake.settings.alarms
    seen_us = state.complete_to_us(base.generation)
    minutes = max(0.0, (now_us - seen_us) / 60_000_000)
    published_us = int(table_property(base.table, "watermark_us") or 0)
    metadata: dict[str, Any] = {
        "minutes_behind": round(minutes, 1),
        "minutes_behind_in_athena": round(max(0.0, (now_us - published_us) / 60_000_000), 1),
        "complete_up_to": moment(seen_us),
    }
    if minutes >= limits.warn_minutes:
        metadata["fix"] = (
            f"heal the open gap: cdc-pipeline heal {table.safe_name}"
            if state.open_gaps(base.generation)
            else "check that shard_sensor is on and that runs of the job capture succeed"
        )
    is_severe = minutes >= limits.fail_minutes
    severity = dg.AssetCheckSeverity.ERROR if is_severe else dg.AssetCheckSeverity.WARN
    return CheckOutcome(minutes < limits.warn_minutes, metadata, severity)


def entities_match(table: TableLake, state: LogState) -> CheckOutcome:
    """Every published item matches one of the entities in the settings."""
    from cdc_pipeline.lake.publish.entity_tables import count_unmatched

    counted = count_unmatched(table)
    if counted is None:
        return CheckOutcome(True, {"note": "nothing has been published yet"})
    unmatched, counts = counted
    rows = [(name, str(items)) for name, items in counts.items()]
    metadata: dict[str, Any] = {
        "items_of_none": unmatched,
        "entities": grid(("entity", "items"), rows),
    }
    if unmatched:
        metadata["fix"] = (
            "add their entity under the table's `entities` in the settings; until then they are in "
            "current_state only"
        )
    return CheckOutcome(not unmatched, metadata, dg.AssetCheckSeverity.WARN)


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{tag} {count}" for tag, count in values.items())


CHECKS: dict[str, _CheckFunction] = {
    "no_quarantined_records": quarantine,
    "no_open_gaps": gaps,
    "retention_budget": retention,
    "watermark_holds": watermark,
}
"""The checks of raw_stream."""

STATE_CHECKS: dict[str, _CheckFunction] = {
    "type_conflicts": type_conflicts,
    "columns_for_all_attributes": columns_for_all,
    "fresh": fresh,
}
"""The checks of every table's current_state."""


def checks_of(table: Table) -> dict[str, _CheckFunction]:
    """Return the checks of a table's raw_stream by name."""
    more = {
        FIREHOSE: {"deletes_landed": deletes},
        KINESIS_CHANNEL: {"channel_delivered_all": delivered_all},
    }
    return {**CHECKS, **more.get(table.transport, {})}


def state_checks_of(table: Table) -> dict[str, _CheckFunction]:
    """Return the checks of a table's current_state by name."""
    return {**STATE_CHECKS, "entities_match": entities_match} if table.entities else STATE_CHECKS


def build_checks(table: Table) -> list[dg.AssetChecksDefinition]:
    """Build the checks of one table's assets."""
    checks = [
        _check(table, "raw_stream", name, run_check) for name, run_check in checks_of(table).items()
    ]
    return [
        *checks,
        _check(table, "cdc", "unbroken_chain", chain),
        *(_check(table, CURRENT_STATE, name, f) for name, f in state_checks_of(table).items()),
    ]


def _check(
    table: Table, asset: str, name: str, run_check: _CheckFunction
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name=name,
        asset=dg.AssetKey([table.safe_name, asset]),
        description=(run_check.__doc__ or "").strip(),
    )
    @fixed_signature
    def check(lake: LakeResource) -> dg.AssetCheckResult:
        with readable_failures():
            handle = lake.open().table(table)
            outcome = run_check(handle, handle.log.load())
        return dg.AssetCheckResult(
            passed=outcome.passed, severity=outcome.severity, metadata=outcome.metadata
        )

    return check


def state_checks(table: TableLake) -> Iterator[dg.AssetCheckEvaluation]:
    """Run current_state's checks for a run that ends without a publication.

    Dagster skips the check steps of such a run, but has planned them, and a planned check without
    a result hides the previous result.
    """
    state = table.log.load()
    for name, run_check in state_checks_of(table.settings).items():
        yield evaluation(table.settings, CURRENT_STATE, name, run_check(table, state))


def evaluation(
    table: Table, asset: str, name: str, outcome: CheckOutcome
) -> dg.AssetCheckEvaluation:
    """Return the event that records a check's outcome."""
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey([table.safe_name, asset]),
        check_name=name,
        passed=outcome.passed,
        severity=outcome.severity,
        metadata=outcome.metadata,
    )
