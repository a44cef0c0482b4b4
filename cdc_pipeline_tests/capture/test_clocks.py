"""Wrong clocks and empty pages: what is called complete is, and a gap reaches back far enough."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from cdc_pipeline.aws.client.clock_offset import ClockOffset
from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.cutover import begin_cutover, complete_cutover
from cdc_pipeline.capture.landing.gaps import open_capture, proven_times
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.replication_losses import record_losses
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.landing.result import CaptureResult as Result
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.shards.shard_reader import polls_needed
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.errors import ShardGoneError
from cdc_pipeline.core.log.coverage import clock_note, clock_warning
from cdc_pipeline.core.log.entries import Gap, LateChanges, ShardState, StreamRef
from cdc_pipeline.core.log.json_format import state_from_json, state_to_json
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.plans.heal import Backups, plan_windows
from cdc_pipeline.lake.storage.landing import read_landing
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock, WrongClock
from cdc_pipeline_tests.simulators.faults import Call, Fault, Reply, empty_page
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

DAY = 24 * 3600
SECOND = 1_000_000
MARGIN = 300
MARGIN_US = MARGIN * SECOND
OPTIONS = CaptureOptions(poll_seconds=0, empty_polls=3, listing_lag_seconds=0)


@dataclass
class Bench:
    """A simulated table, and a machine beside it whose clock is its own."""

    sim: StreamsSimulator
    clock: SimulatedClock
    local: WrongClock
    folder: Path

    def log(self) -> CaptureLog:
        store, paths = LocalStore(self.folder), TablePaths("cdc", "orders")
        return CaptureLog(store, paths, self.local, margin_us=MARGIN_US)

    def source(self) -> Source:
        aws = session(self.sim)
        table_id, arn = self.sim.table_id("orders"), self.sim.stream_arn("orders")
        view = "NEW_AND_OLD_IMAGES"
        return Source("orders", table_id, arn, view, DynamoDBStreams(aws))

    def capture(self) -> CaptureResult:
        return capture_table(self.log(), self.source(), OPTIONS, sleep=self.clock.sleep)

    def put(self, key: str, value: int) -> None:
        self.sim.put("orders", {"pk": {"S": key}, "n": {"N": str(value)}})

    def now_us(self) -> int:
        """By AWS's clock."""
        return int(self.clock() * SECOND)

    def state(self) -> LogState:
        return self.log().load()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    clock = SimulatedClock()
    with StreamsSimulator(clock=clock) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=1)
        yield Bench(sim, clock, WrongClock(clock), tmp_path)


# ------------------------------------------------------------------------------------ fast clocks


@pytest.mark.parametrize("ahead", [0.5, 5, 300])
def test_what_was_written_while_a_fast_clock_called_a_shard_read_is_in_the_gap(
    bench: Bench, ahead: float
) -> None:
    bench.capture()
    bench.local.error = ahead
    bench.capture()  # a quiet shard: read up to a time that has not come
    bench.clock.advance(ahead / 3)
    bench.put("a", 1)
    written_us = bench.now_us()
    bench.local.error = 0
    bench.clock.advance(DAY + 60)
    (gap,) = bench.capture().gaps
    assert gap.from_us <= written_us // SECOND * SECOND
    (window, *_) = plan_windows([gap], MARGIN_US, Backups(0), MARGIN_US)
    assert window.from_us <= written_us
    assert window.to_us >= window.from_us


def test_a_stream_turned_off_behind_a_fast_clock(bench: Bench) -> None:
    bench.local.error = 120
    bench.capture()
    bench.clock.advance(30)
    bench.sim.disable_stream("orders")
    bench.put("a", 1)  # nobody sees it
    unseen_us = bench.now_us()
    bench.clock.advance(60)
    bench.sim.enable_stream("orders", shards=1)
    bench.local.error = -120
    (gap,) = bench.capture().gaps
    assert gap.from_us <= unseen_us <= gap.to_us


# ------------------------------------------------------------------------------------ slow clocks


