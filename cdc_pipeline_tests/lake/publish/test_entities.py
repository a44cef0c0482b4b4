"""Entities: views and tables of the kinds of items in one table, against plain Python."""

import base64
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.core.errors import LakeError, NotReadyError, QueryError
from cdc_pipeline.core.items.attributes import canonical_item, plain_value, to_json
from cdc_pipeline.core.items.columns import Column, Stats, columns_of, observe
from cdc_pipeline.core.items.view_names import VIEW_COLUMNS
from cdc_pipeline.core.plans.erasure import ItemTrace
from cdc_pipeline.defs.tables.aggregates import usable_aggregates
from cdc_pipeline.defs.tables.checks import entities_match
from cdc_pipeline.erase.lake import erase_iceberg
from cdc_pipeline.erase.places import find_item, key_columns, lake_prefixes
from cdc_pipeline.lake.engine.duckdb_session import arrow_table
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.publish.entity_notes import read_notes
from cdc_pipeline.lake.publish.entity_tables import build_entity
from cdc_pipeline.lake.publish.staleness import Staleness
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.query import as_json, connect_for, run_query
from cdc_pipeline.lake.query.view_script import list_views, view_script
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    plain_view,
    temporary_lake,
)
from cdc_pipeline_tests.strategies import values

_ENTITIES: list[dict[str, Any]] = [
    {"name": "customer", "when": {"type": "customer"}},
    {"name": "line", "when": {"type": "order", "sk": {"regex": "line#[0-9]+"}}},
    {"name": "order", "when": {"type": "order"}, "flatten": {"depth": 2}},
    {"name": "event", "when": {"sk": {"prefix": "e#"}, "type": [1, 2]}},
]
_SYSTEM = ["_key", "_order_key", "_write_time_us", "_item", "_rescued"]
_NUMBERS = {"int64": int, "decimal": Decimal, "string": str}


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


def _tables(entities: list[dict[str, Any]] = _ENTITIES, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "orders", "entities": entities, **more}]


@pytest.fixture
def built(tmp_path: Any) -> LakeBuilder:
    return LakeBuilder.at(tmp_path, tables=_tables())


def _use(built: LakeBuilder, tables: list[dict[str, Any]]) -> None:
    """Open the same lake with other settings."""
    root = built.lake.settings.lake_folder
    raw = {
        "lake": "lake",
        "handover_margin_seconds": MARGIN_US / 1_000_000,
        "clock_margin_seconds": 0,
        "current_state": built.lake.settings.current_state.model_dump(),
        "tables": tables,
    }
    built.lake = Lake.open(parse_settings(raw, root.parent / "settings.yaml"))


# The reference: how `_ENTITIES` split and flatten, in plain Python.


def _entity(item: dict[str, Any]) -> str | None:
    kind, sk = item.get("type", {}), item.get("sk", {}).get("S", "")
    if kind == {"S": "customer"}:
        return "customer"
    if kind == {"S": "order"}:
        is_line = sk.startswith("line#") and sk[5:] and set(sk[5:]) <= set("0123456789")
        return "line" if is_line else "order"
    return "event" if kind in ({"N": "1"}, {"N": "2"}) and sk.startswith("e#") else None


