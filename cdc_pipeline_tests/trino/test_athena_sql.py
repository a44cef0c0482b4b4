"""The queries of `athena-sql` on a real Trino, over the Glue tables and S3 files of a whole lake.

Each shows what the same statement shows in DuckDB over `connect()`.
"""

import base64
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from cdc_pipeline.core.items.columns import Column
from cdc_pipeline.core.items.view_names import STORED_NAMES
from cdc_pipeline.lake.glue_partitions import registered_days, repair
from cdc_pipeline.lake.iceberg.files import data_files, live_files
from cdc_pipeline.lake.query.athena import catalogued
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.sandbox.demo.traffic import create_tables, seed
from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.transform.athena import Statement, athena_statements
from cdc_pipeline_tests.e2e.world import World, few_items_are_many, make_world
from cdc_pipeline_tests.maven import Unavailable
from cdc_pipeline_tests.trino import server
from cdc_pipeline_tests.trino.server import Trino

pytestmark = [pytest.mark.trino, pytest.mark.timeout(900)]

_DIGITS = "12345678901234567890123456789012345678"
_ODD: dict[str, dict[str, Any]] = {
    "big": {"N": _DIGITS},
    "fraction": {"N": "-0.12345678901234567890123456789"},
    "tiny": {"N": "1E-130"},
    "nothing": {"NULL": True},
    "empty": {"S": ""},
    "flag": {"BOOL": False},
    "seal": {"B": b"\x00\xff\x80"},
    "texts": {"SS": ["b", "ä"]},
    "numbers": {"NS": ["10", "2.5"]},
    "seals": {"BS": [b"\x01", b"\x00"]},
    'it\'s "odd" \\ $.x[0]': {"S": "hostile name"},
    "select": {"S": "«☕ 🚪» \" ' \\ \n"},
    "mixed": {"N": "1"},
}
_KEY = {"customer_id": {"S": "odd"}, "order_id": {"S": 'it\'s "1"'}}
_RAW = (
    "(SELECT *, strftime(time_stamp, '%Y') AS year, strftime(time_stamp, '%m') AS month, "
    "strftime(time_stamp, '%d') AS day FROM orders.raw_stream)"
)
_IN_DUCKDB = {
    '"cdc"."orders_current_state"': "orders.current_state",
    '"cdc"."orders_cdc"': "orders.cdc",
    '"cdc"."orders_snapshot"': "orders.pitr_export",
    '"cdc"."orders_raw_stream"': _RAW,
}


@dataclass(frozen=True)
class Filled:
    """The lake of a small shop, and a Trino that reads it."""

    world: World
    trino: Trino
    statements: dict[str, Statement]
    columns: list[Column]

    def in_duckdb(self, sql: str) -> list[tuple[Any, ...]]:
        with connect_lake(self.world.lake()) as connection:
            rows = connection.execute(sql).fetchall()
        return [tuple(map(_plain, row)) for row in rows]

    def in_trino(self, sql: str) -> list[tuple[Any, ...]]:
        catalogue = "hive" if "raw_stream" in sql else "iceberg"
        return self.trino.rows(sql.replace('"cdc".', f'{catalogue}."cdc".'))


def _plain(value: Any) -> Any:
    return value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    try:
        server.jars()
    except Unavailable as reason:
        pytest.skip(f"Trino: {reason}")
    folder = tmp_path_factory.mktemp("trino")
    with (
        pytest.MonkeyPatch.context() as patch,
        SandboxProcess(
            ttl_interval_seconds=0.2, exports=ExportOptions(delay_seconds=0.1)
        ) as sandbox,
    ):
        world = make_world(sandbox, folder, "s3")
        world.activate(patch)
        _fill(world)
        has = catalogued(world.table_lake("orders"), json.dumps(_KEY))
        statements = {s.name: s for s in athena_statements(has)}
        with server.running(sandbox.endpoint_url, world.account) as trino:
            yield Filled(world, trino, statements, list(has.columns))


