"""Captures of a table in which nothing happens: what they ask of the lake, and what they prove."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.log.json_format import entry_from_json
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import TablePaths, object_name
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.log_memory import MEMORY
from cdc_pipeline_tests.capture.shards.test_drain import HOUR, Bench, check
from cdc_pipeline_tests.lake.counting_store import CountingStore
from cdc_pipeline_tests.simulators.clients import use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

_PATHS = TablePaths("cdc", "orders")
_NONCE = "0" * 16


@dataclass
class _CountingBench(Bench):
    """A bench that counts what it asks of the lake, and knows nothing when it begins a capture."""

    def __post_init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.is_new_process = True

    def log(self) -> CaptureLog:
        return CaptureLog(CountingStore(self.folder, self.calls), _PATHS, self.clock)

    def asked(self) -> dict[str, int]:
        if self.is_new_process:
            MEMORY.clear()
        self.calls.clear()
        self.capture()
        return dict(self.calls)

    def orphan(self, entry: int) -> Path:
        """What a capture leaves that is killed before this entry, beside a real object."""
        landed = next(iter(self.state().objects.values()))
        path = (self.folder / landed.key).with_name(object_name(entry, _NONCE))
        path.write_bytes(b"")
        return path

    def replayed(self) -> LogState:
        state = LogState()
        for path in sorted((self.folder / _PATHS.entries).iterdir()):
            state.apply(entry_from_json(path.read_bytes(), path.name))
        return state


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_CountingBench]:
    clock = SimulatedClock()
    MEMORY.clear()
    with StreamsSimulator(clock=clock) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=2)
        yield _CountingBench(sim, clock, tmp_path / "lake")
    MEMORY.clear()


def test_idle_captures_ask_little_whatever_came_before(bench: _CountingBench) -> None:
    for seed in range(23):
        bench.write(3, seed=seed)
        bench.capture()
    entries = bench.state().n
    assert bench.asked().get("list", 0) == 0
    for _ in range(4):
        bench.asked()
    assert bench.asked() == {"read": 4, "write": 1}, "heartbeat, summary, last entry, no next one"
    bench.is_new_process = False
    assert bench.asked() == {"write": 1}, "all within a look"
    assert bench.state().n == entries
    bench.write(5, seed=99)
    bench.capture()
    check(bench)


def test_idle_captures_move_the_watermark_and_the_time_of_capture(bench: _CountingBench) -> None:
    bench.write(5)
    bench.capture()
    before = state = bench.state()
    for _ in range(10):
        bench.clock.advance(60)
        bench.capture()
        state = bench.state()
        assert state.n == before.n
        now_us = int(bench.clock() * 1_000_000)
        assert now_us - state.at_us < 1_000_000
        assert now_us - min(s.read_to_us for s in state.shards.values()) < 1_000_000
    assert state.watermark_us - before.watermark_us >= 600_000_000


def test_days_without_changes_open_no_gap_even_if_the_heartbeat_is_lost(
    bench: _CountingBench,
) -> None:
    bench.write(5)
    for number in range(24):
        bench.capture()
        bench.clock.advance(1.25 * HOUR)
        if number % 5 == 0:
            (bench.folder / _PATHS.heartbeat).unlink()
            MEMORY.clear()
    bench.write(5, seed=1)
    bench.capture()
    check(bench)
    state = bench.state()
    assert state.gaps == {}
    replayed = bench.replayed()
    assert state.watermark_us - replayed.watermark_us <= 3 * HOUR * 1_000_000
    state.set_heartbeat(None)
    assert state == replayed


def test_a_capture_after_a_clean_one_removes_what_a_killed_one_left(
    bench: _CountingBench,
) -> None:
    bench.write(5)
    bench.capture()
    bench.capture()
    assert bench.state().heartbeat is not None
    orphan = bench.orphan(bench.state().n + 1)
    calls = bench.asked()
    assert calls.get("list", 0) == 0
    assert orphan.exists(), "as long as its entry may come"
    bench.write(5, seed=1)
    assert bench.capture().orphans_removed == 1
    assert not orphan.exists()
    check(bench)


def test_an_unclean_end_is_cleaned_up_by_the_next_capture(bench: _CountingBench) -> None:
    bench.write(5)
    bench.capture()
    orphan = bench.orphan(1)
    assert bench.asked().get("list", 0) == 0
    (bench.folder / _PATHS.heartbeat).unlink()
    MEMORY.clear()
    assert bench.capture().orphans_removed == 1
    assert not orphan.exists()


def test_the_first_capture_of_a_day_looks_everywhere(bench: _CountingBench) -> None:
    bench.write(5)
    bench.capture()
    orphan = bench.orphan(1)
    while day_of(int(bench.clock() * 1_000_000)) == day_of(bench.state().at_us):
        bench.capture()
        assert orphan.exists()
        bench.clock.advance(2 * HOUR)
    assert bench.capture().orphans_removed == 1
    assert bench.asked().get("list", 0) == 0


def test_an_entry_of_another_writer_with_progress_is_no_capture(
    bench: _CountingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It repeats the heartbeat's progress, so it has shards; a capture at work goes on."""
    bench.write(5)
    bench.capture()
    bench.capture()
    other, before = bench.log(), bench.state().n
    first = threading.Lock()

    def write_meanwhile(_: object) -> None:
        if first.acquire(blocking=False):  # of two shards that are read at the same time
            assert other.commit(other.load(), lambda _: {"removed": ("merged",)})

    monkeypatch.delattr("cdc_pipeline.capture.landing.retries._pause_seconds")
    bench.write(5, seed=1)
    result = bench.capture(sleep=write_meanwhile)
    assert (result.rows > 0, result.conflicts) == (True, 1)
    text = (bench.folder / _PATHS.entry(before + 1)).read_bytes()
    assert entry_from_json(text, "entry").shards
    check(bench)
