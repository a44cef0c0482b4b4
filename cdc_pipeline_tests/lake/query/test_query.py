"""connect() and queries: what is loaded, what is said when it is not there, exact output."""

import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from cdc_pipeline.core.errors import QueryError, SettingsError
from cdc_pipeline.erase.places import lake_prefixes
from cdc_pipeline.lake import connect
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.query import as_csv, as_json, connect_for, run_query
from cdc_pipeline.settings.load import PATH_VARIABLE
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change, plain_view

_38 = "12345678901234567890123456789012345678"
_TABLES = [{"name": "orders"}, {"name": "My.Customers"}]


@pytest.fixture
def ready(tmp_path: Path) -> LakeBuilder:
    """A published table with a 38-digit number and a change behind it, and an empty one."""
    built = LakeBuilder.at(tmp_path, tables=_TABLES)
    built.start()
    built.stage({"a": {"n": {"N": _38}, "b": {"B": "qg=="}, "ns": {"NS": ["1.5", "2"]}}})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)
    built.land([change("b", 1, {"n": {"N": "-" + _38}, "t": {"S": 'a,"b"\n'}})])
    return built


def _output(built: LakeBuilder, sql: str, form: Any) -> str:
    with connect_for(built.lake, sql) as connection:
        result = run_query(connection, sql)
        assert result is not None
        return "".join(form(result))


def test_json_keeps_all_digits(ready: LakeBuilder) -> None:
    text = _output(ready, "SELECT n, b, ns, t FROM orders.current_state ORDER BY _key", as_json)
    assert json.loads(text, parse_int=Decimal, parse_float=Decimal) == [
        {"n": Decimal(_38), "b": "qg==", "ns": [Decimal("1.5"), Decimal(2)], "t": None},
        {"n": Decimal("-" + _38), "b": None, "ns": None, "t": 'a,"b"\n'},
    ]
    assert len(text.splitlines()) == 4
    assert _output(ready, "SELECT 1 AS one WHERE false", as_json) == "[]\n"


def test_csv_keeps_all_digits(ready: LakeBuilder) -> None:
    text = _output(ready, "SELECT n, b, t FROM orders.current_state ORDER BY _key", as_csv)
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["n", "b", "t"]
    assert rows == [[_38, "qg==", ""], ["-" + _38, "", 'a,"b"\n']]
    assert _output(ready, "SELECT 1 AS one WHERE false", as_csv) == "one\n"


@pytest.mark.parametrize("columns", ["1 AS a, 2 AS a", "1 AS a, 2 AS a, 3 AS a", "1 a, 2 a, 3 a_1"])
def test_columns_of_one_name_are_all_shown(columns: str, ready: LakeBuilder) -> None:
    (row,) = json.loads(_output(ready, f"SELECT {columns}", as_json))
    assert list(row.values()) == list(range(1, columns.count(",") + 2))
    _, *rows = csv.reader(io.StringIO(_output(ready, f"SELECT {columns}", as_csv)))
    assert rows == [[str(n) for n in range(1, columns.count(",") + 2)]]


def _error(built: LakeBuilder, sql: str) -> str:
    with pytest.raises(QueryError) as refused:
        _output(built, sql, as_json)
    assert "\x1b" not in str(refused.value)
    return str(refused.value)


def test_an_unknown_table_lists_the_known_ones(ready: LakeBuilder) -> None:
    message = _error(ready, "SELECT * FROM ordes.current_state")
    assert "'ordes'" in message
    assert "my_customers, orders, aggregates" in message


def test_a_view_that_is_not_there_yet_lists_those_that_are(ready: LakeBuilder) -> None:
    message = _error(ready, "SELECT * FROM orders.cdc")
    assert "orders.current_state, orders.pitr_export, orders.raw_stream" in message
    assert "orders.cdc does not exist yet" in message
    assert "materialise orders/cdc" in message
    assert "exist now: none" in _error(ready, "SELECT * FROM my_customers.current_state")


@pytest.mark.parametrize(
    "sql", ["SELEC 1", "SELECT FROM", "", "-- nothing", "SELECT nothing FROM orders.current_state"]
)
def test_bad_sql_is_a_query_error(sql: str, ready: LakeBuilder) -> None:
    assert _error(ready, sql)


def test_an_error_in_a_row_is_a_query_error(ready: LakeBuilder) -> None:
    assert _error(ready, "SELECT CAST(t AS INT) FROM orders.current_state")


