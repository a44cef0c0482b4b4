"""`cdc-pipeline preflight`: is everything ready, what would it cost, and what is to be done."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cdc_pipeline.commands.output import console

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.setup.findings import Finding
    from cdc_pipeline.setup.preflight import Report, TableReport


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--fix", is_flag=True, help="Turn streams and point-in-time recovery on; asks first.")
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def preflight(tables: tuple[str, ...], fix: bool, yes: bool, form: str) -> None:
    """Check that the lake and the TABLES (all of them by default) are ready for capture.

    Reads, puts and deletes small objects where the lake and exports are, and changes nothing else.
    The exit code is 1 while anything is red; each red comes with what to do.
    """
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings.load import load_settings
    from cdc_pipeline.setup.preflight import preflight as look

    lake = Lake.open(load_settings())
    chosen = [lake.settings.table(name) for name in tables] or lake.settings.tables
    with Console(stderr=True).status(f"looking at the lake and {len(chosen)} tables"):
        report = look(lake, chosen)
    if fix and _turn_on(lake, report, yes):
        report = look(lake, chosen)
    if form == "json":
        told = {"green": report.is_green, **asdict(report)}
        for table, found in zip(told["tables"], report.tables, strict=True):
            table["green"] = found.is_green
        click.echo(json.dumps(told, indent=1))
    else:
        _show(lake, report)
    if not report.is_green:
        sys.exit(1)


def _turn_on(lake: "Lake", report: "Report", yes: bool) -> bool:
    """Turn on what can be; whether there was anything."""
    from cdc_pipeline.setup.preflight import remedies, turn_on

    wanted = remedies(report)
    if not wanted:
        click.echo("Nothing that can be turned on is off", err=True)
        return False
    for table, remedy in wanted:
        cost = f", about USD {table.recovery_usd:.2f} a month" if remedy == "recovery" else ""
        click.echo(f"{table.table}: {remedy} of {table.name} is off{cost}", err=True)
    if not yes:
        click.confirm(f"Turn them on ({len(wanted)})?", abort=True, err=True)
    for trouble in turn_on(lake, wanted):
        click.echo(trouble, err=True)
    return True


def _show(lake: "Lake", report: "Report") -> None:
    out = console()
    for finding in report.lake:
        out.print(_sign(finding), f"{finding.check}: {finding.found}", soft_wrap=True)
    out.print(_grid(report))
    for table in report.tables:
        for finding in table.findings:
            if finding.check == "files" and finding.green:
                out.print(_sign(finding), f"{table.table}: {finding.found}", soft_wrap=True)
    reds = [("lake", found) for found in report.lake if not found.green]
    reds += [(t.table, found) for t in report.tables for found in t.findings if not found.green]
    for number, (name, finding) in enumerate(reds, 1):
        out.print(Text(f"{number}. {name}, {finding.check}: ", style="bold red"), end="")
        out.print(finding.found, markup=False, soft_wrap=True)
        if finding.fix:
            out.print(f"   Fix: {finding.fix}", markup=False, soft_wrap=True)
    if any(finding.remedy for _, finding in reds):
        out.print("Turn all streams and recovery on that are off: cdc-pipeline preflight --fix")
    out.print(
        "Costs are list prices of us-east-1 in USD: an export by table size; a month of reading "
        f"changes every {lake.settings.capture.interval_seconds} s while there are few, without "
        "AWS's free reads; data of Kinesis and Firehose not counted. Item counts are up to six "
        "hours old.",
        style="dim",
    )
    red = sum(not table.is_green for table in report.tables)
    verdict = f"Tables: {len(report.tables) - red} green, {red} red"
    out.print(verdict, style="green" if report.is_green else "red")


def _grid(report: "Report") -> Grid:
    grid = Grid()
    for heading in ("table", "account", "key", "stream", "recovery (UTC)"):
        grid.add_column(heading, overflow="fold")
    for heading in ("items", "export", "changes/month"):
        grid.add_column(heading, justify="right")
    for table in report.tables:
        style = "green" if table.is_green else "bold red"
        grid.add_row(
            Text(table.table, style=style),
            _cell(table, "access"),
            _cell(table, "table"),
            _cell(table, "stream"),
            _cell(table, "recovery"),
            "-" if table.items is None else f"{table.items:,}",
            _usd(table.export_usd),
            _usd(table.stream_usd),
        )
    return grid


def _cell(table: "TableReport", check: str) -> Text:
    finding = table.finding(check)
    if finding is None:
        return Text("not looked at", style="dim")
    if finding.green:
        return Text(finding.found)
    short = finding.found if len(finding.found) < 30 else "see below"
    return Text(short, style="red")


def _sign(finding: "Finding") -> Text:
    return Text("✓" if finding.green else "✗", style="green" if finding.green else "red")


def _usd(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.2f}"
