"""Ties in a real lake: whatever comes late, twice, in any order and batches, the last change wins.

Histories are written first, with many equal times; then their envelopes are delivered at random.
"""

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.fold import KeyedChange, fold
from cdc_pipeline.core.changes.kinesis import from_envelope
from cdc_pipeline.core.changes.ties import in_order
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.entries import StreamRef
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.publish.image_chain import check_chain
from cdc_pipeline.lake.storage.compaction import compact_landing
from cdc_pipeline.lake.storage.landing import read_landing
from cdc_pipeline.lake.storage.log import CaptureLog, new_nonce
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, plain_view
from cdc_pipeline_tests.lake.builder import temporary_lake as lake_builder

_DAY_US = 24 * 3600 * 1_000_000
# A day that is over: compaction merges any two objects of it.
_FIRST_US = START_US - _DAY_US
_DAY = day_of(_FIRST_US)


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


@dataclass(frozen=True)
class Write:
    """One accepted write of an item; `state` None: deleted. `is_coarse`: told in whole ms."""

    name: str
    time_us: int
    before: str | None
    state: str | None
    is_coarse: bool

    @property
    def ms(self) -> int:
        return self.time_us // 1000


def _image(name: str, state: str | None) -> dict[str, Any] | None:
    return None if state is None else {"pk": {"S": name}, "state": {"S": state}}


def _key(name: str) -> str:
    return to_json({"pk": {"S": name}})


def delivered(write: Write) -> Change:
    """What comes of a write through Kinesis."""
    op = {(True, False): "INSERT", (False, True): "REMOVE"}.get(
        (write.before is None, write.state is None), "MODIFY"
    )
    body: dict[str, Any] = {"Keys": {"pk": {"S": write.name}}}
    body["ApproximateCreationDateTime"] = write.ms if write.is_coarse else write.time_us
    if not write.is_coarse:
        body["ApproximateCreationDateTimePrecision"] = "MICROSECOND"
    for part, state in (("NewImage", write.state), ("OldImage", write.before)):
        if state is not None:
            body[part] = _image(write.name, state)
    record = {"eventID": f"{write}", "eventName": op, "dynamodb": body}
    return from_envelope(record, table_id="table-id", shard_id=f"shard-{write.name}")


