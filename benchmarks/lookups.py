"""Reading what the product wrote: an item, a day, and all items with changes not folded yet.

The tables are written by the product and read through its views. "Unsorted files" are the same
rows, written by the same code, in no order. Opening a connection folds what is not folded yet; it
is measured by itself.
"""

import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.measure import (
    Cost,
    Row,
    Target,
    cheaper,
    cheapest,
    in_own_process,
    measure,
    report,
)
from benchmarks.orders_lake import OrdersLake
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake

_SMALL = OrdersLake(Path(), items=1_000_000, days=30, changes_a_day=10_000)
_LARGE = OrdersLake(Path(), items=10_000_000, days=0, changes_a_day=0)
_DELTA = 10_000
_LOOKUPS = 20
_SCANS = 10
_RUNS = 3

_POINT = "SELECT * FROM {} WHERE customer_id = ? AND order_id = ?"
_DAY = (
    "SELECT op, count(*), count(DISTINCT keys), sum(strlen(data)) FROM {} WHERE day = ? "
    "GROUP BY op ORDER BY op"
)
_ALL = (
    "SELECT country, status, count(*), sum(total) FROM {} GROUP BY country, status "
    "ORDER BY country, status"
)

Rows = list[tuple[Any, ...]]
Query = Callable[[duckdb.DuckDBPyConnection, OrdersLake, str], Rows]


def _items(connection: duckdb.DuckDBPyConnection, lake: OrdersLake, relation: str) -> Rows:
    chance = random.Random(7)
    keys = [lake.key(chance.randrange(lake.items)) for _ in range(_LOOKUPS)]
    return [r for key in keys for r in connection.execute(_POINT.format(relation), key).fetchall()]


def _days(connection: duckdb.DuckDBPyConnection, lake: OrdersLake, relation: str) -> Rows:
    days = [lake.day(number * lake.days // _SCANS) for number in range(_SCANS)]
    return [r for d in days for r in connection.execute(_DAY.format(relation), [d]).fetchall()]


def _all(connection: duckdb.DuckDBPyConnection, lake: OrdersLake, relation: str) -> Rows:
    return [r for _ in range(_SCANS) for r in connection.execute(_ALL.format(relation)).fetchall()]


# What is asked, how many times it is, of which view, and the table of the same rows in no order.
_QUERIES: dict[str, tuple[Query, int, str, str]] = {
    "item": (_items, _LOOKUPS, "current_state", "shuffled"),
    "day": (_days, _SCANS, "cdc", "cdc_shuffled"),
    "all": (_all, _SCANS, "current_state", "shuffled"),
}
_OPEN = "open"
_WRITE = "write"
_VIEW, _UNSORTED = "view", "unsorted"


def _read(lake: OrdersLake, query: str, source: str) -> tuple[Cost, Rows]:
    """What a query costs when the connection is open, and its rows."""
    ask, times, view, files = _QUERIES[query]
    relation = f"orders.{view}" if source == _VIEW else lake.files(files)
    rows: Rows = []

    def work() -> int:
        rows.extend(ask(connection, lake, relation))
        return times

    with connect_lake(lake.lake, ["orders"], aggregates=False) as connection:
        return measure(work), rows


def _open(lake: OrdersLake) -> Cost:
    def work() -> int:
        connect_lake(lake.lake, ["orders"], aggregates=False).close()
        return 1

    work()  # imports
    return measure(work)


def check_equal() -> None:
    """The same answers from unsorted files, and before and after a fold."""
    with tempfile.TemporaryDirectory() as folder:
        lake = OrdersLake(Path(folder).resolve(), 20_000, _SCANS, 500)
        lake.write()
        for query in _QUERIES:
            assert _read(lake, query, _VIEW)[1] == _read(lake, query, _UNSORTED)[1] != []
        before = _read(lake, "all", _VIEW)[1]
        lake.land(500)
        merged = _read(lake, "all", _VIEW)[1]
        publish_current_state(lake.lake.table(lake.lake.settings.tables[0]))
        assert before != merged == _read(lake, "all", _VIEW)[1]


def run() -> list[Row]:
    """Each contender and each run of it in a process of its own."""
    check_equal()
    return _run(_SMALL) + _run(_LARGE)


def _works(sizes: OrdersLake) -> dict[str, str]:
    return {
        "item": f"one item of {sizes.items:,}",
        "day": f"one day of {sizes.days}",
        "all": f"sums over {sizes.items:,} items",
        _OPEN: f"opening {sizes.items:,} items",
    }


def _run(sizes: OrdersLake) -> list[Row]:
    works = _works(sizes)
    with tempfile.TemporaryDirectory() as folder:
        lake = replace(sizes, folder=Path(folder).resolve())
        _own_process(lake, _WRITE)
        asked = [query for query in works if sizes.days or query != "day"]
        found = [(works[query], "ours", _best(lake, query, _VIEW)) for query in asked]
        for query in asked[:-2]:
            found.append((works[query], _FILES, _best(lake, query, _UNSORTED)))
        lake.land(_DELTA)
        for query in ("item", "all", _OPEN):
            found.append((works[query], _FRESH, _best(lake, query, _VIEW)))
    return [row for work in works.values() for row in found if row[0] == work]


def _merged(claim: str, query: str) -> Target:
    work = _works(_LARGE)[query]
    return Target(
        claim, False, 4, lambda costs: costs[work, _FRESH].per_row / costs[work, "ours"].per_row
    )


_FILES = "unsorted files"
_FRESH = f"ours, {_DELTA:,} changes not folded yet"
TARGETS = [
    cheaper(
        "looking up an item of 1M: CPU time of unsorted files",
        3,
        _works(_SMALL)["item"],
        "ours",
        _FILES,
    ),
    cheaper(
        "looking up an item of 10M: CPU time of unsorted files",
        3,
        _works(_LARGE)["item"],
        "ours",
        _FILES,
    ),
    cheaper(
        "aggregating a day: CPU time of unsorted files", 5, _works(_SMALL)["day"], "ours", _FILES
    ),
    _merged("all of 10M items with 10k changes not folded yet: CPU time without", "all"),
]


def _best(lake: OrdersLake, query: str, source: str) -> Cost:
    return cheapest(_RUNS, lambda: _own_process(lake, query, source))


def _own_process(lake: OrdersLake, query: str, source: str = "") -> Cost:
    sizes = map(str, (lake.items, lake.days, lake.changes_a_day))
    return in_own_process("benchmarks.lookups", query, source, str(lake.folder), *sizes)


def _write(lake: OrdersLake) -> int:
    lake.write()
    return lake.items


def _contend(query: str, source: str, folder: str, *sizes: str) -> None:
    lake = OrdersLake(Path(folder), *map(int, sizes))
    if query == _WRITE:
        report(measure(lambda: _write(lake)))
    elif query == _OPEN:
        report(_open(lake))
    else:
        report(_read(lake, query, source)[0])


if __name__ == "__main__":
    _contend(*sys.argv[1:])
