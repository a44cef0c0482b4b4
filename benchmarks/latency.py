"""`make latency`: how soon a query of current_state shows a write, with what `make dev` runs."""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import duckdb

from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.storage.landing import read_landing
from cdc_pipeline.sandbox.demo import items
from cdc_pipeline.sandbox.process import apply_environment, child_environment
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline.settings.table import Table

_ROOT = Path(__file__).resolve().parents[1]
_TABLE = "orders"
_START_SECONDS = 300
_LOST_SECONDS = 120
_POLL_SECONDS = 0.3
_TARGET = {50: 5.0, 95: 10.0}


@dataclass(frozen=True)
class Seen:
    """One query: what it found, and the seconds that opening and running it took."""

    value: str | None
    opened: float
    queried: float


@dataclass(frozen=True)
class Probe:
    """A write and when it was seen, in seconds since the epoch.

    `sent`: before PutItem. `asked`: when the query began that showed it. `seen`: when it ended.
    """

    value: str
    sent: float
    asked: float
    seen: float
    queries: int
    last: Seen

    @property
    def latency(self) -> float:
        """Seconds from the write to the answer that shows it."""
        return self.seen - self.sent


def main() -> None:
    """Start everything, probe, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=60)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between probes, roughly")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends, too
    with tempfile.TemporaryDirectory(prefix="cdc-latency-") as folder, _dev(Path(folder)) as lake:
        table = lake.settings.table(_TABLE)
        say(f"state published; {options.probes} probes; {system_load()}")
        probes = list(_probe_all(lake, options.probes, options.pause))
        _report(probes, lake, table)


# ------------------------------------------------------------------------------------- probes


def _probe_all(lake: Lake, count: int, pause: float) -> Iterator[Probe]:
    dynamodb: Any = boto3.client("dynamodb")
    chance = random.Random(7)
    for number in range(count):
        time.sleep(chance.uniform(0.5, 1.5) * pause)
        probe = _probe(lake, dynamodb, number)
        say(
            f"{number + 1:3d}/{count}  {probe.latency:5.2f} s, {probe.queries} queries, "
            f"the last {probe.last.opened + probe.last.queried:.2f} s"
        )
        yield probe


def _probe(lake: Lake, dynamodb: Any, number: int) -> Probe:
    """Write an item with a value that nothing else has and query until it is there."""
    value = f"probe {number}"
    item = items.order(7, number, 1, datetime.now(UTC)) | {
        "customer_id": {"S": "latency"},
        "order_id": {"S": value},
        "status": {"S": value},
    }
    sent = time.time()
    dynamodb.put_item(TableName=_TABLE, Item=item)
    queries = 0
    while time.time() - sent < _LOST_SECONDS:
        asked = time.time()
        found = _ask(lake, value)
        queries += 1
        if found.value == value:
            return Probe(value, sent, asked, time.time(), queries, found)
        time.sleep(_POLL_SECONDS)
    raise SystemExit(f"{value} was not visible after {_LOST_SECONDS} s")


def _ask(lake: Lake, value: str) -> Seen:
    """A query as a long-lived program makes it: a connection shows the lake as it was opened."""
    started = time.perf_counter()
    with connect_lake(lake, [_TABLE], aggregates=False) as connection:
        opened = time.perf_counter()
        row = connection.execute(
            "SELECT status FROM orders.current_state WHERE order_id = ?", [value]
        ).fetchone()
        return Seen(row[0] if row else None, opened - started, time.perf_counter() - opened)


# ------------------------------------------------------------------------------------- report


def _report(probes: Sequence[Probe], lake: Lake, table: Table) -> None:
    entries = lake.table(table).log.catch_up(LogState())
    entries = [e for e in entries if e.at_us / 1e6 >= probes[0].sent]
    landed = _landed(lake, entries)
    parts = {
        "write → visible": [p.latency for p in probes],
        "  write → its log entry": [landed[p.value] - p.sent for p in probes],
        "  log entry → the query that shows it begins": [
            max(0.0, p.asked - landed[p.value]) for p in probes
        ],
        "  that query": [p.last.opened + p.last.queried for p in probes],
        "    opening the connection": [p.last.opened for p in probes],
        "    running the SQL": [p.last.queried for p in probes],
    }
    say(f"{len(probes)} probes; {system_load()}")
    print(f"\n{'seconds':46}{'p50':>8}{'p95':>8}{'max':>8}")
    for name, seconds in parts.items():
        cells = (percentile(seconds, 50), percentile(seconds, 95), max(seconds))
        print(f"{name:46}" + "".join(f"{cell:8.2f}" for cell in cells))
    _report_gaps(entries)
    for percent, most in _TARGET.items():
        found = percentile(parts["write → visible"], percent)
        print(
            f"p{percent} {found:.2f} s, target {most:g} s: {'met' if found <= most else 'MISSED'}"
        )


def _landed(lake: Lake, entries: Sequence[Entry]) -> dict[str, float]:
    """When the log entry of each probe was written, in seconds since the epoch."""
    found: dict[str, float] = {}
    for entry in entries:
        for landed in entry.objects:
            for change in read_landing(lake.store, landed.key):
                image: Any = json.loads(change.new_image or "{}")
                status = image.get("status", {}).get("S", "")
                if status.startswith("probe "):
                    found.setdefault(status, entry.at_us / 1e6)
    return found


def _report_gaps(entries: Sequence[Entry]) -> None:
    """The pauses between one capture run's last entry and the next one's first."""
    pairs = list(pairwise(entries))
    between = [(b.at_us - a.at_us) / 1e6 for a, b in pairs if a.owner != b.owner]
    within = [(b.at_us - a.at_us) / 1e6 for a, b in pairs if a.owner == b.owner]
    listed = ", ".join(f"{seconds:.1f}" for seconds in between) or "none"
    print(f"\npauses between two capture runs, s: {listed}")
    print(
        f"pauses between log entries of one run, s: p50 {percentile(within, 50):.2f}, "
        f"p95 {percentile(within, 95):.2f}, max {max(within):.2f}"
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """That of a sample, interpolated."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def system_load() -> str:
    """How busy the machine is, for people."""
    one, five, _ = os.getloadavg()
    return f"load average {one:.2f} (1 min) {five:.2f} (5 min) on {os.cpu_count()} cores"


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", flush=True)


