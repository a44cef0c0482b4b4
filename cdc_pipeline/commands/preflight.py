"""`cdc-pipeline preflight`: readiness of the lake and the tables, costs, and fixes."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cdc_pipeline.commands.common import console, open_lake

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.setup.checks.findings import Finding
    from cdc_pipeline.setup.checks.report import PreflightReport, TableReport


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--fix", is_flag=True, help="Enable streams and point-in-time recovery; asks first.")
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def preflight(tables: tuple[str, ...], fix: bool, yes: bool, form: str) -> None:
    """Check that the lake and the TABLES (default: all) are ready for capture.

    Reads, puts and deletes small objects in the lake and in the export bucket; changes nothing
    else. The exit code is 1 while a check fails; each failed check comes with its fix.
    """
    from cdc_pipeline.setup.preflight import preflight as run_preflight

    lake = open_lake()
    chosen = [lake.settings.table(name) for name in tables] or lake.settings.tables
    with Console(stderr=True).status(f"checking the lake and {len(chosen)} tables"):
        report = run_preflight(lake, chosen)
    if fix and _turn_on(lake, report, yes):
        report = run_preflight(lake, chosen)
    if form == "json":
        document = {"green": report.is_ready, **asdict(report)}
        for entry, table in zip(document["tables"], report.tables, strict=True):
            entry["green"] = table.is_ready
        click.echo(json.dumps(document, indent=1))
    else:
        _show(lake, report)
    if not report.is_ready:
        sys.exit(1)


def _turn_on(lake: "Lake", report: "PreflightReport", yes: bool) -> bool:
    """Enable streams and recovery where they are off; return whether any was."""
    from cdc_pipeline.setup.remedies import remedies, turn_on

    needed = remedies(report)
    if not needed:
        click.echo("All streams and point-in-time recovery are on already", err=True)
        return False
    for table, remedy in needed:
        cost = f", about USD {table.recovery_usd:.2f} a month" if remedy == "recovery" else ""
        click.echo(f"{table.table}: {remedy} of {table.name} is off{cost}", err=True)
    if not yes:
        click.confirm(f"Turn them on ({len(needed)})?", abort=True, err=True)
    for message in turn_on(lake, needed):
        click.echo(message, err=True)
    return True


def _show(lake: "Lake", report: "PreflightReport") -> None:
    out = console()
    for finding in report.lake:
        out.print(_sign(finding), f"{finding.check}: {finding.found}", soft_wrap=True)
    out.print(_grid(report))
    for table in report.tables:
        for finding in table.findings:
            if finding.check == "files" and finding.green:
                out.print(_sign(finding), f"{table.table}: {finding.found}", soft_wrap=True)
    failed = [("lake", finding) for finding in report.lake if not finding.green]
    failed += [(t.table, f) for t in report.tables for f in t.findings if not f.green]
    for number, (name, finding) in enumerate(failed, 1):
        out.print(Text(f"{number}. {name}, {finding.check}: ", style="bold red"), end="")
        out.print(finding.found, markup=False, soft_wrap=True)
        if finding.fix:
            out.print(f"   Fix: {finding.fix}", markup=False, soft_wrap=True)
    if any(finding.remedy for _, finding in failed):
        out.print("To enable all streams and recovery that are off: cdc-pipeline preflight --fix")
    out.print(
        "Costs are list prices of us-east-1 in USD. Export: by table size. Changes: a month of "
        f"reads every {lake.settings.capture.interval_seconds} s while changes are few, without "
        "AWS's free reads; data of Kinesis and Firehose not included. Idle: a month of requests to "
        "S3 and Glue at that pace while nothing changes. Item counts are up to six hours old.",
        style="dim",
    )
    runs = sum((t.stream_usd or 0) + (t.requests_usd or 0) for t in report.tables)
    served = sum(
        (t.stream_usd if t.served_stream_usd is None else t.served_stream_usd) or 0
        for t in report.tables
    ) + sum(t.served_requests_usd or 0 for t in report.tables)
    out.print(
        f"Changes and idle of all tables, a month: USD {runs:.2f} with runs of Dagster, "
        f"USD {served:.2f} with `cdc-pipeline serve` at the same pace.",
        style="dim",
    )
    failures = sum(not table.is_ready for table in report.tables)
    summary = f"Tables: {len(report.tables) - failures} passed, {failures} failed"
    out.print(summary, style="green" if report.is_ready else "red")


def _grid(report: "PreflightReport") -> Grid:
    grid = Grid()
    for heading in ("table", "account", "key", "stream", "recovery (UTC)"):
        grid.add_column(heading, overflow="fold")
    for heading in ("items", "export", "changes/month", "idle/month"):
        grid.add_column(heading, justify="right")
    for table in report.tables:
        style = "green" if table.is_ready else "bold red"
        grid.add_row(
            Text(table.table, style=style),
            _cell(table, "access"),
            _cell(table, "table"),
            _cell(table, "stream"),
            _cell(table, "recovery"),
            "-" if table.items is None else f"{table.items:,}",
            _usd(table.export_usd),
            _usd(table.stream_usd),
            _usd(table.requests_usd),
        )
    return grid


def _cell(table: "TableReport", check: str) -> Text:
    finding = table.finding(check)
    if finding is None:
        return Text("not checked", style="dim")
    if finding.green:
        return Text(finding.found)
    short = finding.found if len(finding.found) < 30 else "see below"
    return Text(short, style="red")


def _sign(finding: "Finding") -> Text:
    return Text("✓" if finding.green else "✗", style="green" if finding.green else "red")


def _usd(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.2f}"
