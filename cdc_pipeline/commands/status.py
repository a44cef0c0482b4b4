"""`cdc-pipeline status`: contents of the lake by table, and its lag behind the source."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table as Grid

from cdc_pipeline.commands.common import console, open_lake
from cdc_pipeline.core.clock import now_us, time_text

if TYPE_CHECKING:
    from cdc_pipeline.lake.upkeep.status import TableStatus

_TIMELINE_DAYS = 14
_HEADINGS = (
    "table",
    "items",
    "changes",
    "last change",
    "complete to",
    "lag",
    "state to",
    "entries log/state",
    "open shards",
    "last export",
    "unreadable",
    "hours left",
    "gaps",
)


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(tables: tuple[str, ...], as_json: bool) -> None:
    """Show the contents of the lake by table, and its lag behind the source.

    For the TABLES named, and for tables with a gap, also the coverage: intervals and their origin.
    """
    from cdc_pipeline.core.log.coverage import clock_note
    from cdc_pipeline.lake.upkeep.status import table_status

    lake = open_lake()
    chosen = [lake.settings.table(name) for name in tables] or lake.settings.tables
    rows = [table_status(lake.table(table)) for table in chosen]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    out = console()
    title = f"lake {lake.settings.lake}, database {lake.database} (times in UTC)"
    out.print(_table_grid(rows, title))
    measured = [row.clock_offset_us for row in rows if row.clock_offset_us is not None]
    if measured:
        out.print(clock_note(max(measured, key=abs)), highlight=False)
    for row in rows:
        _print_notes(out, row)
        if tables or row.gaps:
            _print_coverage(out, row)


def _table_grid(rows: "list[TableStatus]", title: str) -> Grid:
    grid = Grid(title=title)
    for heading in _HEADINGS:
        justify = "left" if heading == "table" else "right"
        grid.add_column(heading, justify=justify, no_wrap=heading == "table")
    for row in rows:
        grid.add_row(
            row.table,
            _count(row.items),
            _count(row.changes),
            _moment(row.last_change_us),
            _moment(row.captured_to_us),
            _lag(row.captured_to_us),
            _moment(row.state_to_us),
            f"{row.log_entry}/{'-' if row.state_entry is None else row.state_entry}",
            str(row.open_shards),
            _moment(row.last_export_us),
            _count(row.quarantined),
            _hours_left(row.captured_to_us, row.retention_hours) if row.expires else "-",
            str(len(row.gaps)),
        )
    return grid


def _print_notes(out: Console, row: "TableStatus") -> None:
    if row.cut is not None:
        out.print(
            f"{row.table}: switching from {row.transport} to {row.cut.transport} at "
            f"{_moment(row.cut.at_us)} UTC; keep both enabled until status no longer shows this"
        )
    for gap in row.gaps:
        out.print(
            f"[red]gap[/] {row.table} (entry {gap.entry}): {gap}, "
            f"changes from {_moment(gap.from_us)} to "
            f"{_moment(gap.to_us)} UTC are missing. Fix: {row.fixes[gap.entry]}"
        )
    if row.late_changes:
        out.print(
            f"[yellow]late[/] {row.table}: {row.late_changes:,} changes arrived after their time "
            f"had been reported as complete, the latest at {_moment(row.late_at_us)} UTC; see the "
            "check watermark_holds"
        )
    if row.legacy_us:
        out.print(
            f"[yellow]deletes[/] {row.table}: rows of an older Lambda, written up to "
            f"{_moment(row.legacy_us)} UTC, have landed; deletes may be missing among them, see "
            "docs/transports/firehose.md"
        )


def _print_coverage(console: Console, row: "TableStatus") -> None:
    from cdc_pipeline.core.log.coverage import HOUR_SIGNS, hour_bars

    legend = "  ".join(f"{sign} {means}" for means, sign in HOUR_SIGNS.items())
    grid = Grid(title=f"coverage of {row.table} (times in UTC)")
    for heading in ("from", "to", "origin", ""):
        grid.add_column(heading)
    for stretch in row.coverage:
        since = time_text(stretch.from_us) if stretch.from_us else "the beginning"
        grid.add_row(since, time_text(stretch.to_us), stretch.means, stretch.note)
    console.print(grid)
    for bar in hour_bars(row.coverage, _TIMELINE_DAYS):
        console.print(bar, highlight=False)
    console.print(f"one sign per hour: {legend}\n", highlight=False)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _moment(time_us: int | None) -> str:
    if not time_us:
        return "-"
    return time_text(time_us)


def _hours_left(time_us: int, kept_hours: int) -> str:
    """Hours until AWS trims the oldest change not yet read."""
    if not time_us:
        return "-"
    return f"{kept_hours - (now_us() - time_us) / 3_600_000_000:.1f}"


def _lag(time_us: int) -> str:
    if not time_us:
        return "-"
    return f"{max(0, (now_us() - time_us) // 1_000_000)} s"
