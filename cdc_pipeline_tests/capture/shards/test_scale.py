"""Many shards, long listings, large backlogs. Times are printed (`pytest -s`), never asserted."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.gaps import open_capture
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.defs.tables.shard_sensor import _inspect
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.settings.model import Settings
from cdc_pipeline_tests.capture.shards.test_drain import Bench, check
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SENSOR_BUDGET_SECONDS = 30
PEAK_MB = 500
"""Of it 100 for the compiled path, which a backlog of 40 MB of records loads (docs/sizing.md)."""
BACKLOG = 150_000


class WallClock(SimulatedClock):
    """The real time, for code in other processes and code that asks for no clock."""

    def __call__(self) -> float:
        return time.time()

    def advance(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamsSimulator]:
    with StreamsSimulator(clock=WallClock()) as simulator:
        use(simulator, monkeypatch)
        yield simulator


def settings_in(folder: Path) -> Settings:
    raw = {"lake": "lake", "region": "us-east-1", "tables": [{"name": "orders"}]}
    return parse_settings(raw, folder / "settings.yaml")


def source_of(sim: StreamsSimulator, aws: AwsSession) -> Source:
    table_id, arn = sim.table_id("orders"), sim.stream_arn("orders")
    return Source("orders", table_id, arn, "NEW_AND_OLD_IMAGES", DynamoDBStreams(aws))


def test_a_thousand_shards_with_a_backlog_in_one_run(sim: StreamsSimulator, tmp_path: Path) -> None:
    sim.create_table("orders", shards=200)
    for round_ in range(5):
        if round_:
            sim.rotate("orders")
        for number in range(800):
            sim.put("orders", {"pk": {"S": f"{number}"}, "n": {"N": f"{round_}"}})
    assert len(sim.shards("orders")) == 1000
    bench = Bench(sim, WallClock(), tmp_path)
    begun = time.monotonic()
    result = bench.capture(CaptureOptions(poll_seconds=0, empty_polls=2))
    seconds = time.monotonic() - begun
    calls = len(sim.requests)
    print(f"\n1,000 shards, {result.rows} records, {calls} calls: {seconds:.1f} s")
    assert result.rows == 4000
    assert (result.shards_open, result.shards_finished) == (200, 800)
    check(bench)
    assert bench.capture().rows == 0


def test_the_sensor_looks_at_ten_thousand_shards(sim: StreamsSimulator, tmp_path: Path) -> None:
    """Within its time for all tables (30 s) on any machine worth the name; printed, see above."""
    sim.create_table("orders", shards=5000)
    settings = settings_in(tmp_path)
    lake = Lake(settings, session(sim), LocalStore(settings.lake_folder))
    table = settings.tables[0]
    log = lake.table(table).log
    open_capture(log, log.load(), source_of(sim, lake.aws))
    sim.rotate("orders")
    sim.requests.clear()
    begun = time.monotonic()
    verdict = _inspect(lake.table(table), log, log.load())
    seconds = time.monotonic() - begun
    pages = sum(request.operation == "DescribeStream" for request in sim.requests)
    print(f"\na look at 10,000 shards, {pages} pages: {seconds:.1f} of {SENSOR_BUDGET_SECONDS} s")
    assert pages == 100
    assert verdict.due
    assert "5000 shards to read, 5000 new" in verdict.why
    assert not any(request.operation == "GetRecords" for request in sim.requests)


def test_a_large_backlog_takes_little_memory(sim: StreamsSimulator, tmp_path: Path) -> None:
    sim.create_table("orders", shards=8)
    for number in range(BACKLOG):
        name = {"S": f"customer {number % 40_000}"}
        item = {"pk": name, "n": {"N": f"{number}.5"}, "note": {"S": f"{number:09d}" * 12}}
        sim.put("orders", item)
    code = f"from {__name__} import child; child()"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), sim.endpoint_url],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    seconds = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    rows, idle_mb, peak_mb = map(float, done.stdout.split())
    print(f"\n{rows:.0f} records: {peak_mb:.0f} MB at most ({idle_mb:.0f} idle), {seconds:.1f} s")
    assert rows == BACKLOG
    assert peak_mb <= PEAK_MB
    settings = settings_in(tmp_path)
    lake = Lake(settings, session(sim), LocalStore(settings.lake_folder))
    state = lake.table(settings.tables[0]).log.load()
    assert sum(landed.rows for landed in state.objects.values()) == BACKLOG


def child() -> None:
    """Capture the table once, with the settings' defaults; print rows and memory."""
    from cdc_pipeline.capture.run import Captured, capture_tables

    lake = Lake.open(settings_in(Path(sys.argv[1])))
    idle = peak()
    (result,) = (
        event.result
        for event in capture_tables(lake, lake.settings.tables)
        if isinstance(event, Captured)
    )
    print(result.rows, idle, peak())


def peak() -> float:
    """The most memory this process has had, in MB.

    Linux counts what the parent had before `exec` into ru_maxrss, but not into VmHWM.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (ln for ln in status.read_text().splitlines() if ln.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    units = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units
