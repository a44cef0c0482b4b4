"""`make bench`: every benchmark once, as a table with ratios and in RESULTS.md.

`python -m benchmarks NAME...` runs and prints only those; RESULTS.md is written by whole runs.
"""

import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Cost

BENCHMARKS = ("landing", "fold", "lookups", "export")
"""Modules of this package whose `run()` gives rows; the product's contender is named OURS."""

OURS = "ours"
_PACKAGES = ("boto3", "dynamodb-json", "duckdb", "msgspec", "pyarrow")
_HEADS = ("work", "contender", "rows / CPU s", "CPU, ours = 1", "wall s / 100k rows", "peak MB")

Row = tuple[str, str, Cost]
"""Work, contender, what it cost."""


def main(wanted: list[str]) -> None:
    """Run, print, and write the results beside this file."""
    rows: list[Row] = []
    for name in wanted or BENCHMARKS:
        rows += import_module(f"benchmarks.{name}").run()
    table = [_cells(row, rows) for row in rows]
    grid = Table(*_HEADS)
    for cells in table:
        grid.add_row(*cells)
    Console(width=120).print(grid)
    if not wanted:
        Path(__file__).with_name("RESULTS.md").write_text(_markdown(table), "utf-8")


def _cells(row: Row, rows: list[Row]) -> tuple[str, ...]:
    work, contender, cost = row
    (ours,) = (c for w, name, c in rows if (w, name) == (work, OURS))
    return (
        work,
        contender,
        f"{cost.rows / cost.cpu:,.0f}",
        f"{(cost.cpu / cost.rows) / (ours.cpu / ours.rows):.1f}",
        f"{cost.wall / cost.rows * 1e5:.1f}",
        f"{cost.peak_mb:.0f}",
    )


def _markdown(table: list[tuple[str, ...]]) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    lines = [
        "# Results",
        "",
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {packages}. Absolute rates "
        "vary with the machine; ratios are of one run of `make bench`.",
        "",
        f"| {' | '.join(_HEADS)} |",
        "|---" * len(_HEADS) + "|",
        *(f"| {' | '.join(cells)} |" for cells in table),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
