"""The sensor `downstream`: starts runs for derived tables that lack something, by the log.

Dagster's events have no say in it: a run that was killed before it told of its work, a heal, a
command each leave the lake as it is, and `lake.publish.staleness` reads that.
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
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import Flight, History, flights, is_at_work
from cdc_pipeline.defs.tables.shard_sensor import sensor_status
from cdc_pipeline.settings.model import Settings, Table
from cdc_pipeline.transform.aggregates import AGGREGATES, Aggregate

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.lake.publish.staleness import Stale

AUTOMATIC = "cdc_pipeline/automatic"
"""The tag of runs that nobody asked for."""

_BUDGET_SECONDS = 30  # Dagster ends a tick after 60
_SILENCE_SECONDS = 3600
"""A run that Dagster counts as running this long is taken for dead; two at once do no harm."""
_MOST_RUNS = 20
_RUN_DAYS = 168
_FRUITLESS_SECONDS = 60
_LEAST_QUIET_SECONDS = 60


class _Asked(msgspec.Struct):
    """What was asked for last: `mark` of what was lacking, how often running, and when."""

    mark: str
    count: int
    at_us: int


class _Memory(msgspec.Struct):
    """The sensor's cursor.

    `after`: the next tick begins behind this table. `settled`: the log's contents (and the day) at
    which all that is made of a table was found to be up to date. `shown_us`: up to when a table's
    published state said that it is complete, or was last tried to. `asked`: by asset.
    """

    after: str = ""
    settled: dict[str, str] = {}
    shown_us: dict[str, int] = {}
    asked: dict[str, _Asked] = {}
    history: History = msgspec.field(default_factory=History)

    @classmethod
    def parse(cls, cursor: str | None) -> "_Memory":
        try:
            return msgspec.json.decode(cursor, type=cls) if cursor else cls()
        except msgspec.MsgspecError:
            return cls()  # of a sensor of this name in an earlier version


@dataclass(frozen=True)
class _Wanted:
    """One run to start: of neighbouring days, or of whole assets."""

    assets: tuple[str, ...]
    first: date | None = None
    last: date | None = None

    def request(self) -> dg.RunRequest:
        """As Dagster takes it."""
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
    """Whether a sensor asked for the run, so that nobody waits for an answer."""
    return AUTOMATIC in run.tags


def build_downstream_sensor(
    settings: Settings, assets: Sequence[dg.AssetKey], aggregates: Sequence[Aggregate]
) -> dg.SensorDefinition:
    """Keeps `assets` up with what has landed."""

    @dg.sensor(
        name="downstream",
        asset_selection=dg.AssetSelection.assets(*assets),
        minimum_interval_seconds=settings.schedules.downstream_seconds,
        default_status=sensor_status(settings),
        description=(
            "Keeps cdc, current_state and aggregates up with what has landed, by the capture log "
            "alone. What fails again and again is tried ever more seldom, an hour apart at most."
        ),
    )
    def downstream(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        opened, memory = lake.open(), _Memory.parse(context.cursor)
        look = _Look(context.instance, opened, memory, aggregates)
        wanted = list(look.at_all())
        context.update_cursor(msgspec.json.encode(memory).decode())
        if not wanted:
            return dg.SkipReason("; ".join(look.told) or "nothing lacks anything")
        return dg.SensorResult(run_requests=[run.request() for run in wanted])

    return downstream


class _Look:
    """One tick. `told`: why something that is stale is not asked for now."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        lake: "Lake",
        memory: _Memory,
        aggregates: Sequence[Aggregate],
    ) -> None:
        from cdc_pipeline.lake.publish.staleness import Staleness

        self.lake, self.memory, self.aggregates = lake, memory, aggregates
        self.staleness = Staleness(lake)
        self.now_us = now_us()
        self.today = day_of(self.now_us)
        labels = [table.label for table in lake.settings.tables]
        memory.history.take_in(instance, labels, self.now_us)
        self.running: dict[str, Flight] = {}
        for flight in flights(instance, labels):
            if is_at_work(flight, LogState(), self.now_us, _SILENCE_SECONDS):
                self.running.update(dict.fromkeys(flight.works, flight))
        self.told: list[str] = []

    def at_all(self) -> Iterator[_Wanted]:
        """Runs to start, of tables and then of aggregates, as far as the tick's time goes."""
        tables = self.lake.settings.tables
        names = [table.safe_name for table in tables]
        start = names.index(self.memory.after) + 1 if self.memory.after in names else 0
        deadline, room = time.monotonic() + _BUDGET_SECONDS, _MOST_RUNS
        self.memory.after = ""
        for table in tables[start:] + tables[:start]:
            for run in self._at(table):
                yield run
                room -= 1
            if time.monotonic() > deadline or room <= 0:
                self.memory.after = table.safe_name
                return
        for aggregate in self.aggregates:
            yield from self._at_aggregate(aggregate)

    def _at(self, table: Table) -> Iterator[_Wanted]:
        from cdc_pipeline.lake.publish.entity_notes import split_mark
        from cdc_pipeline.lake.publish.staleness import content_mark

        name = table.safe_name
        try:
            state = self.staleness.load(table)
            content = content_mark(state) + split_mark(table)
            # Each day once more, whatever happened elsewhere than in the log.
            mark = f"{self.today} {content}"
            if self.memory.settled.get(name) == mark:
                self._advance(table, state)
                return
            self.memory.settled.pop(name, None)
            stale = [self._with_partitions(s) for s in self.staleness.of_table(table)]
            waiting = self.staleness.is_waiting(table)
            self.memory.shown_us[name] = self.staleness.complete_us(table)
        except CdcPipelineError as error:
            self.told.append(f"{name}: {error.message}")
            return
        lacking = {found.asset: found for found in stale if found is not None}
        if not lacking and not waiting:
            self.memory.settled[name] = mark
        yield from self._runs(table, lacking, content)

    def _runs(self, table: Table, stale: "dict[str, Stale]", content: str) -> Iterator[_Wanted]:
        keys = {asset: f"{table.safe_name}/{asset}" for asset in stale}
        entities = (rule.name for rule in table.entities)
        for asset in ("pitr_export", "current_state", *entities):
            if asset in stale and self._may_ask(keys[asset], content):
                yield _Wanted((keys[asset],))
        # What is made of a day of cdc is made in the same run.
        archive = (f"{table.safe_name}/ttl_archive",) if table.ttl_archive else ()
        if "cdc" in stale:
            days = stale["cdc"].days
            if self._may_ask(keys["cdc"], f"{content} {days}"):
                yield from _ranges((keys["cdc"], *archive), days)
        elif "ttl_archive" in stale:
            days = stale["ttl_archive"].days
            if self._may_ask(keys["ttl_archive"], f"{content} {days}"):
                yield from _ranges(archive, days)

    def _with_partitions(self, stale: "Stale") -> "Stale | None":
        """Without the days that are no partitions: from before the first one, or still to come."""
        first = self.lake.settings.start_date
        days = tuple(day for day in stale.days if first <= day <= self.today)
        return None if stale.days and not days else replace(stale, days=days)

    def _at_aggregate(self, aggregate: Aggregate) -> Iterator[_Wanted]:
        asset = f"{AGGREGATES}/{aggregate.name}"
        marks = [self.memory.settled.get(source) for source in self._sources(aggregate)]
        mark = f"{self.today} {marks}"
        if None not in marks and self.memory.settled.get(asset) == mark:
            return
        self.memory.settled.pop(asset, None)
        try:
            found = self.staleness.of_aggregate(aggregate, self.today)
            stale = self._with_partitions(found) if found else None
        except CdcPipelineError as error:
            self.told.append(f"{asset}: {error.message}")
            return
        if stale is None:
            self.memory.settled |= {asset: mark} if None not in marks else {}
        elif self._may_ask(asset, f"{mark} {stale.days}"):
            yield from _ranges((asset,), stale.days) if stale.days else [_Wanted((asset,))]

    def _sources(self, aggregate: Aggregate) -> Iterator[str]:
        for schema, view in aggregate.inputs:
            yield f"{AGGREGATES}/{view}" if schema == AGGREGATES else schema

    def _advance(self, table: Table, state: LogState) -> None:
        """Now and then, let a quiet table's published state say that it lacks nothing."""
        name = table.safe_name
        minutes = self.lake.settings.current_state.fold_minutes
        pause_us = max(_LEAST_QUIET_SECONDS, minutes * 60) * 1_000_000
        if state.watermark_us - self.memory.shown_us.get(name, 0) < pause_us:
            return
        if state.staged is not None and f"{name}/current_state" not in self.running:
            self.staleness.advance(table)
            # Behind an open gap it advances no further, and need not be looked at again for that.
            self.memory.shown_us[name] = state.watermark_us

    def _may_ask(self, asset: str, mark: str) -> bool:
        """Whether to start a run; not while one is at work, or soon after one that failed."""
        if flight := self.running.get(asset):
            self.told.append(f"{asset}: in flight (run {flight.run_id[:8]})")
            return False
        if pause := self.memory.history.pause_of(asset, self.now_us):
            self.told.append(f"{asset}: {pause}")
            return False
        asked = self.memory.asked.get(asset)
        if asked is None or asked.mark != mark:
            self.memory.asked[asset] = _Asked(mark, 1, self.now_us)
            return True
        # A run that ended, and lacks what it lacked: the same again would flood the history.
        wait = min(_FRUITLESS_SECONDS * 2 ** (asked.count - 1), _SILENCE_SECONDS)
        if self.now_us - asked.at_us < wait * 1_000_000:
            self.told.append(f"{asset}: asked for {asked.count} times, again in at most {wait} s")
            return False
        self.memory.asked[asset] = _Asked(mark, asked.count + 1, self.now_us)
        return True


def _ranges(assets: tuple[str, ...], days: Sequence[date]) -> Iterator[_Wanted]:
    """Runs of neighbouring days, the newest first."""
    parts: list[list[date]] = []
    for day in sorted(days):
        if parts and day - parts[-1][-1] == timedelta(days=1) and len(parts[-1]) < _RUN_DAYS:
            parts[-1].append(day)
        else:
            parts.append([day])
    for part in reversed(parts):
        yield _Wanted(assets, part[0], part[-1])
