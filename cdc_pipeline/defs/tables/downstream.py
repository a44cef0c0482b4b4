"""The sensor `downstream`: starts runs for stale derived tables, by the capture log.

It does not use Dagster's events: a run killed before its events, a heal and a command change only
the lake, and `lake.publish.staleness` reads the lake.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import msgspec

from cdc_pipeline.core.clock import day_of, now_us
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.liveness import served_until_us
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import ActiveRun, History, active_runs, is_working
from cdc_pipeline.defs.tables.shard_sensor import sensor_status
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.aggregates import AGGREGATES, Aggregate

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.lake.publish.staleness import Stale

AUTOMATIC = "cdc_pipeline/automatic"
"""Tag of automatic runs."""

_BUDGET_SECONDS = 30  # Dagster ends a tick after 60
_SILENCE_SECONDS = 3600
"""A run older than this is taken for dead; two runs at once do no harm."""
_MOST_RUNS = 20
_RUN_DAYS = 168
_FRUITLESS_SECONDS = 60
_LEAST_QUIET_SECONDS = 60


class _Request(msgspec.Struct):
    """Last request of an asset: `mark` of its stale parts, number of requests for it, time."""

    mark: str
    count: int
    at_us: int


class _Cursor(msgspec.Struct):
    """The sensor's cursor.

    `after`: the next tick begins after this table. `settled`: content mark of the log (and the day)
    at which everything derived from a table was up to date. `shown_us`: time up to which a table's
    published state is marked complete, or was last tried to be. `asked`: last request by asset.
    """

    after: str = ""
    settled: dict[str, str] = {}
    shown_us: dict[str, int] = {}
    asked: dict[str, _Request] = {}
    history: History = msgspec.field(default_factory=History)

    @classmethod
    def parse(cls, cursor: str | None) -> "_Cursor":
        try:
            return msgspec.json.decode(cursor, type=cls) if cursor else cls()
        except msgspec.MsgspecError:
            return cls()  # a cursor of this sensor in an earlier version


@dataclass(frozen=True)
class _PlannedRun:
    """One run to start: for consecutive days, or for whole assets."""

    assets: tuple[str, ...]
    first: date | None = None
    last: date | None = None

    def request(self) -> dg.RunRequest:
        """Return the run request for Dagster."""
        keys = [dg.AssetKey(asset.split("/")) for asset in self.assets]
        tags = {AUTOMATIC: "true"}
        if self.first is None or self.last is None:
            return dg.RunRequest(asset_selection=keys, tags=tags)
        if self.first == self.last:
            day = self.first.isoformat()
            return dg.RunRequest(asset_selection=keys, partition_key=day, tags=tags)
        tags["dagster/asset_partition_range_start"] = self.first.isoformat()
        tags["dagster/asset_partition_range_end"] = self.last.isoformat()
        return dg.RunRequest(asset_selection=keys, tags=tags)


def is_automatic(run: dg.DagsterRun) -> bool:
    """Return whether a sensor requested the run, so that no person waits for its result."""
    return AUTOMATIC in run.tags


def build_downstream_sensor(
    settings: Settings, assets: Sequence[dg.AssetKey], aggregates: Sequence[Aggregate]
) -> dg.SensorDefinition:
    """Build the sensor that keeps `assets` up to date with landed changes."""

    @dg.sensor(
        name="downstream",
        asset_selection=dg.AssetSelection.assets(*assets),
        minimum_interval_seconds=settings.schedules.downstream_seconds,
        default_status=sensor_status(settings),
        description=(
            "Keeps cdc, current_state and aggregates up to date with landed changes, by the "
            "capture log alone. Failing assets are retried with growing pauses, at most an hour "
            "apart."
        ),
    )
    def downstream(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        opened, cursor = lake.open(), _Cursor.parse(context.cursor)
        tick = _Tick(context.instance, opened, cursor, aggregates)
        runs = list(tick.plan_runs())
        context.update_cursor(msgspec.json.encode(cursor).decode())
        if not runs:
            return dg.SkipReason("; ".join(tick.skipped) or "everything is up to date")
        return dg.SensorResult(run_requests=[run.request() for run in runs])

    return downstream


class _Tick:
    """One evaluation of the sensor. `skipped`: reasons why stale assets are not requested now."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        lake: "Lake",
        cursor: _Cursor,
        aggregates: Sequence[Aggregate],
    ) -> None:
        from cdc_pipeline.lake.publish.staleness import Staleness

        self.lake, self.cursor, self.aggregates = lake, cursor, aggregates
        self.staleness = Staleness(lake)
        self.now_us = now_us()
        self.today = day_of(self.now_us)
        labels = [table.label for table in lake.settings.tables]
        cursor.history.update(instance, labels, self.now_us)
        self.running: dict[str, ActiveRun] = {}
        for run in active_runs(instance, labels):
            if is_working(run, LogState(), self.now_us, _SILENCE_SECONDS):
                self.running.update(dict.fromkeys(run.subjects, run))
        self.skipped: list[str] = []

    def plan_runs(self) -> Iterator[_PlannedRun]:
        """Yield the runs to start, of tables, then of aggregates, within the time budget."""
        tables = self.lake.settings.tables
        names = [table.safe_name for table in tables]
        start = names.index(self.cursor.after) + 1 if self.cursor.after in names else 0
        deadline, room = time.monotonic() + _BUDGET_SECONDS, _MOST_RUNS
        self.cursor.after = ""
        for table in tables[start:] + tables[:start]:
            for run in self._plan_table(table):
                yield run
                room -= 1
            if time.monotonic() > deadline or room <= 0:
                self.cursor.after = table.safe_name
                return
        for aggregate in self.aggregates:
            yield from self._plan_aggregate(aggregate)

    def _plan_table(self, table: Table) -> Iterator[_PlannedRun]:
        from cdc_pipeline.lake.publish.entity_notes import split_mark
        from cdc_pipeline.lake.publish.staleness import content_mark

        name = table.safe_name
        try:
            state = self.staleness.load(table)
            content = content_mark(state) + split_mark(table)
            # Once per day again, for changes that the log does not record.
            mark = f"{self.today} {content}"
            if self.cursor.settled.get(name) == mark:
                self._advance(table, state)
                return
            self.cursor.settled.pop(name, None)
            stale = [self._with_partitions(s) for s in self.staleness.of_table(table)]
            is_waiting = self.staleness.is_waiting(table)
            self.cursor.shown_us[name] = self.staleness.complete_us(table)
        except CdcPipelineError as error:
            self.skipped.append(f"{name}: {error.message}")
            return
        stale_assets = {part.asset: part for part in stale if part is not None}
        if self._is_served(state) and stale_assets.pop("current_state", None):
            is_waiting = True  # for the server, which publishes by the same rules
        if not stale_assets and not is_waiting:
            self.cursor.settled[name] = mark
        yield from self._runs_of(table, stale_assets, content)

    def _runs_of(
        self, table: Table, stale: "dict[str, Stale]", content: str
    ) -> Iterator[_PlannedRun]:
        keys = {asset: f"{table.safe_name}/{asset}" for asset in stale}
        entities = (rule.name for rule in table.entities)
        for asset in ("pitr_export", "current_state", *entities):
            if asset in stale and self._may_request(keys[asset], content):
                yield _PlannedRun((keys[asset],))
        # Assets derived from a day of cdc are built in the same run.
        archive = (f"{table.safe_name}/ttl_archive",) if table.ttl_archive else ()
        if "cdc" in stale:
            days = stale["cdc"].days
            if self._may_request(keys["cdc"], f"{content} {days}"):
                yield from _ranges((keys["cdc"], *archive), days)
        elif "ttl_archive" in stale:
            days = stale["ttl_archive"].days
            if self._may_request(keys["ttl_archive"], f"{content} {days}"):
                yield from _ranges(archive, days)

    def _with_partitions(self, stale: "Stale") -> "Stale | None":
        """Drop the days without a partition: before `start_date` or after today."""
        first = self.lake.settings.start_date
        days = tuple(day for day in stale.days if first <= day <= self.today)
        return None if stale.days and not days else replace(stale, days=days)

    def _plan_aggregate(self, aggregate: Aggregate) -> Iterator[_PlannedRun]:
        asset = f"{AGGREGATES}/{aggregate.name}"
        marks = [self.cursor.settled.get(source) for source in self._sources(aggregate)]
        mark = f"{self.today} {marks}"
        if None not in marks and self.cursor.settled.get(asset) == mark:
            return
        self.cursor.settled.pop(asset, None)
        try:
            stale = self.staleness.of_aggregate(aggregate, self.today)
            stale = self._with_partitions(stale) if stale else None
        except CdcPipelineError as error:
            self.skipped.append(f"{asset}: {error.message}")
            return
        if stale is None:
            self.cursor.settled |= {asset: mark} if None not in marks else {}
        elif not stale.waits and self._may_request(asset, f"{mark} {stale.days}"):
            yield from _ranges((asset,), stale.days) if stale.days else [_PlannedRun((asset,))]

    def _sources(self, aggregate: Aggregate) -> Iterator[str]:
        for schema, view in aggregate.inputs:
            yield f"{AGGREGATES}/{view}" if schema == AGGREGATES else schema

    def _advance(self, table: Table, state: LogState) -> None:
        """Once per pause, mark a quiet table's published state as complete up to the watermark."""
        name = table.safe_name
        minutes = self.lake.settings.current_state.derive_minutes
        pause_us = max(_LEAST_QUIET_SECONDS, minutes * 60) * 1_000_000
        if state.watermark_us - self.cursor.shown_us.get(name, 0) < pause_us:
            return
        if self._is_served(state):
            return
        if state.staged is not None and f"{name}/current_state" not in self.running:
            self.staleness.advance(table)
            # After an open gap it advances no further: not to be tried again at this watermark.
            self.cursor.shown_us[name] = state.watermark_us

    def _is_served(self, state: LogState) -> bool:
        """Whether a live server keeps the published state."""
        return served_until_us(state.last_owner, state.at_us) > self.now_us

    def _may_request(self, asset: str, mark: str) -> bool:
        """Return whether to start a run: not while one is at work or in a pause after failures."""
        if run := self.running.get(asset):
            self.skipped.append(f"{asset}: in flight (run {run.run_id[:8]})")
            return False
        if pause := self.cursor.history.pause_of(asset, self.now_us):
            self.skipped.append(f"{asset}: {pause}")
            return False
        last = self.cursor.asked.get(asset)
        if last is None or last.mark != mark:
            self.cursor.asked[asset] = _Request(mark, 1, self.now_us)
            return True
        # The run ended and the same parts are still stale: equal runs would flood the history.
        wait = min(_FRUITLESS_SECONDS * 2 ** (last.count - 1), _SILENCE_SECONDS)
        if self.now_us - last.at_us < wait * 1_000_000:
            times = f"requested {last.count} times, again in at most {wait} s"
            self.skipped.append(f"{asset}: {times}")
            return False
        self.cursor.asked[asset] = _Request(mark, last.count + 1, self.now_us)
        return True


def _ranges(assets: tuple[str, ...], days: Sequence[date]) -> Iterator[_PlannedRun]:
    """Plan runs of consecutive days, the newest first."""
    parts: list[list[date]] = []
    for day in sorted(days):
        if parts and day - parts[-1][-1] == timedelta(days=1) and len(parts[-1]) < _RUN_DAYS:
            parts[-1].append(day)
        else:
            parts.append([day])
    for part in reversed(parts):
        yield _PlannedRun(assets, part[0], part[-1])
