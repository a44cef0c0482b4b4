"""Any story of a stream: each change lands once, or is in a gap, whatever goes wrong meanwhile."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from cdc_pipeline.aws.s3.objects import StoredFile
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureFailedError, CaptureResult
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.source import ShardSource, Source
from cdc_pipeline.core.changes.fold import KeyedChange, fold, items
from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.entries import Gap
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.log_memory import MEMORY
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline_tests.simulators import faults
from cdc_pipeline_tests.simulators.clients import session
from cdc_pipeline_tests.simulators.clock import SimulatedClock, WrongClock
from cdc_pipeline_tests.simulators.streams_model import Record, StreamsModel
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator
from cdc_pipeline_tests.simulators.streams_service import StreamsService
from cdc_pipeline_tests.story_frame import (
    ANY_FAULTS,
    CAPTURES,
    CLOCK,
    FAULTS,
    HOUR,
    LISTING_FAULTS,
    MARGIN,
    MARKS,
    NEARLY_A_DAY,
    ChangeHook,
    Killed,
    Step,
    StoryWorld,
    shared_simulator,
    steps_of,
    story_settings,
    tell_story,
)
from cdc_pipeline_tests.transform.ways import WAYS, converted_by

pytestmark = MARKS
PATHS = TablePaths("cdc", "orders")
LAG = 300
OPTIONS = CaptureOptions(poll_seconds=0, empty_polls=2, parallel_shards=4, listing_lag_seconds=LAG)

# ----------------------------------------------------------------------------------- stories

_writes = st.tuples(st.just("write"), st.lists(st.integers(0, 15), min_size=1, max_size=6))
_shards = st.one_of(
    st.tuples(st.just("rotate"), st.integers(0, 3)),
    st.tuples(st.just("split"), st.integers(0, 3)),
)
_time = st.tuples(
    st.just("advance"), st.sampled_from([1, 30, 16 * 60, 4 * HOUR, 13 * HOUR, 25 * HOUR, 49 * HOUR])
)
_stream = st.sampled_from([("off",), ("on",), ("off",), ("on",), ("recreate",)])
_late_listing = st.tuples(
    st.just("fault"), st.just("DescribeStream"), st.sampled_from(LISTING_FAULTS), st.integers(1, 9)
)
_faults = st.one_of(
    st.tuples(
        st.just("fault"),
        st.sampled_from(["GetRecords", "GetShardIterator", "DescribeStream"]),
        st.sampled_from(ANY_FAULTS),
        st.integers(1, 7),
    ),
    st.just(("empty page",)),
    _late_listing,
)
_meanwhile = st.tuples(
    st.just("meanwhile"),
    st.sampled_from(["GetRecords", "GetRecords", "GetShardIterator", "DescribeStream"]),
    st.integers(0, 5),
    st.one_of(_writes, _shards, _time, _stream),
)
_steps = st.one_of(
    _writes,
    _writes,
    _shards,
    _shards,
    _time,
    CLOCK,
    _stream,
    _faults,
    _meanwhile,
    CAPTURES,
    CAPTURES,
)
_nearly_a_day = st.tuples(st.just("advance"), NEARLY_A_DAY)
_outages = st.one_of(
    st.tuples(_writes, _shards, st.just(("advance", 25 * HOUR))),
    st.tuples(_shards, _writes, _shards, st.just(("advance", 25 * HOUR)), _writes),
    st.tuples(st.just(("off",)), _writes, _time, st.just(("on",)), _writes),
    st.tuples(_shards, _late_listing, st.just(("capture",)), _writes, _shards, _time, _writes),
    st.tuples(_time, _shards, _late_listing, st.just(("capture",)), _time),
    # Roots that are known, so that a large stream is read by its children alone.
    st.tuples(
        *[_writes, st.just(("advance", 16 * 60)), st.just(("capture",)), _shards, _writes],
        *[_late_listing, st.just(("capture",)), _writes, _shards, _writes, _late_listing],
        *[st.just(("capture",)), _time, _writes],
    ),
    st.tuples(CLOCK, _writes, st.just(("capture",)), CLOCK, _writes, _nearly_a_day, _writes),
    st.tuples(CLOCK, st.just(("capture",)), _writes, st.just(("off",)), CLOCK, st.just(("on",))),
)
"""Chapters that seldom come about by chance."""


_chapters = st.one_of(*[st.tuples(_steps)] * 4, _outages)
stories = st.lists(_chapters, min_size=2, max_size=12).map(steps_of)


@dataclass(frozen=True)
class Behaviour:
    """What AWS may do one way or another, and where the story's keys fall.

    `large`: the stream counts as one that is listed whole every ten minutes only.
    """

    seed: int = 0
    shards: int = 1
    strict_trim: bool = True
    exact_bounds: bool = True
    large: bool = False


behaviours = st.builds(
    Behaviour, st.integers(0, 999), st.integers(1, 2), st.booleans(), st.booleans(), st.booleans()
)

# -------------------------------------------------------------------------------- the machine


class MemoryStore:
    """A lake in memory, whose every change is one of `hook`."""

    def __init__(self, objects: dict[str, bytes], hook: ChangeHook | None = None) -> None:
        self.objects = objects
        self._change = (hook or ChangeHook()).change

    def uri(self, key: str) -> str:
        return key

    def read(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def read_part(self, key: str, start: int, size: int) -> bytes | None:
        data = self.objects.get(key)
        return None if data is None else data[start : start + size]

    def write(self, key: str, data: bytes) -> None:
        self._change(lambda: self.objects.update({key: data}) is None)

    def create(self, key: str, data: bytes) -> bool:
        return self._change(lambda: self.objects.setdefault(key, data) is data)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        yield from sorted(k for k in list(self.objects) if k.startswith(prefix) and k > after)

    def files(self, prefix: str) -> Iterator[StoredFile]:
        return (StoredFile(key, len(self.objects[key]), 0) for key in self.list(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._change(lambda key=key: self.objects.pop(key, None) is not None)


class ReusedSimulator(StreamsSimulator):
    """One HTTP server for many stories; each has an account and a clock of its own."""

    large = False

    def begin(self, how: Behaviour) -> SimulatedClock:
        clock = SimulatedClock()
        self.large = how.large
        self.clock, self.requests, self.faults = clock, [], faults.Faults(how.seed)
        self._model = StreamsModel(clock, how.seed, exact_bounds=how.exact_bounds)
        self._service = StreamsService(self._model, strict_trim=how.strict_trim)
        self.create_table("orders", shards=how.shards)
        return clock

    def began(self, shard_id: str) -> float:
        return int(shard_id.split("-")[1]) / 1000

    def names_of(self, shard_id: str, state: LogState) -> set[str]:
        """Shards by which a gap can name one: if no listing ever showed it, by its lineage."""
        if shard_id in state.shards:
            return {shard_id}
        streams = self._model.streams.values()
        shards = {s.shard_id: s for stream in streams for s in stream.shards.values()}
        found, line = {shard_id}, shards[shard_id].parent_id
        while line is not None:
            found.add(line)
            line = shards[line].parent_id
        children = {shard_id}
        while children:
            found |= children
            children = {s.shard_id for s in shards.values() if s.parent_id in children}
        return found


@dataclass
class World(StoryWorld):
    """A table, its stream and its lake while a story is told."""

    keys = 4
    sim: ReusedSimulator
    streams: ShardSource
    how: Behaviour
    objects: dict[str, bytes] = field(default_factory=dict)
    written: int = 0
    unseen: list[int] = field(default_factory=list)
    emptied: set[str | None] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        MEMORY.clear()  # the lakes of all worlds have one address
        self.clock = self.sim.begin(self.how)
        self.local = WrongClock(self.clock)
        self.on = True
        self.capture()

    # ---------------------------------------------------------------------------- steps

    def tell(self, step: Step) -> None:
        match step:
            case ("split", which) if self.on:
                shards = self.sim.open_shards("orders")
                if len(shards) < 4:
                    self.sim.split("orders", shards[which % len(shards)])
            case ("recreate",) if self.on:
                if self.sim.items("orders"):
                    self.unseen.append(int(self.clock() * 1_000_000))
                self.sim.recreate_table("orders")
            case ("fault", operation, name, times):
                fault = FAULTS[name]()
                if name in LISTING_FAULTS:
                    fault = faults.only_hiding(fault, self.may_be_hidden)
                self.sim.faults.script(operation, *[fault] * times)
            case ("empty page",):
                self.sim.faults.script("GetRecords", self.lone_empty_page())
            case ("meanwhile", operation, calls, then):
                happens = faults.meanwhile(lambda: self.tell(then))
                self.sim.faults.script(operation, *[None] * calls, happens)
            case ("capture",):
                self.attempt()
            case ("in small batches",):
                self.attempt(options=replace(OPTIONS, flush_rows=2))
            case ("killed", change, after):
                self.attempt(MemoryStore(self.objects, ChangeHook(change, after)))
            case ("raced", change, after):
                self.attempt(
                    MemoryStore(self.objects, ChangeHook(change, after, self.attempt_elsewhere))
                )
            case _:
                super().tell(step)

    def write(self, key: int, what: int) -> None:
        item = {"pk": {"S": f"k{key}"}}
        self.written += 1
        before = self.sim.items("orders")
        if what < 2:
            # Every other one in a spelling that only the exact path reads.
            number = f"{self.written}.5{'0' * (self.written % 2)}"
            self.sim.put("orders", {**item, "n": {"N": number}})
        else:
            self.sim.delete("orders", item, by_ttl=what == 3)
        if not self.on and self.sim.items("orders") != before:
            self.unseen.append(int(self.clock() * 1_000_000))

    def may_be_hidden(self, shard_id: str) -> bool:
        """A listing may be late by `LAG`, and may leave out for a while what is known."""
        young = self.clock() - self.sim.began(shard_id) < LAG
        return young or shard_id in self.log().load().shards

    def lone_empty_page(self) -> faults.Fault:
        """Once per shard: as many in a row as `empty_polls` would rightly read as its tip."""
        empty = faults.empty_page()

        def answer(call: faults.Call) -> faults.Reply | None:
            if call.shard_id in self.emptied:
                return None
            reply = empty.answer(call)
            if reply is not None:
                self.emptied.add(call.shard_id)
            return reply

        return faults.Fault(empty.name, answer)

    # -------------------------------------------------------------------------- captures

    def log(self, store: Store | None = None) -> CaptureLog:
        store = store or MemoryStore(self.objects)
        return CaptureLog(store, PATHS, self.local, margin_us=MARGIN * 1_000_000)

    def capture(
        self, store: Store | None = None, options: CaptureOptions = OPTIONS
    ) -> CaptureResult:
        return capture_table(
            self.log(store), self.source(), options, reopen=self.source, sleep=lambda _: None
        )

    def source(self) -> Source:
        table_id, arn = self.sim.table_id("orders"), self.sim.stream_arn("orders")
        return Source("orders", table_id, arn, "NEW_AND_OLD_IMAGES", self.streams)

    def attempt_elsewhere(self) -> None:
        """A run of another process, which remembers no log."""
        MEMORY.clear()
        self.attempt()

    def attempt(self, store: MemoryStore | None = None, options: CaptureOptions = OPTIONS) -> None:
        """A run that may fail, be killed or lose a race; what it says must be true at any time."""
        if not self.on:
            return  # `open_source` refuses a table whose stream is off
        try:
            result = self.capture(store, options)
            self.outcomes.add("a run ended well")
            if result.conflicts:
                self.outcomes.add("a run lost a race")
                assert store is not None  # nobody races with a run that is alone
        except Killed:
            self.outcomes.add("a run was killed")
        except CaptureFailedError:
            self.outcomes.add("shards failed")
            assert self.sim.faults.on
        except SourceError:
            self.outcomes.add("the source failed")
            assert self.sim.faults.on
        self.check(self.log().load())

    def settle(self) -> None:
        self.sim.faults.clear()
        self.tell(("on",))
        self.clock.advance(LAG + 2)
        begun_us = int(self.clock() * 1_000_000)
        for _ in range(6):
            result = self.capture()
            if not result.rows and not result.gaps:
                break
        else:
            raise AssertionError("capture goes on landing something")
        # Behind an outage, what listings show counts only when they have had time to settle, by a
        # clock that may have jumped since.
        self.clock.advance(LAG + 4 * MARGIN)
        self.capture()
        state = self.log().load()
        assert state.watermark_us >= begun_us - (LAG + MARGIN) * 1_000_000, "capture is stuck"
        self.check(state, until_us=begun_us)

    # -------------------------------------------------------------------------- the truth

    def check(self, state: LogState, until_us: int | None = None) -> None:
        """What was written before `until_us` (the log's watermark) is there, or in a gap."""
        rows = self.rows(state)
        records = self.sim.records("orders")
        by_place = {(r.shard_id, r.sequence_number): r for r in records}
        landed = Counter((row["shard_id"], row["sequence_number"]) for row in rows)
        twice = [place for place, times in landed.items() if times > 1]
        assert not twice, f"landed twice: {twice}"
        assert landed.keys() <= by_place.keys(), "landed, but never written"
        assert not state.quarantined
        claimed_us = state.watermark_us - MARGIN * 1_000_000
        whole_until_us = claimed_us if until_us is None else until_us
        for place, record in by_place.items():
            if place not in landed and (record.created + 1) * 1_000_000 <= whole_until_us:
                gaps = list(state.gaps.values())
                names = self.sim.names_of(record.shard_id, state)
                lost = f"lost: {place}; gaps: {gaps}"
                assert any(is_in(gap, record, names) for gap in gaps), lost
        for gap in state.gaps.values():
            before = {o.generation for o in state.objects.values() if o.entry < gap.entry}
            behind = {o.generation for o in state.objects.values() if o.entry > gap.entry}
            assert max(before, default=-1) < gap.heal_generation, "a heal would lose"
            assert min(behind, default=1 << 20) > gap.heal_generation, "a heal would win"
        if until_us is not None:
            whole = [gap for gap in state.gaps.values() if gap.cause in WHOLE_TABLE]
            for time_us in self.unseen:
                seen = f"no stream saw what was written at {time_us}; gaps: {whole}"
                assert any(gap.from_us <= time_us <= gap.to_us for gap in whole), seen
        ordered = sorted(rows, key=lambda row: row["order_key"])
        for key in {row["keys"] for row in rows}:
            mine = [r for r in ordered if r["keys"] == key]
            order = [by_place[r["shard_id"], r["sequence_number"]].order for r in mine]
            assert order == sorted(order), f"changes of {key} are out of order"
        if until_us is not None and not state.gaps:
            self.check_items(rows)

    def check_items(self, rows: list[dict[str, Any]]) -> None:
        changes = (KeyedChange(r["keys"], r["order_key"], r["new_image"]) for r in rows)
        there = [to_json(canonical_item(item)) for item in self.sim.items("orders")]
        assert sorted(items(fold({}, changes)).values()) == sorted(there)

    def rows(self, state: LogState) -> list[dict[str, Any]]:
        columns = ["shard_id", "sequence_number", "keys", "new_image", "position"]
        found: list[dict[str, Any]] = []
        for landed in state.objects.values():
            table = pq.read_table(pa.BufferReader(self.objects[landed.key]), columns=columns)
            assert table.num_rows == landed.rows
            for row in table.to_pylist():
                found.append({**row, "order_key": order_key(landed.generation, row["position"])})
        return found


WHOLE_TABLE = ("new stream", "table recreated")
"""Between two streams anything may have been missed, whole streams included."""


def is_in(gap: Gap, record: Record, names: set[str]) -> bool:
    """Whether a gap owns up to a missing record. Stream times are rounded down to seconds."""
    from_us = gap.from_us // 1_000_000 * 1_000_000
    in_time = from_us <= record.created * 1_000_000 <= gap.to_us
    return in_time and (not names.isdisjoint(gap.shards) or gap.cause in WHOLE_TABLE)


@pytest.fixture(scope="module")
def sim() -> Iterator[ReusedSimulator]:
    simulator = ReusedSimulator()
    with shared_simulator(simulator) as patch:
        # Behind a day's outage each shard would be asked eighty times; none of these stories has
        # a shard with more than one empty page (`lone_empty_page`).
        few = "cdc_pipeline.capture.shards.shard_reader.polls_needed"
        patch.setattr(few, lambda empty_polls, age_us: empty_polls)
        patch.setattr("cdc_pipeline.capture.shards.shard_tracker._CHILD_WAIT_SECONDS", 0)
        listing = "cdc_pipeline.capture.sources.reading.StreamsProtocol.listing_seconds"
        patch.setattr(listing, lambda self, shards: 600 if simulator.large else 0)
        yield simulator


@pytest.fixture(scope="module")
def streams(sim: ReusedSimulator) -> DynamoDBStreams:
    return DynamoDBStreams(session(sim))


def tell(
    sim: ReusedSimulator, streams: DynamoDBStreams, how: Behaviour, story: list[Step]
) -> set[str]:
    """Tell a story to its end and check it; how its runs ended."""
    with converted_by(WAYS[(len(story) + how.shards) % len(WAYS)]):
        return tell_story(World(sim, streams, how), story)


_OUTAGE = 25 * HOUR
FOUND: dict[str, list[Step]] = {
    "an open shard whose records were trimmed unread": [("write", [0]), ("advance", _OUTAGE)],
    "a stream that nobody ever followed": [("recreate",), ("write", [0]), ("off",)],
    "a child that came and went": [
        ("rotate", 0),
        ("write", [0]),
        ("rotate", 0),
        ("advance", _OUTAGE),
    ],
    "a child that was not listed before it went": [
        ("write", [0]),
        ("rotate", 0),
        ("fault", "DescribeStream", "lagging", 4),
        ("capture",),
        ("write", [0]),
        ("rotate", 0),
        ("advance", _OUTAGE),
    ],
    "behind a lost shard nothing was listed yet": [
        ("rotate", 0),
        ("write", [0]),
        ("rotate", 0),
        ("advance", _OUTAGE),
        ("write", [0]),
        ("rotate", 1),
        ("fault", "DescribeStream", "lagging", 4),
        ("capture",),
        ("write", [0]),
    ],
    "trimmed behind the checkpoint": [
        ("write", [0]),
        ("capture",),
        ("write", [0]),
        ("advance", _OUTAGE),
    ],
    "one of two children was not listed": [
        ("write", [0]),
        ("capture",),
        ("split", 0),
        ("write", [0]),
        ("advance", 1),
        ("fault", "DescribeStream", "shard missing", 2),
        ("capture",),
    ],
    "one of two children did not show when it was asked for": [
        ("write", [0]),
        ("advance", 960),
        ("capture",),
        ("split", 0),
        ("write", [0, 1, 2, 3]),
        ("fault", "DescribeStream", "shard missing", 1),
        ("capture",),
        ("advance", 400),
        ("capture",),
        ("write", [4]),
        ("advance", 400),
        ("capture",),
    ],
    "a stream whose first listing showed nothing": [
        ("write", [0]),
        ("off",),
        ("write", [0]),
        ("advance", 1),
        ("on",),
        ("write", [0]),
        ("advance", _OUTAGE),
        ("rotate", 0),
        ("fault", "DescribeStream", "lagging", 2),
        ("capture",),
        ("advance", 1),
        ("rotate", 0),
        ("write", [0]),
        ("rotate", 0),
        ("advance", _OUTAGE),
        ("write", [0]),
    ],
    "a shard that was closed while a listing hid its child": [
        ("split", 0),
        ("fault", "DescribeStream", "lagging", 1),
        ("capture",),
        ("write", [0]),
        ("split", 0),
        ("advance", 1),
        ("write", [0]),
        ("write", [0]),
        ("rotate", 0),
        ("advance", _OUTAGE),
        ("advance", 1),
        ("rotate", 1),
        ("fault", "DescribeStream", "lagging", 1),
        ("capture",),
        ("advance", 1),
    ],
}
"""Stories that failed once, or that a careless change would fail."""


@story_settings(tenths=6, usual=100)
@given(how=behaviours, story=stories)
def test_any_story_lands_everything_once_or_says_what_is_missing(
    sim: ReusedSimulator, streams: DynamoDBStreams, how: Behaviour, story: list[Step]
) -> None:
    for outcome in tell(sim, streams, how, story):
        event(outcome)


@pytest.mark.parametrize("exact_bounds", [True, False])
@pytest.mark.parametrize("name", FOUND)
def test_stories_that_failed_once(
    sim: ReusedSimulator, streams: DynamoDBStreams, name: str, exact_bounds: bool
) -> None:
    for shards, large in ((1, False), (2, False), (1, True), (2, True)):
        how = Behaviour(shards=shards, strict_trim=False, exact_bounds=exact_bounds, large=large)
        tell(sim, streams, how, FOUND[name])
