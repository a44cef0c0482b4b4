"""Alarms: somebody is told when a check fails, when it recovers, and when a run fails."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import msgspec

from cdc_pipeline.core.clock import now_us
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.defs.operations.notify import notify
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import News, parse_history
from cdc_pipeline.defs.tables.checks import CURRENT_STATE, Finding, evaluation, fresh
from cdc_pipeline.defs.tables.shard_sensor import sensor_status
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.model import Settings, Table

_BUDGET_SECONDS = 30  # Dagster ends a tick after 60


class _Memory(msgspec.Struct):
    """The sensor's cursor.

    `failing`: what people were told of, "asset check" or a broken asset, with its severity.
    `fresh`: the freshness last reported, by table. `table`: the next look at freshness begins
    behind it.
    """

    failing: dict[str, str] = msgspec.field(default_factory=dict)
    fresh: dict[str, str] = msgspec.field(default_factory=dict)
    table: str = ""


def build_alarms(
    settings: Settings,
    checks: Sequence[dg.AssetCheckKey],
    errors: Mapping[str, str | None],
) -> list[dg.SensorDefinition]:
    """`alarm_sensor` for these checks and assets' own errors, `run_failure_alarm` for runs."""

    @dg.sensor(
        name="alarm_sensor",
        minimum_interval_seconds=60,
        default_status=sensor_status(settings),
        description=(
            "Looks how old the newest data is that queries see, and tells people (settings: "
            "alarms) of every check that begins to fail or recovers, and of broken aggregates."
        ),
    )
    def alarm_sensor(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SkipReason:
        opened = lake.open()
        memory = _parse(context.cursor)
        _report_freshness(context.instance, opened, memory)
        lines = _news(context.instance, checks, errors, memory)
        if lines:
            notify(opened, f"cdc_pipeline: {_subject(lines)}", lines, context.log.warning)
        context.update_cursor(msgspec.json.encode(memory).decode())
        failing = ", ".join(sorted(memory.failing))
        return dg.SkipReason(f"failing: {failing}" if failing else "every check passes")

    @dg.sensor(
        name="run_failure_alarm",
        minimum_interval_seconds=30,
        default_status=sensor_status(settings),
        description=(
            "Tells people (settings: alarms) when runs of something begin to fail, and when one "
            "succeeds again; not of each failure between."
        ),
    )
    def run_failure_alarm(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SkipReason:
        opened, history = lake.open(), parse_history(context.cursor)
        labels = [table.label for table in opened.settings.tables]
        news = history.take_in(context.instance, labels, now_us())
        for subject, lines in _told(news):
            notify(opened, subject, lines, context.log.warning)
        context.update_cursor(msgspec.json.encode(history).decode())
        failing = ", ".join(sorted(history.failures))
        return dg.SkipReason(f"failing: {failing}" if failing else "nothing fails")

    return [alarm_sensor, run_failure_alarm]


def _parse(cursor: str | None) -> _Memory:
    return msgspec.json.decode(cursor, type=_Memory) if cursor else _Memory()


def _report_freshness(instance: dg.DagsterInstance, lake: Lake, memory: _Memory) -> None:
    """Record the check `fresh` where its answer changed or is hidden, in turn as time allows.

    A run that failed leaves a planned check without an answer, which hides the one before.
    """
    tables, deadline = lake.settings.tables, time.monotonic() + _BUDGET_SECONDS
    names = [table.safe_name for table in tables]
    start = names.index(memory.table) + 1 if memory.table in names else 0
    memory.table = ""
    _, unanswered = _latest(instance, [_fresh_key(table) for table in tables])
    for table in tables[start:] + tables[:start]:
        try:
            found = fresh(lake.table(table), lake.table(table).log.load())
        except CdcPipelineError as error:
            found = Finding(False, {"error": error.message})
        answer = "passed" if found.passed else found.severity.value
        if answer != memory.fresh.get(table.safe_name) or _fresh_key(table) in unanswered:
            memory.fresh[table.safe_name] = answer
            event = evaluation(table, CURRENT_STATE, fresh.__name__, found)
            instance.report_runless_asset_event(event)
        if time.monotonic() > deadline:
            memory.table = table.safe_name
            break


def _fresh_key(table: Table) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(dg.AssetKey([table.safe_name, CURRENT_STATE]), fresh.__name__)


def _latest(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey]
) -> tuple[dict[dg.AssetCheckKey, dg.AssetCheckEvaluation], list[dg.AssetCheckKey]]:
    """The answers of checks whose latest execution has one; the others that were planned once.

    Dagster hands out a plan as an evaluation, too, of a class that has no `passed`.
    """
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    found: dict[dg.AssetCheckKey, Any] = {key: record.evaluation for key, record in latest.items()}
    answers = {k: v for k, v in found.items() if isinstance(v, dg.AssetCheckEvaluation)}
    return answers, [key for key in found if key not in answers]


def _last_answers(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey]
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """The last answer of every check that ever had one; what a run has only planned is none."""
    answers, unanswered = _latest(instance, keys)
    # Some queries for each key, so only for those that need it.
    summaries = instance.event_log_storage.get_asset_check_summary_records(unanswered)
    for key, summary in summaries.items():
        record = summary.last_completed_check_execution_record
        if record is not None and record.evaluation is not None:
            answers[key] = record.evaluation
    return answers


def _news(
    instance: dg.DagsterInstance,
    keys: Sequence[dg.AssetCheckKey],
    errors: Mapping[str, str | None],
    memory: _Memory,
) -> list[str]:
    """One line per check or asset that now fails and did not, or the other way round."""
    lines, told_before = [], memory.failing
    memory.failing = {}  # a check that is no more does not fail
    answers = _last_answers(instance, keys)
    for key in keys:
        found = answers.get(key)
        if found is None:
            continue  # never run
        name = f"{key.asset_key.to_user_string()} {key.name}"
        before = told_before.get(name)
        if not found.passed:
            memory.failing[name] = found.severity.value
            if found.severity.value != before:
                lines.append(f"{found.severity.value}: {name}{_numbers(found)}")
        elif before:
            lines.append(f"recovered: {name}")
    for name, error in errors.items():
        before = told_before.get(name)
        if error is not None:
            memory.failing[name] = dg.AssetCheckSeverity.ERROR.value
            if not before:
                lines.append(f"{memory.failing[name]}: {name}: {error}")
        elif before:
            lines.append(f"recovered: {name}")
    return lines


def _numbers(found: dg.AssetCheckEvaluation) -> str:
    """What a check counted, and its fix; our checks never put contents of items there."""
    told = [
        f"{name} {value.value}"
        for name, value in sorted(found.metadata.items())
        if isinstance(value, (dg.IntMetadataValue, dg.FloatMetadataValue))
    ]
    fix = found.metadata.get("fix")
    return (f" ({', '.join(told)})" if told else "") + (f". Fix: {fix.value}" if fix else "")


def _subject(lines: list[str]) -> str:
    return lines[0].split(" (")[0].split(". Fix")[0] + (
        f" and {len(lines) - 1} more" if len(lines) > 1 else ""
    )


def _told(news: Sequence[News]) -> Iterator[tuple[str, list[str]]]:
    """Subject and lines of each message: one for all that failed in a run, one for recoveries."""
    for run_id in dict.fromkeys(n.run_id for n in news if n.cause is not None):
        failed = [n for n in news if n.run_id == run_id and n.cause is not None]
        works = ", ".join(n.work for n in failed[:3]) + (" ..." if len(failed) > 3 else "")
        causes = dict.fromkeys(str(n.cause) for n in failed)
        yield f"cdc_pipeline: a run of {works} failed", [*causes, f"run {run_id}"]
    if well := [n.work for n in news if n.cause is None]:
        yield f"cdc_pipeline: recovered: {', '.join(well[:3])}", [f"recovered: {w}" for w in well]
