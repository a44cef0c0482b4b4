"""shard_sensor: which tables are due for capture, from their logs and shard lists alone."""

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
from cdc_pipeline.core.plans.liveness import SILENCE_MARGIN_SECONDS, is_by_person
from cdc_pipeline.core.transports import FIREHOSE, KINESIS_CHANNEL
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import Flight, History, capture_of, flights, is_at_work
from cdc_pipeline.defs.tables.capture import capture
from cdc_pipeline.defs.tables.checks import report_checks
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.settings.model import Capture, Settings, Table

_BUDGET_SECONDS = 30  # Dagster ends a tick after 60
_MAX_RUNTIME = "dagster/max_runtime"


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
    """Due when something new was written to S3 or all folders have to be listed again.

    `news` is a look that costs requests, so it is asked for once an interval.
    """
    firehose = table.firehose if table.transport == FIREHOSE else None
    every = (firehose or table.kinesis_channel).interval_seconds
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
    """One sensor for all tables; never reads records."""

    @dg.sensor(
        name="shard_sensor",
        job=capture,
        minimum_interval_seconds=max(5, min(30, settings.capture.interval_seconds)),
        default_status=sensor_status(settings),
        description=(
            "Starts the job `capture` for tables that are due, the one nearest to losing changes "
            "first. A table whose capture is still running is left alone, unless its log shows "
            "nothing of that run any more; one that fails again and again is tried ever more "
            "seldom, an hour apart at most, until it succeeds or a person starts a run."
        ),
    )
    def shard_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        opened = lake.open()
        options, tables = opened.settings.capture, opened.settings.tables
        memory = _Memory.parse(context.cursor)
        look = _Look(context.instance, opened, memory, [table.label for table in tables])
        verdicts = look.at_all()
        reasons = "; ".join(f"{v.table}: {v.why}" for v in verdicts)
        memory.tick += 1
        runs = plan_runs(verdicts, len(tables), len(look.alive), options)
        memory.started |= {name: memory.tick for run in runs for name in run["tables"]}
        if not runs:
            context.update_cursor(memory.to_cursor())
            return dg.SkipReason(reasons)
        context.log.info(reasons)
        configs = [{"ops": {"capture_streams": {"config": config}}} for config in runs]
        tags = {
            # Before asset runs: those can wait, the stream forgets.
            "dagster/priority": "10",
            # A process that hangs ends, too, and gives its place in the queue back.
            _MAX_RUNTIME: str(math.ceil(2 * silence_seconds(options))),
        }
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_config=config, tags=tags) for config in configs],
            cursor=memory.to_cursor(),
        )

    return shard_sensor


class _Memory(msgspec.Struct):
    """The sensor's cursor.

    `after`: the next tick begins behind this table. `hours`: hours behind as last reported, by
    table. `started`: the tick of a table's last run. `history`: what failed in a row.
    """

    after: str = ""
    tick: int = 0
    started: dict[str, int] = msgspec.field(default_factory=dict)
    hours: dict[str, int] = msgspec.field(default_factory=dict)
    history: History = msgspec.field(default_factory=History)

    @classmethod
    def parse(cls, cursor: str | None) -> "_Memory":
        return msgspec.json.decode(cursor, type=cls) if cursor else cls()

    def to_cursor(self) -> str:
        return msgspec.json.encode(self).decode()


def silence_seconds(options: Capture) -> float:
    """How long a capture run may leave no trace in the log: what a quiet table's whole run takes.

    A run that is taken for dead and is not does no harm: the log decides between two.
    """
    return max(options.max_run_seconds, options.linger_seconds) + SILENCE_MARGIN_SECONDS


