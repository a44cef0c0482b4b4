"""A lake that an old version made opens in this one, and everything goes on."""

import gzip
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cdc_pipeline.cli import main
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.erase.erase import erase_item
from cdc_pipeline.erase.files import _avro_text
from cdc_pipeline.lake.engine.duckdb_session import identifier
from cdc_pipeline.lake.publish.ttl_archive import build_archive_day
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.reconcile.compare import compare_with_source
from cdc_pipeline.reconcile.reconcile import reconcile_full, reconcile_sample
from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.data.make_old_lake import EVERYTHING, TABLES, VICTIM, rows_of
from cdc_pipeline_tests.e2e.earlier import EarlierSandbox
from cdc_pipeline_tests.e2e.old_lake import OldLake
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_no_orphans,
    assert_nothing_twice,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def old() -> OldLake:
    return OldLake.load()


@pytest.fixture
def world(old: OldLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The old lake in a sandbox of its own, whose clock may be moved. It has no tables yet."""
    with EarlierSandbox(
        ttl_interval_seconds=0.2,
        exports=ExportOptions(delay_seconds=0.05, least_window_seconds=1, restorable_lag_seconds=0),
    ) as sandbox:
        yield old.put_back(sandbox.endpoint_url, tmp_path, monkeypatch)


def test_the_same_tables_go_on(old: OldLake, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _assert_same_views(old, world)
    old.go_on(world, monkeypatch)
    _assert_past(old, world)
    before = {row["table"]: row for row in _status()}
    assert [row["gaps"] for row in before.values()] == [[], []]
    # What the old version left in the streams comes from where it stopped, once.
    captured = {name: world.capture(name) for name in TABLES}
    assert {name: result.rows for name, result in captured.items()} == {"orders": 3, "people": 1}
    assert all(not result.gaps for result in captured.values())
    _assert_exact(world)
    _process(world)
    _assert_exact(world)
    _assert_captured_kept(old, world)
    _maintain(world)
    _erase(world)
    _write(world)
    _process(world)
    _assert_exact(world)
    _reconcile(world)
    _assert_past(old, world, without=VICTIM)
    assert not any(row["gaps"] or row["late_changes"] for row in _status())


def test_the_tables_were_recreated(old: OldLake, world: World) -> None:
    """Long after: other tables have the names, and nothing is left of the old streams."""
    _assert_same_views(old, world)
    for name in TABLES:
        old.make_table(world, name, same=False)
        (gap,) = world.capture(name).gaps
        assert gap.cause == "table recreated"
    fixes = [fix for row in _status() for fix in row["fixes"].values()]
    assert len(fixes) == 2
    assert all("by a full export" in fix for fix in fixes)
    for name in TABLES:
        world.bootstrap(name)
    _process(world)
    _assert_exact(world)
    _assert_captured_kept(old, world)
    _reconcile(world)
    _assert_past(old, world)
    assert not any(row["gaps"] for row in _status())


# What is done


def _write(world: World) -> None:
    """Every kind of change, to items of the old lake and to new ones."""
    world.put("orders", "new", 1, **EVERYTHING)
    world.put("orders", "everything", 1, **{**EVERYTHING, "digits": {"N": "2"}})
    world.put("orders", "o2", status={"S": "changed"}, n={"N": "2.00"})
    world.delete("orders", "o4")
    world.put("people", "p1", email={"S": "other@example.org"}, ssn={"S": "1"})
    world.delete("people", "p3")


def _process(world: World) -> None:
    """Everything that the pipeline derives, of what is stale by the log."""
    lake = world.lake()
    for name in TABLES:
        world.capture(name)
        world.publish(name)
        world.refresh_cdc(name)
        assert_nothing_twice(world, name)
    for day in world.days("orders"):
        build_archive_day(lake.table(world.table("orders")), day)
    for aggregate in load_aggregates(lake.settings.aggregates_folder):
        for day in world.days("orders") if aggregate.daily else [None]:
            build_aggregate(lake, aggregate, day)


def _reconcile(world: World) -> None:
    lake = world.lake()
    for name in TABLES:
        sample = reconcile_sample(lake.table(world.table(name)), 60)
        assert sample.is_sound, sample
        assert sample.compared >= len(_source(world, name))
    full = reconcile_full(lake.table(world.table("orders")))
    assert full.is_sound, full
    assert full.compared == len(_source(world, "orders"))


def _erase(world: World) -> None:
    """An item of every place, baselines and exports of the old version included."""
    held = _files_with(world, VICTIM)
    places = {name.split("/")[1] if name.startswith("lake/") else "exports" for name in held}
    assert places >= {"dynamo-cdc", "iceberg", "exports"}
    world.delete("orders", VICTIM)
    world.capture("orders")
    erase_item(world.table_lake("orders"), json.dumps({"pk": VICTIM, "sk": 1}))
    assert _files_with(world, VICTIM) == set()


def _maintain(world: World) -> None:
    """Twice, later, so that what nobody needs is old enough to go."""
    lake = world.lake()
    now_us = CaptureLog.now_us
    for days in (1, 2):
        later = timedelta(lake.settings.maintenance.keep_snapshot_days + days)
        later_us = int(later.total_seconds() * 1_000_000)

        class Later:
            @staticmethod
            def now(zone: Any, later: timedelta = later) -> datetime:
                return datetime.now(zone) + later

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cdc_pipeline.lake.upkeep.maintenance.datetime", Later)
            patch.setattr(CaptureLog, "now_us", lambda log, us=later_us: now_us(log) + us)
            for name in TABLES:
                done = maintain_table(lake.table(world.table(name)))
                removed = (done.snapshots_expired and done.files, done.replaced_removed)
                assert removed[days - 1]
    for name in TABLES:
        assert_no_orphans(world, name)


def _status() -> list[dict[str, Any]]:
    result = CliRunner().invoke(main, ["status", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(main, ["status", *TABLES], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return json.loads(result.stdout)


# What must be so


def _assert_same_views(old: OldLake, world: World) -> None:
    """Every view of the old version is there with its columns and its rows."""
    assert len(old.views) == 13
    with connect_lake(world.lake()) as connection:
        for view, stored in old.views.items():
            quoted = ".".join(map(identifier, view.split(".")))
            assert rows_of(connection, quoted, stored["columns"]) == stored["rows"], view


def _assert_captured_kept(old: OldLake, world: World) -> None:
    """Days of cdc that were built anew have every captured change as it was."""
    with connect_lake(world.lake()) as connection:
        for name in TABLES:
            stored = old.views[f"{name}.cdc"]
            rows = set(rows_of(connection, f"{name}.cdc", stored["columns"]))
            kept = {row for row in stored["rows"] if json.loads(row)["transport"] != "export"}
            assert kept
            assert kept <= rows


def _assert_past(old: OldLake, world: World, without: str | None = None) -> None:
    """The state as of a time before the gap, from the first baseline; less what was erased."""
    moment = datetime.fromtimestamp(old.past["moment"], UTC)
    gone = {"erased", without}
    expected = [item for item in old.past["items"]["orders"] if item["pk"]["S"] not in gone]
    with connect_lake(world.lake(), ["orders"], as_of=moment) as connection:
        found = connection.execute("SELECT _item FROM orders.current_state").fetchall()
    assert _sorted([json.loads(item) for (item,) in found]) == _sorted(expected)


def _assert_exact(world: World) -> None:
    """The lake equals its source, with every change once; masked columns are masked."""
    assert assert_mirrors(world, "orders") == len(_source(world, "orders"))
    people = compare_with_source(world.table_lake("people"))
    assert (people.differences, people.items) == (0, len(_source(world, "people")))
    shown = world.rows("SELECT email, _item FROM people.current_state", "people")
    assert all("@" not in f"{email} {item}" and "ssn" not in item for email, item in shown)
    for name in TABLES:
        assert_no_orphans(world, name)


def _source(world: World, name: str) -> list[dict[str, Any]]:
    return world.dynamodb.scan(TableName=name, ConsistentRead=True)["Items"]


def _sorted(items: list[dict[str, Any]]) -> list[str]:
    return sorted(to_json(canonical_item(item)) for item in items)


def _files_with(world: World, text: str) -> set[str]:
    """Objects of the bucket that hold a text, however they are packed."""
    s3, found = world.client("s3"), set()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=world.bucket):
        for entry in page.get("Contents", ()):
            data = s3.get_object(Bucket=world.bucket, Key=entry["Key"])["Body"].read()
            if text.encode() in _unpacked(data):
                found.add(entry["Key"])
    return found


def _unpacked(data: bytes) -> bytes:
    if data.startswith(b"PAR1"):
        return data + str(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
    if data.startswith(b"Obj\x01"):
        return data + _avro_text(data)
    return data + gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
