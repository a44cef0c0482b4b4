"""Publishing few changes of a large table, beside the build that rewrote all of it, and reading.

Each build writes a lake of its own, lands the same changes and publishes them. The earlier build is
checked out of git, so this needs a clone with its history. Then ours publishes again and again, and
DuckDB reads the state through the views of `connect`, beside the state right after a fold. A day is
simulated (`benchmarks.day`), with the costs measured here.
"""

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.day import simulate
from benchmarks.earlier import checked_out, run_earlier
from benchmarks.measure import Cost, Row, Target, cheapest, in_own_process, measure, report
from benchmarks.orders_lake import OrdersLake
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.state import row_delta

_ITEMS = int(os.environ.get("PUBLISH_ITEMS", "10000000"))
_CHANGES = 10_000
_PUBLICATIONS = 60
_COMMIT = "f5fdea5"
_RUNS = 3
_OURS, _BEFORE = "ours", f"build {_COMMIT}"
_FOLDED = "right after a fold"
_PUBLISH = f"publish {_CHANGES:,} changes into {_ITEMS:,} items"
_GROUP = f"sums by country of {_ITEMS:,} items, after {_PUBLICATIONS} publications"
_ALL = f"all of {_ITEMS:,} items, after {_PUBLICATIONS} publications"
_QUERIES = {
    _GROUP: "SELECT country, count(*), sum(total) FROM orders.current_state GROUP BY country",
    _ALL: "SELECT sum(strlen(_item)), max(_order_key) FROM orders.current_state",
}
_WRITE, _FOLD = "write", "fold"
_DAY = f"a day of {_CHANGES:,} changes a minute over {_ITEMS:,} items"
_MERGED_AT = 7
"""Publications behind which small files are merged for the first time."""
_PLACE_BYTES = 2

_EARLIER = """
import sys
from pathlib import Path
from benchmarks.measure import measure, report
from benchmarks.orders_lake import OrdersLake
from cdc_pipeline.lake.current_state import publish_current_state

lake = OrdersLake(Path(sys.argv[2]), int(sys.argv[3]), 0, 0)
if sys.argv[1] == "write":
    lake.write()
    lake.land(int(sys.argv[4]))
else:
    table = lake.lake.settings.tables[0]
    report(measure(lambda: publish_current_state(lake.lake, table).changes_folded))
"""


def _written_mb(before: dict[str, int], after: dict[str, int]) -> float:
    return sum(size for path, size in after.items() if before.get(path) != size) / 1e6


def _files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*.*") if path.is_file()}


