"""shard_sensor: which tables are due for capture, from their logs and shard lists alone."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dagster as dg
import msgspec

from cdc_pipeline.core.capture_log import LogState
from cdc_pipeline.core.envelope import FIREHOSE
from cdc_pipeline.core.errors import CdcPipelineError, ShardGoneError
from cdc_pipeline.defs.capture import capture
from cdc_pipeline.defs.checks import report_checks
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import Capture, Settings, Table

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
    """Whether a table is due, and why or why not, in numbers.

    `read_to_us`: everything written before has been read; the smaller, the nearer to loss.
    `started`: the tick at which its last run was asked for, 0 for none.
    """

    table: str
    due: bool
    why: str
    read_to_us: int = 0
    started: int = 0


def judge(
    table: str, state: LogState, listed: set[str], now_us: int, interval_seconds: float
) -> Verdict:
    """Due when its interval has passed or the stream lists shards the log does not know."""
    if state.stream is None:
        return Verdict(table, True, "never captured")
    age = (now_us - state.at_us) / 1_000_000
    unknown = len(listed - set(state.shards))
    reading = sum(1 for shard in state.shards.values() if shard.status == "reading")
    why = f"captured {age:.0f} s ago (every {interval_seconds:g} s), {reading} shards to read"
    if unknown:
        return Verdict(table, True, f"{why}, {unknown} new", state.watermark_us)
    return Verdict(table, age >= interval_seconds, why, state.watermark_us)


def judge_files(
    table: Table, state: LogState, now_us: int, interval_seconds: float, news: Callable[[], bool]
) -> Verdict:
    """Due when Firehose wrote something new or all folders have to be listed again.

    `news` is a look that costs requests, so it is asked for once an interval.
    """
    assert table.firehose is not None  # the settings say so
    every = table.firehose.interval_seconds
    age = (now_us - state.at_us) / 1_000_000
    why = f"listed {age:.0f} s ago (every {every:g} s)"
    if age >= every or (age >= interval_seconds and news()):
        new = "" if age >= every else ", new objects"
        return Verdict(table.label, True, why + new, state.watermark_us)
    return Verdict(table.label, False, why, state.watermark_us)


def plan_runs(
    verdicts: Sequence[Verdict], all_tables: int, running: int, options: Capture
) -> list[dict[str, Any]]:
    """Configurations of the capture runs to start now: groups of due tables.

    While not every table has a place in a run, runs do not linger, so that all get their turn.
    """
    due = [v for v in verdicts if v.due]
    urgent = [v.table for v in sorted(due, key=lambda v: v.read_to_us)]
    waiting = [v.table for v in sorted(due, key=lambda v: (v.started, v.read_to_us))]
    # Half of the places go to those nearest to loss, half to those that waited longest: a table
    # whose captures fail stays urgent for ever and must not keep the others out.
    in_turn = list(dict.fromkeys(itertools.chain.from_iterable(zip(urgent, waiting, strict=True))))
    size, free = options.tables_per_run, max(0, options.runs - running)
    groups = [in_turn[i : i + size] for i in range(0, len(in_turn), size)][:free]
    crowded = all_tables > size * options.runs
    return [{"tables": g, **({"linger_seconds": 0.0} if crowded else {})} for g in groups]


def build_shard_sensor(settings: Settings) -> dg.SensorDefinition:
    """One sensor for all tables; never reads records, never starts a second run for a table."""

    @dg.sensor(
        name="shard_sensor",
        job=capture,
        minimum_interval_seconds=max(5, min(30, settings.capture.interval_seconds)),
        default_status=sensor_status(settings),
        description=(
            "Starts the job `capture` for tables that are due, the one nearest to losing changes "
            "first. A table whose capture is still running is left alone; one whose last run "
            "failed is due again at once."
        ),
    )
    def shard_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        opened = lake.open()
        options, tables = opened.settings.capture, opened.settings.tables
        busy = tables_in_flight(context.instance, [table.label for table in tables])
        memory = _Memory.parse(context.cursor)
        verdicts = _look_at_all(context.instance, opened, busy, memory)
        reasons = "; ".join(f"{v.table}: {v.why}" for v in verdicts)
        memory.tick += 1
        runs = plan_runs(verdicts, len(tables), len(set(busy.values())), options)
        memory.started |= {name: memory.tick for run in runs for name in run["tables"]}
        if not runs:
            context.update_cursor(memory.to_cursor())
            return dg.SkipReason(reasons)
        context.log.info(reasons)
        configs = [{"ops": {"capture_streams": {"config": config}}} for config in runs]
        return dg.SensorResult(
            # Before asset runs: those can wait, the stream forgets.
            run_requests=[
                dg.RunRequest(run_config=config, tags={"dagster/priority": "10"})
                for config in configs
            ],
            cursor=memory.to_cursor(),
        )

    return shard_sensor


class _Memory(msgspec.Struct):
    """The sensor's cursor.

    `after`: the next tick begins behind this table. `hours`: hours behind as last reported, by
    table. `started`: the tick of a table's last run.
    """

    after: str = ""
    tick: int = 0
    started: dict[str, int] = msgspec.field(default_factory=dict)
    hours: dict[str, int] = msgspec.field(default_factory=dict)

    @classmethod
    def parse(cls, cursor: str | None) -> "_Memory":
        return msgspec.json.decode(cursor, type=cls) if cursor else cls()

    def to_cursor(self) -> str:
        return msgspec.json.encode(self).decode()


def _look_at_all(
    instance: dg.DagsterInstance, lake: Lake, busy: dict[str, str], memory: _Memory
) -> list[Verdict]:
    """A verdict on each table that the time of a tick allows for; the next tick goes on there."""
    tables = _from(lake.settings.tables, memory.after)
    verdicts: list[Verdict] = []
    deadline = time.monotonic() + _BUDGET_SECONDS
    for table in tables:
        if time.monotonic() > deadline:
            break
        if table.label in busy:
            why = f"in flight (run {busy[table.label][:8]})"
            verdicts.append(Verdict(table.label, False, why))
            continue
        started = memory.started.get(table.label, 0)
        verdicts.append(replace(_look(lake, table), started=started))
        _warn(instance, lake, table, verdicts[-1], memory)
    memory.after = verdicts[-1].table if len(verdicts) < len(tables) else ""
    return verdicts


def _look(lake: Lake, table: Table) -> Verdict:
    from cdc_pipeline.capture.arrivals import has_news
    from cdc_pipeline.capture.sources import open_source

    try:
        log = lake.log(table)
        state = log.load()
        if state.stream is None:
            return judge(table.label, state, set(), log.now_us(), 0)
        if table.transport == FIREHOSE and table.firehose is not None:
            look = partial(has_news, lake.aws, table.firehose, state, log.now_us())
            seconds = lake.settings.capture.interval_seconds
            return judge_files(table, state, log.now_us(), seconds, look)
        source = open_source(lake, table)
        shards = source.shards.describe(source.arn).shards
        # While a table is switched to another stream, that one's shards are nobody's yet.
        known = source.is_followed(state.stream)
        listed = {shard.shard_id for shard in shards} if known else set()
        options = lake.settings.capture
        # A run that lingers is followed by the next one at once.
        interval = 0 if options.linger_seconds else options.interval_seconds
        return judge(table.label, state, listed, log.now_us(), interval)
    except (CdcPipelineError, ShardGoneError) as error:
        # The run says it in full; here one table's trouble must not hide the others.
        return Verdict(table.label, True, f"cannot be inspected: {error}")


def _warn(
    instance: dg.DagsterInstance, lake: Lake, table: Table, verdict: Verdict, memory: _Memory
) -> None:
    """Report the checks of a table that falls behind, each hour: capture itself may be down."""
    if not verdict.read_to_us:
        return
    hours = (time.time() - verdict.read_to_us / 1_000_000) / 3600
    late = int(hours) if hours >= lake.settings.capture.warn_hours else 0
    if late != memory.hours.get(table.label, 0):
        memory.hours[table.label] = late
        report_checks(instance, lake, table)


def _from(tables: list[Table], after: str) -> list[Table]:
    names = [table.label for table in tables]
    start = names.index(after) + 1 if after in names else 0
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