def _flat(item: dict[str, Any], depth: int, path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in item.items():
        here = path + name.replace("\\", "\\\\").replace(".", "\\.")
        if depth and value.get("M"):
            found |= _flat(value["M"], depth - 1, here + ".")
        else:
            found[here] = value
    return found


def _split(built: LakeBuilder) -> dict[str, dict[str, dict[str, Any]]]:
    """The items that must be there, by entity and key, flattened."""
    found: dict[str, dict[str, dict[str, Any]]] = {e["name"]: {} for e in _ENTITIES}
    for key, text in built.items().items():
        item = json.loads(text)
        name = _entity(item)
        if name is not None:
            found[name][key] = _flat(item, 2) if name == "order" else item
    return found


def _cell(column: Column, value: dict[str, Any]) -> Any:
    ((tag, content),) = value.items()
    if tag in ("M", "L"):
        return plain_value(value)
    if tag in ("N", "NS"):
        kind = column.type.removeprefix("list<").removesuffix(">").partition("(")[0]
        typed = _NUMBERS[kind]
        return typed(content) if tag == "N" else [typed(number) for number in content]
    if tag in ("B", "BS"):
        plain = base64.b64decode
        return plain(content) if tag == "B" else [plain(part) for part in content]
    return content


def _row(item: dict[str, Any], columns: list[Column]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    rescued = {name: value for name, value in item.items() if "NULL" not in value}
    for column in columns:
        fits = column.tag in item.get(column.attribute, {})
        row[column.name] = _cell(column, item[column.attribute]) if fits else None
        if fits:
            del rescued[column.attribute]
    return {**row, "_rescued": to_json(rescued) if rescued else None}


def _views(built: LakeBuilder, as_of: datetime | None = None) -> dict[str, pa.Table]:
    with connect_lake(built.lake, as_of=as_of) as connection:
        return {
            e["name"]: arrow_table(connection, f"FROM orders.{e['name']}").drop_columns(
                [*VIEW_COLUMNS]  # beside those that the entity's own table has
            )
            for e in built.lake.settings.tables[0].model_dump()["entities"]
        }


def _assert_is_the_reference(built: LakeBuilder, *, exact_types: bool) -> None:
    expected = _split(built)
    for name, table in _views(built).items():
        items = expected[name]
        stats: Stats = {}
        for item in items.values():
            observe(stats, item)
        columns = columns_of(stats)
        found = {row["_key"]: row for row in table.to_pylist()}
        assert found.keys() == items.keys()
        assert {key: row["_item"] for key, row in found.items()} == {
            key: text for key, text in built.items().items() if key in items
        }
        if exact_types:
            notes = read_notes(built.table_lake)
            assert notes is not None
            names = {c.attribute: c.name for c in notes.entities[name].columns}
            columns = [Column(names[c.attribute], c.attribute, c.tag, c.type) for c in columns]
            schema = typed_schema(sorted(columns, key=lambda column: column.name))
            assert table.schema.names == schema.names
            for field in schema:
                assert table.schema.field(field.name).type in (field.type, _large(field.type))
            for key, row in found.items():
                row = {n: value for n, value in row.items() if n not in _SYSTEM[:4]}
                assert row == _row(items[key], columns)


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind.value_type) if pa.types.is_list(kind) else kind


_kinds = st.sampled_from(
    [{"S": "customer"}, {"S": "order"}, {"S": "other"}, {"N": "1"}, {"N": "1.0"}, {"N": "3"}]
)
_sorts = st.sampled_from(["line#7", "line#x", "line#", "e#1", "x"])
_named = st.dictionaries(st.sampled_from(["a", "A", "a.b", "a_b", "id", "\\"]), values, max_size=4)
_items = st.builds(
    lambda kind, sk, more: {**more, "type": kind, "sk": {"S": sk}}, _kinds, _sorts, _named
)
_states = st.dictionaries(st.sampled_from("abcdefg"), _items, max_size=7)


@pytest.mark.slow
@budget(max_examples=10, deadline=None)
@given(_states, st.lists(st.tuples(st.sampled_from("abcdefg"), st.none() | _items), max_size=5))
def test_views_are_the_reference(
    base: dict[str, dict[str, Any]], changes: list[tuple[str, dict[str, Any] | None]]
) -> None:
    """Published, with changes behind it, and published again, as types and as values."""
    with temporary_lake(tables=_tables()) as built:
        built.start()
        built.stage(base)
        built.read_to(START_US + MARGIN_US)
        publish_current_state(built.table_lake)
        _assert_is_the_reference(built, exact_types=True)
        built.land(change(name, n, item) for n, (name, item) in enumerate(changes, 1))
        _assert_is_the_reference(built, exact_types=False)
        _assert_no_value_is_lost(built)


def _assert_no_value_is_lost(built: LakeBuilder) -> None:
    """With changes behind the base: of each attribute, what is in its column or rescued."""
    expected, notes = _split(built), read_notes(built.table_lake)
    assert notes is not None
    for name, table in _views(built).items():
        for row in table.to_pylist():
            item = expected[name][row["_key"]]
            rescued = json.loads(row["_rescued"] or "{}")
            shown = [row[n] for n in table.schema.names if n not in _SYSTEM and row[n] is not None]
            there = {n: v for n, v in item.items() if "NULL" not in v}
            assert rescued.items() <= there.items()
            assert len(shown) == len(there) - len(rescued)
            for column in notes.entities[name].columns:
                value = there.get(column.attribute)
                if value and column.attribute not in rescued and column.tag in ("S", "BOOL"):
                    assert row[column.name] == value[column.tag]


def _ready(built: LakeBuilder) -> None:
    built.start()
    built.stage(
        {
            "c1": {"type": {"S": "customer"}, "ref": {"S": "abc"}, "n": {"N": "1"}},
            "c2": {"type": {"S": "customer"}, "ref": {"S": "abd"}, "n": {"N": "2"}},
            "o1": {
                "type": {"S": "order"},
                "ref": {"N": "12345678901234567890.5"},
                "to": {"M": {"city": {"S": "Oslo"}, "at": {"M": {"lat": {"N": "59.9"}}}}},
            },
            "x": {"type": {"S": "unheard of"}, "odd": {"BOOL": True}},
        }
    )
    built.read_to(START_US + MARGIN_US)


def test_an_attribute_is_exact_in_each_entity(built: LakeBuilder) -> None:
    """A text in one and a number in the other: one of them is rescued in current_state."""
    _ready(built)
    publish_current_state(built.table_lake)
    found = plain_view(built.lake, "SELECT ref, to_city, to_at_lat FROM orders.order")
    assert found == [
        {
            "ref": Decimal("12345678901234567890.5"),
            "to_city": "Oslo",
            "to_at_lat": Decimal("59.9"),
        }
    ]
    sql = "SELECT ref FROM orders.customer ORDER BY ref"
    assert plain_view(built.lake, sql) == [{"ref": "abc"}, {"ref": "abd"}]
    assert "orders.event" in list_views(built.lake)
    assert plain_view(built.lake, "SELECT * FROM orders.event") == []


def test_changes_are_seen_at_once(built: LakeBuilder) -> None:
    """New items and attributes, and an item that moves from one entity to another."""
    _ready(built)
    publish_current_state(built.table_lake)
    built.land(
        [
            change("c1", 1, {"type": {"S": "order"}, "to": {"M": {"zip": {"N": "7"}}}}),
            change("c2", 2, None),
            change("c3", 3, {"type": {"S": "customer"}, "n": {"N": "0.25"}}),
        ]
    )
    orders = plain_view(built.lake, "SELECT to_city, to_zip FROM orders.order ORDER BY to_zip")
    assert orders == [{"to_city": None, "to_zip": 7}, {"to_city": "Oslo", "to_zip": None}]
    customers = plain_view(built.lake, "SELECT ref, n FROM orders.customer")
    assert customers == [{"ref": None, "n": Decimal("0.25")}]


def test_the_kind_of_a_column_waits_for_a_publication(built: LakeBuilder) -> None:
    """As in current_state: what lands in between does not turn a column over."""
    _ready(built)
    publish_current_state(built.table_lake)
    numbers = {"type": {"S": "customer"}, "ref": {"N": "7"}, "new": {"N": "1"}}
    built.land(change(f"n{number}", number, numbers) for number in range(1, 6))
    sql = "SELECT ref, _rescued, new FROM orders.customer ORDER BY _key DESC LIMIT 1"
    rescued = '{"ref":{"N":"7"}}'
    assert plain_view(built.lake, sql) == [{"ref": None, "_rescued": rescued, "new": 1}]
    # Nor does a publication, as long as one item has the kind that the column is of.
    publish_current_state(built.table_lake)
    assert plain_view(built.lake, sql) == [{"ref": None, "_rescued": rescued, "new": 1}]
    built.land(change(name, number, numbers) for number, name in enumerate(("c1", "c2"), 6))
    publish_current_state(built.table_lake)
    assert plain_view(built.lake, sql) == [{"ref": 7, "_rescued": None, "new": 1}]


def test_other_rules_are_seen_at_once(built: LakeBuilder) -> None:
    _ready(built)
    publish_current_state(built.table_lake)
    _use(built, _tables([{"name": "customer", "when": {"type": {"prefix": "un"}}}]))
    built.land([change("x2", 1, {"type": {"S": "unknown"}, "n": {"N": "5"}})])
    sql = "SELECT type, n, odd FROM orders.customer ORDER BY n NULLS LAST"
    assert plain_view(built.lake, sql) == [
        {"type": "unknown", "n": 5, "odd": None},
        {"type": "unheard of", "n": None, "odd": True},
    ]


def test_before_a_publication_they_say_what_to_do(built: LakeBuilder) -> None:
    built.start()
    sql = "SELECT count(*) FROM orders.customer"
    with connect_for(built.lake, sql) as connection:
        found = run_query(connection, sql)
        assert found is not None
        with pytest.raises(QueryError, match="materialise orders/current_state"):
            list(as_json(found))


def test_as_of_a_time(built: LakeBuilder) -> None:
    _ready(built)
    publish_current_state(built.table_lake)
    built.land([change("c1", 10, None), change("o1", 20, {"type": {"S": "customer"}})])
    built.read_to(START_US + 40_000_000)

    def at(second: int) -> dict[str, list[str]]:
        moment = datetime.fromtimestamp(START_US // 1_000_000 + second, UTC)
        found = _views(built, moment)
        return {n: sorted(t.column("_key").to_pylist()) for n, t in found.items() if t.num_rows}

    assert at(9) == {"customer": [_k("c1"), _k("c2")], "order": [_k("o1")]}
    assert at(15) == {"customer": [_k("c2")], "order": [_k("o1")]}
    assert at(25) == {"customer": [_k("c2"), _k("o1")]}
    columns = _views(built, datetime.fromtimestamp(START_US // 1_000_000 + 9, UTC))["order"]
    assert columns.column("to_city").to_pylist() == ["Oslo"]


def _k(name: str) -> str:
    return to_json(canonical_item({"pk": {"S": name}}))


def test_masked_as_current_state_is(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_MASKING_KEY", "k" * 32)
    rules = {"pk": {"hash": True}, "ref": {"mask": "***"}, "to": {"drop": True}}
    built = LakeBuilder.at(tmp_path, tables=_tables(columns=rules))
    _ready(built)
    publish_current_state(built.table_lake)
    built.land([change("c9", 1, {"type": {"S": "customer"}, "ref": {"S": "clear"}})])
    for _ in range(2):
        found = _views(built)
        assert found["customer"].column("ref").to_pylist() == ["***"] * 3
        assert found["order"].column("ref").to_pylist() == ["***"]
        assert "to_city" not in found["order"].schema.names
        shown = str([table.to_pylist() for table in found.values()])
        assert not {"clear", "Oslo", "c9", "abc"} & {*shown.replace('"', " ").split()}
        publish_current_state(built.table_lake)
    monkeypatch.setenv("CDC_MASKING_KEY", "o" * 32)
    with pytest.raises(Exception, match="other masking rules"):
        plain_view(built.lake, "SELECT count(*) FROM orders.customer")


@pytest.mark.slow
def test_a_connection_that_is_left_open_ends_quietly(built: LakeBuilder, tmp_path: Any) -> None:
    """DuckDB 2.0 lists functions of open connections as leaks when Python ends."""
    _ready(built)
    publish_current_state(built.table_lake)
    settings = tmp_path / "settings.yaml"
    tables = json.dumps(_tables())
    settings.write_text(f"{{lake: lake, tables: {tables}}}", "utf-8")
    code = (
        "from cdc_pipeline.lake import connect\n"
        "connection = connect(['orders'])\n"
        "print(connection.execute('SELECT count(*) FROM orders.customer').fetchall())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"CDC_PIPELINE_CONFIG": str(settings), "PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("[(2,)]\n", "", 0)


_KEPT: list[dict[str, Any]] = [{**entity, "table": True} for entity in _ENTITIES]


def _table(built: LakeBuilder, name: str) -> pa.Table:
    found = built.lake.iceberg.load(f"orders_{name}")
    assert found is not None
    return found.scan().to_arrow()


def _rows(table: pa.Table) -> list[str]:
    columns = sorted(table.column_names)
    return [*columns, *sorted(repr(row) for row in table.select(columns).to_pylist())]


def _build_all(built: LakeBuilder) -> list[bool]:
    names = [entity["name"] for entity in _ENTITIES]
    return [build_entity(built.table_lake, name).unchanged for name in names]


def test_tables_are_what_views_show(tmp_path: Any) -> None:
    built = LakeBuilder.at(tmp_path, tables=_tables(_KEPT))
    _ready(built)
    with pytest.raises(NotReadyError, match="materialise orders/current_state first"):
        build_entity(built.table_lake, "order")
    publish_current_state(built.table_lake)
    assert _build_all(built) == [False] * 4
    for name, view in _views(built).items():
        assert _rows(_table(built, name)) == _rows(view)
    assert _build_all(built) == [True] * 4  # nothing changed, nothing is written
    item = {"type": {"S": "order"}, "ref": {"S": "text now"}, "to": {"S": "no map"}}
    built.land([change("o1", 1, item), change("o2", 2, item), change("c1", 3, None)])
    publish_current_state(built.table_lake)
    assert _build_all(built) == [False] * 4
    for name, view in _views(built).items():
        assert _rows(_table(built, name)) == _rows(view)
    assert _table(built, "order").column("to").to_pylist() == ["no map"] * 2


def _stale(built: LakeBuilder) -> list[str]:
    staleness = Staleness(built.lake)
    staleness.load(built.table)
    return [s.asset for s in staleness.of_table(built.table) if s.asset != "cdc"]


def test_what_is_stale(tmp_path: Any) -> None:
    """Entities are made again behind a publication, and with other rules."""
    fold = {"fold_percent": 0, "derive_minutes": 0}
    built = LakeBuilder.at(tmp_path, tables=_tables(_KEPT), current_state=fold)
    _ready(built)
    names = [entity["name"] for entity in _ENTITIES]
    assert _stale(built) == ["current_state"]
    publish_current_state(built.table_lake)
    assert _stale(built) == names
    _build_all(built)
    assert _stale(built) == []
    built.land([change("c1", 1, None)])
    assert _stale(built) == ["current_state"]  # first, then what is made of it
    publish_current_state(built.table_lake)
    assert _stale(built) == names
    _build_all(built)
    odd = {"name": "customer", "when": {"type": {"prefix": "un"}}, "table": True}
    _use(built, _tables([odd]))
    assert _stale(built) == ["current_state"]  # which notes what is of which entity
    publish_current_state(built.table_lake)
    assert _stale(built) == ["customer"]
    build_entity(built.table_lake, "customer")
    assert _table(built, "customer").column("type").to_pylist() == ["unheard of"]
    assert _stale(built) == []


def test_masked_tables_forget_what_they_showed(tmp_path: Any) -> None:
    built = LakeBuilder.at(tmp_path, tables=_tables(_KEPT))
    _ready(built)
    publish_current_state(built.table_lake)
    _build_all(built)
    _use(built, _tables(_KEPT, columns={"ref": {"mask": "***"}}))
    with pytest.raises(LakeError, match="other masking rules"):
        build_entity(built.table_lake, "customer")
    publish_current_state(built.table_lake)
    _build_all(built)
    assert _table(built, "customer").column("ref").to_pylist() == ["***"] * 2
    table = built.lake.iceberg.load("orders_customer")
    assert table is not None
    assert len(table.metadata.snapshots) == 1


def test_an_erasure_takes_the_item_out(tmp_path: Any) -> None:
    """Out of tables whose entity the settings no longer name, too."""
    built = LakeBuilder.at(tmp_path, tables=_tables(_KEPT))
    _ready(built)
    publish_current_state(built.table_lake)
    _build_all(built)
    _use(built, _tables([]))
    trace = ItemTrace(_k("c1"), _k("c1"))
    found = {holding.place for holding in find_item(lake_prefixes(built.table_lake), trace)}
    assert "customer" in found
    assert {"customer", "line", "order", "event"} <= key_columns(built.table_lake).keys()
    erase_iceberg(built.table_lake, "customer", trace)
    assert _table(built, "customer").column("_key").to_pylist() == [_k("c2")]
    found = {holding.place for holding in find_item(lake_prefixes(built.table_lake), trace)}
    assert "customer" not in found


def test_tables_are_maintained(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = LakeBuilder.at(tmp_path, tables=_tables(_KEPT))
    _ready(built)
    publish_current_state(built.table_lake)
    _build_all(built)
    built.land([change("c1", 1, None)])
    publish_current_state(built.table_lake)
    _build_all(built)
    folder = f"iceberg/{built.lake.database}/orders_customer/data/"
    assert len([*built.lake.store.files(folder)]) == 2
    monkeypatch.setattr(
        "cdc_pipeline.lake.upkeep.maintenance.timedelta", lambda **_: timedelta(seconds=-9)
    )
    for file in built.lake.store.files(""):
        path = built.lake.settings.lake_folder / file.key
        os.utime(path, (0, 0))
    maintain_table(built.table_lake)
    assert len([*built.lake.store.files(folder)]) == 1
    assert _table(built, "customer").num_rows == 1


def test_scripts_show_tables_as_they_were_built(tmp_path: Any) -> None:
    mixed = [*_KEPT[:1], *_ENTITIES[1:]]
    built = LakeBuilder.at(tmp_path, tables=_tables(mixed))
    _ready(built)
    publish_current_state(built.table_lake)
    build_entity(built.table_lake, "customer")
    built.land([change("c1", 1, None)])
    script = "".join(view_script(built.lake))
    with duckdb.connect() as plain:
        plain.execute(script)
        assert plain.execute("SELECT count(*) FROM orders.customer").fetchall() == [(2,)]
        names = plain.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    assert {name for (name,) in names}.isdisjoint({"order", "line", "event"})
    assert "-- orders.order is left out: splitting needs cdc-pipeline" in script
    assert "-- orders.customer is the table as last built" in script


def test_items_of_no_entity_are_counted(built: LakeBuilder) -> None:
    assert entities_match(built.table_lake, built.state).passed
    _ready(built)
    publish_current_state(built.table_lake)
    found = entities_match(built.table_lake, built.state)
    assert (found.passed, found.severity.name) == (False, "WARN")
    assert found.metadata["items_of_none"] == 1
    assert "| customer | 2 |" in found.metadata["entities"].value
    assert "unheard" not in str(found.metadata)
    built.land([change("x", 1, {"type": {"S": "order"}})])
    publish_current_state(built.table_lake)
    assert entities_match(built.table_lake, built.state).passed


def test_aggregates_read_entities(built: LakeBuilder) -> None:
    _ready(built)
    folder = built.lake.settings.aggregates_folder
    folder.mkdir()
    (folder / "refs.sql").write_text("SELECT ref FROM orders.customer")
    (aggregate,) = load_aggregates(folder)
    assert [a.name for a in usable_aggregates(built.lake.settings)] == ["refs"]
    publish_current_state(built.table_lake)
    build_aggregate(built.lake, aggregate)
    today = datetime.now(UTC).date()
    assert Staleness(built.lake).of_aggregate(aggregate, today) is None
    assert plain_view(built.lake, "SELECT count(*) AS n FROM aggregates.refs") == [{"n": 2}]
    built.land([change("c1", 1, None)])
    publish_current_state(built.table_lake)
    assert Staleness(built.lake).of_aggregate(aggregate, today) is not None