class Table(ItemReader):
    """The source: reads see some moment at or after everything that was delivered so far."""

    def __init__(self, history: Sequence[Write], chance: random.Random) -> None:
        self.history = history
        self.chance = chance
        self.seen_ms = 0
        self.reads: list[str] = []

    def state_of(self, name: str, until_ms: int) -> str | None:
        writes = [w for w in self.history if w.name == name and w.ms <= until_ms]
        return writes[-1].state if writes else None

    def read(self, keys: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        """See `ItemReader`."""
        wanted = list(keys)
        self.reads += wanted
        found = {}
        for key in wanted:
            name = json.loads(key)["pk"]["S"]
            moments = [w.ms for w in self.history if w.ms >= self.seen_ms] or [self.seen_ms]
            image = _image(name, self.state_of(name, self.chance.choice(moments)))
            found[key] = None if image is None else canonical_item(image)
        return found


class RacedLog(CaptureLog):
    """A log in which others are faster now and then: maintenance, or whoever notes something."""

    chance: random.Random
    races = 0

    def append(self, state: LogState, entry: Entry) -> bool:
        """See `CaptureLog`."""
        if entry.objects and self.races and self.chance.random() < 0.5:
            self.races -= 1
            other = CaptureLog(self.store, self.paths)
            if self.chance.random() < 0.7:
                compact_landing(other, published=0)
            else:
                other.append(other.load(), Entry(0, new_nonce(), "other", 0, resumed_us=1))
        return super().append(state, entry)


class WatchedStore(LocalStore):
    """Notes how much of which landing objects are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read_bytes: dict[str, int] = {}

    def read(self, key: str) -> bytes | None:
        """See `Store`."""
        return self._noted(key, super().read(key))

    def read_part(self, key: str, start: int, size: int) -> bytes | None:
        """See `Store`."""
        return self._noted(key, super().read_part(key, start, size))

    def _noted(self, key: str, data: bytes | None) -> bytes | None:
        if key.endswith(".parquet"):
            self.read_bytes[key] = self.read_bytes.get(key, 0) + len(data or b"")
        return data


@dataclass
class Bench:
    """A lake, and a capture of `table` that lands what it is given."""

    built: LakeBuilder
    table: Table
    chance: random.Random
    races: int
    store: "WatchedStore"
    result: CaptureResult = field(default_factory=lambda: CaptureResult("orders"))

    def capture(self) -> Lander:
        """A new run."""
        log = RacedLog(self.store, self.built.lake.table(self.built.table).paths)
        log.chance, log.races = self.chance, self.races
        self.state = log.load()
        source = Source(
            "orders",
            "table-id",
            "arn:stream",
            "NEW_AND_OLD_IMAGES",
            shards=None,  # type: ignore[arg-type]
            reader=self.table,
            transport="kinesis",
        )
        return Lander(log, self.state, source, self.result, lambda objects: None)

    def land(self, lander: Lander, writes: Sequence[Write]) -> None:
        self.table.seen_ms = max([self.table.seen_ms, *(w.ms for w in writes)])
        lander.land([delivered(write) for write in writes], [], dict)

    def rows(self) -> list[Change]:
        """Landed rows; all are of one generation."""
        log = self.built.lake.table(self.built.table).log
        objects = log.load().objects
        return [change for key in objects for change in read_landing(log.store, key)]

    def cdc(self) -> list[Change]:
        """The changes of the day, as the SQL finds them."""
        build_cdc_day(self.built.lake.table(self.built.table), _DAY)
        names = ", ".join(Change._fields)
        rows = plain_view(self.built.lake, f"SELECT {names} FROM orders.cdc")
        return [Change(**row) for row in rows]

    def truth(self) -> dict[str, str | None]:
        """Canonical items by canonical keys as they were written last; None: deleted."""
        names = {write.name for write in self.table.history}
        last = {_key(name): _image(name, self.table.state_of(name, 1 << 60)) for name in names}
        return {key: to_json(canonical_item(i)) if i else None for key, i in last.items()}


@contextmanager
def bench(history: Sequence[Write], chance: random.Random, races: int = 0) -> Iterator[Bench]:
    with lake_builder() as built:
        stream = StreamRef(
            "table-id", "arn:stream", "NEW_AND_OLD_IMAGES", 1, _FIRST_US, transport="kinesis"
        )
        built.append(stream=stream, discovered_us=START_US + _DAY_US)
        store = WatchedStore(built.lake.settings.lake_folder)
        yield Bench(built, Table(history, chance), chance, races, store)


def write_history(chance: random.Random, count: int, precision: str) -> list[Write]:
    """Writes of two items in the order in which they were accepted."""
    states: dict[str, str | None] = {}
    history = []
    time_us = _FIRST_US + chance.randrange(1000)
    for _ in range(count):
        # Most share their time with the one before, in µs or in ms.
        time_us += chance.choice([0, 0, 0, 1, 1, 300, 300, 1000, 3000])
        name = chance.choice("aab")
        before = states.get(name)
        states[name] = chance.choice([s for s in (*"ABCD", None) if s != before])
        is_coarse = precision == "ms" or (precision == "mixed" and chance.random() < 0.4)
        history.append(Write(name, time_us, before, states[name], is_coarse))
    return history


def deliveries(chance: random.Random, history: Sequence[Write]) -> Iterator[list[Write]]:
    """All of it in batches, some of it again, in disorder."""
    copies = [*enumerate(history), *chance.choices([*enumerate(history)], k=len(history) // 3)]
    spread = chance.choice([0, 3, len(history)])
    copies.sort(key=lambda copy: copy[0] + chance.uniform(0, spread))
    while copies:
        size = chance.randint(1, max(1, len(history) // 2))
        batch, copies = copies[:size], copies[size:]
        yield [write for _, write in batch]


def ties_of(history: Iterable[Write]) -> list[list[Write]]:
    """Writes of an item that no time tells the order of."""
    slots: dict[tuple[str, int], list[Write]] = {}
    for write in history:
        slots.setdefault((write.name, write.ms), []).append(write)
    found = []
    for writes in slots.values():
        if any(delivered(w).write_time_us % 1000 == 0 for w in writes):
            found.append(writes)
        else:
            found += [list(g) for _, g in itertools.groupby(writes, key=lambda w: w.time_us)]
    return found


def check_state(test: Bench) -> None:
    """The fold of what landed is what was written last."""
    keyed = [KeyedChange(row.keys, row.position, row.new_image) for row in test.rows()]
    assert {key: row.item for key, row in fold({}, keyed).items()} == test.truth()


def check_changes(test: Bench, rows: Iterable[Change]) -> None:
    """Each change is there once, in the order in which it was written where that can be told."""
    changes = [row for row in rows if row.transport == "kinesis"]
    place = {row.uuid: row.position for row in changes}
    assert len(place) == len(changes)
    assert place.keys() == {delivered(write).uuid for write in test.table.history}
    for name in {write.name for write in test.table.history}:
        end = ""
        for tie in ties_of(w for w in test.table.history if w.name == name):
            members = {c.uuid: c for c in map(delivered, tie)}
            order = sorted(members.values(), key=lambda c: place[c.uuid])
            assert end < place[order[0].uuid]
            end = place[order[-1].uuid]
            chains = _chains(list(members.values()))
            if in_order(order) is not None and chains:
                assert order in chains
                assert len(chains) > 1 or [c.uuid for c in order] == [
                    delivered(write).uuid for write in tie
                ]
    last = {row.keys: row.new_image for row in sorted(rows, key=lambda row: row.position)}
    assert last == test.truth()


def last_places(rows: Iterable[Change]) -> list[Change]:
    """What `cdc` makes of landed rows."""
    return list({row.uuid: row for row in sorted(rows, key=lambda row: row.position)}.values())


def _chains(changes: list[Change]) -> list[list[Change]]:
    """Every order of the changes in which each begins with the image before it."""
    if len(changes) > 6:
        return []
    return [
        list(order)
        for order in itertools.permutations(changes)
        if all(a.new_image == b.old_image for a, b in itertools.pairwise(order))
    ]


def deliver(test: Bench, chance: random.Random) -> Iterator[None]:
    """Land all of the history, by one capture run after the other."""
    lander = test.capture()
    for batch in deliveries(chance, test.table.history):
        test.land(lander, batch)
        yield
        if chance.random() < 0.4:
            lander = test.capture()


# An example is a seed: there is nothing to shrink.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
_examples = given(
    st.integers(), st.integers(1, 14), st.sampled_from(["ms", "us", "mixed"]), st.integers(0, 3)
)


@budget(max_examples=40, deadline=None, phases=_PHASES)
@_examples
def test_any_delivery_of_a_history_ends_in_its_last_state(
    seed: int, count: int, precision: str, races: int
) -> None:
    chance = random.Random(seed)
    history = write_history(chance, count, precision)
    with bench(history, chance, races) as test:
        for _ in deliver(test, chance):
            pass
        check_state(test)
        check_changes(test, last_places(test.rows()))


@pytest.mark.slow
@budget(max_examples=4, deadline=None, phases=_PHASES)
@_examples
def test_so_do_the_tables_that_are_made_of_it(
    seed: int, count: int, precision: str, races: int
) -> None:
    chance = random.Random(seed)
    history = write_history(chance, count, precision)
    with bench(history, chance, races) as test:
        test.built.stage({})
        publish_current_state(test.built.lake.table(test.built.table))
        for _ in deliver(test, chance):
            if chance.random() < 0.3:
                publish_current_state(test.built.lake.table(test.built.table))
        check_state(test)
        check_changes(test, test.cdc())
        found = plain_view(test.built.lake, "SELECT _key, _item FROM orders.current_state")
        live = {key: item for key, item in test.truth().items() if item}
        assert {row["_key"]: row["_item"] for row in found} == live


def _writes(*steps: str, ms: int = 0, name: str = "a") -> list[Write]:
    """`AB`: image A becomes image B in that ms; `.`: no item."""
    ends = [[None if state == "." else state for state in step] for step in steps]
    at = (_FIRST_US // 1000 + ms) * 1000
    return [Write(name, at, before, after, True) for before, after in ends]


def _placed(test: Bench) -> list[tuple[str, str]]:
    """Landed rows, in the order of their places: the state they leave, and the place in the ms."""
    rows = sorted(test.rows(), key=lambda row: (row.position, row.new_image or ""))
    states = [json.loads(row.new_image)["state"]["S"] if row.new_image else "." for row in rows]
    return [(state, row.position[47:]) for state, row in zip(states, rows, strict=True)]


def test_what_landed_too_early_lands_again_behind() -> None:
    history = _writes("AB", "BC")
    with bench(history, random.Random(0)) as test:
        test.land(test.capture(), history[1:])
        test.land(test.capture(), history[:1])
        assert _placed(test) == [("B", ""), ("C", ""), ("C", ".0001")]
        assert test.table.reads == []
        check_changes(test, test.cdc())


def test_a_cycle_is_read_once_and_stands_behind() -> None:
    history = [*_writes(".A", "A."), *_writes(".B", ms=5)]
    with bench(history, random.Random(1)) as test:
        test.land(test.capture(), history[:2])
        test.table.seen_ms = history[-1].ms  # whatever is read from now on is of then
        test.land(test.capture(), history[:1])
        assert test.table.reads == [_key("a")]
        read = [row for row in test.rows() if row.transport == "read"]
        assert [(row.position[47:], bool(row.event_id)) for row in read] == [(".read", True)]
        test.land(test.capture(), history[2:])
        test.land(test.capture(), _writes("BC", "CB"))  # nothing tells where these belong
        assert test.table.reads == [_key("a")]
        check_state(test)
        test.cdc()
        chain = check_chain(test.built.lake.table(test.built.table), _DAY)
        assert (chain.links > 0, chain.breaks, chain.in_gaps) == (True, 0, 0)
        versions = plain_view(test.built.lake, "SELECT is_collapsed FROM orders.history")
        assert versions == [{"is_collapsed": False}] * 6


def test_a_cycle_that_a_later_change_follows_is_not_read() -> None:
    history = [*_writes("AB", "BA"), *_writes("BC", ms=1)]
    with bench(history, random.Random(2)) as test:
        test.land(test.capture(), history)
        assert test.table.reads == []
        assert _placed(test) == [("A", ""), ("B", ".0001"), ("C", "")]


def test_other_generations_other_transports_and_other_items_are_no_ties() -> None:
    history = [*_writes("AB", "BC"), *_writes("BC", name="b")]
    with bench(history, random.Random(3)) as test:
        test.land(test.capture(), history[1:])
        stream = test.state.stream
        assert stream is not None
        log = test.built.lake.table(test.built.table).log
        log.append(
            log.load(), Entry(0, new_nonce(), "test", 0, stream=replace(stream, generation=2))
        )
        test.land(test.capture(), history[:1])
        assert {place for _, place in _placed(test)} == {""}
        streamed = [delivered(w)._replace(transport="dynamodb_streams") for w in _writes("BC")]
        test.capture().land(streamed, [], dict)
        assert {place for _, place in _placed(test)} == {""}


def test_a_lost_object_does_not_stop_capture() -> None:
    history = _writes("AB", "BC")
    with bench(history, random.Random(4)) as test:
        test.land(test.capture(), history[:1])
        (first,) = test.state.objects
        whole = test.store.read(first) or b""
        for damaged in (b"damaged", whole[:-100], whole[:4] + bytes(300) + whole[304:], None):
            test.store.delete([first])
            if damaged is not None:
                test.store.write(first, damaged)
            test.land(test.capture(), history[1:])
        assert test.result.rows == 5


def test_objects_are_read_only_where_their_times_meet_those_of_the_batch() -> None:
    """Four batches of 12,000 changes; each begins with 100 of the times with which one ended."""
    chance, padding = random.Random(5), "x" * 40
    with bench([], chance) as test:
        lander, read_bytes = test.capture(), test.store.read_bytes
        keys: list[str] = []
        for number in range(4):
            history = [
                Write(
                    f"{n % 5000}",
                    _FIRST_US + (number * 11_900 + n) * 1000,
                    f"{n}{padding}",
                    f"{chance.random()}{padding}",
                    True,
                )
                for n in range(12_000)
            ]
            read_bytes.clear()
            lander.land([delivered(write) for write in history], [], dict)
            assert list(read_bytes) == keys[-1:]
            if keys:
                size = test.state.objects[keys[-1]].bytes
                assert 0 < read_bytes[keys[-1]] < 0.08 * size
            keys = list(test.state.objects)
            spans = _spans(test.store.root / keys[-1])
            assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
            assert len(spans) == 3
        assert test.result.rows == 48_000


def _spans(path: Path) -> list[tuple[int, int]]:
    """The write times of an object's row groups."""
    footer = pq.read_metadata(path)
    column = footer.schema.names.index("write_time_us")
    groups = (footer.row_group(number).column(column) for number in range(footer.num_row_groups))
    return [(group.statistics.min, group.statistics.max) for group in groups]
