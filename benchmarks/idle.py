"""What tables cost in which nothing happens: requests to S3 and CPU per table and day.

`python -m benchmarks.idle` captures idle tables of the local AWS with this build and, where git has
it, with the build f5fdea5, each in a process of its own. Each table has 60 log entries, as an hour
of captures of that build leaves them. "first": the first capture of a process, as under Dagster,
where each run is a process; "later": the ones after it; "dagster": the job `capture` in a process
that runs already; "served": `cdc-pipeline serve`, for six minutes. A day has 1440 captures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
import yaml

from benchmarks.earlier import checked_out
from cdc_pipeline.core.plans.prices import S3_GET_USD, S3_PUT_USD, STREAM_READ_USD
from cdc_pipeline.sandbox.process import SandboxProcess

_ROOT = Path(__file__).resolve().parents[1]
_BEFORE = "f5fdea5"
_A_DAY = 24 * 60
_BUCKET = "idle"
_WRITES = ("PUT", "LIST")
_REQUESTS = (*_WRITES, "GET", "HEAD", "DELETE")
_SHOWN = ("GET", "LIST", "PUT", "GetRecords")

Found = dict[str, dict[str, float]]


def _make_tables(environment: dict[str, str], count: int) -> list[str]:
    session = boto3.Session("sandbox", "sandbox", region_name="us-east-1")
    url = environment["AWS_ENDPOINT_URL"]
    session.client("s3", endpoint_url=url).create_bucket(Bucket=_BUCKET)
    dynamodb = session.client("dynamodb", endpoint_url=url)
    names = [f"table_{number:03d}" for number in range(count)]
    for name in names:
        dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={
                "StreamEnabled": True,
                "StreamViewType": "NEW_AND_OLD_IMAGES",
            },
        )
        dynamodb.put_item(TableName=name, Item={"pk": {"S": "a"}})
    return names


def _settings(lake: str, tables: list[str]) -> dict[str, Any]:
    return {
        "lake": lake,
        "region": "us-east-1",
        "capture": {"poll_seconds": 0.02, "empty_polls": 1, "tables_per_run": 8},
        "export": {"bucket": _BUCKET},
        "tables": [{"name": name} for name in tables],
    }


def _contend(
    build: Path, environment: dict[str, str], settings: dict[str, Any], served_seconds: float
) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cdc_pipeline.yaml"
        path.write_text(yaml.safe_dump(settings), "utf-8")
        done = subprocess.run(
            [
                sys.executable,
                str(_ROOT / "benchmarks" / "idle_contender.py"),
                str(path),
                str(served_seconds),
            ],
            env={**os.environ, **environment, "PYTHONPATH": str(build)},
            check=False,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        sys.exit(f"{build} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _requests(found: dict[str, float]) -> float:
    return sum(count for kind, count in found.items() if kind in _REQUESTS)


def _usd_a_month(found: dict[str, float]) -> float:
    writes = sum(found.get(kind, 0) for kind in _WRITES)
    reads = found.get("GET", 0) + found.get("HEAD", 0)
    return (writes * S3_PUT_USD + reads * S3_GET_USD) * _A_DAY * 365 / 12


def _show(lake: str, builds: dict[str, Found]) -> None:
    print(f"\n{lake} lake, per table and capture; CPU and requests per table and day")
    print(
        f"{'':24}{'GET':>7}{'LIST':>7}{'PUT':>7}{'reads':>7}{'CPU ms':>9}{'CPU s/day':>11}"
        f"{'requests/day':>14}"
    )
    for name, found in builds.items():
        for kind, one in found.items():
            counts = "".join(f"{one.get(what, 0):>7.1f}" for what in _SHOWN)
            cpu = f"{one['cpu_ms']:>9.1f}{one['cpu_ms'] * _A_DAY / 1000:>11.1f}"
            usd = f"  USD {_usd_a_month(one):.2f} a month" if lake == "S3" else ""
            reads = one.get("GetRecords", 0) * STREAM_READ_USD * _A_DAY * 365 / 12
            usd += f", reads of the stream {reads:.2f}"
            print(f"{f'{name}, {kind}':24}{counts}{cpu}{_requests(one) * _A_DAY:>14,.0f}{usd}")
    for name, found in builds.items():
        ratio = found["dagster"]["cpu_ms"] / found["first"]["cpu_ms"]
        print(f"{name}: under Dagster {ratio:.1f} times the CPU of the same without")
    if _BEFORE in builds:
        before, now = builds[_BEFORE], builds["now"]
        for kind, then in (("first", "first"), ("later", "later"), ("served", "later")):
            cpu = before[then]["cpu_ms"] / now[kind]["cpu_ms"]
            fewer = _requests(before[then]) / max(_requests(now[kind]), 0.01)
            requests = f"{fewer:.0f} times fewer requests, " if lake == "S3" else ""
            print(f"{kind}: {requests}{cpu:.0f} times less CPU")


def main() -> None:
    """Print the figures of both builds, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=100, help="in the S3 lake")
    parser.add_argument("--local-tables", type=int, default=20, help="in the local lake")
    parser.add_argument("--served-seconds", type=float, default=360)
    arguments = parser.parse_args()
    with checked_out(_BEFORE) as before, tempfile.TemporaryDirectory() as folder:
        builds = {"now": _ROOT, **({_BEFORE: before} if before else {})}
        for kind, count in (("S3", arguments.tables), ("local", arguments.local_tables)):
            found: dict[str, Found] = {}
            for name, build in builds.items():
                with SandboxProcess() as sandbox:
                    environment = sandbox.environment()
                    tables = _make_tables(environment, count)
                    lake = f"s3://{_BUCKET}/lake" if kind == "S3" else f"{folder}/{name}"
                    found[name] = _contend(
                        build, environment, _settings(lake, tables), arguments.served_seconds
                    )
            _show(kind, found)


if __name__ == "__main__":
    main()
