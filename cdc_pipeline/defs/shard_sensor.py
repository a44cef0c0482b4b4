"""shard_sensor: which tables are due for capture, from their logs and shard lists alone."""

import time
from dataclasses import dataclass
from typing import Any

import dagster as dg

from cdc_pipeline.core.capture_log import LogState
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.defs.capture import capture
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import Settings, Table

_BUDGET_SECONDS = 30  # Dagster ends a tick after 60
_IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class Verdict:
    """Whether a table is due, and why or why not, in numbers."""

    table: Table
    due: bool
    why: str


def judge(
    table: Table, state: LogState, listed: set[str], now_us: int, interval_seconds: int
) -> Verdict:
    """Due when its interval has passed or the stream lists shards the log does not know."""
    if state.stream is None:
        return Verdict(table, True, "never captured")
    age = (now_us - state.at_us) / 1_000_000
    unknown = len(listed - set(state.shards))
    reading = sum(1 for shard in state.shards.values() if shard.status == "reading")
    why = f"captured {age:.0f} s ago (every {interval_seconds} s), {reading} shards to read"
    if unknown:
        return Verdict(table, True, f"{why}, {unknown} new")
    return Verdict(table, age >= interval_seconds, why)


def build_shard_sensor(settings: Settings) -> dg.SensorDefinition:
    """One sensor for all tables; never reads records, never starts a second run for a table."""

    @dg.sensor(
        name="shard_sensor",
        job=capture,
        minimum_interval_seconds=max(5, min(30, settings.capture.interval_seconds)),
        default_status=sensor_status(settings),
        description=(
            "Starts the job `capture` for tables that are due. A table whose capture is still "
            "running is left alone; one whose last run failed is due again at once."
        ),
    )
    def shard_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        opened = lake.open()
        busy = tables_in_flight(context.instance, [t.name for t in opened.settings.tables])
        tables = _from(opened.settings.tables, context.cursor)
        verdicts: list[Verdict] = []
        deadline = time.monotonic() + _BUDGET_SECONDS
        for table in tables:
            if time.monotonic() > deadline:
                break
            if table.name in busy:
                verdicts.append(Verdict(table, False, f"in flight (run {busy[table.name][:8]})"))
                continue
            verdicts.append(_look(opened, table))
        due = [v.table.name for v in verdicts if v.due]
        reasons = "; ".join(f"{v.table.name}: {v.why}" for v in verdicts)
        # The next tick goes on behind the last table that this one had time for.
        cursor = verdicts[-1].table.name if len(verdicts) < len(tables) else ""
        if not due:
            context.update_cursor(cursor)
            return dg.SkipReason(reasons)
        context.log.info(reasons)
        config = {"ops": {"capture_streams": {"config": {"tables": due}}}}
        return dg.SensorResult(run_requests=[dg.RunRequest(run_config=config)], cursor=cursor)

    return shard_sensor


def _look(lake: Lake, table: Table) -> Verdict:
    from cdc_pipeline.capture.drain import open_source

    try:
        log = lake.log(table)
        state = log.load()
        if state.stream is None:
            return judge(table, state, set(), log.now_us(), 0)
        source = open_source(lake, table)
        listed = {shard.shard_id for shard in source.shards.describe(source.arn).shards}
        interval = lake.settings.capture.interval_seconds
        return judge(table, state, listed, log.now_us(), interval)
    except CdcPipelineError as error:
        # The run says it in full; here one table's trouble must not hide the others.
        return Verdict(table, True, f"cannot be inspected: {error.message}")


def _from(tables: list[Table], cursor: str | None) -> list[Table]:
    names = [table.name for table in tables]
    start = names.index(cursor) + 1 if cursor in names else 0
    return tables[start:] + tables[:start]


def tables_in_flight(instance: dg.DagsterInstance, all_tables: list[str]) -> dict[str, str]:
    """Tables that a queued or running capture run is about, with the run's id."""
    busy: dict[str, str] = {}
    runs = instance.get_runs(dg.RunsFilter(job_name=capture.name, statuses=_IN_FLIGHT))
    for run in runs:
        busy.update((name, run.run_id) for name in _tables_of(run) or all_tables)
    return busy


def _tables_of(run: dg.DagsterRun) -> list[str]:
    config: Any = run.run_config
    return config.get("ops", {}).get("capture_streams", {}).get("config", {}).get("tables", [])


def sensor_status(settings: Settings) -> dg.DefaultSensorStatus:
    """Whether sensors run as soon as the code location loads."""
    running = settings.schedules.running
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
