"""`cdc-pipeline reconcile`: compare a table in the lake with its source."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cdc_pipeline.commands.common import console, open_lake
from cdc_pipeline.core.run_context import RunContext

if TYPE_CHECKING:
    from cdc_pipeline.reconcile.reconcile import ReconcileReport


@click.command()
@click.argument("table")
@click.option("--sample", type=click.IntRange(3), metavar="N", help="Number of items to sample.")
@click.option("--full", is_flag=True, help="Compare all items with a fresh full export instead.")
@click.option("--repair", is_flag=True, help="With --full: publish the export if items differ.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--yes", is_flag=True, help="Do not ask before the export, which AWS charges.")
def reconcile(
    table: str, sample: int | None, full: bool, repair: bool, as_json: bool, yes: bool
) -> None:
    """Compare TABLE in the lake with its source; exit code 1 if they differ.

    Verifies the files of the lake and of the last export, then compares a sample of items by
    consistent reads, at most `reconcile.reads_per_second`. With --full, compares every item with a
    fresh export and reads every file. Keys of differing items are listed as published: hashed where
    column rules hash them.
    """
    from cdc_pipeline.reconcile.reconcile import estimate, reconcile_full, reconcile_sample

    if repair and not full:
        raise click.UsageError("--repair needs --full: it publishes the compared export")
    lake = open_lake()
    chosen = lake.table(lake.settings.table(table))
    items = sample or lake.settings.reconcile.sample
    cost = estimate(chosen, items)
    if full:
        estimated = f"full export of about {cost.gigabytes:.3f} GB, about USD {cost.usd:.2f}"
    else:
        estimated = f"sample of {items} items, at most about {cost.sample.read_units} read units"
    click.echo(f"{chosen.safe_name}: {estimated}", err=True)
    if full and not yes:
        click.confirm("Take the export?", abort=True, err=True)
    with Console(stderr=True, markup=False).status("starting") as line:
        context = RunContext(line.update)
        if full:
            report = reconcile_full(chosen, repair=repair, context=context)
        else:
            report = reconcile_sample(chosen, items, described=cost.described, context=context)
    if as_json:
        click.echo(json.dumps(asdict(report) | {"sound": report.is_sound}, indent=1))
    else:
        _show(report)
    if not (report.is_sound or report.repaired):
        sys.exit(1)


def _show(report: "ReconcileReport") -> None:
    export, files, safe = report.export, report.files, report.table
    if export:
        state = f"gone ({export.gone})" if export.gone else f"{export.files} files verified"
        click.echo(f"{safe}: export {export.export_arn.rpartition('/')[2]}: {state}")
    click.echo(f"{safe}: {files.files} files of the lake, {files.bytes:,} bytes of them read")
    for problem in [*(export.problems if export else ()), *map(str, files.damages)]:
        click.echo(f"{safe}: {problem}")
    if report.unreadable:
        click.echo(f"{safe}: items were not compared: {report.unreadable}")
    if report.differences:
        grid = Grid("kind", "key", "order key in the lake", title=f"differences of {safe}")
        for difference in report.differences:
            grid.add_row(difference.kind, Text(difference.key), difference.order_key or "-")
        console().print(grid)
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    click.echo(
        f"{safe}: {report.compared:,} items compared, {sum(report.counts.values()):,} differences"
        + (f" ({kinds})" if kinds else "")
        + (f", {report.unsettled} changed during every read" if report.unsettled else "")
        + f", {report.seconds:.1f} s"
    )
    if report.repaired:
        restored = report.restored
        click.echo(
            f"{safe}: repaired, the export is the baseline now; {len(restored.restored)} landing "
            f"objects restored, {len(restored.lost)} written off"
        )
    elif not report.is_sound and report.export_arn:
        click.echo(f"{safe}: Fix: cdc-pipeline reconcile {safe} --full --repair (uses this export)")
    elif not report.is_sound:
        click.echo(f"{safe}: Fix: cdc-pipeline reconcile {safe} --full --repair")
