"""`make bench`: every benchmark once, as a table with ratios and in RESULTS.md."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import landing

_PACKAGES = ("boto3", "dynamodb-json", "duckdb", "msgspec", "pyarrow")


def main() -> None:
    """Run, print, and write the results beside this file."""
    rows = [("GetRecords answers → landing Parquet", name, cost) for name, cost in landing.run()]
    best = rows[0][2]
    lines = [
        "# Results",
        "",
        f"Python {platform.python_version()}, {os.cpu_count()} cores, "
        + ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        + ". Absolute rates vary with the machine; ratios are of one run of `make bench`.",
        "",
        "| work | contender | rows / CPU s | CPU, ours = 1 | wall s / 100k rows | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    grid = Table("work", "contender", "rows / CPU s", "CPU, ours = 1", "wall s / 100k", "MB")
    for work, name, cost in rows:
        ratio = (cost.cpu / cost.rows) / (best.cpu / best.rows)
        cells = (
            work,
            name,
            f"{cost.rows / cost.cpu:,.0f}",
            f"{ratio:.1f}",
            f"{cost.wall / cost.rows * 1e5:.1f}",
            f"{cost.peak_mb:.0f}",
        )
        grid.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    Console().print(grid)
    Path(__file__).with_name("RESULTS.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
