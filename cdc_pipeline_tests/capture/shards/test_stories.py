"""Any story of writes, shards, faults, crashes, races, wrong clocks: all lands once, or in a gap.

A story is a list of steps in plain data, so that one that failed can be kept as it was printed
(`FOUND`). `CDC_PIPELINE_STORIES=20000` tells that many new ones, not the same ones as always.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
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
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline_tests.simulators import faults
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock, WrongClock
from cdc_pipeline_tests.simulators.streams_model import Record, StreamsModel
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator
from cdc_pipeline_tests.simulators.streams_service import StreamsService

LONG = int(os.environ.get("CDC_PIPELINE_STORIES", "0"))
"""Stories in one long run: of ten, six are of streams, three of Kinesis, one of exports."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if LONG else 900)]
HOUR = 3600
PATHS = TablePaths("cdc", "orders")
LAG = 300
MARGIN = 300
"""How far the capturing machine's clock may be off, in seconds; AWS refuses what is off by more."""
OPTIONS = CaptureOptions(poll_seconds=0, empty_polls=2, parallel_shards=4, listing_lag_seconds=LAG)

Step = tuple[Any, ...]

# ----------------------------------------------------------------------------------- stories

FAULTS: dict[str, Callable[[], faults.Fault]] = {
    "throttled": faults.throttled,
    "limit": faults.limit_exceeded,
    "5xx": faults.internal_error,
    "503": faults.unavailable,
    "reset": faults.reset,
    "late reset": lambda: faults.reset(after_headers=True),
    "cut": faults.cut,
    "cut, honest": lambda: faults.cut(honest_length=True),
    "cut error": faults.cut_error,
    "empty body": faults.empty_body,
    "denied": lambda: faults.error("AccessDeniedException"),
    "lagging": faults.lagging,
    "children missing": faults.children_missing,
    "parent looks open": faults.parent_looks_open,
    "shard missing": faults.shard_missing,
}
LISTING = ["lagging", "children missing", "parent looks open", "shard missing"]
_ANY_CALL = [name for name in FAULTS if name not in LISTING]

