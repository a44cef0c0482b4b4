"""The macro `item`: the row that the view has, without opening files of other keys."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cdc_pipeline.core.errors import QueryError
from cdc_pipeline.lake.iceberg import writer
from cdc_pipeline.lake.iceberg.files import live_files
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.query import connect_for, run_query
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    key_of,
    plain_view,
)

_LONG = "all keys begin alike "


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LakeBuilder:
    """A published table of five files with two items each."""
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 2)
    monkeypatch.setattr(writer, "_FILE_BYTES", 1)
    built = LakeBuilder.at(tmp_path, current_state={"fold_percent": 100})
    built.start()
    built.stage({_name(n): {"n": {"N": str(n)}} for n in range(10)})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)
    return built


def _name(number: int) -> str:
    return f"{_LONG}{number:02d}"


def _key(name: str) -> str:
    return json.dumps(key_of(name), separators=(",", ":"))


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> list[dict[str, Any]]:
    result = connection.execute(sql, values)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _check(built: LakeBuilder, names: list[str]) -> None:
    with connect_lake(built.lake) as connection:
        view = {row["_key"]: row for row in _rows(connection, "FROM orders.current_state")}
        for key in map(_key, names):
            found = _rows(connection, "FROM orders.item(?)", key)
            assert found == [view[key]] if key in view else found == []


def test_items_are_those_of_the_view(built: LakeBuilder) -> None:
    _check(built, [_name(n) for n in range(11)] + ["", "a", "z", "\U0010ffff"])


def test_the_key_may_be_json(built: LakeBuilder) -> None:
    with connect_lake(built.lake) as connection:
        sql = 'SELECT n FROM orders.item(CAST(\'{"pk":{"S":"\' || ? || \'"}}\' AS JSON))'
        assert _rows(connection, sql, _name(7)) == [{"n": 7}]


def test_files_of_other_keys_are_not_opened(built: LakeBuilder) -> None:
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    first, *others = live_files(table).paths
    with connect_lake(built.lake) as connection:
        for path in others:
            Path(path).unlink()
        assert _rows(connection, "SELECT n FROM orders.item(?)", _key(_name(1))) == [{"n": 1}]
        with pytest.raises(duckdb.Error):
            _rows(connection, "SELECT n FROM orders.item(?)", _key(_name(7)))
    assert Path(first).exists()


def test_items_after_row_deltas_and_before_their_publication(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead rows, deleted and new items, columns that came and types that widened."""
    monkeypatch.setattr("cdc_pipeline.lake.state.row_delta.SMALL_ITEMS", -1)
    names = [_name(n) for n in range(23)]
    values: list[dict[str, Any] | None] = [
        {"n": {"N": "100"}, "f": {"S": "x"}, "path": {"S": "y"}, "item key": {"S": "z"}},
        None,
        {"n": {"N": str(10**17)}, "more": {"S": "x"}},
        {"n": {"N": "1"}, "list": {"SS": ["a"]}},
    ]
    dead = 0
    for number, item in enumerate(values, 1):
        built.land([change(_name(number), number, item), change(_name(20 + number), number, item)])
        _check(built, names)
        publish_current_state(built.table_lake)
        _check(built, names)
        table = built.lake.iceberg.load("orders_current_state")
        assert table is not None
        dead += len(live_files(table).deletes)
    assert dead


def test_files_without_bounds_are_read(built: LakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other engines may write files with bounds cut short, or without any."""
    monkeypatch.setattr("cdc_pipeline.lake.query.item_lookup._bound", lambda *_: None)
    _check(built, [_name(3)])


def test_a_past_state_has_the_macro_too(built: LakeBuilder) -> None:
    built.read_to(START_US + 60_000_000)
    now = datetime.fromtimestamp(START_US / 1_000_000 + 30, UTC)
    with connect_lake(built.lake, as_of=now) as connection:
        assert _rows(connection, "SELECT n FROM orders.item(?)", _key(_name(7))) == [{"n": 7}]


def test_another_cursor_has_no_bounds_and_fails(built: LakeBuilder) -> None:
    with (
        connect_lake(built.lake) as connection,
        connection.cursor() as cursor,
        pytest.raises(duckdb.Error, match="on the connection that connect"),
    ):
        cursor.execute("FROM orders.item(?)", [_key(_name(7))])


def test_a_query_by_the_command_loads_the_table(built: LakeBuilder, tmp_path: Path) -> None:
    sql = f"SELECT n FROM orders.item('{_key(_name(7))}')"
    assert plain_view(built.lake, sql) == [{"n": 7}]
    with connect_for(built.lake, sql) as connection, pytest.raises(QueryError) as refused:
        run_query(connection, sql.replace("SELECT n", "SELECT nothing(n)"))
    assert "does not exist yet" not in str(refused.value)
    empty = LakeBuilder.at(tmp_path / "empty")
    with connect_for(empty.lake, sql) as connection, pytest.raises(QueryError) as refused:
        run_query(connection, sql)
    assert "orders.item does not exist yet" in str(refused.value)
    assert "materialise orders/current_state" in str(refused.value)
