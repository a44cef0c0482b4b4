"""Look-up of one item in a table of many files, by bounds of keys: whole, or 16 characters of them.

The keys of orders begin with the same 16 characters, which is what Iceberg stores of a bound by
default. "Cut bounds" is a table of the same rows that was committed without whole bounds. A
contender's name has the number of data files that it opens for one key (by inotify, the planner's
own count for PyIceberg), ours is checked to open one.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    Cost,
    Costs,
    Row,
    Target,
    cheapest,
    cpu_of,
    in_own_process,
    measure,
    peak_mb,
    report,
)
from benchmarks.opened_files import opened_files
from benchmarks.orders_lake import OrdersLake
from cdc_pipeline.lake.iceberg import writer
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline_tests.spark import session

_FILES, _ROWS = 2_400, 100
_LOOKUPS, _RUNS = 20, 3
_WHOLE, _CUT = "whole bounds", "cut bounds"
_MACRO, _VIEW, _PLAN, _SPARK, _OPEN = "item()", "the view", "plan", "Spark", "open"

LookUp = Callable[[str], list[tuple[Any, ...]]]


def _lake(folder: str) -> OrdersLake:
    return OrdersLake(Path(folder), _FILES * _ROWS, 0, 0)


def _write(folder: Path) -> None:
    """The same small files twice, `orders_current_state` of two lakes."""
    writer.ROW_GROUP_ROWS, writer._FILE_BYTES = _ROWS, 1
    for bounds in (_WHOLE, _CUT):
        lake = _lake(str(folder / bounds))
        lake.folder.mkdir()
        lake.write(shuffled=False, key="_key" if bounds == _WHOLE else None)
        table = lake.lake.iceberg.load("orders_current_state")
        assert table is not None
        assert len(data_files(table)) == _FILES


def _key(lake: OrdersLake, number: int) -> str:
    customer, order = lake.key(number)
    return f'{{"customer_id":{{"S":"{customer}"}},"order_id":{{"S":"{order}"}}}}'


@dataclass(frozen=True)
class _Opened:
    """A way to look up an item, ready; `process`: that does the work, beside this one."""

    look_up: LookUp
    process: int | None = None


def _open(contender: str, lake: OrdersLake, stack: ExitStack) -> _Opened:
    if contender == _PLAN:
        table = lake.lake.iceberg.load("orders_current_state")
        assert table is not None
        return _Opened(
            lambda key: [
                (task.file.file_path,)
                for task in table.scan(row_filter=f"_key == '{key}'").plan_files()
            ]
        )
    if contender == _SPARK:
        return _open_spark(lake, stack)
    connection = stack.enter_context(connect_lake(lake.lake, ["orders"], aggregates=False))
    sql = {
        _MACRO: "SELECT _key, version FROM orders.item(?)",
        _VIEW: "SELECT _key, version FROM orders.current_state WHERE _key = ?",
    }[contender]
    return _Opened(lambda key: connection.execute(sql, [key]).fetchall())


def _open_spark(lake: OrdersLake, stack: ExitStack) -> _Opened:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    spark = session.start(scratch, iceberg=True)
    stack.callback(spark.stop)
    spark.sparkContext.setLogLevel("OFF")
    catalogue = lake.folder / "lake" / "_cdc" / "catalog.db"
    for name, value in {
        "": "org.apache.iceberg.spark.SparkCatalog",
        ".catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
        ".uri": f"jdbc:sqlite:{catalogue}",
        ".warehouse": str(catalogue.parent),
        ".cache-enabled": "false",
    }.items():
        spark.conf.set(f"spark.sql.catalog.local{name}", value)
    sql = "SELECT _key, version FROM local.cdc.orders_current_state WHERE _key = '{}'"
    return _Opened(
        lambda key: [tuple(row) for row in spark.sql(sql.format(key)).collect()],
        spark.sparkContext._gateway.proc.pid,
    )


def _contend(contender: str, bounds: str, folder: str, what: str) -> None:
    """`what`: cost of some look-ups when everything is loaded, or files opened for one."""
    lake = _lake(f"{folder}/{bounds}")
    if contender == _OPEN:
        report(measure(lambda: connect_lake(lake.lake, ["orders"], aggregates=False).close() or 1))
        return
    chance = random.Random(7)
    with ExitStack() as stack:
        opened = _open(contender, lake, stack)
        for _ in range(3):
            opened.look_up(_key(lake, chance.randrange(lake.items)))
        if what == "files":
            number = chance.randrange(lake.items)
            table = lake.lake.iceberg.load("orders_current_state")
            assert table is not None
            with opened_files(Path(data_files(table)[0]).parent) as names:
                rows = opened.look_up(_key(lake, number))
            assert contender == _PLAN or rows == [(_key(lake, number), number)], rows
            report(Cost(0, 0, 0, len(rows) if contender == _PLAN else len(names)))
            return
        keys = [_key(lake, chance.randrange(lake.items)) for _ in range(_LOOKUPS)]
        report(_measured(opened, keys))


def _measured(opened: _Opened, keys: list[str]) -> Cost:
    def work() -> int:
        for key in keys:
            opened.look_up(key)
        return len(keys)

    if opened.process is None:
        return measure(work)
    before, wall = cpu_of(opened.process), time.perf_counter()
    work()
    cpu, wall = cpu_of(opened.process) - before, time.perf_counter() - wall
    return Cost(cpu, wall, peak_mb(opened.process), len(keys))


_ITEM = f"one item of {_FILES:,} files"
_PLANNED = f"PyIceberg's plan for one key of {_FILES:,} files"
_OPENED = f"opening a connection to {_FILES:,} files"


def run() -> list[Row]:
    """Each contender and each run of it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder).resolve())
        rows = [
            (_ITEM, "ours", _costs(folder, _MACRO, _WHOLE, 1)),
            _named(folder, _ITEM, _VIEW, _WHOLE),
            _named(folder, _ITEM, _MACRO, _CUT),
        ]
        if session.has_spark():
            rows += [_named(folder, _ITEM, _SPARK, bounds) for bounds in (_WHOLE, _CUT)]
        rows.append((_PLANNED, "ours", _costs(folder, _PLAN, _WHOLE, 1)))
        rows.append(_named(folder, _PLANNED, _PLAN, _CUT))
        rows.append((_OPENED, "ours", _own_process(folder, _OPEN, _WHOLE, "cost")))
        return rows


