"""`shard_sensor`: starts captures of due tables, based on their logs and shard lists alone."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dagster as dg
import msgspec

from cdc_pipeline.core.clock import now_us
from cdc_pipeline.core.errors import CdcPipelineError, ShardGoneError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.liveness import (
    SILENCE_MARGIN_SECONDS,
    is_by_person,
    served_until_us,
)
from cdc_pipeline.core.transports import FIREHOSE, KINESIS_CHANNEL
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import (
    ActiveRun,
    History,
    active_runs,
    capture_subject,
    is_working,
)
from cdc_pipeline.defs.tables.capture import capture
from cdc_pipeline.defs.tables.check_reports import report_checks
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.sections import Capture
from cdc_pipeline.settings.table import Table

_BUDGET_SECONDS = 30  # Dagster ends a tick after 60
_MAX_RUNTIME = "dagster/max_runtime"


@dataclass(frozen=True)
class CaptureDecision:
    """Whether a table is due for capture, with the reason in numbers.

    `read_to_us`: all changes written before it have been read; the smaller, the nearer to loss.
    `started`: tick of the table's last run request, 0: none.
    """

    table: str
    due: bool
    why: str
    read_to_us: int = 0
    started: int = 0


def decide(
    table: str, state: LogState, listed: set[str], now_us: int, interval_seconds: float
) -> CaptureDecision:
    """Decide for a stream: due when the interval has passed or it lists shards not in the log."""
    if state.stream is None:
        return CaptureDecision(table, True, "never captured")
    age = (now_us - state.at_us) / 1_000_000
    unknown = len(listed - set(state.shards))
    reading = sum(1 for shard in state.shards.values() if shard.status == "reading")
    why = f"captured {age:.0f} s ago (every {interval_seconds:g} s), {reading} shards to read"
    if unknown:
        return CaptureDecision(table, True, f"{why}, {unknown} new", state.watermark_us)
    return CaptureDecision(table, age >= interval_seconds, why, state.watermark_us)


def decide_files(
    table: Table,
    state: LogState,
    now_us: int,
    interval_seconds: float,
    has_new_objects: Callable[[], bool],
) -> CaptureDecision:
    """Decide for files in S3: due when there are new objects or all folders are to be listed again.

    `has_new_objects` costs requests, so it is called at most once per interval.
    """
    firehose = table.firehose if table.transport == FIREHOSE else None
    every = (firehose or table.kinesis_channel).interval_seconds
    age = (now_us - state.at_us) / 1_000_000
    why = f"listed {age:.0f} s ago (every {every:g} s)"
    if age >= every or (age >= interval_seconds and has_new_objects()):
        new = "" if age >= every else ", new objects"
        return CaptureDecision(table.label, True, why + new, state.watermark_us)
    return CaptureDecision(table.label, False, why, state.watermark_us)


def plan_runs(
    decisions: Sequence[CaptureDecision], all_tables: int, running: int, options: Capture
) -> list[dict[str, Any]]:
    """Return configurations of the capture runs to start now, each a group of due tables.

    While there are more tables than places in runs, runs do not linger, so that all get a turn.
    """
    due = [d for d in decisions if d.due]
    urgent = [d.table for d in sorted(due, key=lambda d: d.read_to_us)]
    waiting = [d.table for d in sorted(due, key=lambda d: (d.started, d.read_to_us))]
    # Half of the places go to the tables nearest to loss, half to those waiting longest: a table
    # with failing captures stays urgent for ever and must not starve the others.
    in_turn = list(dict.fromkeys(itertools.chain.from_iterable(zip(urgent, waiting, strict=True))))
    size, free = options.tables_per_run, max(0, options.runs - running)
    groups = [in_turn[i : i + size] for i in range(0, len(in_turn), size)][:free]
    is_crowded = all_tables > size * options.runs
    return [{"tables": g, **({"linger_seconds": 0.0} if is_crowded else {})} for g in groups]


def build_shard_sensor(settings: Settings) -> dg.SensorDefinition:
    """Build one sensor for all tables; it never reads records."""

    @dg.sensor(
        name="shard_sensor",
        job=capture,
        minimum_interval_seconds=max(5, min(30, settings.capture.interval_seconds)),
        default_status=sensor_status(settings),
        description=(
            "Starts the job `capture` for due tables, the table nearest to losing changes first. "
            "A table with a running capture is skipped, unless its log shows no progress of that "
            "run. A failing table is retried with growing pauses, at most an hour apart, until a "
            "run succeeds or a person starts one."
        ),
    )
    def shard_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        opened = lake.open()
        options, tables = opened.settings.capture, opened.settings.tables
        cursor = _Cursor.parse(context.cursor)
        tick = _Tick(context.instance, opened, cursor, [table.label for table in tables])
        decisions = tick.decide_all()
        reasons = "; ".join(f"{d.table}: {d.why}" for d in decisions)
        cursor.tick += 1
        runs = plan_runs(decisions, len(tables), len(tick.alive), options)
        cursor.started |= {name: cursor.tick for run in runs for name in run["tables"]}
        if not runs:
            context.update_cursor(cursor.encode())
            return dg.SkipReason(reasons)
        context.log.info(reasons)
        configs = [{"ops": {"capture_streams": {"config": config}}} for config in runs]
        tags = {
            # Before asset runs: they can wait, the stream trims changes.
            "dagster/priority": "10",
            # Ends a hanging process, too, and frees its place in the queue.
            _MAX_RUNTIME: str(math.ceil(2 * silence_seconds(options))),
        }
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_config=config, tags=tags) for config in configs],
            cursor=cursor.encode(),
        )

    return shard_sensor


class _Cursor(msgspec.Struct):
    """The sensor's cursor.

    `after`: the next tick begins after this table. `hours`: last reported lag in hours, by table.
    `started`: the tick of a table's last run. `history`: failures in a row. `served`: times in µs
    up to which tables are a live server's.
    """

    after: str = ""
    tick: int = 0
    started: dict[str, int] = msgspec.field(default_factory=dict)
    hours: dict[str, int] = msgspec.field(default_factory=dict)
    history: History = msgspec.field(default_factory=History)
    served: dict[str, int] = msgspec.field(default_factory=dict)

    @classmethod
    def parse(cls, cursor: str | None) -> "_Cursor":
        return msgspec.json.decode(cursor, type=cls) if cursor else cls()

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


def silence_seconds(options: Capture) -> float:
    """Return how long a live capture run may write nothing to the log: a quiet table's whole run.

    Taking a live run for dead does no harm: the log decides between two runs.
    """
    return max(options.max_run_seconds, options.linger_seconds) + SILENCE_MARGIN_SECONDS


class _Tick:
    """One evaluation of the sensor. `alive`: ids of the runs still at work."""

    def __init__(
        self, instance: dg.DagsterInstance, lake: Lake, cursor: _Cursor, labels: list[str]
    ) -> None:
        self.instance, self.lake, self.cursor = instance, lake, cursor
        self.silence_seconds = silence_seconds(lake.settings.capture)
        self.now_us = now_us()
        cursor.history.update(instance, labels, self.now_us)
        self.alive: set[str] = set()
        self.runs: dict[str, list[ActiveRun]] = {}
        for run in active_runs(instance, labels, capture.name):
            # Without the logs of tables: this tick may have no time to load them all.
            self._is_alive(run, LogState())
            for subject in run.subjects:
                self.runs.setdefault(subject, []).append(run)

    def decide_all(self) -> list[CaptureDecision]:
        """Decide on each table within the tick's time budget; the next tick continues there."""
        tables = _starting_after(self.lake.settings.tables, self.cursor.after)
        decisions: list[CaptureDecision] = []
        deadline = time.monotonic() + _BUDGET_SECONDS
        for table in tables:
            if time.monotonic() > deadline:
                break
            started = self.cursor.started.get(table.label, 0)
            decisions.append(replace(self._decide(table), started=started))
        self.cursor.after = decisions[-1].table if len(decisions) < len(tables) else ""
        return decisions

    def _decide(self, table: Table) -> CaptureDecision:
        subject, handle = capture_subject(table.label), self.lake.table(table)
        log = handle.log
        if served := self._served(table):
            return CaptureDecision(table.label, False, served)
        try:
            state = log.look()
        except CdcPipelineError as error:
            if in_flight := self._in_flight(subject, LogState()):
                return CaptureDecision(table.label, False, in_flight)
            return self._paused(_uninspected(table, error))
        # First: people must be warned whether or not a run is at work.
        _warn(self.instance, handle, state.watermark_us, self.cursor)
        if in_flight := self._in_flight(subject, state):
            return CaptureDecision(table.label, False, in_flight)
        self._forget(subject, state)
        self.cursor.served[table.label] = served_until_us(state.last_owner, state.at_us)
        if served := self._served(table):
            return CaptureDecision(table.label, False, served, state.watermark_us)
        return self._paused(_inspect(handle, log, state))

    def _served(self, table: Table) -> str | None:
        """Say that a server captures the table; None: none that is known to live.

        Until its promise ends, its log is not looked at.
        """
        seconds = (self.cursor.served.get(table.label, 0) - self.now_us) / 1_000_000
        if seconds <= 0:
            self.cursor.served.pop(table.label, None)
            return None
        return f"served by `cdc-pipeline serve`, to be looked at in {seconds:.0f} s"

    def _in_flight(self, subject: str, state: LogState) -> str | None:
        """Name the run at work on a table; None: none, whatever Dagster counts as running."""
        alive = [run for run in self.runs.get(subject, ()) if self._is_alive(run, state)]
        return f"in flight (run {alive[0].run_id[:8]})" if alive else None

    def _is_alive(self, run: ActiveRun, state: LogState) -> bool:
        if is_working(run, state, self.now_us, self.silence_seconds):
            self.alive.add(run.run_id)
            return True
        return False

    def _forget(self, subject: str, state: LogState) -> None:
        """Forget failures that ended by the log: a person's command, or a killed run, wrote to it.

        Killed runs that make progress are not paused for longer each time, however often they are
        killed. A failed run may have written, too, but its own error is the better evidence.
        """
        failures = self.cursor.history.failures.get(subject)
        if failures is None:
            return
        is_by_other = is_by_person(state.last_owner) or served_until_us(state.last_owner, 0) > 0
        is_fixed = is_by_other and state.at_us > failures.last_us
        if is_fixed or (failures.are_kills and state.at_us > failures.since_us):
            self.cursor.history.forget(subject)

    def _paused(self, decision: CaptureDecision) -> CaptureDecision:
        pause = self.cursor.history.pause_of(capture_subject(decision.table), self.now_us)
        return replace(decision, due=False, why=pause) if decision.due and pause else decision


