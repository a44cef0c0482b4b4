"""Asset checks: nothing is lost, columns hold everything, what queries see is fresh."""

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
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.model import Table

_Find = Callable[[TableLake, LogState], "Finding"]
_LONGEST_NAME = 80
_MOST_ROWS = 50
_LATE_SHOWS_US = 24 * 3600 * 1_000_000
CURRENT_STATE = "current_state"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    passed: bool
    metadata: dict[str, Any]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR


def quarantine(table: TableLake, state: LogState) -> Finding:
    """Every record that the stream returned could be understood and has landed."""
    reasons = state.quarantined_reasons
    metadata: dict[str, Any] = {"records": sum(reasons.values())}
    if reasons:
        rows = [(reason, str(count)) for reason, count in sorted(reasons.items())]
        metadata["reasons"] = grid(("reason", "records"), rows)
        metadata["folder"] = table.lake.store.uri(
            TablePaths(table.lake.database, table.safe_name).quarantine
        )
    return Finding(not reasons, metadata)


def gaps(table: TableLake, state: LogState) -> Finding:
    """No change was lost between what was read and what could still be read."""
    newest = state.staged.generation if state.staged else 0
    found = state.open_gaps(newest)
    metadata: dict[str, Any] = {"gaps": len(found)}
    ledger = coverage(state, table.log.now_us())
    if ledger:
        metadata["timeline"] = timeline(ledger)
    if found:
        rows = [
            (str(g.entry), g.cause, str(len(g.shards)), time_text(g.from_us), time_text(g.to_us))
            for g in found
        ]
        metadata["missing"] = grid(("entry", "cause", "shards", "from", "to"), rows)
        metadata["fix"] = f"cdc-pipeline heal {table.safe_name}, or the job heal"
    return Finding(not found, metadata)


def retention(table: TableLake, state: LogState) -> Finding:
    """The oldest change that may be unread is far from the age at which AWS trims it."""
    if not state.watermark_us:
        return Finding(True, {"note": "nothing has been read yet"})
    behind = max(0.0, (table.log.now_us() - state.watermark_us) / 3_600_000_000)
    options = table.lake.settings.capture
    if table.settings.transport in IN_FILES:
        note = "the objects in S3 stay, so nothing is about to be lost"
        told: dict[str, Any] = {"hours_behind": round(behind, 3), "note": note}
        return Finding(behind < options.warn_hours, told, dg.AssetCheckSeverity.WARN)
    kept_hours = state.stream.retention_hours if state.stream else 24
    metadata = {
        "hours_behind": round(behind, 3),
        "hours_left": round(kept_hours - behind, 3),
        "oldest_unread": moment(state.watermark_us),
    }
    severe = behind >= options.fail_hours
    severity = dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN
    return Finding(behind < options.warn_hours, metadata, severity)


def watermark(table: TableLake, state: LogState) -> Finding:
    """Nothing came behind a time up to which all was said to have landed, and clocks agree."""
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
            "they have landed and nothing is lost; what was called complete before they came was "
            "not, and is made again: cdc of their days, current_state"
        )
        metadata["fix"] = (
            "correct the clock"
            if warning
            else "raise capture.empty_polls or capture.listing_lag_seconds (DynamoDB Streams), "
            "kinesis.late_seconds, firehose.lag_minutes"
        )
    recent_us = table.log.now_us() - _LATE_SHOWS_US
    passed = warning is None and (not state.late.rows or state.late_at_us < recent_us)
    return Finding(passed, metadata, dg.AssetCheckSeverity.WARN)


def delivered_all(table: TableLake, state: LogState) -> Finding:
    """What the channel counted as delivered in the last day is in the objects that were read."""
    from cdc_pipeline.capture.firehose.channel_counts import compare_counts

    try:
        counts = compare_counts(table, state, table.log.now_us())
    except SourceError as error:
        told = {"note": f"not compared: {error}"}
        return Finding(False, told, dg.AssetCheckSeverity.WARN)
    if counts is None:
        return Finding(True, {"note": "no channel is followed"})
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
            f"materialise the day of {name}/raw_stream, which lists its folders again; if that "
            f"does not help, materialise {name}/pitr_export: a new baseline has what is missing"
        )
    return Finding(not counts.missing and not counts.lost, metadata)


