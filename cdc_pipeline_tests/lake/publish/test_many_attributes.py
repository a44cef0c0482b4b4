"""Attributes with long names, and so many that they are data: bounded columns, nothing lost."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.items.view_names import VIEW_COLUMNS
from cdc_pipeline.defs.tables.checks import columns_for_all
from cdc_pipeline.lake.engine.item_table import prior_columns, prior_stats
from cdc_pipeline.lake.iceberg.files import referenced_files
from cdc_pipeline.lake.iceberg.properties import PROPERTY, description
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    key_of,
    plain_view,
)

_KEY = "CDC_MASKING_KEY"
_LONG = "https://shop.example/" + "p/" * 140


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


def _ready(built: LakeBuilder, items: dict[str, dict[str, Any]]) -> None:
    built.start()
    built.stage(items)
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)


def _rows(built: LakeBuilder, view: str = "current_state") -> dict[str, dict[str, Any]]:
    rows = plain_view(built.lake, f"SELECT * FROM orders.{view}")
    return {json.loads(row["_key"])["pk"]["S"]: row for row in rows}


def _item(name: str, **attributes: Any) -> str:
    return to_json(canonical_item(attributes | key_of(name)))


def test_long_names_are_columns_that_stay_in_every_view(built: LakeBuilder) -> None:
    _ready(built, {"a": {_LONG + "x": {"S": "1"}}})
    (first,) = [c.name for c in _table_columns(built) if c.attribute == _LONG + "x"]
    built.land([change("b", 1, {_LONG + "y": {"S": "2"}})])
    for publish in (False, True, True):
        if publish:
            publish_current_state(built.table_lake)
        rows = _rows(built)
        shown = [n for n in rows["a"] if n.startswith("https")]
        assert [len(name) for name in shown] == [255, 255]
        assert rows["a"][first] == "1"
        assert [rows["b"][name] for name in shown if name != first] == ["2"]
        assert rows["b"]["_item"] == _item("b", **{_LONG + "y": {"S": "2"}})
    assert first in _rows(built, "pitr_export")["a"]
    day = datetime.fromtimestamp(START_US / 1_000_000, UTC).date()
    build_cdc_day(built.table_lake, day)
    (past,) = plain_view(built.lake, "SELECT item FROM orders.history")
    assert past["item"] == rows["b"]["_item"]


def _table_columns(built: LakeBuilder) -> Any:
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    return prior_columns(table)


def test_a_long_name_is_masked_by_its_whole_attribute(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_KEY, "k" * 32)
    rules = {_LONG + "x": {"hash": True}, _LONG + "y": {"drop": True}}
    built = LakeBuilder.at(tmp_path, tables=[{"name": "orders", "columns": rules}])
    secret = {_LONG + end: {"S": f"secret {end}"} for end in "xyz"}
    _ready(built, {"a": secret})
    built.land([change("b", 1, secret)])
    for publish in (False, True):
        if publish:
            publish_current_state(built.table_lake)
        for row in _rows(built).values():
            shown = [row[name] for name in row if name.startswith("https")]
            assert len(shown) == 2
            assert "secret z" in shown
            assert not {"secret x", "secret y"} & {*shown}
            assert "secret x" not in row["_item"]
            assert "secret y" not in row["_item"]


def test_columns_are_bounded_and_the_rest_is_counted_and_exact(tmp_path: Any) -> None:
    tables = [{"name": "orders", "max_columns": 3}]
    built = LakeBuilder.at(tmp_path, tables=tables)
    wide = {f"id-{n}": {"N": str(n)} for n in range(10)}
    _ready(built, {"a": {"v": {"S": "x"}, **wide}, "b": {"v": {"S": "y"}}})
    built.land([change("c", 1, {"v": {"S": "z"}, "id-77": {"N": "7"}})])
    for publish in (False, True):
        if publish:
            publish_current_state(built.table_lake)
        rows = _rows(built)
        assert {n for n in rows["a"] if not n.startswith("_")} - {*VIEW_COLUMNS} == {
            "pk",
            "v",
            "id_0",
        }
        assert rows["a"]["_item"] == _item("a", v={"S": "x"}, **wide)
        assert rows["a"]["_rescued"] is None
        assert rows["c"]["_item"] == _item("c", v={"S": "z"}, **{"id-77": {"N": "7"}})
    found = columns_for_all(built.table_lake, built.state)
    assert found.passed, "the settings say how many"
    assert found.metadata["attributes_without_column"] == 10
    assert found.metadata["values_without_column"] == 10
    built = LakeBuilder.at(tmp_path, tables=[{"name": "orders", "max_columns": 20}])
    publish_current_state(built.table_lake)
    assert len(_table_columns(built)) == 13
    assert columns_for_all(built.table_lake, built.state).metadata == {
        "columns": 13,
        "attributes_without_column": 0,
        "values_without_column": 0,
    }


def test_thousands_of_attributes_fit_a_catalogues_properties(built: LakeBuilder) -> None:
    """Of 3,400 names the old property had 540 kB; Glue takes 512,000 bytes."""
    wide = {f"2026-01-{n:06}#visits": {"N": "1"} for n in range(3400)}
    _ready(built, {"a": wide})
    built.land([change("b", 1, {"one-more": {"S": "x"}})])
    publish_current_state(built.table_lake)
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    assert sum(len(k) + len(v) for k, v in table.properties.items()) < 5000
    assert len(prior_stats(table)) == 3402
    assert len(prior_columns(table)) == 500
    found = columns_for_all(built.table_lake, built.state)
    assert not found.passed
    assert found.metadata["attributes_without_column"] == 2902
    assert "max_columns" in found.metadata["fix"]
    assert {r["_item"] for r in _rows(built).values()} == {
        _item("a", **wide),
        _item("b", **{"one-more": {"S": "x"}}),
    }


def _as_an_older_version_left_it(built: LakeBuilder, name: str) -> None:
    """What was a property of its own then."""
    table = built.lake.iceberg.load(name)
    assert table is not None
    raw = json.loads(description(table) or "")
    with table.transaction() as transaction:
        transaction.set_properties({PROPERTY + k: json.dumps(v) for k, v in raw.items()})
        transaction.remove_properties(f"{PROPERTY}description")


def test_a_lake_with_properties_opens_and_goes_on(built: LakeBuilder) -> None:
    _ready(built, {"a": {"n": {"N": "1.5"}, "t": {"S": "x"}}})
    for name in ("orders_current_state", "orders_snapshot"):
        _as_an_older_version_left_it(built, name)
    before = {c.name: c.type for c in _table_columns(built)}
    assert before == {"pk": "string", "n": "decimal(18,1)", "t": "string"}
    built.land([change("b", 1, {"n": {"N": "2"}})])
    assert {name: str(row["n"]) for name, row in _rows(built).items()} == {"a": "1.5", "b": "2.0"}
    publish_current_state(built.table_lake)
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    assert not {f"{PROPERTY}columns", f"{PROPERTY}statistics"} & table.properties.keys()
    assert {c.name: c.type for c in _table_columns(built)} == before


def test_schemas_and_descriptions_go_with_the_snapshots_that_had_them(built: LakeBuilder) -> None:
    _ready(built, {"a": {}})
    for n in range(5):
        built.land([change("b", n + 1, {f"a{n}": {"S": "x"}})])
        publish_current_state(built.table_lake)
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    assert len(table.metadata.schemas) == 6
    assert len(_descriptions(built)) == 6
    assert _descriptions(built) <= referenced_files(table)
    built.lake.iceberg.expire(table, datetime(2999, 1, 1, tzinfo=UTC), ())
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    assert len(table.metadata.schemas) == 1
    assert len(_descriptions(built) & referenced_files(table)) == 1
    built.land([change("b", 9, {"a9": {"S": "x"}})])
    publish_current_state(built.table_lake)
    assert _rows(built)["b"]["a9"] == "x"


def _descriptions(built: LakeBuilder) -> set[str]:
    folder = "_cdc/cdc/table-descriptions/orders_current_state/"
    return {built.lake.store.uri(key) for key in built.lake.store.list(folder)}
