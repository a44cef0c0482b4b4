"""`make bench`: every benchmark once, with ratios, targets and a section each in RESULTS.md.

`python -m benchmarks NAME...` runs only those and leaves the other sections as they are.
"""

import os
import platform
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Cost, Costs, Row, Target

BENCHMARKS = (
    *("landing", "export", "fold", "full_fold", "lookups", "lookup_files", "publish", "startup"),
)
"""Modules of this package: `run()` gives rows, `TARGETS` what they are held to."""

ON_REQUEST = ("spark_jobs",)
"""Those that want more than this machine may have: run only by their names."""

OURS = "ours"
_PACKAGES = (
    *("boto3", "chdb-core", "datafusion", "dynamodb-json", "duckdb", "isal", "msgspec", "numba"),
    *("orjson", "pyarrow", "pyiceberg", "pyspark"),
)
_HEADS = ("work", "contender", "rows / CPU s", "CPU, ours = 1", "wall s / 100k rows", "peak MB")
_TARGET_HEADS = ("target", "bound", "measured", "")
_RESULTS = Path(__file__).with_name("RESULTS.md")
_INTRODUCTION = """# Results

Written by `make bench`. Contenders run one after the other, each in a process of its own, with
their outputs compared before; of some runs the one with the least CPU time counts. Absolute rates
vary with the machine, ratios are of one run. Wall clock times are those of a machine that may have
had other work.
"""

Cells = tuple[str, ...]


def main(wanted: list[str]) -> None:
    """Run, print, and write the results beside this file."""
    if unknown := set(wanted) - {*BENCHMARKS, *ON_REQUEST}:
        known = ", ".join((*BENCHMARKS, *ON_REQUEST))
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}: there are {known}")
    console, table, targets = Console(width=140), Table(*_HEADS), Table(*_TARGET_HEADS)
    for name in wanted or BENCHMARKS:
        started, load = time.monotonic(), os.getloadavg()[0]
        module = import_module(f"benchmarks.{name}")
        rows: list[Row] = module.run()
        shown = _cells_of(rows)
        held = [_target(target, _costs(rows)) for target in module.TARGETS]
        _replace_section(name, _machine(load), shown, held)
        for cells in shown:
            table.add_row(*cells)
        for cells in held:
            targets.add_row(*cells)
        console.print(f"{name}: {time.monotonic() - started:.0f} s")
    console.print(table, targets)


def _costs(rows: list[Row]) -> Costs:
    return {(work, contender): cost for work, contender, cost in rows}


def _cells_of(rows: list[Row]) -> list[Cells]:
    costs = _costs(rows)
    return [(work, name, *_cost(cost, costs[work, OURS])) for work, name, cost in rows]


def _cost(cost: Cost, ours: Cost) -> Cells:
    return (
        f"{1 / cost.per_row:,.0f}" if cost.per_row < 0.1 else f"{1 / cost.per_row:,.2g}",
        f"{cost.per_row / ours.per_row:.1f}",
        f"{cost.wall / cost.rows * 1e5:,.1f}",
        f"{cost.peak_mb:,.0f}",
    )


def _target(target: Target, costs: Costs) -> Cells:
    figure = target.figure(costs)
    met = figure >= target.bound if target.at_least else figure <= target.bound
    bound = f"{'≥' if target.at_least else '≤'} {target.bound:g}"
    return target.claim, bound, f"{figure:.2f}", "met" if met else "missed"


def _replace_section(name: str, machine: str, rows: list[Cells], targets: list[Cells]) -> None:
    """The sections of other benchmarks stay as their last run wrote them."""
    known = _RESULTS.read_text("utf-8") if _RESULTS.exists() else ""
    sections = {part.partition("\n")[0]: part for part in known.split("\n## ")[1:]}
    tables = [_markdown(_HEADS, rows)] + [_markdown(_TARGET_HEADS, targets)] * bool(targets)
    sections[name] = "\n\n".join([name, machine, *tables])
    parts = (sections[name].rstrip() for name in (*BENCHMARKS, *ON_REQUEST) if name in sections)
    _RESULTS.write_text("\n## ".join([_INTRODUCTION, *(f"{part}\n" for part in parts)]), "utf-8")


def _machine(load: float) -> str:
    """`load`: the load average (1 min) before the run; the run itself adds 1 or 2."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    packages = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    return (
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {memory:.0f} GB, {packages}. "
        f"Load before it: {load:.1f}."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"


def _markdown(heads: Cells, rows: list[Cells]) -> str:
    lines: list[Any] = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main(sys.argv[1:])
