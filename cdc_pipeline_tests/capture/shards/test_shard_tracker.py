"""Lineage: children of ended shards are asked for, whole listings are few, what both prove."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import pytest

from cdc_pipeline.aws.shards import Page, StreamDescription
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.gaps import is_lineage_known, proven_times
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.shards.buffer import Buffer
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.shards.shard_reader import ReadOptions, Start, polls_needed, read_shard
from cdc_pipeline.capture.shards.shard_tracker import _Childless
from cdc_pipeline.capture.sources.reading import KinesisProtocol, StreamsProtocol
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.log.entries import ShardState, StreamRef
from cdc_pipeline.core.log.lineage import Shard
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.defs.tables.shard_sensor import _inspect
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline_tests.capture.shards.test_drain import Bench, bench, check
from cdc_pipeline_tests.simulators.clients import session
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.faults import (
    Fault,
    children_missing,
    ignores_filter,
    of_whole_listings,
    refuses_filter,
    shard_missing,
)

__all__ = ["bench"]

LAG = 300
OPTIONS = CaptureOptions(poll_seconds=0, empty_polls=2, listing_lag_seconds=LAG)
SECOND = 1_000_000


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stream counts as one whose listing takes 600 requests."""
    monkeypatch.setattr(StreamsProtocol, "listing_seconds", lambda self, shards: 600)


@pytest.fixture
def settled(bench: Bench, large: None) -> Bench:
    """A large stream that is captured, and whose roots are all known."""
    bench.write(100)
    bench.capture(OPTIONS)
    bench.clock.advance(2 * LAG)
    bench.capture(OPTIONS)
    bench.sim.requests.clear()
    return bench


def listings(bench: Bench) -> Counter[str | None]:
    """How often whose children were asked for since the last time, None: the whole stream."""
    asked = Counter(r.children_of for r in bench.sim.requests if r.operation == "DescribeStream")
    bench.sim.requests.clear()
    return asked


def test_how_long_a_listing_serves() -> None:
    assert [StreamsProtocol().listing_seconds(n) for n in (4, 99, 280, 7_000, 70_000)] == [
        *(0, 0, 2, 70, 600)
    ]
    assert KinesisProtocol(Target("orders", "id", {})).listing_seconds(70_000) == 0


def test_late_children_hold_nothing_up(bench: Bench) -> None:
    """Of two children a minute one shows late, wherever it is asked for: in 30 of 30 runs."""
    bench.sim.delete_table("orders")
    bench.sim.create_table("orders", shards=10)
    source = bench.source()

    def run() -> None:
        bench.clock.advance(2)
        capture_table(bench.log(), source, OPTIONS, sleep=lambda _: None)

    run()
    bench.sim.list_late(5)
    behind = []
    for minute in range(30):
        bench.clock.advance(50)
        first, second = bench.sim.open_shards("orders")[minute % 9 :][:2]
        bench.sim.rotate("orders", first)
        bench.clock.advance(6)
        bench.sim.rotate("orders", second)
        run()
        behind.append(int(bench.clock() * SECOND) - bench.state().discovered_us)
    assert behind == [LAG * SECOND] * 30
    bench.sim.list_late(0)
    run()
    check(bench)


def test_a_child_later_than_the_setting_holds_up_no_more_than_its_parents_end(
    bench: Bench,
) -> None:
    bench.capture(OPTIONS)
    bench.clock.advance(LAG)
    bench.capture(OPTIONS)  # here it was seen open
    open_us = int(bench.clock() * SECOND)
    bench.sim.list_late(4 * LAG)
    (child,) = bench.sim.rotate("orders", bench.sim.open_shards("orders")[0])
    bench.write(50)
    reached = []
    for _ in range(3):
        bench.clock.advance(LAG)
        bench.capture(OPTIONS)
        reached.append(bench.state().discovered_us)
    assert reached == [open_us, open_us, open_us]
    assert child not in bench.state().shards
    bench.clock.advance(LAG)
    bench.capture(OPTIONS)
    assert bench.state().discovered_us == int(bench.clock() * SECOND) - LAG * SECOND
    bench.capture(OPTIONS)
    check(bench)
    assert bench.state().late.rows == 0


