"""Dagster's daemon under traffic while its runs are killed every few seconds: nothing stays behind.

`make test-soak`; CDC_PIPELINE_SOAK_SECONDS says for how long runs are killed (600),
CDC_PIPELINE_SOAK_SEED which ones.
"""

import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.reconcile.compare import compare_with_source
from cdc_pipeline.sandbox.demo.transports import start_traffic
from cdc_pipeline.sandbox.demo.workspace import BUCKET, write_settings
from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import SandboxProcess, local_client
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline_tests.e2e.ticks import failed_ticks
from cdc_pipeline_tests.ui.stack import dagster_dev, enter, is_loaded, wait_for

_SECONDS = float(os.environ.get("CDC_PIPELINE_SOAK_SECONDS", "600"))
_SEED = int(os.environ.get("CDC_PIPELINE_SOAK_SEED", "0"))
_ORDERS, _RATE = 500, 5.0
_START_SECONDS = 240
_LAG_SECONDS = 60
_SETTLE_SECONDS = 300

pytestmark = [pytest.mark.soak, pytest.mark.timeout(_SECONDS + 1500)]


def test_killed_runs_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"\nseed {_SEED}, {_SECONDS:g} s")
    chance = random.Random(_SEED)
    with SandboxProcess(
        log_file=tmp_path / "sandbox.log",
        exports=ExportOptions(least_window_seconds=5, restorable_lag_seconds=0),
    ) as sandbox:
        enter(sandbox, write_settings(tmp_path, kind="s3", running=True), monkeypatch)
        client: Any = local_client("s3")
        client.create_bucket(Bucket=BUCKET)
        traffic = start_traffic(_ORDERS, _RATE)
        lake = Lake.open(load_settings())
        try:
            with dagster_dev(tmp_path) as address:
                wait_for(lambda: is_loaded(address), "Dagster loads the assets", _START_SECONDS)
                home = str(tmp_path / "dagster_home")
                with dg.DagsterInstance.from_config(home) as instance:
                    wait_for(lambda: _lag(lake) < _LAG_SECONDS, "all is captured", _START_SECONDS)
                    killed = _kill_for(_SECONDS, instance, lake, chance)
                ended = time.monotonic()
                wait_for(lambda: _lag(lake) < _LAG_SECONDS, "capture is back", _LAG_SECONDS)
                print(f"lag below {_LAG_SECONDS} s {time.monotonic() - ended:.0f} s after the last")
                traffic.stop()
                until_us = int((time.time() + 1) * 1_000_000)
                wait_for(lambda: _is_settled(lake, until_us), "all is made", _SETTLE_SECONDS)
                assert not failed_ticks(address)
        finally:
            traffic.stop()
        _compare(lake)
    assert sum(killed.values()) >= _SECONDS / 20, killed


def _kill_for(
    seconds: float, instance: dg.DagsterInstance, lake: Lake, chance: random.Random
) -> Counter[str]:
    """Kill a run process every few seconds; how many of each job or asset."""
    killed: Counter[str] = Counter()
    worst = 0.0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(chance.uniform(2, 6))
        worst = max(worst, _lag(lake))
        runs = list(_processes(instance))
        if runs:
            what, process = chance.choice(runs)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                killed[what] += 1
    print(f"killed: {dict(killed)}; the greatest lag meanwhile: {worst:.0f} s")
    return killed


def _processes(instance: dg.DagsterInstance) -> Iterator[tuple[str, int]]:
    """Runs that are at work, with their processes."""
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
    for run in instance.get_runs(started):
        messages = " ".join(entry.message for entry in instance.all_logs(run.run_id))
        found = re.search(r"Started process for run \(pid: (\d+)\)", messages)
        if found:
            assets = sorted(key.to_user_string() for key in run.asset_selection or ())
            yield ", ".join(assets) or run.job_name, int(found[1])


def _lag(lake: Lake) -> float:
    """Seconds behind the source of the table that is furthest behind."""
    complete = min(lake.table(t).log.load().watermark_us for t in lake.settings.tables)
    return time.time() - complete / 1_000_000


def _is_settled(lake: Lake, until_us: int) -> bool:
    """Whether everything has landed and cdc has all that has."""
    for table in lake.settings.tables:
        state = lake.table(table).log.load()
        built = lake.iceberg.load(f"{table.safe_name}_cdc")
        if state.watermark_us < until_us or state.incomplete or built is None:
            return False
        landed = sum(o.rows for o in state.objects.values())
        with connect_lake(lake, [table.label], aggregates=False) as connection:
            rows = connection.execute(f"SELECT count(*) FROM {table.safe_name}.cdc").fetchone()
        if rows != (landed,):
            return False
    return True


def _compare(lake: Lake) -> None:
    """Whole tables: items with a scan, changes with the stream's own records."""
    streams: Any = local_client("dynamodbstreams")
    for table in lake.settings.tables:
        compared = compare_with_source(lake.table(table))
        assert compared.differences == 0, (table.name, compared.examples)
        log = lake.table(table).log
        state = log.load()
        assert not state.gaps
        assert not state.quarantined
        assert state.stream is not None
        written = Counter(_event_ids(streams, state.stream.arn))
        with connect_lake(lake, [table.label], aggregates=False) as connection:
            sql = f"SELECT event_id, count(*) FROM {table.safe_name}.cdc GROUP BY event_id"
            landed = Counter(dict(connection.execute(sql).fetchall()))
        lost, twice = written - landed, landed - written
        print(f"{table.name}: {compared.items} items, {written.total()} changes")
        assert not lost, f"{table.name}: {lost.total()} changes are not in cdc"
        assert not twice, f"{table.name}: {twice.total()} changes are in cdc twice"


def _event_ids(streams: Any, arn: str) -> Iterator[str]:
    """Of every record that a stream has, from its beginning."""
    for shard in streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]:
        place = {"StreamArn": arn, "ShardId": shard["ShardId"]}
        iterator = streams.get_shard_iterator(**place, ShardIteratorType="TRIM_HORIZON")
        at = iterator["ShardIterator"]
        while at:
            page = streams.get_records(ShardIterator=at)
            yield from (record["eventID"] for record in page["Records"])
            at = page.get("NextShardIterator") if page["Records"] else None