def deletes(table: TableLake, state: LogState) -> Finding:
    """No older Lambda's rows, which leave deletes out, are in what current_state is made of."""
    if not state.legacy_us:
        return Finding(True, {"note": "no rows of an older Lambda"})
    since_us = state.staged.recorded_us if state.staged else state.began_us
    metadata = {
        "newest_such_row": moment(state.legacy_us),
        "note": "rows of uuid, op, time_stamp, data carry no keys of deletes and no sets or binary",
        "fix": "let the Lambda of infra/ write, then take a new baseline: materialise "
        f"{table.safe_name}/pitr_export",
    }
    return Finding(state.legacy_us < since_us, metadata, dg.AssetCheckSeverity.WARN)


def type_conflicts(table: TableLake, state: LogState) -> Finding:
    """Every published value is in its attribute's column; the others are exact in `_rescued`."""
    from cdc_pipeline.lake.engine.item_table import published_conflicts
    from cdc_pipeline.lake.publish.current_state import published_base

    base = published_base(table)
    if base is None:
        return Finding(True, {"note": "nothing has been published yet"})
    found = published_conflicts(base.table)
    metadata: dict[str, Any] = {
        "attributes": len(found),
        "rescued_values": sum(conflict.rescued for conflict in found),
    }
    if found:
        worst = sorted(found, key=lambda conflict: -conflict.rescued)[:_MOST_ROWS]
        rows = [
            (repr(c.attribute), c.column.type, _counts(c.values), str(c.rescued)) for c in worst
        ]
        headings = ("attribute", "column type", "values by DynamoDB type", "rescued")
        metadata["conflicts"] = grid(headings, rows)
        metadata["fix"] = (
            "say the type under the table's `columns` in the settings, or read `_rescued` and "
            "`_item`; nothing is lost"
        )
    return Finding(not found, metadata, dg.AssetCheckSeverity.WARN)


def columns_for_all(table: TableLake, state: LogState) -> Finding:
    """Every attribute has a column, unless `max_columns` says how many; all are in `_item`."""
    from cdc_pipeline.lake.engine.item_table import prior_columns, prior_stats
    from cdc_pipeline.lake.publish.current_state import published_base

    base = published_base(table)
    if base is None:
        return Finding(True, {"note": "nothing has been published yet"})
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
            "nothing is lost: `_item` has them exactly. If attribute names are data (ids, dates), "
            "a map would be better; for more columns, or for this to pass, say `max_columns` in "
            "the table's settings, or a type under `columns` for those that must have one"
        )
    passed = not left or table.settings.max_columns is not None
    return Finding(passed, metadata, dg.AssetCheckSeverity.WARN)


def chain(table: TableLake, state: LogState) -> Finding:
    """Each change begins with the image that the item's change before it left behind."""
    from cdc_pipeline.lake.publish.image_chain import check_chain

    since = datetime.now(UTC).date() - timedelta(days=1)
    found = check_chain(table, since)
    metadata: dict[str, Any] = {
        "pairs_compared": found.links,
        "breaks": found.breaks,
        "explained_by_gaps": found.in_gaps,
        "since": since.isoformat(),
    }
    if found.examples:
        rows = [
            (b.key, time_text(b.from_us), time_text(b.to_us), b.order_key) for b in found.examples
        ]
        headings = ("SHA-256 of the key", "change before", "change behind", "its order key")
        metadata["examples"] = grid(headings, rows)
        metadata["fix"] = f"compare with the source: materialise {table.safe_name}/pitr_export"
    return Finding(not found.breaks, metadata)


def fresh(table: TableLake, state: LogState) -> Finding:
    """What queries see of current_state is young enough; a quiet table is not late."""
    from cdc_pipeline.lake.iceberg.tables import table_property
    from cdc_pipeline.lake.publish.current_state import published_base

    base = published_base(table)
    if base is None:
        return Finding(True, {"note": "nothing has been published yet"})
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
            else "see that shard_sensor is on and that runs of the job capture succeed"
        )
    severe = minutes >= limits.fail_minutes
    severity = dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN
    return Finding(minutes < limits.warn_minutes, metadata, severity)