def test_what_an_ended_shard_without_children_proves() -> None:
    stream = StreamRef("id", "arn", "NEW_AND_OLD_IMAGES", 1, 0)
    state = LogState(stream=stream, discovered_us=50 * SECOND)

    def reached(childless: int | None) -> dict[str, int]:
        childless_us = None if childless is None else childless * SECOND
        return proven_times(state, 400 * SECOND, LAG * SECOND, childless_us=childless_us)

    assert reached(None) == reached(101) == reached(100) == {"discovered_us": 100 * SECOND}
    assert reached(70) == {"discovered_us": 70 * SECOND}
    assert reached(50) == reached(0) == {}


def test_when_the_log_alone_tells_which_shards_to_read() -> None:
    """Not while a root may be hidden, nor where only a listing tells if a shard lost its head."""
    hour, margin_us = 3600 * SECOND, 300 * SECOND
    stream = StreamRef("id", "arn", "NEW_AND_OLD_IMAGES", 1, 100 * hour)

    def known(discovered_us: int, read_to_us: int) -> bool:
        shard = ShardState("a", None, 1000, read_to_us=read_to_us)
        state = LogState(stream=stream, shards={"a": shard}, discovered_us=discovered_us)
        return is_lineage_known(state, margin_us, 120 * hour)

    listed_us = 100 * hour + margin_us
    assert known(listed_us, 119 * hour)
    assert not known(listed_us - 1, 119 * hour)
    assert not known(listed_us, 108 * hour)
    assert not is_lineage_known(LogState(), margin_us, 120 * hour)


def test_a_large_stream_is_listed_every_ten_minutes(settled: Bench) -> None:
    bench = settled
    first, second, *_ = bench.sim.open_shards("orders")
    bench.capture(OPTIONS)
    assert listings(bench) == {}
    bench.sim.split("orders", first)
    bench.write(100, seed=1)
    before_us = bench.state().discovered_us
    result = bench.capture(OPTIONS)
    assert (result.shards_open, result.shards_finished) == (5, 1)
    assert listings(bench) == {first: 1}
    check(bench)
    # Of two children one may be hidden still: what was proven stays as it was.
    assert bench.state().discovered_us == before_us
    bench.sim.rotate("orders", second)
    bench.clock.advance(600)
    bench.capture(OPTIONS)
    assert listings(bench) == {None: 1}
    assert bench.state().discovered_us == int(bench.clock() * SECOND) - LAG * SECOND
    check(bench)


def test_children_that_do_not_show_yet_are_asked_for_again(settled: Bench) -> None:
    bench, pauses = settled, list[float]()
    first = bench.sim.open_shards("orders")[0]
    bench.sim.rotate("orders", first)
    bench.write(100, seed=1)
    bench.sim.list_late(60)
    bench.capture(OPTIONS)
    assert listings(bench) == {first: 5}
    # The next run asks once, and waits for nothing.
    bench.capture(OPTIONS, sleep=pauses.append)
    assert listings(bench) == {first: 1}
    assert set(pauses) == {0}
    bench.clock.advance(60)
    bench.capture(OPTIONS)
    assert listings(bench) == {first: 1}
    check(bench)


def test_pauses_double() -> None:
    childless = _Childless()
    for seconds in (0.1, 0.2, 0.4, 0.8):
        childless.request_later(100)
        assert childless.due == pytest.approx(100 + seconds)


def test_a_hidden_twin_is_found_by_the_next_whole_listing(settled: Bench) -> None:
    bench = settled
    first = bench.sim.open_shards("orders")[0]
    children = bench.sim.split("orders", first)
    split_us = int(bench.clock() * SECOND)
    bench.write(200, seed=1)
    hidden = sorted(children)[0]
    bench.sim.faults.always("DescribeStream", shard_missing(hidden))
    bench.capture(OPTIONS)
    assert hidden not in bench.state().shards
    assert bench.state().watermark_us <= split_us
    bench.clock.advance(200)
    bench.capture(OPTIONS)
    assert bench.state().watermark_us <= split_us
    bench.sim.faults.clear()
    bench.clock.advance(600)
    bench.capture(OPTIONS)
    check(bench)
    assert bench.state().late.rows == 0


