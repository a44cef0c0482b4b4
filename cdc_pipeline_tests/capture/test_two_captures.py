"""Two capture processes on one table, which should never be and must do no harm."""

import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.aws.session import AwsSession
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.drain import CaptureOptions, capture_table
from cdc_pipeline.capture.source import Source
from cdc_pipeline.core.errors import CaptureConflictError
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.log import CaptureLog
from cdc_pipeline.lake.store import LocalStore
from cdc_pipeline_tests.capture.test_drain import Bench, check
from cdc_pipeline_tests.capture.test_scale import WallClock
from cdc_pipeline_tests.simulators.clients import use
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

pytestmark = pytest.mark.slow

SECONDS = 20
OPTIONS = CaptureOptions(poll_seconds=0.05, empty_polls=2, linger_seconds=1, flush_seconds=0.1)
MESSAGE = re.compile(
    r"table orders: another capture \((?P<owner>[^)]+)\) landed entry \d+ first; "
    r"this one stops, nothing is lost and nothing doubled\n"
    r"  Fix: run one capture per table at a time"
)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with StreamsSimulator(clock=WallClock()) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=3)
        yield Bench(sim, WallClock(), tmp_path)


def test_two_processes_lose_nothing_double_nothing_and_say_so(bench: Bench) -> None:
    sim = bench.sim
    told = [str(bench.folder), sim.table_id("orders"), sim.stream_arn("orders"), str(SECONDS)]
    code = f"from {__name__} import child; child()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *told],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    over = threading.Event()
    traffic = threading.Thread(target=write_until, args=(sim, over))
    traffic.start()
    try:
        outputs = [process.communicate(timeout=SECONDS + 60) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        over.set()
        traffic.join()
    assert [process.returncode for process in processes] == [0, 0], outputs
    said = [[json.loads(line) for line in output.splitlines()] for output, _ in outputs]
    for runs, other in zip(said, reversed(processes), strict=True):
        for text in (run["conflict"] for run in runs if "conflict" in run):
            match = MESSAGE.fullmatch(text)
            assert match, text
            assert match["owner"].split(":")[1] == str(other.pid)
    conflicts = [sum("conflict" in run for run in runs) for runs in said]
    landed = [sum(run.get("rows", 0) for run in runs) for runs in said]
    # Winning and losing are by chance, but side by side for so long somebody must have lost.
    assert sum(conflicts) > 0
    # What they left behind is captured by the next one, which also removes the losers' objects.
    for _ in range(2):
        bench.capture(CaptureOptions(poll_seconds=0, empty_polls=2))
    check(bench)
    owners = {entry_owner(bench, n).split(":")[1] for n in range(1, bench.state().n + 1)}
    assert {str(process.pid) for process in processes} <= owners
    print(f"\nconflicts {conflicts}, rows {landed}, records {len(sim.records('orders'))}")


def entry_owner(bench: Bench, n: int) -> str:
    entry: dict[str, Any] = json.loads((bench.folder / bench.log().paths.entry(n)).read_text())
    return entry["owner"]


def write_until(sim: StreamsSimulator, over: threading.Event) -> None:
    """Some hundred writes a second, and a rotation or a split now and then."""
    chance, number = random.Random(0), 0
    while not over.wait(0.02):
        for _ in range(6):
            number += 1
            key = {"pk": {"S": f"k{chance.randrange(30)}"}}
            if chance.random() < 0.2:
                sim.delete("orders", key)
            else:
                sim.put("orders", {**key, "n": {"N": str(number)}})
        if chance.random() < 0.02:
            shards = sim.open_shards("orders")
            if len(shards) < 6 and chance.random() < 0.3:
                sim.split("orders", chance.choice(shards))
            else:
                sim.rotate("orders", chance.choice(shards))


def child() -> None:
    """Run captures one after another, and print how each ended."""
    folder, table_id, arn, seconds = sys.argv[1:]
    streams = DynamoDBStreams(AwsSession(region="us-east-1"))
    source = Source("orders", table_id, arn, "NEW_AND_OLD_IMAGES", streams)
    log = CaptureLog(LocalStore(Path(folder)), TablePaths("cdc", "orders"))
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        try:
            said: dict[str, Any] = {"rows": capture_table(log, source, OPTIONS).rows}
        except CaptureConflictError as lost:
            said = {"conflict": str(lost)}
        print(json.dumps(said), flush=True)