def _named(folder: str, work: str, contender: str, bounds: str) -> Row:
    files = _own_process(folder, contender, bounds, "files").rows
    noun = "file" if files == 1 else "files"
    return work, f"{contender}, {bounds}: {files:,} {noun}", _costs(folder, contender, bounds)


def _costs(folder: str, contender: str, bounds: str, files: int | None = None) -> Cost:
    if files is not None:
        assert _own_process(folder, contender, bounds, "files").rows == files
    runs = 1 if contender == _SPARK else _RUNS
    return cheapest(runs, lambda: _own_process(folder, contender, bounds, "cost"))


def _own_process(folder: str, contender: str, bounds: str, what: str) -> Cost:
    return in_own_process(
        "benchmarks.lookup_files", contender, bounds, str(Path(folder).resolve()), what
    )


def _fewest(costs: Costs) -> float:
    """Files that others open for one key, where ours is one: the least of cut bounds and views."""
    return min(
        float(name.rpartition(": ")[2].split()[0].replace(",", ""))
        for work, name in costs
        if work != _OPENED and (_CUT in name or _VIEW in name)
    )


def _of_view(costs: Costs) -> str:
    return next(name for work, name in costs if work == _ITEM and name.startswith(_VIEW))


TARGETS = [
    Target("one item: files opened by a view, or with cut bounds; ours is 1", True, 20, _fewest),
    Target(
        f"{_ITEM}: CPU time of the view",
        True,
        20,
        lambda costs: costs[_ITEM, _of_view(costs)].per_row / costs[_ITEM, "ours"].per_row,
    ),
]


if __name__ == "__main__":
    _contend(*sys.argv[1:])
