"""Switching a table between transports: whatever happens on the way, each change counts once."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture import run
from cdc_pipeline.capture.landing.cutover import cutover_us
from cdc_pipeline.capture.run import Captured, Failed, capture_tables
from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.landing import read_landing
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline_tests.log_clock import set_log_clock
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.faults import error
from cdc_pipeline_tests.simulators.kinesis_server import KinesisSimulator

KINESIS, STREAMS = "kinesis", "dynamodb_streams"
_DAY = 24 * 3600

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Bench:
    """A table that writes to both transports, and the settings that say which one counts."""

    sim: KinesisSimulator
    clock: SimulatedClock
    folder: Path
    transport: str = STREAMS
    before_append: Callable[[Entry], None] = lambda entry: None

    def open(self) -> tuple[Lake, Table]:
        raw = {
            "lake": "lake",
            "region": "us-east-1",
            "capture": {"listing_lag_seconds": 0, "poll_seconds": 0.001, "empty_polls": 1},
            "tables": [{"name": "orders", "transport": self.transport}],
        }
        settings = parse_settings(raw, self.folder / "settings.yaml")
        return Lake(settings, session(self.sim), LocalStore(settings.lake_folder)), settings.tables[
            0
        ]

    def capture(self) -> Captured:
        """One run, as the job `capture` does it, two seconds after what was before."""
        self.clock.advance(2)
        lake, table = self.open()
        for event in capture_tables(lake, [table]):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Captured):
                return event
        raise AssertionError("no result")

    def state(self) -> LogState:
        lake, table = self.open()
        return lake.table(table).log.load()

    def write(self, count: int = 20) -> None:
        for _ in range(count):
            number = len(self.sim.changes("orders"))
            item = {"pk": {"S": f"k{number % 5}"}, "n": {"N": str(number)}}
            self.sim.put("orders", item)
            self.clock.advance(0.3)

    def switch_to(self, transport: str) -> None:
        """Change the settings, and write and capture until the log follows it."""
        self.transport = transport
        for _ in range(8):
            self.write(4)
            self.capture()
            state = self.state()
            if state.stream and state.stream.transport == transport:
                return
            self.clock.advance(60)
        pytest.fail(f"never switched: {self.state().cut}")

    def settle(self) -> None:
        self.clock.advance(400)
        self.capture()
        self.capture()

    def rows(self) -> list[Any]:
        """What has landed, in the order of the log's order keys."""
        lake, _ = self.open()
        objects = self.state().objects.values()
        landed = [
            (order_key(o.generation, change.position), change)
            for o in objects
            for change in read_landing(lake.store, o.key)
        ]
        return [change for _, change in sorted(landed, key=lambda found: found[0])]

    def check(self) -> None:
        """Every change has landed once, and each item's changes are in the order of writing."""
        found: dict[str, list[str | None]] = {}
        for change in self.rows():
            found.setdefault(change.keys, []).append(change.new_image)
        truth: dict[str, list[str | None]] = {}
        for change in self.sim.changes("orders"):
            new = change.new_image
            image = to_json(canonical_item(new)) if new else None
            truth.setdefault(to_json(canonical_item(change.keys)), []).append(image)
        assert found == truth


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    clock = SimulatedClock(1_767_225_600.25)
    with KinesisSimulator(clock=clock) as sim:
        use(sim, monkeypatch)
        made = Bench(sim, clock, tmp_path)

        class Log(CaptureLog):
            def append(self, state: LogState, entry: Entry) -> bool:
                made.before_append(entry)
                return super().append(state, entry)

        set_log_clock(monkeypatch, clock, Log)
        monkeypatch.setattr("cdc_pipeline.capture.sources.reading._READS_PER_SECOND", 1000)
        sim.create_kinesis("changes", shards=2)
        sim.create_table("orders")
        sim.replicate("orders", "changes")
        yield made


@pytest.mark.parametrize(("old", "new"), [(STREAMS, KINESIS), (KINESIS, STREAMS)])
def test_a_switch_loses_nothing_and_doubles_nothing(bench: Bench, old: str, new: str) -> None:
    bench.transport = old
    bench.capture()
    bench.write()
    bench.capture()
    bench.switch_to(new)
    bench.write()
    bench.settle()
    bench.check()
    state = bench.state()
    assert state.gaps == {}
    assert state.generation == 2
    assert {change.transport for change in bench.rows()} == {old, new}


def test_to_and_fro(bench: Bench) -> None:
    bench.capture()
    for transport in (KINESIS, STREAMS, KINESIS):
        bench.write()
        bench.switch_to(transport)
    bench.settle()
    bench.check()
    assert bench.state().gaps == {}
    assert bench.state().generation == 4


