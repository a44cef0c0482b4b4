"""The world of a story of exports: one table, its stream, backups and bucket, and its lake.

All of AWS is a simulator with one clock that stands until a step moves it. The pipeline is called
as its jobs call it, without Dagster, in a local lake.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.capture.run import Failed, capture_tables
from cdc_pipeline.core.errors import CannotHealError, CdcPipelineError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, EXPORT
from cdc_pipeline.lake.engine.duckdb_session import connect_duckdb, files_relation
from cdc_pipeline.lake.iceberg.catalog import open_catalog
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.iceberg.tables import Tables
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.cdc import build_cdc_days
from cdc_pipeline.lake.publish.current_state import PublishResult, publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.repair.heal import heal_gap, open_gaps
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline.snapshot.snapshot import take_snapshot
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline_tests.capture.shards.test_stories import Behaviour, ReusedSimulator, is_in
from cdc_pipeline_tests.simulators import faults
from cdc_pipeline_tests.simulators.clock import SimulatedClock, WrongClock
from cdc_pipeline_tests.simulators.exports import ExportsSimulator
from cdc_pipeline_tests.story_frame import MARGIN, ChangeHook, Killed, Step, StoryWorld

MARGIN_US = MARGIN * 1_000_000
SECOND_US = 1_000_000
_MEMORY = Path("/dev/shm")
_SLEEPS = 400
_ROUNDS = 10


class ReusedExports(ExportsSimulator, ReusedSimulator):
    """One HTTP server for many stories; each has an account and a clock of its own."""

    def begin(self, how: Behaviour) -> SimulatedClock:
        clock = SimulatedClock()
        self.clock, self.requests, self.faults = clock, [], faults.Faults(how.seed)
        self._begin_account(how.seed, exact_bounds=how.exact_bounds, strict_trim=how.strict_trim)
        self.create_table("orders", shards=how.shards)
        return clock


class HookedStore(LocalStore):
    """A folder whose every change is one of `hook`."""

    def __init__(self, root: Path, hook: ChangeHook) -> None:
        super().__init__(root)
        self.hook = hook

    def write(self, key: str, data: bytes) -> None:
        self.hook.change(lambda: super(HookedStore, self).write(key, data))

    def create(self, key: str, data: bytes) -> bool:
        return self.hook.change(lambda: super(HookedStore, self).create(key, data))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.hook.change(lambda key=key: super(HookedStore, self).delete([key]))


class HookedTables(Tables):
    """Iceberg tables whose every commit is a change, too."""

    hook: ChangeHook

    def _commit(self, table: IcebergTable, change: Callable[[Any], None]) -> IcebergTable:
        return self.hook.change(lambda: super(HookedTables, self)._commit(table, change))


class StoryTable(TableLake):
    """A table whose log reads the clock of that machine."""

    lake: "StoryLake"

    @property
    def log(self) -> CaptureLog:
        margin_us = self.lake.settings.clock_margin_us
        return CaptureLog(self.lake.store, self.paths, self.lake.local, margin_us=margin_us)


class StoryLake(Lake):
    """The lake as one process opens it, on a machine with a clock of its own."""

    def __init__(self, world: "ExportsWorld", hook: ChangeHook) -> None:
        settings = parse_settings(world.settings, world.folder / "settings.yaml")
        store = HookedStore(settings.lake_folder, hook)
        super().__init__(settings, world.aws, store)
        self.local, self._hook = world.local, hook

    def table(self, settings: Table) -> TableLake:
        return StoryTable(self, settings)

    @cached_property
    def iceberg(self) -> Tables:
        catalog = open_catalog(self.settings, self.aws, self.store)
        tables = HookedTables(catalog, self.database, self.store)
        tables.hook = self._hook
        return tables


@dataclass
class ExportsWorld(StoryWorld):
    """A table and its lake while a story is told; to be closed."""

    keys = 5
    sim: ReusedExports
    aws: AwsSession
    how: Behaviour
    written: int = 0
    sleeps: int = 0
    during: list[Step] = field(default_factory=list)
    record_of: dict[int, tuple[str, str]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        parent = _MEMORY if _MEMORY.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="cdc_pipeline-story-", dir=parent))
        self.settings = {
            "lake": str(self.folder / "lake"),
            "region": "us-east-1",
            "handover_margin_seconds": MARGIN,
            "capture": {
                "poll_seconds": 0.0001,
                "empty_polls": 2,
                "parallel_shards": 4,
                "reads_per_second": 1_000_000,
            },
            "export": {"bucket": "exports", "poll_seconds": 60},
            "tables": [{"name": "orders"}],
        }
        self.clock = self.sim.begin(self.how)
        self.local = WrongClock(self.clock)
        self.on = True
        self.lake = StoryLake(self, ChangeHook())
        self.table = self.lake.settings.tables[0]
        self.write(0, 0)
        assert self.attempt("capture") is None

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def now_us(self) -> int:
        return int(self.clock() * SECOND_US)

    def state(self) -> LogState:
        return self.lake.table(self.table).log.load()

    # ---------------------------------------------------------------------------- steps

    def tell(self, step: Step) -> None:
        match step:
            case ("recreate",) if self.on:
                self.clock.advance(0.001)
                self.sim.recreate_table("orders")
            case ("recovery", on):
                self.clock.advance(1)
                self.sim.switch_backups("orders", on=on)
            case ("spoil", how):
                self.sim.spoil_exports(*how)
            case ("vanish",):
                self.sim.objects.clear()
            case ("during", then):
                self.during.append(then)
            case ("run", name, None):
                self.attempt(name)
            case ("run", name, (at, after)):
                self.attempt(name, ChangeHook(at, after))
            case _:
                super().tell(step)

    def write(self, key: int, what: int) -> None:
        self.clock.advance(0.001)
        item: dict[str, Any] = {"pk": {"S": f"k{key}"}}
        before = len(self.sim.versions("orders"))
        self.written += 1
        if what < 2:
            record = self.sim.put("orders", {**item, "state": {"S": "AB"[what]}})
        elif what < 4:
            record = self.sim.put("orders", {**item, "n": {"N": f"{self.written}"}})
        else:
            record = self.sim.delete("orders", item, by_ttl=what == 5)
        versions = self.sim.versions("orders")
        if record is not None and len(versions) > before:
            self.record_of[versions[-1].micros] = (record.shard_id, record.sequence_number)

    def sleep(self, seconds: float) -> None:
        """A run waits; others go on meanwhile."""
        self.sleeps += 1
        assert self.sleeps < _SLEEPS, "a run waits without end"
        self.clock.advance(max(seconds, 60))
        if self.during:
            self.tell(self.during.pop(0))

    # ---------------------------------------------------------------------------- runs

    def attempt(self, name: str, hook: ChangeHook | None = None) -> str | None:
        """A run that may fail or be killed; what is said then must be true. The error's name."""
        lake = StoryLake(self, hook or ChangeHook())
        self.sleeps = 0
        failed = None
        try:
            getattr(self, f"_{name}")(lake)
        except Killed:
            failed = "Killed"
        except CdcPipelineError as error:
            failed = type(error).__name__
            self.trouble.append(f"{name}: {error}")
        self.outcomes[f"{name}: {failed or 'done'}"] += 1
        self.check_log()
        return failed

    def _capture(self, lake: Lake) -> None:
        for event in capture_tables(lake, [self.table]):
            if isinstance(event, Failed):
                raise event.error

    def _snapshot(self, lake: Lake) -> None:
        take_snapshot(lake.table(self.table), context=RunContext(sleep=self.sleep))

    def _heal(self, lake: Lake) -> None:
        while gaps := open_gaps(lake.table(self.table)):
            heal_gap(lake.table(self.table), gaps[0], context=RunContext(sleep=self.sleep))

    def _heal_or_baseline(self, lake: Lake) -> None:
        """As a person does what the error says."""
        try:
            self._heal(lake)
        except CannotHealError:
            self._snapshot(lake)

    def _publish(self, lake: Lake) -> PublishResult:
        published = publish_current_state(lake.table(self.table))
        self.check_published(published)
        return published

    def _cdc(self, lake: Lake) -> None:
        days = {date.fromisoformat(o.day) for o in self.state().objects.values()}
        for _ in build_cdc_days(lake.table(self.table), days, only_changed=True):
            pass

    # ---------------------------------------------------------------------------- the end

    def settle(self) -> None:
        """Without more faults, plain reruns end in a lake that is the table."""
        self.sim.faults.clear()
        self.sim.spoil_exports()
        self.during.clear()
        self.tell(("on",))
        self.sim.switch_backups("orders", on=True)
        self.clock.advance(1)
        begun_us = self.now_us
        self.trouble.clear()
        for _ in range(_ROUNDS):
            if self._round(begun_us):
                break
        else:
            raise AssertionError(f"reruns lead nowhere: {self.trouble[-6:]}")
        assert self.attempt("cdc") is None, self.trouble
        self.check_views()

    def _round(self, begun_us: int) -> bool:
        """Whether everything was published that was written before `begun_us`."""
        self.attempt("capture")
        self.clock.advance(20 * 60)
        self.attempt("capture")
        state = self.state()
        newest = state.baselines.get(max(state.baselines, default=0))
        if newest is None or (newest.snapshot_id is None and not newest.discarded):
            self.attempt("snapshot")
        self.attempt("heal_or_baseline")
        self.clock.advance(20 * 60)
        self.attempt("capture")
        if self.attempt("publish") is not None:
            return False
        state = self.state()
        staged = state.staged
        assert staged is not None  # it was published
        gaps = state.open_gaps(staged.generation)
        complete_us = state.complete_to_us(staged.generation)
        return not gaps and complete_us - MARGIN_US >= begun_us

    # ---------------------------------------------------------------------------- the truth

    def landed(self, state: LogState) -> list[dict[str, Any]]:
        columns = ["shard_id", "sequence_number", "keys", "transport"]
        found: list[dict[str, Any]] = []
        for landed in state.objects.values():
            data = self.lake.store.read(landed.key)
            table = pq.read_table(pa.BufferReader(data), columns=columns)
            assert table.num_rows == landed.rows
            found += table.to_pylist()
        return found

    def places(self, state: LogState) -> Counter[tuple[str, str]]:
        """How often each record of the stream has landed."""
        rows = (row for row in self.landed(state) if row["transport"] == DYNAMODB_STREAMS)
        return Counter((row["shard_id"], row["sequence_number"]) for row in rows)

    def check_log(self) -> None:
        """Every record before the watermark, less the margin, has landed once or is in a gap."""
        state = self.state()
        places = self.places(state)
        assert all(times == 1 for times in places.values()), "landed twice"
        claimed_us = state.watermark_us - MARGIN_US
        for record in self.sim.records("orders"):
            place = (record.shard_id, record.sequence_number)
            if place in places or (record.created + 1) * SECOND_US > claimed_us:
                continue
            names = self.sim.names_of(record.shard_id, state)
            lost = f"lost: {record.keys} of {record.created}; gaps: {state.gaps}"
            assert any(is_in(gap, record, names) for gap in state.gaps.values()), lost

    def current(self) -> dict[str, str]:
        with connect_lake(self.lake, ["orders"], aggregates=False) as connection:
            sql = "SELECT _key, _item FROM orders.current_state"
            rows = connection.execute(sql).fetchall()
        assert len({key for key, _ in rows}) == len(rows)
        return dict(rows)

    def there(self) -> dict[str, str]:
        items = map(canonical_item, self.sim.items("orders"))
        return {to_json({"pk": item["pk"]}): to_json(item) for item in items}

    def check_published(self, published: PublishResult) -> None:
        """Each item is as it was at some time since the published watermark, less the margin."""
        since_us = published.watermark_us - MARGIN_US
        allowed: dict[str, set[str | None]] = {}
        for version in self.sim.versions("orders"):
            key = to_json(canonical_item(version.key))
            image = None if version.image is None else to_json(canonical_item(version.image))
            seen = allowed.setdefault(key, {None})
            if version.micros < since_us:
                seen.clear()
            seen.add(image)
        found = self.current()
        assert found.keys() <= allowed.keys()
        for key, images in allowed.items():
            assert found.get(key) in images, f"{key} is {found.get(key)}, not one of {images}"

    def check_views(self) -> None:
        """current_state and history are the table; cdc has each landed record once.

        And no line of an export beside the record of its change. Of what was lost in a gap that a
        new baseline made up for, cdc and history have what that baseline shows.
        """
        state = self.state()
        columns = "uuid, keys, transport, shard_id, sequence_number, write_time_us"
        with connect_lake(self.lake, ["orders"], aggregates=False) as connection:
            sql = "SELECT _key, _item FROM orders.current_state"
            current = connection.execute(sql).fetchall()
            rows = connection.execute(f"SELECT {columns} FROM orders.cdc").fetchall()
            sql = "SELECT item_key, item FROM orders.history WHERE is_current"
            history = connection.execute(sql).fetchall()
        assert len(dict(current)) == len(current)
        assert dict(current) == self.there()
        assert len({row[0] for row in rows}) == len(rows), "twice in cdc"
        places = {row[3:5] for row in rows if row[2] == DYNAMODB_STREAMS}
        assert places == set(self.places(state)), "cdc is not what landed"
        lines = [row for row in rows if row[2] == EXPORT]
        beside = [row for row in lines if self.record_of.get(row[5]) in places]
        assert not beside, f"in cdc beside their records: {beside}"
        assert len(dict(history)) == len(history)
        untouched = self._untouched(state)
        assert untouched | dict(history) == self.there(), "history ends otherwise"

    def _untouched(self, state: LogState) -> dict[str, str]:
        """What is there as the first baseline had it: history begins with the first change."""
        staged = [b for b in state.baselines.values() if b.is_staged]
        first = min(staged, key=lambda b: b.generation)
        snapshot = self.lake.iceberg.load("orders_snapshot")
        assert snapshot is not None  # the log says so
        touched = {row["keys"] for row in self.landed(state)}
        with connect_duckdb(self.lake) as connection:
            files = data_files(snapshot, first.snapshot_id)
            relation = files_relation(connection, files, typed_schema([]))
            items = dict(connection.execute(f"SELECT _key, _item FROM {relation}").fetchall())
        there = self.there()
        kept = {key: item for key, item in items.items() if there.get(key) == item}
        return {key: item for key, item in kept.items() if key not in touched}
