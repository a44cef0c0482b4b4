"""Spark on the tables that the product wrote: what DuckDB's views show, and the same aggregates."""

import random
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.lake.engine.duckdb_session import arrow_table
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.transform.aggregates import Aggregate, load_aggregates
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change
from cdc_pipeline_tests.spark.engines import Duck, Spark, assert_same, rows, types

pytestmark = pytest.mark.spark

_DAY = day_of(START_US)
_DAY_SECONDS = 24 * 3600
_TEXTS = ["", " ", "ü", "日本", "😀", "null", '"', None]
_ALWAYS = ("customer_id", "order_id")
_AGGREGATES = load_aggregates(Path(__file__).parents[2] / "aggregates")

_PARAMETERS = [pytest.param(a, id=a.name) for a in _AGGREGATES]


def _order(chance: random.Random) -> dict[str, Any]:
    """An item with every type, most attributes missing now and then."""
    day = _DAY.replace(day=chance.choice([1, 2, _DAY.day]))
    text = chance.choice(_TEXTS)
    item: dict[str, Any] = {
        "country": {"NULL": True} if text is None else {"S": text},
        "status": {"S": chance.choice(["new", "paid"])},
        "total": {"N": f"{chance.randint(-(10**14), 10**14) / 100:.2f}"},
        "huge": {"N": str(chance.randint(0, 10**38 - 1))},
        "revision": {"N": str(chance.randint(0, 9))},
        "ordered_at": {"S": f"{day.isoformat()}T12:00:00Z"},
        "is_gift": {"BOOL": chance.random() < 0.5},
        "signature": {"B": "AAH/"},
        "tags": {"SS": ["a", "ü"]},
        "weights": {"NS": ["1", "2.5"]},
        "seals": {"BS": ["AAH/"]},
        "lines": {"L": [{"M": {"sku": {"S": "ü"}, "price": {"N": "1E+2"}}}]},
        "odd": chance.choice([{"S": "text"}, {"S": "more"}, {"N": "1"}]),
    }
    kept = {name: value for name, value in item.items() if chance.random() < 0.8}
    return kept | {name: {"S": f"{name[0]}{chance.randint(0, 9)}"} for name in _ALWAYS}


def _customer(chance: random.Random) -> dict[str, Any]:
    segment = chance.choice(["home", "small business", "😀", None])
    return {"segment": {"S": segment}} if segment is not None else {}


def _build(folder: Path, table: str, items: dict[str, dict[str, Any]]) -> LakeBuilder:
    folder.mkdir()
    built = LakeBuilder.at(folder, tables=[{"name": table}])
    built.start()
    built.stage(items)
    built.read_to(START_US + MARGIN_US)
    return built


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> LakeBuilder:
    """A base with changes folded in, deletes among them, and two days of `cdc`."""
    chance = random.Random(1)
    folder = tmp_path_factory.mktemp("lake") / "orders"
    built = _build(folder, "orders", {f"o{n}": _order(chance) for n in range(60)})
    landed = [
        change(f"o{chance.randint(0, 80)}", n, chance.choice([None, _order(chance)]))
        for n in [*range(1, 60), *range(_DAY_SECONDS, _DAY_SECONDS + 30)]
    ]
    built.land(landed)
    built.land(landed[20:40])
    publish_current_state(built.table_lake)
    for day in sorted({day_of(one.write_time_us) for one in landed}):
        build_cdc_day(built.table_lake, day)
    return built


@pytest.fixture(scope="module")
def customers(tmp_path_factory: pytest.TempPathFactory) -> LakeBuilder:
    chance = random.Random(2)
    items = {f"c{n}": _customer(chance) | {"customer_id": {"S": f"c{n}"}} for n in range(12)}
    built = _build(tmp_path_factory.mktemp("lake") / "customers", "customers", items)
    publish_current_state(built.table_lake)
    return built


def _files(built: LakeBuilder, view: str) -> list[str]:
    table = built.lake.iceberg.load(f"{built.table.safe_name}_{view}")
    assert table is not None
    return data_files(table)


def _view(built: LakeBuilder, view: str) -> pa.Table:
    with connect_lake(built.lake) as connection:
        return arrow_table(connection, f"SELECT * FROM orders.{view}")


@pytest.mark.parametrize("view", ["current_state", "cdc"])
def test_spark_reads_the_data_files(view: str, orders: LakeBuilder, spark: Spark) -> None:
    found = spark.result(spark.session.read.parquet(*_files(orders, view)))
    assert found.num_rows > 40
    assert_same(_view(orders, view).select(found.column_names), found)


@pytest.mark.parametrize("view", ["current_state", "cdc"])
def test_spark_reads_the_iceberg_table(view: str, orders: LakeBuilder, iceberg: Spark) -> None:
    table = orders.lake.iceberg.load(f"orders_{view}")
    assert table is not None
    loaded = iceberg.session.read.format("iceberg").load(table.metadata_location)
    found = iceberg.result(loaded)
    assert_same(_view(orders, view).select(found.column_names), found)


def test_the_view_is_the_reference_fold(orders: LakeBuilder, spark: Spark) -> None:
    found = spark.result(spark.session.read.parquet(*_files(orders, "current_state")))
    shown = found.select(["_key", "_item"])
    assert dict(rows(shown)) == orders.items()


def _statement(aggregate: Aggregate, day: date) -> str:
    """As it is run: the parameter is the one thing that engines spell differently."""
    return aggregate.sql.replace("$day", f"DATE '{day.isoformat()}'")


@pytest.mark.parametrize("aggregate", _PARAMETERS)
def test_both_engines_aggregate_alike(
    aggregate: Aggregate, orders: LakeBuilder, customers: LakeBuilder, duck: Duck, spark: Spark
) -> None:
    for engine in (duck, spark):
        engine.provide("orders.current_state", _files(orders, "current_state"))
        engine.provide("customers.current_state", _files(customers, "current_state"))
    sql = _statement(aggregate, _DAY)
    one, other = duck.run(sql), spark.run(sql)
    assert one.num_rows > 2
    assert rows(one) == rows(other)
    # Sums are exact in both, and of a precision of their own.
    assert list(map(_roughly, types(one))) == list(map(_roughly, types(other)))


def _roughly(column: tuple[str, str]) -> tuple[str, str]:
    name, kind = column
    if kind.startswith("decimal128("):
        return name, f"decimal of scale {kind.rpartition(',')[2].strip(' )')}"
    return column