# ----------------------------------------------------------------------------- what it runs on


@contextmanager
def _dev(folder: Path) -> Iterator[Lake]:
    """`cdc-pipeline dev` in a folder and on ports of its own, until its state is published."""
    shutil.copy(_ROOT / "dagster.yaml", folder)
    ui_port, aws_port = _free_ports(2)
    command = [sys.executable, "-m", "cdc_pipeline.sandbox.guard"]
    command += [str(Path(sys.executable).with_name("cdc-pipeline")), "dev"]
    command += ["--port", str(ui_port), "--aws-port", str(aws_port)]
    output = folder / "dev.log"
    with output.open("wb") as log:
        # The guard ends it all when its standard input closes, however we end.
        process = subprocess.Popen(
            command,
            env=child_environment(),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        apply_environment(os.environ, f"http://127.0.0.1:{aws_port}")
        say(f"started `cdc-pipeline dev`; {system_load()}")
        yield _published_lake(folder / ".dev" / "cdc_pipeline.yaml", process, output)
    finally:
        assert process.stdin is not None  # it was started with a pipe
        process.stdin.close()
        process.wait()


def _published_lake(settings_path: Path, process: subprocess.Popen[bytes], output: Path) -> Lake:
    """The lake, once current_state can be queried."""
    deadline = time.monotonic() + _START_SECONDS
    lake: Lake | None = None
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(1)
        if settings_path.exists():
            lake = lake or Lake.open(load_settings(settings_path))
            try:
                _ask(lake, "nothing")
                return lake
            except (CdcPipelineError, duckdb.CatalogException):
                continue  # not yet
    raise SystemExit(f"no state was published:\n{output.read_text(errors='replace')}")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


if __name__ == "__main__":
    main()