def run() -> list[Row]:
    """Each step in a process of its own. Megabytes that appeared in the lake are printed."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        with checked_out(_COMMIT) as earlier:
            if earlier is not None:
                for items in (_CHANGES, _ITEMS):  # the first compiles what the second runs
                    folder = Path(scratch).resolve() / f"earlier{items}"
                    folder.mkdir()
                    changes = min(_CHANGES, items // 10)
                    run_earlier(earlier, _EARLIER, "write", folder, items, changes)
                    before = _files(folder)
                    cost = run_earlier(earlier, _EARLIER, "publish", folder, items)
                rows.append((_PUBLISH, _BEFORE, cost))
                rewritten_mb = _written_mb(before, _files(folder))
                print(f"{_BEFORE}: {rewritten_mb:,.1f} MB")
        folder = Path(scratch).resolve() / "ours"
        folder.mkdir()
        _own_process(_WRITE, folder)
        reads = [
            (w, _FOLDED, cheapest(_RUNS, lambda w=w: _own_process(w, folder))) for w in _QUERIES
        ]
        costs, written = [], 0.0
        for number in range(_PUBLICATIONS):
            _own_process(f"land {number}", folder)
            before = _files(folder)
            costs.append(_own_process(_PUBLISH, folder))
            megabytes = _written_mb(before, _files(folder))
            if number < _MERGED_AT - 1:
                written += megabytes
            if number in (0, _PUBLICATIONS - 1):
                print(f"ours, publication {number + 1}: {megabytes:,.2f} MB")
        reads += [
            (w, _OURS, cheapest(_RUNS, lambda w=w: _own_process(w, folder))) for w in _QUERIES
        ]
        before = _files(folder)
        fold = _own_process(_FOLD, folder)
        fold_mb = _written_mb(before, _files(folder))
        print(f"a fold after them: {fold.cpu:.1f} CPU s, {fold_mb:,.1f} MB, {fold.peak_mb:.0f} MB")
    total = sum(cost.cpu for cost in costs)
    most = max(costs, key=_cpu).cpu
    print(f"ours: {total:.0f} CPU s for {len(costs)} publications, at most {most:.1f}")
    rows.append((_PUBLISH, _OURS, min(costs, key=_cpu)))
    row_bytes = round(written / ((_MERGED_AT - 1) * _CHANGES) * 1e6)
    day = simulate(_ITEMS, _CHANGES, row_bytes)
    megabytes = (day.rows * row_bytes + day.places * _PLACE_BYTES) / 1e6 + day.folds * fold_mb
    print(
        f"a day, each minute: {megabytes / 1000:.1f} GB, {day.folds} folds, {day.merges} merges, "
        f"at most {day.files} data files"
    )
    if rows[0][1] == _BEFORE:
        once = rows[0][2]
        print(f"a day, build {_COMMIT}, each 15 minutes: {96 * rewritten_mb / 1000:.1f} GB")
        rows.append((_DAY, _BEFORE, Cost(96 * once.cpu, 96 * once.wall, once.peak_mb, 1440)))
    peak_mb = max(fold.peak_mb, *(cost.peak_mb for cost in costs))
    cpu = 1440 * total / len(costs) + day.folds * fold.cpu
    rows.append((_DAY, _OURS, Cost(cpu, 0, peak_mb, 1440)))
    return rows + sorted(reads, reverse=True)


def _cpu(cost: Cost) -> float:
    return cost.cpu


def _ratio(work: str, claim: str, bound: float) -> Target:
    return Target(
        claim, False, bound, lambda costs: costs[work, _OURS].per_row / costs[work, _FOLDED].per_row
    )


TARGETS = [
    Target(
        f"{_PUBLISH}: CPU time of the build {_COMMIT}",
        True,
        50,
        lambda costs: (
            costs[_PUBLISH, _BEFORE].cpu / costs[_PUBLISH, _OURS].cpu
            if (_PUBLISH, _BEFORE) in costs
            else float("nan")
        ),
    ),
    Target(
        f"{_PUBLISH}: peak memory in GB",
        False,
        0.4,
        lambda costs: costs[_PUBLISH, _OURS].peak_mb / 1000,
    ),
    Target(
        f"{_DAY}, at 1 minute: CPU time of the build {_COMMIT} at 15",
        True,
        2.5,
        lambda costs: (
            costs[_DAY, _BEFORE].cpu / costs[_DAY, _OURS].cpu
            if (_DAY, _BEFORE) in costs
            else float("nan")
        ),
    ),
    _ratio(
        _GROUP, f"sums of 10M items after {_PUBLICATIONS} publications: CPU time after a fold", 1.6
    ),
    _ratio(
        _ALL, f"all of 10M items after {_PUBLICATIONS} publications: CPU time after a fold", 1.3
    ),
]


def _own_process(step: str, folder: Path) -> Cost:
    return in_own_process("benchmarks.publish", step, str(folder))


def _contend(step: str, folder: str) -> None:
    lake = OrdersLake(Path(folder), _ITEMS, 0, 0)
    handle = lake.lake.table(lake.lake.settings.tables[0])
    if step == _WRITE:
        lake.write(shuffled=False)
        report(Cost(0, 0, 0, 1))
    elif step.startswith("land "):
        lake.land(_CHANGES, int(step.removeprefix("land ")))
        report(Cost(0, 0, 0, 1))
    elif step == _FOLD:
        row_delta.SMALL_ITEMS = _ITEMS * 2
        lake.land(_CHANGES, _PUBLICATIONS)
        report(measure(lambda: publish_current_state(handle).changes_folded))
    elif step == _PUBLISH:
        report(measure(lambda: publish_current_state(handle).changes_folded))
    else:
        with connect_lake(lake.lake, ["orders"], aggregates=False) as connection:
            report(measure(lambda: len(connection.execute(_QUERIES[step]).fetchall())))


if __name__ == "__main__":
    _contend(*sys.argv[1:])
