"""Two capture processes on one table, which should never be and must do no harm."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.storage.log import CaptureLog, remove_orphans
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline_tests.capture.shards.test_drain import Bench, check
from cdc_pipeline_tests.capture.shards.test_scale import WallClock
from cdc_pipeline_tests.simulators.clients import use
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("CDC_PIPELINE_RACE_SECONDS", "60"))
ENVIRONMENTS = ("laptop", "cluster")
HOUR = 3600
OPTIONS = CaptureOptions(poll_seconds=0.05, empty_polls=2, linger_seconds=1, flush_seconds=0.1)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with StreamsSimulator(clock=WallClock()) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=3)
        yield Bench(sim, WallClock(), tmp_path)


def test_two_processes_lose_nothing_double_nothing_and_both_go_on(bench: Bench) -> None:
    sim = bench.sim
    processes = [start("child", bench, str(SECONDS), host=host) for host in ENVIRONMENTS]
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
    owners = [
        owner_of(process, host) for process, host in zip(processes, ENVIRONMENTS, strict=True)
    ]
    conflicts = [sum(run["conflicts"] for run in runs) for runs in said]
    landed = [sum(run["rows"] for run in runs) for runs in said]
    # Winning and losing are by chance, but side by side for so long somebody must have lost.
    assert sum(conflicts) > 0
    assert min(landed) > 0, "two that linger take turns"
    # What they left behind is captured by the next one, which also removes the losers' objects.
    for _ in range(2):
        bench.capture(CaptureOptions(poll_seconds=0, empty_polls=2))
    check(bench)
    wrote = [entry_owner(bench, n) for n in range(1, bench.state().n + 1)]
    assert set(owners) <= set(wrote)
    changes = sum(one != other for one, other in pairwise(wrote))
    print(
        f"\n{SECONDS:.0f} s: conflicts {conflicts}, rows {landed}, {len(wrote)} entries, {changes} "
        f"changes of owner, {len(sim.records('orders'))} records"
    )


def start(function: str, bench: Bench, *more: str, host: str) -> subprocess.Popen[str]:
    """A process in an environment of its own, as far as a log's owner can tell."""
    sim = bench.sim
    arguments = [str(bench.folder), sim.table_id("orders"), sim.stream_arn("orders"), host, *more]
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import {function}; {function}()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DAGSTER_RUN_ID": f"{host:-<8}-run"},
    )


def owner_of(process: subprocess.Popen[str], host: str) -> str:
    return f"{host}:{process.pid}:{host:-<8}"


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
    source, (seconds,) = told_source()
    log = CaptureLog(LocalStore(Path(sys.argv[1])), TablePaths("cdc", "orders"))
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        capture_and_say(log, source, OPTIONS)


def told_source() -> tuple[Source, list[str]]:
    """What `start` told this process; the rest are its own arguments."""
    _, _, table_id, arn, host, *rest = sys.argv
    socket.gethostname = lambda: host
    streams = DynamoDBStreams(AwsSession(region="us-east-1"))
    return Source("orders", table_id, arn, "NEW_AND_OLD_IMAGES", streams), rest


def capture_and_say(log: CaptureLog, source: Source, options: CaptureOptions) -> None:
    done = capture_table(log, source, options)
    print(json.dumps({"rows": done.rows, "conflicts": done.conflicts}), flush=True)


# ------------------------------------------------------------------------ a writer that fell asleep


class LateClock(WallClock):
    """The real time and what was added to it; nobody sleeps."""

    def __init__(self, ahead: float = 0) -> None:
        super().__init__()
        self.ahead = ahead

    def __call__(self) -> float:
        return time.time() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


class DozingStore(LocalStore):
    """Stops its process once, at one point of landing, and finds an hour gone when it goes on."""

    def __init__(self, root: Path, where: str, clock: LateClock) -> None:
        super().__init__(root)
        self._where = where
        self._clock = clock

    def _at(self, where: str) -> None:
        if where == self._where:
            self._where = ""
            os.kill(os.getpid(), signal.SIGSTOP)
            self._clock.advance(HOUR)

    def write(self, key: str, data: bytes) -> None:
        self._at("before its object")
        super().write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self._at("before its entry")
        created = super().create(key, data)
        self._at("behind its entry")
        return created


def sleeper() -> None:
    """One capture that falls asleep."""
    source, (where, ahead) = told_source()
    clock = LateClock(float(ahead))
    store = DozingStore(Path(sys.argv[1]), where, clock)
    log = CaptureLog(store, TablePaths("cdc", "orders"), clock)
    capture_and_say(log, source, CaptureOptions(poll_seconds=0, empty_polls=2))


@pytest.fixture
def late_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    clock = LateClock()
    with StreamsSimulator(clock=clock) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=3)
        yield Bench(sim, clock, tmp_path)


@pytest.mark.parametrize("meanwhile", [0, 1, 3])
@pytest.mark.parametrize(
    ("where", "empty"),
    [
        ("before its entry", True),
        ("before its object", False),
        ("before its entry", False),
        ("behind its entry", False),
    ],
    ids=["before its first entry", "before its object", "before its entry", "behind its entry"],
)
def test_a_writer_that_wakes_up_after_an_hour_harms_nothing(
    late_bench: Bench, where: str, empty: bool, meanwhile: int
) -> None:
    """Between any two of its steps another one may have landed the same and gone on."""
    bench, clock = late_bench, late_bench.clock
    assert isinstance(clock, LateClock)
    bench.write(50)
    if not empty:
        bench.capture()
        bench.write(50, seed=1)
    process = start("sleeper", bench, where, str(clock.ahead), host="asleep")
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), process.communicate()
        wakes = clock.ahead + HOUR
        # Another one that began and got no further: what is on its way must survive its clean-up.
        remove_orphans(LocalStore(bench.folder), bench.state(), [bench.log().paths.landing])
        for seed in range(2, 2 + meanwhile):
            bench.write(50, seed=seed)
            bench.capture()
        bench.write(50, seed=9)
        clock.ahead = wakes
        process.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    said = json.loads(output)
    # Overtaken before its first entry it goes on behind the others, having read nothing yet; behind
    # its entry it may have nothing more to land.
    if meanwhile and not empty and where != "behind its entry":
        assert said["conflicts"], said
    if said["conflicts"]:
        assert meanwhile
        assert bench.parquet_files() == set(bench.state().objects), "it leaves what it wrote"
    check_rows(bench)
    for _ in range(2):
        bench.capture()
    check(bench)


def check_rows(bench: Bench) -> None:
    """Nothing is there twice at any time, whoever has landed it."""
    places = [(row["shard_id"], row["sequence_number"]) for row in bench.landed()]
    assert len(set(places)) == len(places)
