"""One name for one thing: what `docs/views.md` says is what every view has."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

import cdc_pipeline
from cdc_pipeline.core.items.view_names import STORED_NAMES, VIEW_COLUMNS
from cdc_pipeline.lake.engine.duckdb_session import arrow_table
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.publish.ttl_archive import build_archive_day
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.query import VIEWS
from cdc_pipeline.lake.query.view_script import view_script
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change

_DAY = datetime.fromtimestamp(START_US / 1_000_000, UTC).date()
_DOCS = Path(cdc_pipeline.__file__).parents[1] / "docs" / "views.md"
_NAMED = ", ".join(VIEW_COLUMNS)


def _fill(built: LakeBuilder) -> None:
    built.start()
    built.stage({"a": {"n": {"N": "1"}}, "b": {}})
    gone = change("b", 3, None)._replace(is_ttl_delete=True, old_image='{"pk":{"S":"b"}}')
    built.land([change("a", 2, {"n": {"N": "2"}}), gone])
    built.read_to(START_US + MARGIN_US * 3)
    publish_current_state(built.table_lake)
    built.land([change("a", 4, {"n": {"N": "3"}})])
    built.read_to(START_US + MARGIN_US * 5)
    build_cdc_day(built.table_lake, _DAY)
    build_archive_day(built.table_lake, _DAY)


def _types(connection: duckdb.DuckDBPyConnection, view: str) -> list[str]:
    rows = connection.execute(f"DESCRIBE SELECT {_NAMED} FROM orders.{view}").fetchall()
    return [row[1] for row in rows]


def _assert_named(connection: duckdb.DuckDBPyConnection, view: str) -> None:
    kinds = ["VARCHAR", "VARCHAR", "VARCHAR", "TIMESTAMP WITH TIME ZONE"]
    assert _types(connection, view) == kinds, view
    old = STORED_NAMES[view]
    values = f"SELECT {_NAMED} FROM orders.{view} ORDER BY ALL"
    shown = connection.execute(values).fetchall()
    assert shown
    stored = ", ".join(old[name] for name in VIEW_COLUMNS)
    older = connection.execute(f"SELECT {stored} FROM orders.{view} ORDER BY ALL").fetchall()
    for new, kept in zip(shown, older, strict=True):
        assert new[:3] == kept[:3]
        time_us = kept[3] if isinstance(kept[3], int) else int(kept[3].timestamp() * 1_000_000)
        assert int(new[3].timestamp() * 1_000_000) == time_us


@pytest.fixture
def built(tmp_path: Path) -> LakeBuilder:
    made = LakeBuilder.at(tmp_path, tables=[{"name": "orders", "ttl_archive": True}])
    _fill(made)
    return made


def test_every_view_has_them_and_their_older_names(built: LakeBuilder) -> None:
    assert set(STORED_NAMES) == set(VIEWS)
    with connect_lake(built.lake) as connection:
        for view in VIEWS:
            _assert_named(connection, view)
    at = datetime.fromtimestamp(START_US / 1_000_000 + 4, UTC)
    with connect_lake(built.lake, as_of=at) as connection:
        for view in set(VIEWS) - {"ttl_archive"}:
            _assert_named(connection, view)
    script = "".join(view_script(built.lake))
    with duckdb.connect() as connection:
        connection.execute(script)
        for view in VIEWS:
            _assert_named(connection, view)


def test_the_page_says_what_they_are_stored_as() -> None:
    page = _DOCS.read_text("utf-8")
    listed = {}
    for line in page.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0] in STORED_NAMES:
            listed[cells[0]] = dict(zip(VIEW_COLUMNS, cells[2:], strict=True))
    assert listed == {view: dict(names) for view, names in STORED_NAMES.items()}


def test_an_attribute_of_that_name_has_another_column(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path)
    built.start()
    built.stage({"a": {"item": {"S": "mine"}, "write_time": {"N": "7"}}})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)
    with connect_lake(built.lake) as connection:
        for view in ("current_state", "pitr_export"):
            (row,) = arrow_table(connection, f"SELECT * FROM orders.{view}").to_pylist()
            assert row["item"] == row["_item"]
            assert "mine" in row.values()
            assert 7 in row.values()


def test_one_that_had_the_column_before_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = LakeBuilder.at(tmp_path)
    built.start()
    with monkeypatch.context() as older:
        older.setattr("cdc_pipeline.core.items.columns.VIEW_COLUMNS", ())
        built.stage({"a": {"item": {"S": "mine"}}})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)
    with connect_lake(built.lake) as connection:
        for view in ("current_state", "pitr_export"):
            sql = f"SELECT item, item_key = _key, count(*) OVER () FROM orders.{view}"
            assert connection.execute(sql).fetchall() == [("mine", True, 1)]
