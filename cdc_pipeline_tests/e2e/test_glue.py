"""The lake in Glue's own words: Iceberg tables after each commit, partitions after new columns."""

import re
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS, LandingColumn
from cdc_pipeline.lake import glue_partitions as lake_glue
from cdc_pipeline.lake.engine.duckdb_session import connect_duckdb
from cdc_pipeline.lake.glue_partitions import find_repairs, repair
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.view_script import view_script
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.world import World, make_world

pytestmark = pytest.mark.slow


@pytest.fixture
def world(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = make_world(sandbox, tmp_path, "s3")
    made.activate(monkeypatch)
    return made


def _in_glue(world: World, name: str) -> dict[str, Any]:
    return world.client("glue").get_table(DatabaseName="cdc", Name=name)["Table"]


def _assert_newest(world: World, name: str, versions: set[str]) -> None:
    """Glue names the metadata of the newest snapshot, and another one than before."""
    table, in_glue = world.lake().iceberg.load(name), _in_glue(world, name)
    assert table is not None
    assert in_glue["TableType"] == "EXTERNAL_TABLE"
    assert in_glue["Parameters"]["table_type"] == "ICEBERG"
    assert in_glue["Parameters"]["metadata_location"] == table.metadata_location
    assert table.metadata_location not in versions
    assert not in_glue.get("PartitionKeys")
    assert "_key" in {c["Name"] for c in in_glue["StorageDescriptor"]["Columns"]} or "cdc" in name
    versions.add(table.metadata_location)


def test_glue_has_the_newest_snapshot_after_each_commit(world: World) -> None:
    name = world.make_table("registered")
    world.configure(name)
    world.put(name, "a", v={"N": "1"})
    world.bootstrap(name)
    seen: dict[str, set[str]] = {"current_state": set(), "cdc": set(), "snapshot": set()}
    _assert_newest(world, f"{name}_snapshot", seen["snapshot"])
    for number in range(2):
        world.put(name, "a", v={"N": str(number + 2)}, more={"S": "new"})
        world.capture(name)
        world.publish(name)
        world.build_cdc(name)
        for view in ("current_state", "cdc"):
            _assert_newest(world, f"{name}_{view}", seen[view])
    assert [len(versions) for versions in seen.values()] == [2, 2, 1]
    columns = _in_glue(world, f"{name}_current_state")["StorageDescriptor"]["Columns"]
    assert {"v", "more"} <= {column["Name"] for column in columns}


def test_the_views_of_a_lake_in_s3(world: World) -> None:
    """Run over our own S3 client: DuckDB's would have to be downloaded."""
    name = world.make_table("shown")
    world.configure(name)
    world.put(name, "a", v={"N": "1"})
    world.bootstrap(name)
    world.put(name, "b", v={"N": "0.5"})
    world.capture(name)
    world.build_cdc(name)
    lake = world.lake()
    script = "".join(view_script(lake))
    assert f"ENDPOINT '{world.endpoint_url.removeprefix('http://')}', URL_STYLE 'path'" in script
    assert "KEY_ID 'your key id', SECRET 'your secret'" in script
    assert world.account not in re.sub("s3://[^']*", "", script)
    with connect_duckdb(lake) as shell, connect_lake(lake) as connection:
        shell.execute(script)
        for view in ("raw_stream", "cdc", "history", "pitr_export", "current_state"):
            sql = f"SELECT * FROM {name}.{view} ORDER BY ALL"
            found = shell.execute(sql).fetchall()
            assert found
            assert found == connection.execute(sql).fetchall()


def test_new_columns_and_projection_on_the_local_glue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It locks optimistically, as AWS does: an update must name the version that it read."""
    name = world.make_table("grown")
    world.configure(name)
    world.put(name, "a")
    world.capture(name)
    lake, table, where = world.lake(), world.table(name), f"{name}_raw_stream"
    (before,) = world.client("glue").get_partitions(DatabaseName="cdc", TableName=where)[
        "Partitions"
    ]
    grown = (*LANDING_COLUMNS, LandingColumn("colour", "string", "new"))
    monkeypatch.setattr(lake_glue, "LANDING_COLUMNS", grown)
    assert str(repair(lake.table(table))) == "table outdated, 1 outdated"
    assert not find_repairs(lake.table(table))
    (after,) = world.client("glue").get_partitions(DatabaseName="cdc", TableName=where)[
        "Partitions"
    ]
    for in_glue in (after, _in_glue(world, where)):
        assert in_glue["StorageDescriptor"]["Columns"][-1]["Name"] == "colour"
    assert after["Values"] == before["Values"]
    assert after["StorageDescriptor"]["Location"] == before["StorageDescriptor"]["Location"]

    world.configure(name, glue={"projection": True})
    lake = world.lake()
    assert str(repair(lake.table(table))) == "table outdated"
    assert _in_glue(world, where)["Parameters"]["projection.enabled"] == "true"
    assert not find_repairs(lake.table(table))
