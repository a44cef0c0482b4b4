"""Alarms: notifications when a check fails or recovers, and when a run fails or recovers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import msgspec

from cdc_pipeline.core.clock import now_us
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.defs.operations.notify import notify
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import Transition, parse_history
from cdc_pipeline.defs.tables.checks import CURRENT_STATE, CheckOutcome, evaluation, fresh
from cdc_pipeline.defs.tables.shard_sensor import sensor_status
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table

_BUDGET_SECONDS = 30  # Dagster ends a tick after 60


class _Cursor(msgspec.Struct):
    """The sensor's cursor.

    `failing`: severity of the failures already notified, by "asset check" or broken asset.
    `fresh`: the freshness last reported, by table. `table`: the next freshness checks begin after
    this table.
    """

    failing: dict[str, str] = msgspec.field(default_factory=dict)
    fresh: dict[str, str] = msgspec.field(default_factory=dict)
    table: str = ""


def build_alarms(
    settings: Settings,
    checks: Sequence[dg.AssetCheckKey],
    errors: Mapping[str, str | None],
) -> list[dg.SensorDefinition]:
    """Build `alarm_sensor` for these checks and asset errors, `run_failure_alarm` for runs."""

    @dg.sensor(
        name="alarm_sensor",
        minimum_interval_seconds=60,
        default_status=sensor_status(settings),
        description=(
            "Checks the age of the newest data that queries see, and notifies people (settings: "
            "alarms) of every check that begins to fail or recovers, and of broken aggregates."
        ),
    )
    def alarm_sensor(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SkipReason:
        opened = lake.open()
        cursor = _parse(context.cursor)
        _report_freshness(context.instance, opened, cursor)
        lines = _changed_lines(context.instance, checks, errors, cursor)
        if lines:
            notify(opened, f"cdc_pipeline: {_subject(lines)}", lines, context.log.warning)
        context.update_cursor(msgspec.json.encode(cursor).decode())
        failing = ", ".join(sorted(cursor.failing))
        return dg.SkipReason(f"failing: {failing}" if failing else "every check passes")

    @dg.sensor(
        name="run_failure_alarm",
        minimum_interval_seconds=30,
        default_status=sensor_status(settings),
        description=(
            "Notifies people (settings: alarms) when runs of a table or an asset begin to fail, "
            "and when one succeeds again; not of each failure in between."
        ),
    )
    def run_failure_alarm(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SkipReason:
        opened, history = lake.open(), parse_history(context.cursor)
        labels = [table.label for table in opened.settings.tables]
        transitions = history.update(context.instance, labels, now_us())
        for subject, lines in _messages(transitions):
            notify(opened, subject, lines, context.log.warning)
        context.update_cursor(msgspec.json.encode(history).decode())
        failing = ", ".join(sorted(history.failures))
        return dg.SkipReason(f"failing: {failing}" if failing else "nothing fails")

    return [alarm_sensor, run_failure_alarm]


def _parse(cursor: str | None) -> _Cursor:
    return msgspec.json.decode(cursor, type=_Cursor) if cursor else _Cursor()


def _report_freshness(instance: dg.DagsterInstance, lake: Lake, cursor: _Cursor) -> None:
    """Record the check `fresh` of tables whose result changed or is hidden, within the budget.

    A failed run leaves a planned check without a result, which hides the previous result.
    """
    tables, deadline = lake.settings.tables, time.monotonic() + _BUDGET_SECONDS
    names = [table.safe_name for table in tables]
    start = names.index(cursor.table) + 1 if cursor.table in names else 0
    cursor.table = ""
    _, hidden = _latest_results(instance, [_fresh_key(table) for table in tables])
    for table in tables[start:] + tables[:start]:
        handle = lake.table(table)
        try:
            outcome = fresh(handle, handle.log.look())
        except CdcPipelineError as error:
            outcome = CheckOutcome(False, {"error": error.message})
        result = "passed" if outcome.passed else outcome.severity.value
        if result != cursor.fresh.get(table.safe_name) or _fresh_key(table) in hidden:
            cursor.fresh[table.safe_name] = result
            event = evaluation(table, CURRENT_STATE, fresh.__name__, outcome)
            instance.report_runless_asset_event(event)
        if time.monotonic() > deadline:
            cursor.table = table.safe_name
            break


def _fresh_key(table: Table) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(dg.AssetKey([table.safe_name, CURRENT_STATE]), fresh.__name__)


def _latest_results(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey]
) -> tuple[dict[dg.AssetCheckKey, dg.AssetCheckEvaluation], list[dg.AssetCheckKey]]:
    """Return results of the latest check executions, and keys of checks only planned so far.

    Dagster returns a planned check as an evaluation, too, of a class without `passed`.
    """
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    records: dict[dg.AssetCheckKey, Any] = {key: r.evaluation for key, r in latest.items()}
    results = {k: v for k, v in records.items() if isinstance(v, dg.AssetCheckEvaluation)}
    return results, [key for key in records if key not in results]


def _last_results(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey]
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Return the last result of every check that has one; planned checks do not count."""
    results, planned = _latest_results(instance, keys)
    # Several queries per key, so only for keys that need them.
    summaries = instance.event_log_storage.get_asset_check_summary_records(planned)
    for key, summary in summaries.items():
        record = summary.last_completed_check_execution_record
        if record is not None and record.evaluation is not None:
            results[key] = record.evaluation
    return results


