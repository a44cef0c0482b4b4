"""Views for a plain DuckDB shell: run in a fresh process, they show what `connect()` shows."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.lake.engine.duckdb_session import arrow_table
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.publish.ttl_archive import build_archive_day
from cdc_pipeline.lake.query import view_script as module
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.view_script import list_views, view_script
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change

_DAY = day_of(START_US)
_VIEWS = ["raw_stream", "cdc", "history", "ttl_archive", "pitr_export", "current_state"]
_DIGITS = "12345678901234567890123456789012345678"
_ODD: dict[str, dict[str, Any]] = {
    "text": {"S": 'it\'s; -- "not"\n.quit\r\x00\x01 \\ ü 🚪'},
    "big": {"N": _DIGITS},
    "tiny": {"N": "1E-130"},
    "price": {"N": "-0.05"},
    "flag": {"BOOL": False},
    "binary": {"B": "AP+AYmluYXJ5"},
    "texts": {"SS": ["a'b", "\n", ""]},
    "numbers": {"NS": ["-1.25", "2", _DIGITS[:30]]},
    "binaries": {"BS": ["AAI=", "AQ=="]},
    "nested": {"M": {"x": {"L": [{"N": "0.1234567890123456789"}, {"S": "\x00"}]}}},
    'it\'s "odd"; --': {"S": "name"},
    "mixed": {"N": "1"},
}
_AGGREGATE = 'SELECT op AS "an \'odd\' ""name""", count(*) AS n FROM orders.cdc GROUP BY 1'

_SHELL = """
import duckdb, sys
connection = duckdb.connect()
connection.execute(sys.stdin.read())
assert not [name for name in sys.modules if name.startswith(("cdc_pipeline", "pyiceberg"))]
found = connection.execute(
    "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal"
).fetchall()
for schema, view in found:
    connection.execute(f"USE {schema}")  # the views do not depend on where one is
    connection.execute(f"COPY (FROM {schema}.{view}) TO '{sys.argv[1]}/{schema}.{view}.parquet'")
"""