def _fill(world: World) -> None:
    """Seeded orders, all odd values, updates, deletes, one by TTL, and a change landed twice."""
    world.configure("orders", "customers")
    create_tables(world.dynamodb)
    seed(world.dynamodb, orders=40, customers=5)
    put = world.dynamodb.put_item
    put(TableName="orders", Item={**_KEY, **_ODD})
    world.bootstrap("orders")
    put(TableName="orders", Item={**_KEY, **_ODD, "mixed": {"S": "text"}})
    gone = {"customer_id": {"S": "odd"}, "order_id": {"S": "gone"}}
    put(TableName="orders", Item={**gone, **_ODD})
    world.dynamodb.delete_item(TableName="orders", Key=gone)
    _expire(world, {"customer_id": {"S": "odd"}, "order_id": {"S": "expired"}})
    world.capture("orders")
    world.publish("orders")
    # Athena reads what a row delta publishes, with the places of dead rows beside it.
    put(TableName="orders", Item={**_KEY, **_ODD, "mixed": {"S": "text"}, "later": {"N": "1"}})
    put(TableName="orders", Item={**gone, "tiny": {"N": "2E-130"}})
    world.capture("orders")
    with few_items_are_many():
        world.publish("orders")
    state = world.lake().iceberg.load("orders_current_state")
    assert state is not None
    assert live_files(state).deletes
    world.build_cdc("orders")
    lake, table = world.lake(), world.table("orders")
    landed = sorted(world.landing_files("orders"))[-1]
    data = lake.store.read(landed)
    assert data is not None
    # As a run leaves one that was killed before its log entry: readers of ours do not see it.
    lake.store.write(f"{landed.rpartition('/')[0]}/left-behind.parquet", data)
    assert registered_days(lake.table(table))


def _expire(world: World, key: dict[str, Any]) -> None:
    expires = {"expires_at": {"N": str(int(time.time()) - 1)}}
    world.dynamodb.put_item(TableName="orders", Item={**key, **expires})
    deadline = time.monotonic() + 120
    while world.dynamodb.get_item(TableName="orders", Key=key, ConsistentRead=True).get("Item"):
        assert time.monotonic() < deadline, "TTL deletes nothing"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "name",
    [
        "current_state",
        "item",
        "rescued",
        "time_travel",
        "cdc_of_a_day",
        "ttl_deletes",
        "history",
        "item_history",
        "changes_per_day",
        "changes_per_hour",
        "landed_of_a_day",
        "pitr_export",
    ],
)
def test_trino_shows_what_duckdb_shows(filled: Filled, name: str) -> None:
    sql = filled.statements[name].sql
    same = re.sub(r"\nFOR (TIMESTAMP|VERSION) AS OF .*", "", sql)
    micros = '"_write_time_us" - "_write_time_us" % 1000'
    same = same.replace(
        'from_unixtime("_write_time_us" / 1000 / 1e3)', f"make_timestamptz({micros})"
    )
    for relation, view in _IN_DUCKDB.items():
        same = same.replace(relation, view)
    found, expected = filled.in_trino(sql), filled.in_duckdb(same)
    assert expected
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    if "ORDER BY" in sql and name != "ttl_deletes":
        assert found == expected


def test_all_queries_are_tried(filled: Filled) -> None:
    assert "changes_as_columns" in filled.statements
    assert "snapshots" in filled.statements
    assert len(filled.statements) == 14


def test_raw_files_hold_a_change_twice_and_the_queries_do_not(filled: Filled) -> None:
    raw = 'SELECT count(*), count(DISTINCT "uuid") FROM "cdc"."orders_raw_stream"'
    ((rows, changes),) = filled.in_trino(raw)
    assert rows > changes
    counted = sum(row[-1] for row in filled.in_trino(filled.statements["changes_per_day"].sql))
    assert counted == changes


def test_attributes_out_of_data(filled: Filled) -> None:
    """Whatever their names are; numbers by all their digits."""
    found = filled.in_trino(filled.statements["changes_as_columns"].sql)
    changes = filled.in_duckdb(
        "SELECT time_stamp, op, keys, data FROM orders.cdc ORDER BY keys, order_key"
    )
    assert [row[:3] for row in found] == [row[:3] for row in changes]
    for row, change in zip(found, changes, strict=True):
        item = json.loads(change[3], parse_int=_Token, parse_float=_Token) if change[3] else {}
        shown = dict(zip([c.name for c in filled.columns], row[3:], strict=True))
        for column in filled.columns:
            value = shown[column.name]
            if column.type in ("json",) or column.type.startswith("list<"):
                value = json.loads(value) if value is not None else None
                assert value == _floats(item.get(column.attribute)), column
            else:
                assert value == _shown(item.get(column.attribute), column.type), column