def _changed_lines(
    instance: dg.DagsterInstance,
    keys: Sequence[dg.AssetCheckKey],
    errors: Mapping[str, str | None],
    cursor: _Cursor,
) -> list[str]:
    """Return one line per check or asset that began to fail or recovered; update the cursor."""
    lines, failing_before = [], cursor.failing
    cursor.failing = {}  # a removed check does not fail
    results = _last_results(instance, keys)
    for key in keys:
        result = results.get(key)
        if result is None:
            continue  # never run
        name = f"{key.asset_key.to_user_string()} {key.name}"
        before = failing_before.get(name)
        if not result.passed:
            cursor.failing[name] = result.severity.value
            if result.severity.value != before:
                lines.append(f"{result.severity.value}: {name}{_numbers(result)}")
        elif before:
            lines.append(f"recovered: {name}")
    for name, error in errors.items():
        before = failing_before.get(name)
        if error is not None:
            cursor.failing[name] = dg.AssetCheckSeverity.ERROR.value
            if not before:
                lines.append(f"{cursor.failing[name]}: {name}: {error}")
        elif before:
            lines.append(f"recovered: {name}")
    return lines


def _numbers(result: dg.AssetCheckEvaluation) -> str:
    """Format the numbers of a check and its fix; these never contain contents of items."""
    numbers = [
        f"{name} {value.value}"
        for name, value in sorted(result.metadata.items())
        if isinstance(value, (dg.IntMetadataValue, dg.FloatMetadataValue))
    ]
    fix = result.metadata.get("fix")
    return (f" ({', '.join(numbers)})" if numbers else "") + (f". Fix: {fix.value}" if fix else "")


def _subject(lines: list[str]) -> str:
    return lines[0].split(" (")[0].split(". Fix")[0] + (
        f" and {len(lines) - 1} more" if len(lines) > 1 else ""
    )


def _messages(transitions: Sequence[Transition]) -> Iterator[tuple[str, list[str]]]:
    """Yield subject and lines of each message: one per failed run, one for all recoveries."""
    for run_id in dict.fromkeys(t.run_id for t in transitions if t.cause is not None):
        failed = [t for t in transitions if t.run_id == run_id and t.cause is not None]
        subjects = ", ".join(t.subject for t in failed[:3]) + (" ..." if len(failed) > 3 else "")
        causes = dict.fromkeys(str(t.cause) for t in failed)
        yield f"cdc_pipeline: a run of {subjects} failed", [*causes, f"run {run_id}"]
    if recovered := [t.subject for t in transitions if t.cause is None]:
        title = f"cdc_pipeline: recovered: {', '.join(recovered[:3])}"
        yield title, [f"recovered: {subject}" for subject in recovered]