@pytest.mark.parametrize("behind", [60, 300])
def test_a_slow_clock_hides_nothing_that_was_trimmed(bench: Bench, behind: float) -> None:
    bench.put("a", 1)
    bench.capture()
    bench.clock.advance(10)
    bench.put("b", 2)  # never read
    written_us = bench.now_us()
    bench.local.error = -behind
    bench.clock.advance(DAY + behind / 2)
    (gap,) = bench.capture().gaps
    assert gap.from_us <= written_us <= gap.to_us


def test_a_head_trimmed_behind_a_slow_clock_is_a_gap(bench: Bench) -> None:
    bench.capture()
    bench.put("a", 1)
    written_us = bench.now_us()
    bench.local.error = -60
    bench.clock.advance(DAY + 30)
    bench.put("b", 2)
    (gap,) = bench.capture().gaps
    assert gap.cause == "head trimmed"
    assert gap.from_us <= written_us // SECOND * SECOND


def test_a_clock_that_jumps_between_two_listings_hides_no_shards() -> None:
    """Real times apart: a day and five minutes; told ones: five minutes less than a day."""
    stream = StreamRef("id", "arn", "NEW_AND_OLD_IMAGES", 1, recorded_us=0)
    told_us = 2 * DAY * SECOND
    state = LogState(stream=stream, discovered_us=told_us + 300 * SECOND)
    listed_us = told_us + (DAY - 300 + 300) * SECOND
    assert proven_times(state, listed_us, 300 * SECOND, MARGIN_US) == {"resumed_us": listed_us}
    # Without a margin the same listing would have vouched for shards that came and went.
    assert "discovered_us" in proven_times(state, listed_us, 300 * SECOND)


def test_positions_are_recorded_by_no_slow_clock(bench: Bench) -> None:
    """Where order is by time, what a stream has from before they were is no news to a baseline."""
    bench.local.error = -300
    log, state = bench.log(), LogState()
    open_capture(log, state, bench.source())
    assert state.stream is not None
    assert state.stream.recorded_us >= bench.now_us()


# ----------------------------------------------------------------------------- switches, losses


@pytest.mark.parametrize("error", [-300, 0, 300])
def test_a_cut_has_not_come_when_it_is_logged_and_has_when_it_counts(
    bench: Bench, error: float
) -> None:
    bench.local.error = error
    log, state = bench.log(), LogState()
    open_capture(log, state, bench.source())
    begin_cutover(log, state, bench.source())
    assert state.cut is not None
    # The new transport may have been turned on a moment ago: it has nothing older.
    assert state.cut.at_us >= bench.now_us()
    assert not complete_cutover(log, bench.source(), losses_until_us=None, has_ended=False)


def test_a_fast_clock_does_not_end_a_switch_before_its_cut(bench: Bench) -> None:
    log, state = bench.log(), LogState()
    open_capture(log, state, bench.source())
    begin_cutover(log, state, bench.source())
    assert state.cut is not None
    bench.local.error = 300
    # So far the log says that it has read; by AWS's clock that is the moment before the cut.
    reached = state.cut.at_us + 299 * SECOND
    (shard,) = state.shards.values()
    read = ShardState(shard.shard_id, None, shard.depth, read_to_us=reached)
    entry = Entry(0, "x", "x", 0, shards=(read,), discovered_us=reached)
    assert log.append(state, entry)
    assert not complete_cutover(log, bench.source(), losses_until_us=None, has_ended=False)


@dataclass
class _Counted:
    """A metric that is asked, and remembers up to when."""

    late_us: int = 0
    until_us: int = 0

    def count(self, from_us: int, to_us: int) -> int:
        self.until_us = to_us
        return 0


def test_a_fast_clock_asks_for_no_losses_of_minutes_that_have_not_passed(bench: Bench) -> None:
    bench.capture()
    bench.clock.advance(3600)
    bench.local.error = 300
    bench.capture()
    log, losses = bench.log(), _Counted()
    state = log.load()
    source = SimpleNamespace(losses=losses, table="orders")
    lander = SimpleNamespace(append=lambda parts: log.commit(state, lambda _: parts()))
    record_losses(log, lander, state, source, Result("orders"))  # type: ignore[arg-type]
    assert 0 < losses.until_us <= bench.now_us()