class _Token(str):
    """A JSON number's own digits."""


def _shown(value: Any, kind: str) -> Any:
    """A scalar as the query shows it."""
    if value is None or isinstance(value, dict | list):
        return None
    if kind == "binary":
        return base64.b64decode(value)
    if kind == "boolean":
        return value
    if kind == "int64":
        return int(value) if re.fullmatch("-?[0-9]+", str(value)) else None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _floats(value: Any) -> Any:
    if isinstance(value, _Token):
        return float(value)
    if isinstance(value, list):
        return [_floats(member) for member in value]
    if isinstance(value, dict):
        return {name: _floats(member) for name, member in value.items()}
    return value


def test_every_column_of_every_table(filled: Filled) -> None:
    """Whole tables, all types: 38 digits, nulls, sets, binaries, microseconds."""
    for relation, view in _IN_DUCKDB.items():
        if "raw" in relation:
            continue
        stored = STORED_NAMES[view.rpartition(".")[2]]
        added = ", ".join(name for name, column in stored.items() if name != column)
        expected = f"SELECT * EXCLUDE ({added}) FROM {view}"
        found = filled.in_trino(f"SELECT * FROM {relation}")
        assert sorted(map(repr, found)) == sorted(map(repr, filled.in_duckdb(expected))), view
    big = filled.in_trino('SELECT "big" FROM "cdc"."orders_current_state" WHERE "big" IS NOT NULL')
    assert big == [(Decimal(_DIGITS),)]


def test_snapshots_are_those_of_the_table(filled: Filled) -> None:
    table = filled.world.lake().iceberg.load("orders_current_state")
    assert table is not None
    found = filled.in_trino(filled.statements["snapshots"].sql)
    assert {row[1] for row in found} == {s.snapshot_id for s in table.metadata.snapshots}


def test_projected_partitions_need_no_registering(filled: Filled) -> None:
    """Last: it changes the table."""
    world = filled.world
    lake, table, glue = world.lake(), world.table("orders"), world.client("glue")
    where = {"DatabaseName": "cdc", "TableName": "orders_raw_stream"}
    counts = (
        'SELECT "year", "month", "day", count(*) FROM {}."cdc"."orders_raw_stream" GROUP BY 1, 2, 3'
    )
    before = filled.trino.rows(counts.format("hive"))
    assert before
    for partition in glue.get_partitions(**where)["Partitions"]:
        glue.delete_partition(**where, PartitionValues=partition["Values"])
    world.configure("orders", "customers", glue={"projection": True})
    lake = world.lake()
    assert str(repair(lake.table(table))) == "table outdated"
    assert registered_days(lake.table(table)) == []
    assert filled.trino.rows(counts.format("projected")) == before


def test_trino_opens_one_file_for_one_key(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys begin with the 16 characters that Iceberg keeps of a bound by default."""
    monkeypatch.setattr("cdc_pipeline.lake.iceberg.writer._FILE_BYTES", 1)
    monkeypatch.setattr("cdc_pipeline.lake.iceberg.writer.ROW_GROUP_ROWS", 10)
    world = filled.world
    world.dynamodb.put_item(TableName="orders", Item={**_KEY, "new": {"S": "x"}})
    world.capture("orders")
    world.publish("orders")
    table = world.lake().iceberg.load("orders_current_state")
    assert table is not None
    files = len(data_files(table))
    assert files > 3
    (key,) = filled.in_duckdb("SELECT min(_key) FROM orders.current_state")[0]
    every = 'SELECT count(_key) FROM iceberg."cdc"."orders_current_state"'
    one = f"{every} WHERE _key = '{key}'"
    assert filled.trino.rows(one) == [(1,)]
    assert filled.trino.splits(every) - filled.trino.splits(one) == files - 1