class _Look:
    """One tick's look at every table. `alive`: the runs that are still at work, by their ids."""

    def __init__(
        self, instance: dg.DagsterInstance, lake: Lake, memory: _Memory, labels: list[str]
    ) -> None:
        self.instance, self.lake, self.memory = instance, lake, memory
        self.silence = silence_seconds(lake.settings.capture)
        self.now_us = now_us()
        memory.history.take_in(instance, labels, self.now_us)
        self.alive: set[str] = set()
        self.flights: dict[str, list[Flight]] = {}
        for flight in flights(instance, labels, capture.name):
            # Of tables that this tick has no time for, the log is not asked.
            self._is_alive(flight, LogState())
            for work in flight.works:
                self.flights.setdefault(work, []).append(flight)

    def at_all(self) -> list[Verdict]:
        """A verdict on each table that the tick's time allows for; the next tick goes on there."""
        tables = _from(self.lake.settings.tables, self.memory.after)
        verdicts: list[Verdict] = []
        deadline = time.monotonic() + _BUDGET_SECONDS
        for table in tables:
            if time.monotonic() > deadline:
                break
            started = self.memory.started.get(table.label, 0)
            verdicts.append(replace(self._at(table), started=started))
        self.memory.after = verdicts[-1].table if len(verdicts) < len(tables) else ""
        return verdicts

    def _at(self, table: Table) -> Verdict:
        work = capture_of(table.label)
        try:
            log = self.lake.table(table).log
            state = log.load()
        except CdcPipelineError as error:
            busy = self._in_flight(work, LogState())
            return self._paused(table, busy or _unseen(table, error))
        # Before anything else: whatever a run does or does not, people must hear of it.
        _warn(self.instance, self.lake.table(table), state.watermark_us, self.memory)
        if busy := self._in_flight(work, state):
            return Verdict(table.label, False, busy)
        self._forget(work, state)
        return self._paused(table, _look(self.lake.table(table), log, state))

    def _in_flight(self, work: str, state: LogState) -> str | None:
        """Which run is at work on a table, None: none is, whatever Dagster counts as running."""
        found = [f for f in self.flights.get(work, ()) if self._is_alive(f, state)]
        return f"in flight (run {found[0].run_id[:8]})" if found else None

    def _is_alive(self, flight: Flight, state: LogState) -> bool:
        if is_at_work(flight, state, self.now_us, self.silence):
            self.alive.add(flight.run_id)
            return True
        return False

    def _forget(self, work: str, state: LogState) -> None:
        """Failures that the log knows to be over: a person's command wrote to it, or a killed run.

        Runs that get on between kills are not left alone ever longer, however often they are
        killed. One that failed may have written, too: what it said is known better from itself.
        """
        found = self.memory.history.failures.get(work)
        if found is None:
            return
        by_person = is_by_person(state.last_owner) and state.at_us > found.last_us
        if by_person or (found.are_kills and state.at_us > found.since_us):
            self.memory.history.forget(work)

    def _paused(self, table: Table, found: Verdict | str) -> Verdict:
        verdict = found if isinstance(found, Verdict) else Verdict(table.label, False, found)
        pause = self.memory.history.pause_of(capture_of(table.label), self.now_us)
        return replace(verdict, due=False, why=pause) if verdict.due and pause else verdict


def _unseen(table: Table, error: Exception) -> Verdict:
    # The run says it in full; here one table's trouble must not hide the others.
    return Verdict(table.label, True, f"cannot be inspected: {error}")


def _look(table: TableLake, log: CaptureLog, state: LogState) -> Verdict:
    from cdc_pipeline.capture.landing.gaps import is_listed_lately
    from cdc_pipeline.capture.sources.firehose_listing import has_news
    from cdc_pipeline.capture.sources.source_choice import open_source

    try:
        if state.stream is None:
            return judge(table.settings.label, state, set(), log.now_us(), 0)
        if table.settings.transport == FIREHOSE and table.settings.firehose is not None:
            look = partial(has_news, table.lake.aws, table.settings.firehose, state)
            seconds = table.lake.settings.capture.interval_seconds
            return judge_files(table.settings, state, log.now_us(), seconds, look)
        if table.settings.transport == KINESIS_CHANNEL:
            # Where a channel writes is asked from AWS, which takes few such questions.
            return judge_files(table.settings, state, log.now_us(), 0, lambda: False)
        source = open_source(table)
        options = table.lake.settings.capture
        # A run that lingers is followed by the next one at once.
        interval = 0 if options.linger_seconds else options.interval_seconds
        verdict = judge(table.settings.label, state, set(), log.now_us(), interval)
        # While a table is switched to another stream, that one's shards are nobody's yet.
        if verdict.due or not source.is_followed(state.stream):
            return verdict
        # Runs find new shards, too. What they listed lately need not be listed here again.
        lag_us = int(source.reading.listing_lag_seconds(options.listing_lag_seconds) * 1_000_000)
        if is_listed_lately(state, source.reading, lag_us, log.now_us()):
            return verdict
        listed = {shard.shard_id for shard in source.shards.describe(source.arn).shards}
        return judge(table.settings.label, state, listed, log.now_us(), interval)
    except (CdcPipelineError, ShardGoneError) as error:
        return _unseen(table.settings, error)


def _warn(instance: dg.DagsterInstance, table: TableLake, read_to_us: int, memory: _Memory) -> None:
    """Report the checks of a table that falls behind, each hour: capture itself may be down."""
    if not read_to_us:
        return
    hours = (now_us() - read_to_us) / 3_600_000_000
    late = int(hours) if hours >= table.lake.settings.capture.warn_hours else 0
    if late != memory.hours.get(table.settings.label, 0):
        memory.hours[table.settings.label] = late
        report_checks(instance, table)


def _from(tables: list[Table], after: str) -> list[Table]:
    names = [table.label for table in tables]
    start = names.index(after) + 1 if after in names else 0
    return tables[start:] + tables[:start]


def sensor_status(settings: Settings) -> dg.DefaultSensorStatus:
    """Whether sensors run as soon as the code location loads."""
    running = settings.schedules.running
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