# ------------------------------------------------------------------------------------ empty pages


class _HalfEmpty:
    """Each page is empty with probability 1/2, whatever there is to read."""

    def __init__(self, seed: int, share: float = 0.5) -> None:
        self._chance = random.Random(seed)
        self._share = share
        self._empty = empty_page()

    def fault(self) -> Fault:
        def answer(call: Call) -> Reply | None:
            return self._empty.answer(call) if self._chance.random() < self._share else None

        return Fault("half empty", answer)


@pytest.mark.parametrize("seed", range(3))
def test_half_of_all_pages_empty_is_complete_or_counted(bench: Bench, seed: int) -> None:
    """By the log: behind which watermark did each change land?"""
    pages, chance = _HalfEmpty(seed), random.Random(seed)
    written = 0
    # What the log promised when a capture began, also by its heartbeat, by the next entry.
    promised: dict[int, int] = {}
    for _ in range(60):
        for _ in range(chance.randrange(4)):
            written += 1
            bench.put(f"k{written % 7}", written)
            bench.clock.advance(chance.random() * 8)
        bench.sim.faults.clear()
        bench.sim.faults.script("GetRecords", *[pages.fault()] * 100)
        state = bench.log().load()
        promised[state.n + 1] = state.watermark_us
        bench.capture()
        bench.clock.advance(20)
    bench.sim.faults.clear()
    bench.clock.advance(5)
    state = bench.log().load()
    promised[state.n + 1] = state.watermark_us
    bench.capture()
    log = bench.log()
    replayed, landed, late, wrong = LogState(), 0, 0, 0
    for n in range(1, log.load().n + 1):
        entry = log._read_entry(log.paths.entry(n))
        for landing in entry.objects:
            rows = read_landing(log.store, landing.key)
            landed += len(rows)
            promised_us = promised.get(n, replayed.watermark_us)
            behind = sum(row.write_time_us + SECOND <= promised_us for row in rows)
            late, wrong = late + behind, wrong + (behind > 0)
        replayed.apply(entry)
    assert landed == written == len(bench.sim.records("orders"))
    assert replayed.late.rows == late
    print(f"seed {seed}: {wrong} of 60 captures were wrong, about {late} changes")
    assert wrong <= 2, f"seed {seed}"


def test_more_empty_reads_are_needed_the_older_a_position_is(bench: Bench) -> None:
    bench.capture()
    bench.clock.advance(20 * 3600)
    bench.put("a", 1)
    bench.clock.advance(3600)
    # AWS may return a whole row of empty pages where nothing was written for long.
    bench.sim.faults.script("GetRecords", *[empty_page()] * 60)
    bench.capture()
    assert sum(o.rows for o in bench.state().objects.values()) == 1
    assert bench.state().late.rows == 0


def test_how_many_empty_reads() -> None:
    ages = [0, 1, 30, 3600, DAY, 30 * DAY]
    assert [polls_needed(3, age * SECOND) for age in ages] == [3, 4, 8, 21, 80, 85]
    assert polls_needed(3, -5 * SECOND) == 3


def test_a_change_behind_the_watermark_is_counted_and_takes_the_watermark_back(
    bench: Bench,
) -> None:
    bench.capture()
    bench.clock.advance(100)
    bench.put("a", 1)
    written_us = bench.now_us() // SECOND * SECOND
    bench.clock.advance(50)
    bench.sim.faults.script("GetRecords", *[empty_page()] * 200)
    bench.capture()
    assert bench.state().watermark_us > written_us  # which is not true
    bench.sim.faults.clear()
    told_us = bench.state().watermark_us
    result = bench.capture()
    state = bench.state()
    assert result.late == 1
    assert state.late == LateChanges(1, told_us - written_us)
    assert state.late_at_us
    log = bench.log()
    took = next(e for n in range(1, state.n + 1) if (e := _entry(log, n)).late)
    before = LogState()
    for n in range(1, took.n + 1):
        before.apply(_entry(log, n))
    assert written_us <= before.watermark_us
    # A summary keeps what entries said.
    assert state_from_json(state_to_json(state), "summary").late == state.late


