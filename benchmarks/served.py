"""`make latency-served`: how soon queries show a write to one of many tables that one server keeps.

A local AWS, tables with traffic, and `cdc-pipeline serve`'s loop, on this machine together. Prints
p50 and p95 from a write until a query of current_state shows it, CPU of the server, and what its
requests cost on a day by list prices.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import yaml

from benchmarks.idle_contender import Requests
from benchmarks.latency import Probe, Seen, percentile, say, system_load
from cdc_pipeline.capture.run import Failed, capture_tables
from cdc_pipeline.core.plans.prices import GLUE_USD, S3_GET_USD, S3_PUT_USD, STREAM_READ_USD
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.state.base import handover_us
from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import SandboxProcess, apply_environment
from cdc_pipeline.service.server import Server
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline.snapshot.snapshot import take_snapshot

_BUCKET = "served"
_BATCH = 25
_KEYS = 1000
_POLL_SECONDS = 0.3
_LOST_SECONDS = 120
_DAY = 24 * 3600


def main() -> None:
    """Set up, probe, print."""
    if sys.argv[1:2] == ["--child"]:
        _serve(Path(sys.argv[2]), float(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--traffic"]:
        _write(sys.argv[3:], float(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=100)
    parser.add_argument("--rate", type=float, default=10.0, help="changes a second and table")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between passes")
    parser.add_argument("--probes", type=int, default=60)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between probes, roughly")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with (
        SandboxProcess(exports=ExportOptions(delay_seconds=0.1)) as sandbox,
        tempfile.TemporaryDirectory(prefix="cdc-served-") as folder,
    ):
        apply_environment(os.environ, sandbox.endpoint_url)
        names = [f"table_{number:03d}" for number in range(options.tables)]
        lake, path = _prepared(names, Path(folder))
        say(f"{len(names)} states published; {system_load()}")
        with _child("--child", str(path), str(options.every)) as server:
            with _child("--traffic", str(options.rate), *names):
                time.sleep(max(10.0, 2 * options.every))
                say(f"{options.probes} probes; {system_load()}")
                probes = list(_probes(lake, names, options.probes, options.pause))
            assert server.stdin is not None
            server.stdin.close()
            assert server.stdout is not None
            found = json.loads(server.stdout.readlines()[-1])
        _report(probes, found)


def _report(probes: list[Probe], found: dict[str, Any]) -> None:
    latencies = [probe.latency for probe in probes]
    queries = [probe.last.opened + probe.last.queried for probe in probes]
    say(f"{len(probes)} probes; {system_load()}")
    for name, seconds in (("write → visible", latencies), ("  the last query", queries)):
        cells = [percentile(seconds, 50), percentile(seconds, 95), max(seconds)]
        print(f"{name:24}" + "".join(f"{cell:8.2f}" for cell in cells) + "  p50, p95, max")
    counts, seconds = found["requests"], found["seconds"]
    prices = {
        "S3 writes": (("PUT", "LIST"), S3_PUT_USD),
        "S3 reads": (("GET", "HEAD"), S3_GET_USD),
        "reads of streams": (("GetRecords",), STREAM_READ_USD),
        "Glue": (("Glue",), GLUE_USD),
    }
    total = 0.0
    for name, (kinds, usd) in prices.items():
        a_day = sum(counts.get(kind, 0) for kind in kinds) * _DAY / seconds
        total += a_day * usd
        print(f"{name:24}{a_day:14,.0f} a day, USD {a_day * usd:.2f}")
    print(f"USD {total:.2f} a day at this traffic; {found['cpu'] / seconds:.2f} cores;", end=" ")
    print(f"{found['changes']} changes, {found['publications']} publications in {seconds:.0f} s")


# ------------------------------------------------------------------------------------- probes


def _probes(lake: Lake, names: list[str], count: int, pause: float) -> Iterator[Probe]:
    dynamodb: Any = boto3.client("dynamodb")
    chance = random.Random(11)
    for number in range(count):
        time.sleep(chance.uniform(0.5, 1.5) * pause)
        name, value = chance.choice(names), f"probe {number}"
        sent = time.time()
        dynamodb.put_item(TableName=name, Item={"pk": {"S": value}, "value": {"S": value}})
        queries = 0
        while True:
            asked = time.time()
            found = _ask(lake, name, value)
            queries += 1
            if found.value == value:
                break
            if time.time() - sent > _LOST_SECONDS:
                raise SystemExit(f"{value} was not visible after {_LOST_SECONDS} s")
            time.sleep(_POLL_SECONDS)
        yield Probe(value, sent, asked, time.time(), queries, found)


def _ask(lake: Lake, name: str, value: str) -> Seen:
    started = time.perf_counter()
    with connect_lake(lake, [name], aggregates=False) as connection:
        opened = time.perf_counter()
        statement = f'SELECT "value" FROM {name}.current_state WHERE pk = ?'
        row = connection.execute(statement, [value]).fetchone()
        return Seen(row[0] if row else None, opened - started, time.perf_counter() - opened)


# ------------------------------------------------------------------------- what it runs on


def _prepared(names: list[str], folder: Path) -> tuple[Lake, Path]:
    """Tables with published states, and their settings."""
    dynamodb: Any = boto3.client("dynamodb")
    boto3.client("s3").create_bucket(Bucket=_BUCKET)
    path = folder / "cdc_pipeline.yaml"
    settings = {
        "lake": f"s3://{_BUCKET}/lake",
        "region": "us-east-1",
        "handover_margin_seconds": 1,
        "clock_margin_seconds": 0,
        "capture": {"poll_seconds": 0.02, "empty_polls": 1, "listing_lag_seconds": 0},
        "export": {"poll_seconds": 0.05},
        "tables": [{"name": name} for name in names],
    }
    path.write_text(yaml.safe_dump(settings), "utf-8")
    lake = Lake.open(load_settings(path))

    def prepare(name: str) -> None:
        dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        dynamodb.update_continuous_backups(
            TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )
        dynamodb.put_item(TableName=name, Item=_item(0, random.Random(1)))
        table = lake.table(lake.settings.table(name))
        take_snapshot(table)
        while True:
            for event in capture_tables(lake, [table.settings]):
                if isinstance(event, Failed):
                    raise event.error
            state = table.log.load()
            if state.staged and state.watermark_us >= handover_us(lake, state.staged):
                break
            time.sleep(0.3)
        publish_current_state(table)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(prepare, names))
    return lake, path


def _item(number: int, chance: random.Random) -> dict[str, Any]:
    return {
        "pk": {"S": f"key {number}"},
        "value": {"S": f"{chance.random():.12f}"},
        "amount": {"N": f"{chance.randrange(10**6)}.25"},
        "text": {"S": "x" * 200},
    }


@contextmanager
def _child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """This module in a process of its own, which ends when its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.served", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def _serve(path: Path, every: float) -> None:
    """The server, and what it asked for; the time of its start does not count."""
    requests = Requests()
    lake = Lake.open(load_settings(path))
    server = Server(lake, lake.settings.tables, every)
    threading.Thread(target=lambda: (sys.stdin.read(), server.stop()), daemon=True).start()
    begun: list[float] = []

    def begin() -> None:
        requests.counts.clear()
        status = server.status()
        begun.extend((time.time(), time.process_time(), status.changes, status.publications))

    server.run(tick=lambda: None if begun else begin(), tick_seconds=8.0)
    status, (began, cpu, changes, publications) = server.status(), begun
    found = {
        "requests": dict(requests.counts),
        "seconds": time.time() - began,
        "cpu": time.process_time() - cpu,
        "changes": status.changes - changes,
        "publications": status.publications - publications,
        "failing": status.failing,
    }
    print(json.dumps(found), flush=True)


def _write(names: list[str], rate: float) -> None:
    """Changes to all tables in turn, until standard input closes."""
    dynamodb: Any = boto3.client("dynamodb")
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    chance, pause = random.Random(3), _BATCH / (rate * len(names))
    due = time.monotonic()
    turn = 0
    while not is_over.is_set():
        batch: dict[str, dict[int, Any]] = {}
        for _ in range(_BATCH):
            number = chance.randrange(_KEYS)
            batch.setdefault(names[turn % len(names)], {})[number] = _item(number, chance)
            turn += 1
        requests = {
            name: [{"PutRequest": {"Item": item}} for item in items.values()]
            for name, items in batch.items()
        }
        dynamodb.batch_write_item(RequestItems=requests)
        due += pause
        time.sleep(max(0.0, due - time.monotonic()))
        due = max(due, time.monotonic() - 5)


if __name__ == "__main__":
    main()