_writes = st.tuples(st.just("write"), st.lists(st.integers(0, 15), min_size=1, max_size=6))
_shards = st.one_of(
    st.tuples(st.just("rotate"), st.integers(0, 3)),
    st.tuples(st.just("split"), st.integers(0, 3)),
)
_time = st.tuples(
    st.just("advance"), st.sampled_from([1, 30, 16 * 60, 4 * HOUR, 13 * HOUR, 25 * HOUR, 49 * HOUR])
)
_clock = st.tuples(st.just("clock"), st.sampled_from([-300, -60, -5, -0.5, 0, 0.5, 5, 60, 300]))
_stream = st.sampled_from([("off",), ("on",), ("off",), ("on",), ("recreate",)])
_late_listing = st.tuples(
    st.just("fault"), st.just("DescribeStream"), st.sampled_from(LISTING), st.integers(1, 9)
)
_faults = st.one_of(
    st.tuples(
        st.just("fault"),
        st.sampled_from(["GetRecords", "GetShardIterator", "DescribeStream"]),
        st.sampled_from(_ANY_CALL),
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
_captures = st.one_of(
    st.just(("capture",)),
    st.just(("capture",)),
    st.tuples(st.just("killed"), st.integers(0, 4), st.booleans()),
    st.tuples(st.just("raced"), st.integers(0, 4), st.booleans()),
    st.just(("in small batches",)),
)
_steps = st.one_of(
    _writes,
    _writes,
    _shards,
    _shards,
    _time,
    _clock,
    _stream,
    _faults,
    _meanwhile,
    _captures,
    _captures,
)
_nearly_a_day = st.tuples(
    st.just("advance"), st.integers(24 * HOUR - 1200, 24 * HOUR + 600).map(lambda s: s - s % 30)
)
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
    st.tuples(_clock, _writes, st.just(("capture",)), _clock, _writes, _nearly_a_day, _writes),
    st.tuples(_clock, st.just(("capture",)), _writes, st.just(("off",)), _clock, st.just(("on",))),
)
"""Chapters that seldom come about by chance."""


def _told(chapters: list[tuple[Step, ...]]) -> list[Step]:
    return [step for chapter in chapters for step in chapter]


_chapters = st.one_of(*[st.tuples(_steps)] * 4, _outages)
stories = st.lists(_chapters, min_size=2, max_size=12).map(_told)


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


class Killed(BaseException):
    """The process is no more. Not an `Exception`: nothing may catch it."""


class MemoryStore:
    """A lake in memory; `before` and `after` are called with the number of each change."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects: dict[str, bytes] = {} if objects is None else objects
        self.before: Callable[[int], None] = lambda _: None
        self.after: Callable[[int], None] = lambda _: None
        self._changes = 0

    def _change(self, change: Callable[[], bool]) -> bool:
        number, self._changes = self._changes, self._changes + 1
        self.before(number)
        done = change()
        self.after(number)
        return done

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
class World:
    """A table, its stream and its lake while a story is told."""

    sim: ReusedSimulator
    streams: ShardSource
    how: Behaviour
    objects: dict[str, bytes] = field(default_factory=dict)
    written: int = 0
    unseen: list[int] = field(default_factory=list)
    emptied: set[str | None] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clock = self.sim.begin(self.how)
        self.local = WrongClock(self.clock)
        self.on = True
        self.capture()

    # ---------------------------------------------------------------------------- steps

    def tell(self, step: Step) -> None:
        match step:
            case ("write", what):
                for number in what:
                    self.write(number % 4, number // 4)
            case ("rotate", which) if self.on:
                shards = self.sim.open_shards("orders")
                self.sim.rotate("orders", shards[which % len(shards)])
            case ("split", which) if self.on:
                shards = self.sim.open_shards("orders")
                if len(shards) < 4:
                    self.sim.split("orders", shards[which % len(shards)])
            case ("advance", seconds):
                self.clock.advance(seconds)
            case ("clock", error):
                self.local.error = error
            case ("off",) if self.on:
                self.sim.disable_stream("orders")
                self.on = False
            case ("on",) if not self.on:
                self.sim.enable_stream("orders", shards=self.how.shards)
                self.on = True
            case ("recreate",) if self.on:
                if self.sim.items("orders"):
                    self.unseen.append(int(self.clock() * 1_000_000))
                self.sim.recreate_table("orders")
            case ("fault", operation, name, times):
                fault = FAULTS[name]()
                if name in LISTING:
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
                self.attempt(self.store_that_kills(change, after))
            case ("raced", change, after):
                self.attempt(self.store_that_is_raced_for(change, after))

    def write(self, key: int, what: int) -> None:
        item = {"pk": {"S": f"k{key}"}}
        self.written += 1
        before = self.sim.items("orders")
        if what < 2:
            self.sim.put("orders", {**item, "n": {"N": f"{self.written}.50"}})
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

    def store_that_kills(self, change: int, after: bool) -> MemoryStore:
        def kill(number: int) -> None:
            if number == change:
                raise Killed

        return self.store(kill, after)

    def store_that_is_raced_for(self, change: int, after: bool) -> MemoryStore:
        def race(number: int) -> None:
            if number == change:
                self.attempt()

        return self.store(race, after)

    def store(self, hook: Callable[[int], None], after: bool) -> MemoryStore:
        store = MemoryStore(self.objects)
        if after:
            store.after = hook
        else:
            store.before = hook
        return store

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

    def catch_up(self) -> None:
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
    with ReusedSimulator() as simulator, pytest.MonkeyPatch.context() as patch:
        use(simulator, patch)
        # Thousands of stories share one client, and its budget of retries would run out.
        patch.setattr("botocore.retries.quota.RetryQuota.acquire", lambda *_: True)
        patch.setattr("cdc_pipeline.aws.shards._RETRY_SECONDS", 0)
        patch.setattr("cdc_pipeline.capture.shards.drain._FLUSH_WAIT_SECONDS", 0.002)
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
    world = World(sim, streams, how)
    for step in story:
        world.tell(step)
    world.catch_up()
    return world.outcomes


DAY = 25 * HOUR
FOUND: dict[str, list[Step]] = {
    "an open shard whose records were trimmed unread": [("write", [0]), ("advance", DAY)],
    "a stream that nobody ever followed": [("recreate",), ("write", [0]), ("off",)],
    "a child that came and went": [("rotate", 0), ("write", [0]), ("rotate", 0), ("advance", DAY)],
    "a child that was not listed before it went": [
        ("write", [0]),
        ("rotate", 0),
        ("fault", "DescribeStream", "lagging", 4),
        ("capture",),
        ("write", [0]),
        ("rotate", 0),
        ("advance", DAY),
    ],
    "behind a lost shard nothing was listed yet": [
        ("rotate", 0),
        ("write", [0]),
        ("rotate", 0),
        ("advance", DAY),
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
        ("advance", DAY),
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
        ("advance", DAY),
        ("rotate", 0),
        ("fault", "DescribeStream", "lagging", 2),
        ("capture",),
        ("advance", 1),
        ("rotate", 0),
        ("write", [0]),
        ("rotate", 0),
        ("advance", DAY),
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
        ("advance", DAY),
        ("advance", 1),
        ("rotate", 1),
        ("fault", "DescribeStream", "lagging", 1),
        ("capture",),
        ("advance", 1),
    ],
}
"""Stories that failed once, or that a careless change would fail."""


@settings(
    max_examples=LONG * 6 // 10 or 100,
    derandomize=not LONG,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
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