def _entry(log: CaptureLog, n: int) -> Entry:
    return log._read_entry(log.paths.entry(n))


# ---------------------------------------------------------------------------- logs of before


def test_gaps_of_older_versions_are_healed_with_a_margin_all_the_same() -> None:
    hour = 3600 * SECOND
    old = Gap("trimmed", ("s",), 100 * hour, 101 * hour, 2, entry=5)
    new = Gap("trimmed", ("s",), 100 * hour, 101 * hour, 2, entry=5, margin_us=MARGIN_US)
    (window,) = plan_windows([old], 0, Backups(0), MARGIN_US)
    assert (window.from_us, window.to_us) == (100 * hour - MARGIN_US, 101 * hour + MARGIN_US)
    (window,) = plan_windows([new], 0, Backups(0), MARGIN_US)
    assert (window.from_us, window.to_us) == (100 * hour, 101 * hour)


# ------------------------------------------------------------------------------ how wrong it is


class _Behind(BaseHTTPRequestHandler):
    """An AWS whose clock is 7 s behind ours, and which knows no stream."""

    def do_POST(self) -> None:
        body = b'{"__type": "ResourceNotFoundException", "message": "none"}'
        self.send_response_only(400)
        self.send_header("Date", formatdate(time.time() - 7, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_the_offset_is_measured_from_answers_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Behind) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        aws = AwsSession(region="us-east-1", endpoint_url=url)
        assert aws.clock_offset.offset_us() is None
        with pytest.raises(ShardGoneError):
            DynamoDBStreams(aws).describe("arn:aws:dynamodb:us-east-1:000000000000:table/orders")
        offset_us = aws.clock_offset.offset_us()
        server.shutdown()
    assert offset_us is not None
    assert abs(offset_us - 7 * SECOND) <= SECOND


def test_whole_seconds_give_a_finer_offset() -> None:
    """The clock is 2.25 s ahead; each answer takes a tenth of a second."""
    offset = ClockOffset()
    for n in range(20):
        now = 1_000_000 + n * 0.37
        offset.add(now + 2.25, float(int(now + 0.05)), now + 2.35)
    found = offset.offset_us()
    assert found is not None
    assert abs(found - 2.25 * SECOND) < 0.15 * SECOND


def test_a_clock_that_was_set_is_measured_anew() -> None:
    offset = ClockOffset()
    offset.add(1005.5, 1000.0, 1005.6)
    offset.add(1001.5, 1001.0, 1001.6)
    found = offset.offset_us()
    assert found is not None
    assert abs(found) < SECOND


@pytest.mark.parametrize(("offset", "said"), [(None, None), (0.4, None), (-2, None), (5, "5.0 s")])
def test_above_two_seconds_people_are_told(offset: float | None, said: str | None) -> None:
    warning = clock_warning(None if offset is None else int(offset * SECOND))
    assert (warning is None) == (said is None)
    assert said is None or said in (warning or "")


def test_the_log_and_the_run_tell_of_a_wrong_clock(bench: Bench) -> None:
    source = bench.source()
    wrong = Source(
        source.table,
        source.table_id,
        source.arn,
        source.view_type,
        source.shards,
        clock_offset_us=lambda: 5_200_000,
    )
    bench.put("a", 1)
    result = capture_table(bench.log(), wrong, OPTIONS, sleep=bench.clock.sleep)
    assert bench.state().clock_offset_us == 5_200_000
    assert any("5.2 s ahead" in warning for warning in result.warnings)


def test_status_tells_the_offset() -> None:
    assert clock_note(400_000) == "clock of the captures: 0.4 s ahead of AWS's"
    assert "5.0 s behind AWS's; set it" in clock_note(-5_000_000)
