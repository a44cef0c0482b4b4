"""Properties read without PyIceberg are those that PyIceberg reads."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.lake.iceberg.metadata_file import NeedsPyIcebergError, read_properties
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder


@pytest.fixture
def built(tmp_path: Path) -> LakeBuilder:
    lake = LakeBuilder.at(tmp_path.resolve())
    lake.start()
    lake.stage({"a": {"n": {"N": "1"}}})
    lake.read_to(START_US + 60_000_000)
    publish_current_state(lake.table_lake)
    return lake


def _no_session() -> Any:
    raise AssertionError("a local lake needs no AWS")


def _read(lake: Lake, name: str = "orders_current_state") -> Mapping[str, str] | None:
    return read_properties(lake.settings, lake.store, name, _no_session)


def test_properties_are_those_that_pyiceberg_reads(built: LakeBuilder, tmp_path: Path) -> None:
    table, base = built.table_lake.iceberg("current_state"), published_base(built.table_lake)
    assert table is not None
    assert base is not None
    assert _read(built.lake) == table.properties
    fresh = Lake.open(built.lake.settings)
    properties = fresh.table(built.table).properties("current_state")
    assert properties is not None
    assert properties["items"] == str(base.items)
    assert "iceberg" not in vars(fresh)
    assert built.table_lake.properties("current_state") == properties
    assert _read(built.lake, "orders_cdc") is None
    assert _read(built.lake, "orders_snapshot") is not None


def test_compressed_metadata(built: LakeBuilder) -> None:
    table = built.table_lake.iceberg("current_state")
    assert table is not None
    path = Path(table.metadata_location)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert _read(built.lake) == table.properties


def test_a_table_without_a_snapshot_has_none(built: LakeBuilder) -> None:
    table = built.table_lake.iceberg("current_state")
    assert table is not None
    path = Path(table.metadata_location)
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "current-snapshot-id": -1}))
    assert _read(built.lake) is None


def test_what_is_unusual_is_left_to_pyiceberg(built: LakeBuilder, tmp_path: Path) -> None:
    other = {"lake": "s3://b/p", "catalog": {"type": "glue-rest"}, "tables": [{"name": "orders"}]}
    settings = parse_settings(other, tmp_path / "settings.yaml")
    with pytest.raises(NeedsPyIcebergError):
        read_properties(settings, built.lake.store, "orders_current_state", _no_session)
    elsewhere = LocalStore(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "_cdc").mkdir(parents=True)
    catalog = tmp_path.resolve() / "lake" / "_cdc" / "catalog.db"
    (tmp_path / "elsewhere" / "_cdc" / "catalog.db").write_bytes(catalog.read_bytes())
    with pytest.raises(NeedsPyIcebergError):
        read_properties(built.lake.settings, elsewhere, "orders_current_state", _no_session)
    (tmp_path / "elsewhere" / "_cdc" / "catalog.db").write_bytes(b"not SQLite, and long enough")
    with pytest.raises(NeedsPyIcebergError):
        read_properties(built.lake.settings, elsewhere, "orders_current_state", _no_session)