def test_only_what_is_named_is_loaded(ready: LakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = ready.lake.iceberg.load

    def spy(name: str) -> Any:
        loaded.append(name)
        return load(name)

    monkeypatch.setattr(ready.lake.iceberg, "load", spy)
    with connect_for(ready.lake, "SELECT 1"):
        assert loaded == []
    with connect_for(ready.lake, "SELECT * FROM My_Customers.cdc"):
        assert loaded
        assert all(name.startswith("my_customers") for name in loaded)


def _views(connection: duckdb.DuckDBPyConnection) -> set[str]:
    rows = connection.execute("SELECT table_schema, table_name FROM information_schema.tables")
    return {
        f"{schema}.{name}" for schema, name in rows.fetchall() if schema not in ("main", "temp")
    }


def test_connect_has_a_schema_per_table(
    ready: LakeBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("lake: lake\ntables: [{name: orders}, {name: My.Customers}]\n")
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    with connect() as connection:
        assert _views(connection) == {
            "orders.raw_stream",
            "orders.pitr_export",
            "orders.current_state",
        }
        assert connection.execute("SELECT count(*) FROM orders.current_state").fetchall() == [(2,)]
        schemas = connection.execute("SELECT schema_name FROM duckdb_schemas()").fetchall()
        assert {("orders",), ("my_customers",), ("aggregates",)} <= set(schemas)
    with connect(["My.Customers"]) as connection:
        assert _views(connection) == set()


def test_raw_stream_shows_every_landed_row_in_the_landing_columns(ready: LakeBuilder) -> None:
    ready.land([change("b", 1, {}), change("c", 2, None)], generation=2)
    rows = plain_view(ready.lake, "SELECT * FROM orders.raw_stream ORDER BY order_key")
    assert [row["order_key"][:6] for row in rows] == ["000001", "000002", "000002"]
    assert list(rows[0])[:4] == ["uuid", "op", "time_stamp", "data"]


def test_raw_stream_without_rows_has_its_columns(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path)
    built.start()
    assert plain_view(built.lake, "SELECT uuid, order_key FROM orders.raw_stream") == []


def test_unlogged_objects_are_not_seen(ready: LakeBuilder) -> None:
    (key,) = ready.state.objects
    data = ready.lake.store.read(key)
    assert data is not None
    ready.lake.store.write(key.replace("-", "-f")[:-20] + "0.parquet", data)
    assert len(plain_view(ready.lake, "SELECT * FROM orders.raw_stream")) == 1


def test_the_export_view_is_of_the_live_baseline(ready: LakeBuilder) -> None:
    sql = "SELECT _key FROM orders.pitr_export"
    assert plain_view(ready.lake, sql) == [{"_key": '{"pk":{"S":"a"}}'}]
    ready.stage({"later": {}, "even later": {}}, generation=2)
    assert plain_view(ready.lake, sql) == [{"_key": '{"pk":{"S":"a"}}'}]
    publish_current_state(ready.table_lake)
    assert len(plain_view(ready.lake, sql)) == 2


def test_aggregates_are_views_on_what_was_built(ready: LakeBuilder, tmp_path: Path) -> None:
    folder = tmp_path / "aggregates"
    folder.mkdir()
    (folder / "totals.sql").write_text(
        "SELECT count(*) AS n, sum(n) AS s FROM orders.current_state"
    )
    (folder / "again.sql").write_text("SELECT n + 1 AS n FROM aggregates.totals")
    again, totals = load_aggregates(folder)
    assert "aggregates.totals" not in _error(ready, "SELECT * FROM aggregates.again")
    build_aggregate(ready.lake, totals)
    build_aggregate(ready.lake, again)
    assert plain_view(ready.lake, "SELECT * FROM aggregates.totals") == [{"n": 2, "s": Decimal(0)}]
    assert plain_view(ready.lake, "SELECT * FROM aggregates.again") == [{"n": 3}]


def test_a_bad_file_hides_no_other_aggregate(ready: LakeBuilder, tmp_path: Path) -> None:
    folder = tmp_path / "aggregates"
    folder.mkdir()
    for name in ("a_total", "other"):
        (folder / f"{name}.sql").write_text("SELECT count(*) AS n FROM orders.current_state")
    (folder / "reader.sql").write_text("SELECT * FROM aggregates.other")
    for aggregate in load_aggregates(folder):
        build_aggregate(ready.lake, aggregate)
    (folder / "other.sql").write_text("SELECT FROM WHERE")
    (folder / "never built.sql").write_text("")
    assert plain_view(ready.lake, "SELECT * FROM aggregates.a_total") == [{"n": 2}]
    # Which masking rules their rows have to follow is in a file that says nothing now.
    assert "other.sql: not valid SQL" in _error(ready, "SELECT * FROM aggregates.other")
    assert "whose own file is broken" in _error(ready, "SELECT * FROM aggregates.reader")
    with pytest.raises(SettingsError, match=r"other\.sql: not valid SQL"):
        lake_prefixes(ready.table_lake)  # erasing would leave its rows


def test_a_damaged_lake_does_not_leave_a_connection_open(
    ready: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[duckdb.DuckDBPyConnection] = []
    plain = duckdb.connect

    def spy(*args: Any, **kwargs: Any) -> duckdb.DuckDBPyConnection:
        opened.append(plain(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr("cdc_pipeline.lake.engine.duckdb_session.duckdb.connect", spy)
    entry = ready.table_lake.paths.entry(ready.state.n)
    ready.lake.store.write(entry, b"{")
    with pytest.raises(Exception, match="not a readable part of the capture log"):
        connect_lake(ready.lake)
    with pytest.raises(duckdb.ConnectionException):
        opened[0].execute("SELECT 1")


def test_decimals_of_any_scale_are_number_tokens() -> None:
    with duckdb.connect() as connection:
        values = pa.array([Decimal("0E-38"), Decimal("0." + "9" * 38)], pa.decimal128(38, 38))
        connection.register("t", pa.table({"n": values}))
        text = "".join(as_json(connection.sql("SELECT n FROM t")))
    assert [row["n"] for row in json.loads(text, parse_float=Decimal)] == values.to_pylist()