def _uninspected(table: Table, error: Exception) -> CaptureDecision:
    # The run reports the whole error; here one table's error must not hide the others.
    return CaptureDecision(table.label, True, f"cannot be inspected: {error}")


def _inspect(table: TableLake, log: CaptureLog, state: LogState) -> CaptureDecision:
    from cdc_pipeline.capture.landing.gaps import is_listed_lately
    from cdc_pipeline.capture.sources.firehose_listing import has_new_objects
    from cdc_pipeline.capture.sources.source_choice import open_source

    try:
        if state.stream is None:
            return decide(table.settings.label, state, set(), log.now_us(), 0)
        if table.settings.transport == FIREHOSE and table.settings.firehose is not None:
            has_new = partial(has_new_objects, table.lake.aws, table.settings.firehose, state)
            seconds = table.lake.settings.capture.interval_seconds
            return decide_files(table.settings, state, log.now_us(), seconds, has_new)
        if table.settings.transport == KINESIS_CHANNEL:
            # A channel's destination comes from an AWS API with a low rate limit.
            return decide_files(table.settings, state, log.now_us(), 0, lambda: False)
        source = open_source(table)
        options = table.lake.settings.capture
        # A lingering run is followed by the next one at once.
        interval = 0 if options.linger_seconds else options.interval_seconds
        decision = decide(table.settings.label, state, set(), log.now_us(), interval)
        # During a switch to another stream, its shards belong to no capture yet.
        if decision.due or not source.is_followed(state.stream):
            return decision
        # Runs discover new shards, too: a recent listing by a run is not repeated here.
        lag_us = int(source.reading.listing_lag_seconds(options.listing_lag_seconds) * 1_000_000)
        if is_listed_lately(state, source.reading, lag_us, log.now_us()):
            return decision
        listed = {shard.shard_id for shard in source.shards.describe(source.arn).shards}
        return decide(table.settings.label, state, listed, log.now_us(), interval)
    except (CdcPipelineError, ShardGoneError) as error:
        return _uninspected(table.settings, error)


def _warn(instance: dg.DagsterInstance, table: TableLake, read_to_us: int, cursor: _Cursor) -> None:
    """Report the checks of a table that falls behind, each hour: capture itself may be down."""
    if not read_to_us:
        return
    hours = (now_us() - read_to_us) / 3_600_000_000
    late_hours = int(hours) if hours >= table.lake.settings.capture.warn_hours else 0
    if late_hours != cursor.hours.get(table.settings.label, 0):
        cursor.hours[table.settings.label] = late_hours
        report_checks(instance, table)


def _starting_after(tables: list[Table], after: str) -> list[Table]:
    names = [table.label for table in tables]
    start = names.index(after) + 1 if after in names else 0
    return tables[start:] + tables[:start]


def sensor_status(settings: Settings) -> dg.DefaultSensorStatus:
    """Return whether sensors run as soon as the code location loads."""
    running = settings.schedules.running
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