def test_a_child_that_only_whole_listings_lack(bench: Bench) -> None:
    """A small stream is listed whole, and asked for what that lacks."""
    bench.write(100)
    bench.capture(OPTIONS)
    bench.sim.rotate("orders")
    bench.write(100, seed=1)
    bench.sim.faults.always("DescribeStream", of_whole_listings(children_missing()))
    assert bench.capture(OPTIONS).rows > 0
    bench.sim.faults.clear()
    check(bench)


@pytest.mark.parametrize("make", [ignores_filter, refuses_filter])
def test_servers_without_the_filter_are_listed_whole(
    settled: Bench, make: Callable[[], Fault]
) -> None:
    bench = settled
    first, second, *_ = bench.sim.open_shards("orders")
    fault = make()
    bench.sim.faults.always("DescribeStream", fault)
    bench.sim.split("orders", first)
    bench.sim.rotate("orders", second)
    bench.write(100, seed=1)
    bench.capture(OPTIONS)
    assert bench.sim.faults.count(fault.name) == 1
    assert listings(bench)[None] == 1
    check(bench)
    bench.sim.faults.clear()
    streams, arn = DynamoDBStreams(session(bench.sim)), bench.sim.stream_arn("orders")
    found = streams.children(arn, second)
    assert found is not None
    assert [child.parent_id for child in found] == [second]
    bench.sim.faults.always("DescribeStream", fault)
    assert streams.children(arn, second) is None


@dataclass
class EmptyPages:
    """A shard that answers empty pages and then its end, or none: a second each."""

    clock: SimulatedClock
    left: int
    ends: bool

    def describe(self, arn: str) -> StreamDescription:
        raise NotImplementedError

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        raise NotImplementedError

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        return "iterator"

    def read(self, iterator: str) -> Page:
        self.clock.advance(1)
        self.left -= 1
        return Page([], None if self.ends and not self.left else "iterator", 0)


@pytest.mark.parametrize(("is_open", "ends"), [(True, False), (True, True), (False, True)])
def test_empty_reads_of_an_ended_shard_say_nothing_of_its_end(is_open: bool, ends: bool) -> None:
    clock = SimulatedClock()
    begun_us = int(clock() * SECOND)
    shard = ShardState("a", None, 1000, read_to_us=begun_us - 10 * SECOND)
    stream = StreamRef("id", "arn", "NEW_AND_OLD_IMAGES", 1, begun_us)
    pages = EmptyPages(clock, polls_needed(2, 10 * SECOND) + 3 * (not is_open), ends)
    options = ReadOptions(2, 0, begun_us, clock() + 60, clock, lambda _: None)
    start = Start(shard, None, begun_us, is_open=is_open)
    pending = Buffer(10, 1000)
    read = read_shard(pages, StreamsProtocol(), stream, start, pending, options, Event())
    expected = replace(
        shard,
        status="finished" if ends else "reading",
        read_to_us=shard.read_to_us if ends else begun_us,
    )
    assert (read, pages.left) == (expected, 0)


def test_the_sensor_lists_no_large_stream_that_was_listed_lately(
    settled: Bench, tmp_path: Path
) -> None:
    bench = settled
    raw = {"lake": "lake", "region": "us-east-1", "tables": [{"name": "orders"}]}
    settings = parse_settings(raw, tmp_path / "settings.yaml")
    lake = Lake(settings, session(bench.sim), LocalStore(settings.lake_folder))

    def look() -> str:
        state = bench.state()
        decision = _inspect(lake.table(settings.tables[0]), bench.log(), state)
        return f"{decision.due}, {'new' if 'new' in decision.why else 'none new'}"

    bench.sim.rotate("orders")
    assert look() == "False, none new"
    assert listings(bench) == {}
    bench.clock.advance(61)
    assert look() == "True, none new"  # its interval is over anyway
    assert listings(bench) == {}
    log = bench.log()
    state = log.load()
    bench.clock.advance(700)
    state.at_us = log.now_us()
    decision = _inspect(lake.table(settings.tables[0]), log, state)
    assert (decision.due, "4 new" in decision.why) == (True, True)
    assert listings(bench) == {None: 1}
