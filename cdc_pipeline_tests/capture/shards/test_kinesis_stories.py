"""Any story of a table that writes to Kinesis: every change lands, in order, or is in a gap.

The frame and most of the world are those of streams. What differs: Kinesis repeats changes, late
and in any order, shards merge, positions that were trimmed are no errors, some changes never come,
and later baselines are begun between repeats of what is older than they.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from cdc_pipeline.aws.kinesis import KinesisStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.reading import KinesisProtocol
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.capture.sources.source_choice import ReplicationMetric
from cdc_pipeline.core.changes.change import content_identity
from cdc_pipeline.core.changes.fold import KeyedChange, Row, fold, items
from cdc_pipeline.core.changes.order import SNAPSHOT_POSITION, order_key
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import ExportError, SourceError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.entries import Baseline, Gap
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.core.transports import KINESIS, READ
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import record_baseline
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.log_memory import MEMORY
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline.snapshot.snapshot import take_snapshot
from cdc_pipeline_tests.capture.shards.test_stories import (
    LAG,
    OPTIONS,
    WHOLE_TABLE,
    Behaviour,
    MemoryStore,
    ReusedSimulator,
    World,
)
from cdc_pipeline_tests.simulators import faults
from cdc_pipeline_tests.simulators.clients import session
from cdc_pipeline_tests.simulators.clock import SimulatedClock, WrongClock
from cdc_pipeline_tests.simulators.kinesis_model import Change, KinesisModel
from cdc_pipeline_tests.simulators.kinesis_server import KinesisSimulator
from cdc_pipeline_tests.simulators.kinesis_service import KinesisService
from cdc_pipeline_tests.story_frame import (
    ANY_FAULTS,
    CAPTURES,
    CLOCK,
    HOUR,
    LISTING_FAULTS,
    MARGIN,
    MARKS,
    NEARLY_A_DAY,
    Killed,
    Step,
    shared_simulator,
    steps_of,
    story_settings,
    tell_story,
)
from cdc_pipeline_tests.transform.ways import WAYS, converted_by

pytestmark = MARKS

_NEXT_MS = 0.002
"""A clock of floating numbers may tell a µs less than the next ms begins with."""

LATE = 20
"""Seconds that DynamoDB takes at most to replicate what it replicates."""

# ----------------------------------------------------------------------------------- stories

_PRECISIONS = ["MICROSECOND", "MILLISECOND", None]
_writes = st.tuples(st.just("write"), st.lists(st.integers(0, 19), min_size=1, max_size=6))
_ticks = st.tuples(st.just("tick"), st.sampled_from([1, 300, 700, 1000, 2500]))
_shards = st.one_of(
    st.tuples(st.just("split"), st.integers(0, 3)),
    st.tuples(st.just("merge"), st.integers(0, 3)),
)
_time = st.tuples(
    st.just("advance"), st.sampled_from([1, 30, 6 * 60, 4 * HOUR, 13 * HOUR, 25 * HOUR, 49 * HOUR])
)
_nearly_a_day = st.tuples(st.just("advance"), NEARLY_A_DAY)
_replication = st.one_of(
    st.tuples(st.just("precision"), st.sampled_from(_PRECISIONS)),
    st.tuples(st.just("disturb"), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.4])),
    st.tuples(st.just("again"), st.integers(0, 30)),
    st.tuples(st.just("skip"), st.integers(1, 2)),
    st.tuples(st.just("retention"), st.sampled_from([24, 48])),
)
_stream = st.sampled_from([("off",), ("on", "another"), ("on", "one of that name"), ("recreate",)])
_late_listing = st.tuples(
    st.just("fault"),
    st.just("kinesis:ListShards"),
    st.sampled_from(LISTING_FAULTS),
    st.integers(1, 4),
)
_faults = st.one_of(
    st.tuples(
        st.just("fault"),
        st.sampled_from(
            [
                "kinesis:GetRecords",
                "kinesis:GetRecords",
                "kinesis:GetShardIterator",
                "kinesis:ListShards",
                "kinesis:DescribeStreamSummary",
                "DescribeKinesisStreamingDestination",
                "cloudwatch:GetMetricStatistics",
            ]
        ),
        st.sampled_from(ANY_FAULTS),
        st.integers(1, 7),
    ),
    st.just(("empty page",)),
    _late_listing,
)
_meanwhile = st.tuples(
    st.just("meanwhile"),
    st.sampled_from(["kinesis:GetRecords", "kinesis:GetRecords", "kinesis:ListShards"]),
    st.integers(0, 5),
    st.one_of(_writes, _shards, _time, _replication, _stream),
)
_baseline = st.just(("baseline",))
_steps = st.one_of(
    _writes,
    _writes,
    _writes,
    _ticks,
    _shards,
    _replication,
    _replication,
    _time,
    CLOCK,
    _stream,
    _faults,
    _meanwhile,
    _baseline,
    CAPTURES,
    CAPTURES,
)
_again = st.tuples(st.just("again"), st.integers(0, 30))
_chapters = st.one_of(
    *[st.tuples(_steps)] * 5,
    st.tuples(_writes, _shards, st.just(("advance", 25 * HOUR)), _writes),
    st.tuples(st.just(("capture",)), _writes, st.just(("advance", 49 * HOUR)), _writes),
    st.tuples(st.just(("split", 0)), _writes, st.just(("merge", 0)), _writes, CAPTURES),
    st.tuples(st.just(("off",)), _writes, _time, st.just(("on", "another")), _writes),
    st.tuples(st.just(("disturb", 0.3, 0.4)), _writes, CAPTURES, _writes, _time, CAPTURES),
    st.tuples(CLOCK, _writes, st.just(("capture",)), CLOCK, _writes, _nearly_a_day, _writes),
    st.tuples(_writes, st.just(("capture",)), CLOCK, _baseline, _again, _writes, _again, _again),
)
"""The longer ones seldom come about by chance."""
stories = st.lists(_chapters, min_size=2, max_size=12).map(steps_of)


@dataclass(frozen=True)
class KinesisBehaviour(Behaviour):
    """What Kinesis may do one way or another."""

    empty_end: bool = False
    by_partition_key: bool = True


behaviours = st.builds(
    KinesisBehaviour,
    seed=st.integers(0, 999),
    shards=st.integers(1, 2),
    empty_end=st.booleans(),
    by_partition_key=st.booleans(),
)

# -------------------------------------------------------------------------------- the machine


class ReusedKinesis(KinesisSimulator, ReusedSimulator):
    """One HTTP server for many stories; each has an account and a clock of its own."""

    def begin(self, how: Behaviour) -> SimulatedClock:
        assert isinstance(how, KinesisBehaviour)
        clock = SimulatedClock()
        self.clock, self.requests, self.faults = clock, [], faults.Faults(how.seed)
        self._model = self._kinesis = KinesisModel(clock, how.seed)
        self._service = KinesisService(
            self._kinesis,
            strict_trim=True,
            limits=False,
            empty_end=how.empty_end,
            metric_lag_seconds=0,
        )
        self.create_table("orders", view_type=None)
        return clock

    def began(self, shard_id: str) -> float:
        streams = self._kinesis.kinesis.values()
        return min(s.shards[shard_id].opened_at for s in streams if shard_id in s.shards)


@dataclass
class KinesisWorld(World):
    """A table, the Kinesis stream it writes to, and its lake while a story is told."""

    reader: ItemReader | None = None
    losses: ReplicationMetric | None = None
    stream: str = ""
    streams_made: int = 0

    def __post_init__(self) -> None:
        MEMORY.clear()  # the lakes of all worlds have one address
        self.clock = self.sim.begin(self.how)
        self.local = WrongClock(self.clock)
        self.on = False
        self.tell(("on", "another"))
        self.capture()

    @property
    def aws(self) -> ReusedKinesis:
        assert isinstance(self.sim, ReusedKinesis)
        return self.sim

    # ---------------------------------------------------------------------------- steps

    def tell(self, step: Step) -> None:
        match step:
            case ("tick", micros):
                self.clock.advance(micros / 1_000_000)
            case ("advance", seconds):
                # Whatever others overtook comes in time, and before what was written later.
                self.clock.advance(min(seconds, LATE))
                if self.on:
                    self.aws.release("orders")
                self.clock.advance(max(0, seconds - LATE))
            case ("split", which) if self.on:
                shards = self.aws.open_kinesis(self.stream)
                if len(shards) < 4:
                    self.aws.split_kinesis(self.stream, shards[which % len(shards)])
            case ("merge", which) if self.on:
                pairs = list(pairwise(self.aws.open_kinesis(self.stream)))
                if pairs:
                    self.aws.merge_kinesis(self.stream, *pairs[which % len(pairs)])
            case ("precision", precision) if self.on:
                self.aws.set_precision("orders", precision)
            case ("disturb", duplicates, late) if self.on:
                self.aws.disturb("orders", duplicates=duplicates, late=late)
            case ("again", which):
                delivered = [c for c in self.aws.changes("orders") if c.deliveries]
                mine = [c for c in delivered if c.stream == self.stream]
                if self.on and mine:
                    self.aws.again(mine[-1 - which % len(mine)])
            case ("skip", count) if self.on:
                self.aws.skip_next("orders", count)
            case ("retention", hours) if self.on:
                self.aws.set_retention(self.stream, hours)
            case ("off",) if self.on:
                self.aws.stop_replicating("orders")
                self.on = False
            case ("on", kind) if not self.on:
                self.turn_on(kind)
            case ("recreate",) if self.on:
                self.recreate()
            case ("meanwhile", operation, calls, then):
                happens = faults.meanwhile(lambda: self.tell_later(then))
                self.sim.faults.script(operation, *[None] * calls, happens)
            case ("empty page",):
                self.sim.faults.script("kinesis:GetRecords", faults.empty_page())
            case ("baseline",):
                self.begin_baseline()
            case _:
                super().tell(step)

    def tell_later(self, step: Step) -> None:
        """No change is made in the ms of another one that somebody could have read by now."""
        self.clock.advance(_NEXT_MS)
        self.tell(step)

    def turn_on(self, kind: str) -> None:
        """Let the table write to a new stream, perhaps of the old one's name."""
        if kind == "one of that name" and self.stream:
            self.aws.delete_kinesis(self.stream)
        else:
            self.streams_made += 1
            self.stream = f"changes-{self.streams_made}"
        how = self.how
        assert isinstance(how, KinesisBehaviour)
        self.clock.advance(1)  # no two streams begin at one time
        self.aws.create_kinesis(self.stream, shards=how.shards)
        if not how.by_partition_key:
            self.aws.ignore_partition_keys(self.stream)
        self.aws.replicate("orders", self.stream)
        self.on = True

    def recreate(self) -> None:
        """Another table of that name, which writes to a new stream."""
        if self.sim.items("orders"):
            self.unseen.append(int(self.clock() * 1_000_000))
        self.aws.stop_replicating("orders")
        self.aws.recreate_table("orders")
        self.on = False
        self.turn_on("another")

    def write(self, key: int, what: int) -> None:
        item = {"pk": {"S": f"k{key}"}}
        self.written += 1
        before = len(self.aws.changes("orders"))
        if what == 0:
            # Binary and a number with zeros: what must come out as DynamoDB has it.
            self.sim.put("orders", {**item, "n": {"N": f"{self.written}.50"}, "b": {"B": b"\x00"}})
        elif what < 3:
            self.sim.put("orders", {**item, "state": {"S": "AB"[what - 1]}})
        else:
            self.sim.delete("orders", item, by_ttl=what == 4)
        if not self.on and len(self.aws.changes("orders")) > before:
            self.unseen.append(int(self.clock() * 1_000_000))

    # -------------------------------------------------------------------------- captures

    def capture(
        self, store: Store | None = None, options: CaptureOptions = OPTIONS
    ) -> CaptureResult:
        self.clock.advance(_NEXT_MS)
        arn = self.aws.kinesis_arn(self.stream)
        assert isinstance(self.streams, KinesisStreams)
        source = Source(
            table="orders",
            table_id=self.sim.table_id("orders"),
            arn=arn,
            view_type="NEW_AND_OLD_IMAGES",
            shards=self.streams,
            reader=self.reader,
            transport=KINESIS,
            reading=KinesisProtocol(Target("orders", self.sim.table_id("orders"), {"pk": "S"})),
            created_us=self.streams.created_us(arn),
            losses=self.losses,
        )
        return capture_table(self.log(store), source, options, sleep=lambda _: None)

    def begin_baseline(self) -> None:
        """What a snapshot logs before it asks for its export; this one counts as staged then."""

        def stop(_: float) -> None:
            raise Killed

        lake = WorldsLake(self)
        with suppress(Killed, ExportError, SourceError):
            take_snapshot(lake.table(lake.settings.tables[0]), context=RunContext(sleep=stop))
        log = self.log()
        state = log.load()
        newest = state.baselines.get(max(state.baselines, default=0))
        if newest is not None and newest.snapshot_id is None:
            record_baseline(log, state, newest, snapshot_id=1)

    def settle(self) -> None:
        self.sim.faults.clear()
        self.tell(("on", "another"))
        # Behind the time of every export that was asked for.
        self.tell(("advance", LAG + LATE + 4 * MARGIN + 2))
        super().settle()

    # -------------------------------------------------------------------------- the truth

    def check(self, state: LogState, until_us: int | None = None) -> None:
        """What was written before `until_us` (the log's watermark) is there, or in a gap."""
        changes = [c for c in self.aws.changes("orders") if c.stream is not None]
        by_uuid: dict[str, list[Change]] = defaultdict(list)
        for change in changes:
            by_uuid[identity(change)].append(change)
        landed = self.rows(state)
        captured = [row for row in landed if row["transport"] == KINESIS]
        assert {row["uuid"] for row in captured} <= by_uuid.keys(), "landed, but never written"
        assert {row["transport"] for row in landed} <= {KINESIS, READ}
        assert not state.quarantined
        claimed_us = state.watermark_us - MARGIN * 1_000_000
        whole_until_us = claimed_us if until_us is None else until_us
        there = {row["uuid"] for row in captured}
        missing = [c for uuid, same in by_uuid.items() if uuid not in there for c in same]
        gaps = list(state.gaps.values())
        for change in missing:
            # What was skipped is known when CloudWatch is asked.
            if change.written_us < whole_until_us and (until_us or not change.skipped):
                lost = f"lost: {change}; gaps: {gaps}"
                assert any(is_in(gap, change) for gap in gaps), lost
        self.check_generations(state, landed)
        if until_us is not None:
            whole = [gap for gap in gaps if gap.cause in WHOLE_TABLE]
            for time_us in self.unseen:
                seen = f"no stream saw what was written at {time_us}; gaps: {whole}"
                assert any(gap.from_us <= time_us <= gap.to_us for gap in whole), seen
        for row in captured:
            assert_same(row, by_uuid[row["uuid"]])
        unsure = {to_json(canonical_item(change.keys)) for change in missing}
        self.check_order(by_uuid, [row for row in captured if row["keys"] not in unsure])
        if until_us is not None and not self.unseen:
            self.check_final(state, [row for row in landed if row["keys"] not in unsure], unsure)

    def check_generations(self, state: LogState, landed: list[dict[str, Any]]) -> None:
        """A heal beats what was written before its gap ended, and nothing else.

        A gap ends a margin behind its opening. What begins later may be said to begin before that:
        a baseline, or another gap, which ends early where the clock was set back meanwhile.
        """
        for gap in state.gaps.values():
            later = [b for b in state.baselines.values() if b.generation > gap.heal_generation]
            ends = [g.to_us for g in state.gaps.values() if g.heal_generation > gap.heal_generation]
            end_us = min([gap.to_us, *ends, *(baseline.recorded_us for baseline in later)])
            for row in landed:
                is_behind = row["write_time_us"] // 1000 >= end_us // 1000
                assert (row["generation"] > gap.heal_generation) == is_behind, (row, gap)

    def check_order(self, by_uuid: dict[str, list[Change]], captured: list[dict[str, Any]]) -> None:
        """By time; where changes of an item have one time, by their images, if these tell."""
        for rows in by_key(captured).values():
            order = [by_uuid[row["uuid"]][0] for row in in_order(rows)]
            times = [change.written_us // 1000 for change in order]
            assert times == sorted(times), f"out of order: {order}"
            for slot in set(times):
                mine = [c for c in order if c.written_us // 1000 == slot]
                if images_tell(mine, self.aws.changes("orders")):
                    numbers = [change.order for change in mine]
                    assert numbers == sorted(numbers), f"out of order: {mine}"

    def check_final(self, state: LogState, landed: list[dict[str, Any]], unsure: set[str]) -> None:
        """The fold over nothing, and over every baseline, as its export shows the table."""
        there = {}
        for item in map(canonical_item, self.sim.items("orders")):
            there[to_json({"pk": item["pk"]})] = to_json(item)
        expected = {key: item for key, item in there.items() if key not in unsure}
        assert items(fold({}, map(keyed, landed))) == expected
        for baseline in state.baselines.values():
            exported = self.exported(baseline)
            base = {key: row for key, row in exported.items() if key not in unsure}
            newer = [row for row in landed if row["generation"] >= baseline.generation]
            found = items(fold(base, map(keyed, newer)))
            assert found == expected, f"over {baseline}, of {[*map(short, landed)]}"

    def exported(self, baseline: Baseline) -> dict[str, Row]:
        """The table as it was at the time of a baseline's export."""
        items: dict[str, Any] = {}
        for change in self.aws.changes("orders"):
            if change.written_us < baseline.export_time_us:
                items[to_json(canonical_item(change.keys))] = change.new_image
        at = order_key(baseline.generation, SNAPSHOT_POSITION)
        return {key: Row(at, to_json(canonical_item(item))) for key, item in items.items() if item}

    def rows(self, state: LogState) -> list[dict[str, Any]]:
        columns = ["uuid", "op", "keys", "new_image", "old_image", "write_time_us", "position"]
        columns += ["is_ttl_delete", "transport", "event_id"]
        found: list[dict[str, Any]] = []
        for landed in state.objects.values():
            table = pq.read_table(pa.BufferReader(self.objects[landed.key]), columns=columns)
            assert table.num_rows == landed.rows
            for row in table.to_pylist():
                key = order_key(landed.generation, row["position"])
                found.append({**row, "generation": landed.generation, "order_key": key})
        return found


class WorldsTable(TableLake):
    """A table whose log is the world's."""

    lake: "WorldsLake"

    @property
    def log(self) -> CaptureLog:
        return self.lake.world.log()


class WorldsLake(Lake):
    """The lake of a world, for what asks for a whole one."""

    def __init__(self, world: KinesisWorld) -> None:
        assert world.losses is not None
        settings = parse_settings(SETTINGS, Path("settings.yaml"))
        super().__init__(settings, world.losses.aws, MemoryStore(world.objects))
        self.world = world

    def table(self, settings: Table) -> TableLake:
        return WorldsTable(self, settings)


SETTINGS = {
    "lake": "lake",
    "handover_margin_seconds": MARGIN,
    "export": {"bucket": "exports"},
    "tables": [{"name": "orders", "transport": KINESIS}],
}


def keyed(row: dict[str, Any]) -> KeyedChange:
    return KeyedChange(row["keys"], row["order_key"], row["new_image"])


def short(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["keys"], row["order_key"], row["op"], row["new_image"]


def image(item: Any) -> str | None:
    return None if item is None else to_json(canonical_item(item))


def identity(change: Change) -> str:
    keys = to_json(canonical_item(change.keys))
    op = {"INSERT": "I", "MODIFY": "U", "REMOVE": "D"}[change.event_name]
    images = (image(change.new_image), image(change.old_image))
    return content_identity(change.table_id, keys, change.time_us, op, *images)


def assert_same(row: dict[str, Any], changes: list[Change]) -> None:
    """Beside what its identity says already; in a cycle two changes may be the same."""
    facts = (row["write_time_us"], row["is_ttl_delete"], row["event_id"])
    assert facts in [(c.time_us, c.by_ttl, c.event_id) for c in changes]


def by_key(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["keys"]].append(row)
    return found


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per change: of its first generation, the last place that it was given there."""
    counted: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: (-r["generation"], r["order_key"])):
        counted[row["uuid"]] = row
    return sorted(counted.values(), key=lambda row: row["order_key"])


def images_tell(mine: list[Change], every: list[Change]) -> bool:
    """Whether the images of one item's changes in one ms allow one order only."""
    slot = {(c.written_us // 1000, image(c.keys), c.table_id) for c in mine}
    written = [c for c in every if (c.written_us // 1000, image(c.keys), c.table_id) in slot]
    visited = [image(written[0].old_image), *(image(c.new_image) for c in written)]
    return len(visited) == len(set(visited))


def is_in(gap: Gap, change: Change) -> bool:
    """Whether a gap owns up to a missing change."""
    return gap.from_us <= change.time_us <= gap.to_us


@pytest.fixture(scope="module")
def sim() -> Iterator[ReusedKinesis]:
    simulator = ReusedKinesis()
    with shared_simulator(simulator):
        yield simulator


Parts = tuple[KinesisStreams, ItemReader, ReplicationMetric]


@pytest.fixture(scope="module")
def parts(sim: ReusedKinesis) -> Parts:
    aws = session(sim)
    reader = ItemReader(aws, "orders", ("pk",), 1e9, sleep=lambda _: None)
    return (
        KinesisStreams(aws, "orders"),
        reader,
        ReplicationMetric(aws, "orders", 5 * 60 * 1_000_000),
    )


def tell(
    sim: ReusedKinesis,
    parts: Parts,
    how: KinesisBehaviour,
    story: list[Step],
) -> set[str]:
    """Tell a story to its end and check it; how its runs ended."""
    streams, reader, losses = parts
    world = KinesisWorld(sim, streams, how, reader=reader, losses=losses)
    with converted_by(WAYS[len(story) % len(WAYS)]):
        return tell_story(world, story)


_OUTAGE = 25 * HOUR
FOUND: dict[str, list[Step]] = {
    "records that were trimmed unread": [("write", [0]), ("advance", _OUTAGE)],
    "trimmed behind the checkpoint": [
        ("write", [0]),
        ("capture",),
        ("write", [4]),
        ("advance", _OUTAGE),
        ("write", [8]),
    ],
    "nothing was lost behind a trimmed checkpoint": [
        ("write", [0]),
        ("capture",),
        ("advance", 13 * HOUR),
        ("capture",),
        ("advance", 13 * HOUR),
        ("write", [8]),
    ],
    "a retention that was lowered": [
        ("retention", 48),
        ("capture",),
        ("capture",),
        ("write", [0]),
        ("advance", _OUTAGE),
        ("retention", 24),
    ],
    "shards that ended without saying so at once": [
        ("write", [0]),
        ("split", 0),
        ("write", [0]),
        ("merge", 0),
        ("write", [0]),
        ("capture",),
        ("split", 0),
        ("write", [0]),
        ("merge", 0),
        ("write", [0]),
    ],
    "there and back in one microsecond": [("write", [4]), ("tick", 1), ("write", [8, 4, 8, 4])],
    "there and back, twice, in one millisecond, told late": [
        ("precision", None),
        ("disturb", 0.3, 0.4),
        ("write", [4, 8, 12, 4, 8]),
        ("capture",),
        ("write", [12, 4]),
    ],
    "an old change comes again behind a gap": [
        ("write", [0]),
        ("tick", 2500),
        ("write", [4]),
        ("capture",),
        ("write", [1]),
        ("advance", _OUTAGE),
        ("capture",),
        ("again", 2),
    ],
    "a gap that ends before one that was found earlier": [
        ("write", [0]),
        ("split", 0),
        ("advance", 90_000),
        ("write", [0]),
        ("split", 0),
        ("write", [0]),
        ("merge", 0),
        ("write", [0]),
        ("killed", 2, False),
        ("clock", -300),
        ("write", [0]),
        ("capture",),
        ("clock", -300),
        ("write", [0]),
        ("advance", 85_200),
        ("write", [0]),
    ],
}
"""Stories that failed once, or that a careless change would fail."""


@story_settings(tenths=3, usual=60)
@given(how=behaviours, story=stories)
def test_any_story_lands_every_change_or_says_what_is_missing(
    sim: ReusedKinesis,
    parts: Parts,
    how: KinesisBehaviour,
    story: list[Step],
) -> None:
    for outcome in tell(sim, parts, how, story):
        event(outcome)


@pytest.mark.parametrize("name", FOUND)
def test_stories_that_failed_once(sim: ReusedKinesis, parts: Parts, name: str) -> None:
    for shards in (1, 2):
        for unusual in (True, False):
            how = KinesisBehaviour(shards=shards, empty_end=unusual, by_partition_key=not unusual)
            tell(sim, parts, how, FOUND[name])