def entities_match(table: TableLake, state: LogState) -> Finding:
    """Every published item is of one of the entities that the settings list."""
    from cdc_pipeline.lake.publish.entity_tables import count_unmatched

    found = count_unmatched(table)
    if found is None:
        return Finding(True, {"note": "nothing has been published yet"})
    unmatched, counts = found
    rows = [(name, str(items)) for name, items in counts.items()]
    metadata: dict[str, Any] = {
        "items_of_none": unmatched,
        "entities": grid(("entity", "items"), rows),
    }
    if unmatched:
        metadata["fix"] = (
            "list what they are under the table's `entities` in the settings; until then they are "
            "in current_state only"
        )
    return Finding(not unmatched, metadata, dg.AssetCheckSeverity.WARN)


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{tag} {count}" for tag, count in values.items())


CHECKS: dict[str, _Find] = {
    "no_quarantined_records": quarantine,
    "no_open_gaps": gaps,
    "retention_budget": retention,
    "watermark_holds": watermark,
}
"""The checks of raw_stream."""

STATE_CHECKS: dict[str, _Find] = {
    "type_conflicts": type_conflicts,
    "columns_for_all_attributes": columns_for_all,
    "fresh": fresh,
}
"""The checks of every table's current_state."""


def checks_of(table: Table) -> dict[str, _Find]:
    """The checks of a table's raw_stream, by name."""
    more = {
        FIREHOSE: {"deletes_landed": deletes},
        KINESIS_CHANNEL: {"channel_delivered_all": delivered_all},
    }
    return {**CHECKS, **more.get(table.transport, {})}


def state_checks_of(table: Table) -> dict[str, _Find]:
    """The checks of a table's current_state, by name."""
    return {**STATE_CHECKS, "entities_match": entities_match} if table.entities else STATE_CHECKS


def build_checks(table: Table) -> list[dg.AssetChecksDefinition]:
    """The checks of one table's assets."""
    checks = [_check(table, "raw_stream", name, find) for name, find in checks_of(table).items()]
    return [
        *checks,
        _check(table, "cdc", "unbroken_chain", chain),
        *(_check(table, CURRENT_STATE, name, f) for name, f in state_checks_of(table).items()),
    ]


def _check(table: Table, asset: str, name: str, find: _Find) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name=name,
        asset=dg.AssetKey([table.safe_name, asset]),
        description=(find.__doc__ or "").strip(),
    )
    def check(lake: LakeResource) -> dg.AssetCheckResult:
        with readable_failures():
            handle = lake.open().table(table)
            found = find(handle, handle.log.load())
        return dg.AssetCheckResult(
            passed=found.passed, severity=found.severity, metadata=found.metadata
        )

    return check


def report_checks(instance: dg.DagsterInstance, table: TableLake) -> None:
    """Record raw_stream's checks as they are now; for runs that are no asset runs, and sensors."""
    state = table.log.load()
    for name, find in checks_of(table.settings).items():
        found = evaluation(table.settings, "raw_stream", name, find(table, state))
        instance.report_runless_asset_event(found)


def state_checks(table: TableLake) -> Iterator[dg.AssetCheckEvaluation]:
    """current_state's checks as they are now, for a run that ends without a publication.

    Dagster skips the steps of its checks; it planned them all the same, and a plan without an
    answer hides the answer before it.
    """
    state = table.log.load()
    for name, find in state_checks_of(table.settings).items():
        yield evaluation(table.settings, CURRENT_STATE, name, find(table, state))


def evaluation(table: Table, asset: str, name: str, found: Finding) -> dg.AssetCheckEvaluation:
    """The event that records a check's outcome."""
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey([table.safe_name, asset]),
        check_name=name,
        passed=found.passed,
        severity=found.severity,
        metadata=found.metadata,
    )