def _in_a_shell(script: str, folder: Path) -> dict[str, pa.Table]:
    """Every view of the script, as a process without this package reads it."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-I", "-W", "error", "-c", _SHELL, str(folder)]
    subprocess.run(command, input=script, text=True, check=True, timeout=60)
    return {path.name.removesuffix(".parquet"): pq.read_table(path) for path in folder.iterdir()}


def _sorted(table: pa.Table) -> tuple[list[tuple[str, str]], list[str]]:
    # Parquet and DuckDB have a name each for what a list is made of.
    columns = [(f.name, re.sub(r"list<\w+: ", "list<", str(f.type))) for f in table.schema]
    return columns, sorted(map(repr, table.to_pylist()))


def _assert_shows_the_same(
    built: LakeBuilder, found: dict[str, pa.Table], without: str = ""
) -> None:
    with connect_lake(built.lake) as connection:
        for name, table in found.items():
            if name != without:
                assert _sorted(table) == _sorted(arrow_table(connection, f"FROM {name}")), name


def _fill(built: LakeBuilder) -> None:
    """A published base with changes behind it, old and new, and all that is built from them."""
    built.start()
    built.stage({f"i{n}": _ODD if n % 2 else {"mixed": {"N": str(n)}} for n in range(6)})
    built.read_to(START_US + MARGIN_US)
    built.land([change("i0", 1, {"price": {"N": "1.5"}})])
    publish_current_state(built.table_lake)
    built.land(
        [
            change("i1", 2, None),
            change("i2", 3, {**_ODD, "mixed": {"S": "other"}, "price": {"N": "1.123456"}}),
            change("new", 4, {**_ODD, "added": {"N": "7"}}, op="I"),
            change("i0", 5, {}),
        ]
    )
    build_cdc_day(built.table_lake, _DAY)


def test_a_plain_shell_shows_what_connect_shows(tmp_path: Path) -> None:
    """At the moment when the script was printed, whatever lands and is published behind it."""
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "by_op.sql").write_text(_AGGREGATE, "utf-8")
    tables = [{"name": "orders", "ttl_archive": True}]
    built = LakeBuilder.at(tmp_path, tables=tables, aggregates=str(folder))
    _fill(built)
    build_archive_day(built.table_lake, _DAY)
    (aggregate,) = load_aggregates(folder)
    build_aggregate(built.lake, aggregate)
    script, expected = "".join(view_script(built.lake)), built.items()

    # A shell takes some of them, and lines that begin with a point, for its own.
    assert {sign for sign in script if sign < " "} == {"\n"}
    assert not re.search(r"^[.]", script, re.MULTILINE)
    found = _in_a_shell(script, tmp_path / "out")
    assert found.keys() == {f"orders.{view}" for view in _VIEWS} | {"aggregates.by_op"}
    assert sorted(found) == sorted(list_views(built.lake))
    assert [found[f"orders.{view}"].num_rows for view in _VIEWS] == [5, 5, 5, 0, 6, 6]
    assert found["aggregates.by_op"].num_rows == 3
    assert _items(found) == expected
    _assert_shows_the_same(built, found)

    built.land([change("later", 9, {"price": {"N": "9"}})])
    publish_current_state(built.table_lake)
    assert _items(_in_a_shell(script, tmp_path / "later")) == expected
    assert built.items() != expected


def _items(found: dict[str, pa.Table]) -> dict[str, str]:
    state = found["orders.current_state"].select(["_key", "_item"]).to_pylist()
    return {row["_key"]: row["_item"] for row in state}


def test_some_tables_only(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path, tables=[{"name": "orders"}, {"name": "customers"}])
    _fill(built)
    script = "".join(view_script(built.lake, ["orders"]))
    assert "customers" not in script
    assert "aggregates" not in script
    assert "customers" in "".join(view_script(built.lake))
    assert list_views(built.lake, ["customers"]) == []
    assert list_views(built.lake, ["aggregates"]) == []
    with pytest.raises(SettingsError, match="no table 'nothing'"):
        "".join(view_script(built.lake, ["nothing"]))


def test_too_much_to_print_is_left_out_and_said(
    built: LakeBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(built)
    monkeypatch.setattr(module, "_DELTA_BYTES", 100)
    script = "".join(view_script(built.lake))
    assert "current_state is as last published" in script
    assert "materialise orders/current_state" in script
    assert "INSERT" not in script
    found = _in_a_shell(script, tmp_path / "out")
    _assert_shows_the_same(built, found, without="orders.current_state")
    publish_current_state(built.table_lake)
    assert "as last published" not in "".join(view_script(built.lake))


def test_hashed_columns_are_shown_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, key = "a very private name", "k" * 40
    monkeypatch.setenv("CDC_MASKING_KEY", key)
    rules = {"text": {"hash": True}, "flag": {"drop": True}, "mixed": {"mask": "***"}}
    built = LakeBuilder.at(tmp_path, tables=[{"name": "orders", "columns": rules}])
    built.start()
    built.stage({"a": {"text": {"S": secret}}})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)
    with connect_lake(built.lake) as connection:
        published = arrow_table(connection, "FROM orders.current_state")
    built.land([change("a", 1, {"text": {"S": secret}, "mixed": {"N": "1"}}), change("b", 2, {})])
    build_cdc_day(built.table_lake, _DAY)
    with_key = "".join(view_script(built.lake))
    monkeypatch.delenv("CDC_MASKING_KEY")
    script = "".join(view_script(built.lake))
    assert script.splitlines()[1:] == with_key.splitlines()[1:]
    assert "current_state is as last published" in script
    assert "INSERT" not in script
    assert secret not in script
    assert key not in script
    found = _in_a_shell(script, tmp_path / "out")
    assert _sorted(found["orders.current_state"]) == _sorted(published)
    assert secret not in repr(found["orders.cdc"].to_pylist())
    _assert_shows_the_same(built, found, without="orders.current_state")


def test_dropped_and_masked_columns_are_so_in_the_rows_of_the_script(tmp_path: Path) -> None:
    rules = {"text": {"drop": True}, "mixed": {"mask": "***"}}
    built = LakeBuilder.at(tmp_path, tables=[{"name": "orders", "columns": rules}])
    built.start()
    built.stage({"a": {"text": {"S": "unseen-1"}}})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)
    built.land([change("b", 1, {"text": {"S": "unseen-2"}, "mixed": {"S": "unseen-3"}})])
    script = "".join(view_script(built.lake, ["orders"]))
    assert "unseen" not in script
    found = _in_a_shell(script, tmp_path / "out")
    assert found["orders.current_state"].num_rows == 2
    _assert_shows_the_same(built, found)