@pytest.mark.parametrize(("old", "new"), [(STREAMS, KINESIS), (KINESIS, STREAMS)])
def test_killed_at_each_entry(bench: Bench, old: str, new: str) -> None:
    """Runs end before or behind an entry of theirs: the first, the second, the third."""
    bench.transport = old
    bench.capture()
    bench.write()
    bench.transport = new
    steps: set[str] = set()
    for nth in (1, 1, 2, 3, 2, 1, 3, 2):
        bench.write(3)
        for stands in (False, True):
            bench.before_append = _kill(bench, steps, nth, stands)
            with suppress(Killed):
                bench.capture()
        bench.clock.advance(60)
    bench.before_append = lambda entry: None
    bench.settle()
    bench.check()
    assert steps == {"cut", "stream", "objects"}
    state = bench.state()
    assert (state.gaps, state.generation) == ({}, 2)
    assert state.stream is not None
    assert state.stream.transport == new


def _kill(bench: Bench, steps: set[str], nth: int, stands: bool) -> Callable[[Entry], None]:
    append, entries = CaptureLog.append, count(1)

    def kill(entry: Entry) -> None:
        # The entry that ends the switch is the only one of its kind: it is met in any case.
        if next(entries) < nth and entry.stream is None:
            return
        steps.update(name for name in ("cut", "stream", "objects") if getattr(entry, name))
        if stands:
            lake, table = bench.open()
            log = CaptureLog(lake.store, lake.table(table).paths, bench.clock)
            assert append(log, log.load(), entry)
        raise Killed

    return kill


def test_the_old_one_turned_off_before_the_cut_was_reached_is_a_gap(bench: Bench) -> None:
    bench.capture()
    bench.write()
    bench.capture()
    read_us = bench.state().watermark_us
    bench.write()
    bench.sim.disable_stream("orders")
    bench.write()
    bench.transport = KINESIS
    bench.capture()
    bench.settle()
    state = bench.state()
    (gap,) = state.gaps.values()
    assert gap.cause == "new stream"
    assert gap.from_us <= read_us
    assert (state.stream and state.stream.since_us) == gap.to_us
    assert state.cut is None
    lost = {c.written_us for c in bench.sim.changes("orders")[40:]}
    landed = {c.write_time_us for c in bench.rows()}
    assert not lost & landed
    assert all(gap.from_us <= us < gap.to_us for us in lost)


def test_the_old_one_gone_before_the_cut_was_reached_is_a_gap(bench: Bench) -> None:
    bench.transport = KINESIS
    bench.capture()
    bench.write()
    bench.transport = STREAMS
    bench.capture()
    cut = bench.state().cut
    assert cut is not None
    bench.sim.delete_kinesis("changes")
    bench.write()
    bench.settle()
    (gap,) = bench.state().gaps.values()
    assert gap.to_us == cut.at_us
    new = {c.new_image for c in bench.rows() if c.transport == STREAMS}
    missing = [c for c in bench.sim.changes("orders") if c.written_us >= cut.at_us]
    assert new == {to_json(canonical_item(c.new_image or {})) for c in missing}


