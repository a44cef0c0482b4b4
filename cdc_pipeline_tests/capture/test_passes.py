"""Passes of a process that stays: what they ask for, what they prove, and that nothing is lost."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture import passes
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.passes import Passes, reads_per_pass
from cdc_pipeline.capture.shards.cursors import Cursors
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.residence import Residence
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline_tests.capture.shards.test_drain import OPTIONS, Bench, check
from cdc_pipeline_tests.lake.counting_store import CountingStore
from cdc_pipeline_tests.simulators.clients import use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

_PATHS = TablePaths("cdc", "orders")
_PASS = replace(OPTIONS, empty_reads=1, relist_seconds=60)


class _Store(CountingStore):
    """`fails`: the number of entries that cannot be written; `beats`: heartbeats written."""

    fails = 0
    beats = 0

    def write(self, key: str, data: bytes) -> None:
        self.beats += key == _PATHS.heartbeat
        super().write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        if self.fails and key.startswith(_PATHS.entries):
            self.fails -= 1
            raise LakeError("the entry cannot be written")
        return super().create(key, data)


@dataclass
class _Staying(Bench):
    """A bench whose captures are the passes of one process."""

    def __post_init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.store = _Store(self.folder, self.calls)
        self.cursors = Cursors()
        self.residence = Residence("host:1:serve-300", 120, 120, self.clock)

    def log(self) -> CaptureLog:
        return CaptureLog(self.store, _PATHS, self.clock, residence=self.residence)

    def another(self) -> Bench:
        return Bench(self.sim, self.clock, self.folder)

    def make_pass(self, seconds: float = 2) -> CaptureResult:
        self.clock.advance(seconds)
        log, source = self.log(), self.source()
        try:
            return capture_table(log, source, _PASS, cursors=self.cursors, sleep=lambda _: None)
        except LakeError:
            log.doubt()
            raise

    def asked(self, passes: int, seconds: float) -> tuple[dict[str, int], dict[str, int]]:
        """Calls of the lake and of the stream."""
        self.calls.clear()
        self.sim.requests.clear()
        for _ in range(passes):
            self.make_pass(seconds)
        return dict(self.calls), dict(Counter(r.operation for r in self.sim.requests))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Staying]:
    clock = SimulatedClock()
    with StreamsSimulator(clock=clock) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=2)
        yield _Staying(sim, clock, tmp_path / "lake")


def test_idle_passes_ask_for_nothing_but_records(bench: _Staying) -> None:
    bench.write(5)
    for _ in range(15):
        bench.make_pass()
    lake, stream = bench.asked(10, 2)
    assert stream.pop("DescribeStream", 0) <= 1
    assert stream == {"GetRecords": 20}, "one read per shard and pass"
    assert lake == {}
    lake, stream = bench.asked(24, 10)
    assert stream == {"GetRecords": 48, "DescribeStream": 4}, "a listing per minute"
    assert lake["write"] == 2, "a heartbeat each two minutes"
    assert lake["read"] == 6, "and a look at what others wrote"
    assert {*lake} <= {"read", "write", "create", "list"}
    assert lake.get("list", 0) <= 1, "of summaries, once"


def test_passes_prove_the_tip_together(bench: _Staying) -> None:
    bench.write(5)
    for _ in range(30):
        bench.make_pass()
    behind_us = int(bench.clock() * 1_000_000) - bench.log().look().watermark_us
    assert 0 < behind_us <= 62_000_000
    assert bench.log().look().n == 2
    check(bench)


def test_everything_lands_once_and_in_order(bench: _Staying) -> None:
    chance = random.Random(5)
    for number in range(25):
        bench.write(chance.randrange(30), seed=number)
        if chance.random() < 0.15:
            bench.sim.rotate("orders")
        if chance.random() < 0.2:
            bench.sim.put("orders", {"pk": {"S": "one more"}, "n": {"N": str(number)}})
            bench.store.fails = 1
            with pytest.raises(LakeError):
                bench.make_pass()
        if chance.random() < 0.2:
            bench.another().capture()
        bench.make_pass(chance.choice([1, 2, 70, 400]))
    for _ in range(30):
        bench.make_pass()
    check(bench)


def test_records_that_did_not_land_are_read_again(bench: _Staying) -> None:
    bench.write(3)
    bench.make_pass()
    written = len(bench.sim.records("orders"))
    bench.write(5, seed=1)
    bench.store.fails = 1
    with pytest.raises(LakeError):
        bench.make_pass()
    assert bench.make_pass().rows == len(bench.sim.records("orders")) - written > 0
    check(bench)


def test_a_busy_table_gets_few_heartbeats(bench: _Staying) -> None:
    for number in range(4):
        bench.write(5, seed=number)
        bench.make_pass()
    bench.calls.clear()
    bench.store.beats = 0
    for number in range(4, 14):
        bench.write(5, seed=number)
        bench.make_pass()
    assert bench.store.beats <= 1
    assert bench.calls["list"] <= 1, "of summaries"
    check(bench)


def test_an_opened_stream_is_kept_for_a_minute_and_not_after_an_error(
    bench: _Staying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {"lake": "lake", "region": "us-east-1", "tables": [{"name": "orders"}]}
    lake = Lake.open(parse_settings(raw, tmp_path / "settings.yaml"))
    lake.residence = bench.residence
    table, opened, given = lake.table(lake.settings.tables[0]), bench.source(), []
    errors: list[Exception] = []

    def capture_one(*_: object, source: Source | None, **more: Any) -> CaptureResult:
        given.append(source)
        more["opened"](opened)
        if errors:
            bench.residence.rested(table.log.store.uri(table.paths.entries))
            raise errors.pop()
        return CaptureResult("orders")

    monkeypatch.setattr(passes, "capture_one", capture_one)
    made = Passes(table, 5, bench.clock)
    for _ in range(3):
        made.run(lambda _: None)
    bench.clock.advance(61)
    made.run(lambda _: None)
    assert given == [None, opened, opened, None]
    errors.append(LakeError("no"))
    with pytest.raises(LakeError):
        made.run(lambda _: None)
    assert not bench.residence.may_pass_over(table.log.store.uri(table.paths.entries))
    made.run(lambda _: None)
    assert given[4:] == [opened, None]


@pytest.mark.parametrize(("every", "reads"), [(1, 1), (10, 1), (20, 1), (60, 3), (3600, 11)])
def test_slow_passes_read_more_than_once(every: float, reads: int) -> None:
    assert reads_per_pass(3, every) == reads