def test_what_the_new_one_lost_while_it_waited_is_a_gap(bench: Bench) -> None:
    bench.sim.set_retention("changes", 168)
    bench.transport = KINESIS
    bench.capture()
    bench.write()
    bench.transport = STREAMS
    bench.before_append = _kill_behind_the_cut(bench)
    with pytest.raises(Killed):
        bench.capture()
    bench.write()
    bench.clock.advance(1.5 * _DAY)
    bench.switch_to(STREAMS)
    bench.settle()
    gaps = bench.state().gaps.values()
    landed = {c.write_time_us for c in bench.rows()}
    seconds = {us // 1_000_000 * 1_000_000 for us in landed}
    lost = [c for c in bench.sim.changes("orders") if c.written_us // 10**6 * 10**6 not in seconds]
    assert lost
    assert {gap.cause for gap in gaps} == {"head trimmed"}
    for change in lost:
        assert any(gap.from_us <= change.written_us < gap.to_us for gap in gaps)


def test_a_new_transport_that_is_not_on_leaves_the_old_one_running(bench: Bench) -> None:
    bench.sim.stop_replicating("orders")
    bench.capture()
    bench.write()
    bench.transport = KINESIS
    with pytest.raises(run.SourceError, match="writes to no Kinesis stream"):
        bench.capture()
    state = bench.state()
    assert state.cut is None
    assert len(bench.rows()) == 20
    bench.sim.replicate("orders", "changes")
    bench.switch_to(KINESIS)
    bench.settle()
    bench.check()
    assert bench.state().gaps == {}


def test_a_switch_that_is_taken_back_is_finished_first(bench: Bench) -> None:
    bench.capture()
    bench.write()
    bench.transport = KINESIS
    bench.before_append = _kill_behind_the_cut(bench)
    with pytest.raises(Killed):
        bench.capture()
    assert bench.state().cut is not None
    bench.write()
    bench.switch_to(STREAMS)
    for _ in range(6):
        bench.settle()
    bench.check()
    state = bench.state()
    assert (state.gaps, state.cut, state.generation) == ({}, None, 3)
    assert state.stream is not None
    assert state.stream.transport == STREAMS


def test_a_switch_that_cannot_be_finished_is_taken_back_with_a_gap(bench: Bench) -> None:
    bench.capture()
    bench.write()
    bench.transport = KINESIS
    bench.before_append = _kill_behind_the_cut(bench)
    with pytest.raises(Killed):
        bench.capture()
    cut = bench.state().cut
    assert cut is not None
    bench.sim.stop_replicating("orders")
    bench.write()
    bench.transport = STREAMS
    bench.settle()
    state = bench.state()
    (gap,) = state.gaps.values()
    assert (state.cut, gap.from_us, gap.cause) == (None, cut.at_us, "new stream")
    assert state.generation == 3
    assert state.watermark_us > gap.to_us
    bench.check()  # nothing was left out yet, so all of it came by the stream


def test_losses_that_may_not_be_asked_for_are_a_warning_until_they_may(bench: Bench) -> None:
    bench.transport = KINESIS
    bench.capture()
    bench.sim.faults.always("cloudwatch:GetMetricStatistics", error("AccessDenied"))
    bench.write()
    bench.sim.skip_next("orders")
    bench.write()
    bench.clock.advance(900)
    captured = bench.capture()
    (warning,) = captured.result.warnings
    assert "cloudwatch:GetMetricStatistics" in warning
    assert bench.state().gaps == {}
    bench.sim.faults.clear()
    bench.capture()
    (gap,) = bench.state().gaps.values()
    (skipped,) = [c for c in bench.sim.changes("orders") if c.skipped]
    assert gap.from_us <= skipped.written_us < gap.to_us


def test_a_switch_does_not_wait_for_who_may_not_ask(bench: Bench) -> None:
    bench.transport = KINESIS
    bench.capture()
    bench.sim.faults.always("cloudwatch:GetMetricStatistics", error("AccessDenied"))
    bench.write()
    bench.switch_to(STREAMS)
    bench.settle()
    bench.check()


def test_what_kinesis_lost_before_the_cut_is_a_gap(bench: Bench) -> None:
    bench.transport = KINESIS
    bench.capture()
    bench.write()
    bench.transport = STREAMS
    bench.sim.skip_next("orders")
    bench.write(1)
    bench.switch_to(STREAMS)
    (gap,) = bench.state().gaps.values()
    (skipped,) = [c for c in bench.sim.changes("orders") if c.skipped]
    assert gap.cause == "not replicated"
    assert gap.from_us <= skipped.written_us < gap.to_us


def _kill_behind_the_cut(bench: Bench) -> Callable[[Entry], None]:
    def kill(entry: Entry) -> None:
        if entry.cut is None:
            bench.before_append = lambda entry: None
            raise Killed

    return kill


def test_a_cut_is_behind_everything_that_has_landed(bench: Bench) -> None:
    state = LogState()
    assert cutover_us(state, 5_000_000) == 5_000_000
    assert cutover_us(state, 5_000_001) == 6_000_000
    bench.capture()
    bench.write(1)
    bench.capture()
    state = bench.state()
    (written,) = [o.max_write_us for o in state.objects.values()]
    # DynamoDB's clock may be ahead of ours; the second that it tells is not over.
    assert cutover_us(state, written - 3_000_000) == written + 1_000_000


def test_a_table_made_again_while_it_switches_is_a_gap(bench: Bench) -> None:
    """Its deletion left no changes, so what the former one's stream tells to its end is not all."""
    bench.write()
    bench.capture()
    bench.transport = KINESIS
    bench.capture()
    cut = bench.state().cut
    assert cut is not None
    bench.sim.recreate_table("orders")
    for _ in range(8):
        bench.clock.advance(60)
        bench.write(4)
        bench.capture()
        if bench.state().cut is None:
            break
    (gap,) = bench.state().gaps.values()
    assert gap.cause == "table recreated"
    assert bench.state().generation > gap.heal_generation
