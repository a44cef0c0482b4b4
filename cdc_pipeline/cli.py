"""The command line: each command reads its arguments, calls one use case and prints."""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from cdc_pipeline.commands.athena import athena_sql
from cdc_pipeline.commands.iam import iam_policy
from cdc_pipeline.commands.output import console as _console
from cdc_pipeline.commands.preflight import preflight
from cdc_pipeline.commands.tables import tables
from cdc_pipeline.commands.views import views
from cdc_pipeline.core.clock import now_us, time_text
from cdc_pipeline.core.errors import CannotHealError, CdcPipelineError
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, TRANSPORTS

if TYPE_CHECKING:
    from cdc_pipeline.lake.upkeep.status import TableStatus

_TIMELINE_DAYS = 14


class _Commands(click.Group):
    """Prints our errors as one readable message instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CdcPipelineError as error:
            raise click.ClickException(str(error)) from None
        except BrokenPipeError:
            # The reader of our output, such as `head`, has had enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cdc-pipeline")
def main() -> None:
    """Keep a provably complete analytical copy of DynamoDB tables in a data lake.

    Tables and the lake are named in cdc_pipeline.yaml (or the file in CDC_PIPELINE_CONFIG).
    """


main.add_command(preflight)
main.add_command(iam_policy)
main.add_command(tables)
main.add_command(athena_sql)
main.add_command(views)


@main.command()
@click.argument("sql", required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
@click.option(
    "--as-of",
    metavar="TIME",
    help="Show the tables as they were at the end of that second, such as 2026-11-20T12:00Z.",
)
def query(sql: str | None, form: str, as_of: str | None) -> None:
    """Run SQL on the lake: an argument, or standard input.

    Each table is a schema with the views current_state, cdc, history, raw_stream and pitr_export;
    aggregates are in the schema aggregates.

    Example: cdc-pipeline query "SELECT status, count(*) FROM orders.current_state GROUP BY 1"
    """
    from cdc_pipeline.lake.query.query import as_csv, as_json, connect_for, run_query, show
    from cdc_pipeline.lake.query.time_travel import parse_moment

    text = sys.stdin.read() if sql in (None, "-") else str(sql)
    if not text.strip():
        raise click.UsageError("no SQL: give it as an argument or on standard input")
    moment = parse_moment(as_of) if as_of else None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        connection = connect_for(_lake(), text, moment)
    for warning in told:
        click.echo(f"Warning: {warning.message}", err=True)
    with connection:
        result = run_query(connection, text)
        if result is None:
            return
        if form == "table":
            show(result, _console().width)
            return
        _write(as_json(result) if form == "json" else as_csv(result))


@main.command()
@click.argument("tables", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(tables: tuple[str, ...], as_json: bool) -> None:
    """Show what the lake holds of each table and how far behind it is.

    For the TABLES named, and for those with a hole, also what is covered, since when, from what.
    """
    from dataclasses import asdict

    from cdc_pipeline.core.log.coverage import clock_note
    from cdc_pipeline.lake.upkeep.status import table_status

    lake = _lake()
    chosen = [lake.settings.table(name) for name in tables] or lake.settings.tables
    rows = [table_status(lake.table(table)) for table in chosen]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    headings = (
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
    grid = Grid(title=f"lake {lake.settings.lake}, database {lake.database} (times in UTC)")
    for heading in headings:
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
    console = _console()
    console.print(grid)
    measured = [row.clock_offset_us for row in rows if row.clock_offset_us is not None]
    if measured:
        console.print(clock_note(max(measured, key=abs)), highlight=False)
    for row in rows:
        if row.cut is not None:
            console.print(
                f"{row.table}: switching from {row.transport} to {row.cut.transport} at "
                f"{_moment(row.cut.at_us)} UTC; leave both on until this line is gone"
            )
        for gap in row.gaps:
            console.print(
                f"[red]gap[/] {row.table} (entry {gap.entry}): {gap}, "
                f"changes from {_moment(gap.from_us)} to "
                f"{_moment(gap.to_us)} UTC are missing. Fix: {row.fixes[gap.entry]}"
            )
        if row.late_changes:
            console.print(
                f"[yellow]late[/] {row.table}: {row.late_changes:,} changes came behind a time up "
                f"to which everything was said to have landed, the latest at "
                f"{_moment(row.late_at_us)} UTC; see the check watermark_holds"
            )
        if row.legacy_us:
            console.print(
                f"[yellow]deletes[/] {row.table}: rows that an older Lambda made up to "
                f"{_moment(row.legacy_us)} UTC have landed; deletes may be missing among them, "
                "see docs/transports/firehose.md"
            )
        if tables or row.gaps:
            _print_coverage(console, row)


@main.command()
@click.argument("table")
@click.option("--plan", is_flag=True, help="Only show what would be exported.")
def heal(table: str, plan: bool) -> None:
    """Heal the open gaps of TABLE from incremental exports; where they cannot, by a full export.

    AWS charges for an export by the change data that it processes, 10 MB at least; no read
    capacity of the table is used, but for items that the exports do not speak of.
    """
    from cdc_pipeline.repair.heal import HealResult, close_gaps, open_gaps, planned_heals

    lake = _lake()
    chosen = lake.table(lake.settings.table(table))
    if not open_gaps(chosen):
        click.echo(f"{table}: no open gap")
    elif plan:
        try:
            for heal in planned_heals(chosen):
                click.echo(f"{table}: {heal}")
        except CannotHealError as error:
            click.echo(f"{error.message}. A full export becomes a new baseline instead")
    else:
        for done in close_gaps(
            chosen, context=RunContext(lambda said: click.echo(f"{table}: {said}"))
        ):
            if isinstance(done, HealResult):
                click.echo(
                    f"{table}: healed with {done.lines} changed items from {done.windows} "
                    f"exports, {done.reread} items read again, in {done.seconds:.0f} s"
                )
            else:
                click.echo(
                    f"{table}: a new baseline of {done.items} items in {done.seconds:.0f} s; it "
                    "is published when capture has passed its time"
                )


@main.command()
@click.argument("table")
@click.option("--sample", type=click.IntRange(3), metavar="N", help="Items of the sample.")
@click.option("--full", is_flag=True, help="Compare all items with a fresh full export instead.")
@click.option("--repair", is_flag=True, help="With --full: publish that export where they differ.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--yes", is_flag=True, help="Do not ask before the export, which costs.")
def reconcile(
    table: str, sample: int | None, full: bool, repair: bool, as_json: bool, yes: bool
) -> None:
    """Compare TABLE in the lake with its source; exit code 1 when they are not the same.

    Verifies the files of the lake and of the last export, then reads a sample of items from the
    table (consistently, paced by `reconcile.reads_per_second`), or with --full compares every item
    with a fresh export and reads every file. Keys of items that differ are listed as they are
    published, hashed where column rules hash them.
    """
    from cdc_pipeline.reconcile.reconcile import estimate, reconcile_full, reconcile_sample

    if repair and not full:
        raise click.UsageError("--repair needs --full: it publishes the export it compared with")
    lake = _lake()
    chosen = lake.table(lake.settings.table(table))
    items = sample or lake.settings.reconcile.sample
    cost = estimate(chosen, items)
    if full:
        told = f"full export of about {cost.gigabytes:.3f} GB, about USD {cost.usd:.2f}"
    else:
        told = f"sample of {items} items, at most about {cost.sample.read_units} read units"
    click.echo(f"{chosen.safe_name}: {told}", err=True)
    if full and not yes:
        click.confirm("Take the export?", abort=True, err=True)
    with Console(stderr=True, markup=False).status("starting") as line:
        if full:
            report = reconcile_full(chosen, repair=repair, context=RunContext(line.update))
        else:
            report = reconcile_sample(chosen, items, context=RunContext(line.update))
    _show_report(report, as_json)
    if not (report.is_sound or report.repaired):
        sys.exit(1)


def _show_report(report: Any, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        click.echo(json.dumps(asdict(report) | {"sound": report.is_sound}, indent=1))
        return
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
        _console().print(grid)
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.counts.items())
    click.echo(
        f"{safe}: {report.compared:,} items compared, {sum(report.counts.values()):,} differences"
        + (f" ({kinds})" if kinds else "")
        + (f", {report.unsettled} changed whenever they were read" if report.unsettled else "")
        + f", {report.seconds:.1f} s"
    )
    if report.repaired:
        back = report.restored
        click.echo(
            f"{safe}: repaired, the export is the baseline now; {len(back.restored)} landing "
            f"objects restored, {len(back.lost)} written off"
        )
    elif not report.is_sound and report.export_arn:
        click.echo(f"{safe}: Fix: cdc-pipeline reconcile {safe} --full --repair (uses this export)")
    elif not report.is_sound:
        click.echo(f"{safe}: Fix: cdc-pipeline reconcile {safe} --full --repair")


@main.command()
@click.argument("table")
@click.argument("key")
@click.option("--dry-run", is_flag=True, help="Only show which files hold the item.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(table: str, key: str, dry_run: bool, yes: bool) -> None:
    """Erase the item with KEY of TABLE from the lake, with all its past.

    KEY is JSON of the key attributes, plain or typed: '{"order_id": "o-1"}'. The source must not
    have the item any more. It leaves landing zone, cdc, current_state, baselines, aggregates (built
    anew), quarantine, backups and exports, with all earlier versions of the tables and, in a
    versioned bucket, of their files. A salted hash of the key stays, so that nothing brings it
    back. Reads every file of the table, twice. Beyond reach: DynamoDB's own backups and copies that
    others made.
    """
    from cdc_pipeline.erase.erase import erase_item, erase_target, find_traces

    lake = _lake()
    chosen = lake.table(lake.settings.table(table))
    if dry_run:
        found, versions = find_traces(erase_target(chosen, key))
        for holding in found:
            click.echo(f"{holding.place}: {holding.key}, {holding.rows} rows")
        click.echo(f"{len(found)} files hold the item; {versions} earlier versions would go")
        return
    if not yes:
        click.confirm(f"Erase this item of {table} and all its past for good?", abort=True)
    done = erase_item(chosen, key, context=RunContext(click.echo))
    click.echo(
        f"{table}: erased; {done.files_read} files read, none holds the item "
        f"({done.seconds:.0f} s). Key hash {done.erasure.key_hash[:16]}"
    )
    if done.elsewhere:
        click.echo(
            f"The catalogue keeps {', '.join(done.elsewhere)} outside of the lake: no version of "
            "them has the item any more, and its service removes the files of earlier ones (S3 "
            "Tables: by default 13 days after, docs/catalogues.md)"
        )


@main.command("settings-schema")
def settings_schema() -> None:
    """Print the JSON schema of the settings file, for editors."""
    from cdc_pipeline.settings.load import settings_schema as schema

    click.echo(json.dumps(schema(), indent=2))


_transport = click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    default=DYNAMODB_STREAMS,
    show_default=True,
    help="The road that changes take to the lake.",
)


@main.command()
@click.option("--port", default=4566, show_default=True, help="0 takes any free port.")
@click.option("--traffic", is_flag=True, help="Create two tables, seed them, keep changing them.")
@click.option("--orders", default=2000, show_default=True, help="Orders to seed with --traffic.")
@click.option("--rate", default=5.0, show_default=True, help="Changes per second with --traffic.")
def sandbox(port: int, traffic: bool, orders: int, rate: float) -> None:
    """Run a local AWS on 127.0.0.1 (docs/sandbox.md says what is exact in it)."""
    from cdc_pipeline.sandbox.demo.serve import run_sandbox

    run_sandbox(port=port, traffic=traffic, orders=orders, rate=rate)


@main.command()
@click.option("--orders", default=20_000, show_default=True, help="Orders to seed.")
@click.option("--changes", default=5_000, show_default=True, help="Live changes at least.")
@click.option("--lake", "kind", type=click.Choice(["s3", "local"]), default="s3", show_default=True)
@_transport
def demo(orders: int, changes: int, kind: str, transport: str) -> None:
    """Run the whole pipeline once on a local AWS and prove that the lake equals its source."""
    from cdc_pipeline.sandbox.demo.demo import run_demo

    if not run_demo(orders=orders, changes=changes, kind=kind, transport=transport):
        sys.exit(1)


@main.command()
@click.option("--port", default=3000, show_default=True, help="Of the Dagster UI.")
@click.option("--aws-port", default=4566, show_default=True, help="Of the local AWS.")
@click.option("--orders", default=2000, show_default=True, help="Orders to seed.")
@click.option("--rate", default=5.0, show_default=True, help="Changes per second.")
@_transport
def dev(port: int, aws_port: int, orders: int, rate: float, transport: str) -> None:
    """Run a local AWS with live traffic and the Dagster UI, everything on.

    Starts afresh: source tables, lake and Dagster history of an earlier run are gone.
    """
    from cdc_pipeline.sandbox.demo.dev import run_dev

    run_dev(port=port, aws_port=aws_port, orders=orders, rate=rate, transport=transport)


@main.command("move-sensors")
@click.option("--from", "former", required=True, metavar="NAME", help="The former name.")
def move_sensors(former: str) -> None:
    """Keep sensors and schedules as they are when the code location gets its present name.

    Run it once in the environment of Dagster (DAGSTER_HOME), while Dagster is stopped. Whether they
    are on, and how far they have come, is moved from the code location NAME.
    """
    import dagster as dg

    from cdc_pipeline.defs.location import LOCATION, move_sensors

    with dg.DagsterInstance.get() as instance:
        found = list(move_sensors(instance, former))
    for name, moved in found:
        kept = f"left alone, because {LOCATION} has one in use"
        click.echo(f"{name}: {f'moved to {LOCATION}' if moved else kept}")
    if not found:
        click.echo(f"Dagster knows no sensor or schedule of a code location {former!r}.")


def _lake() -> Any:
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings.load import load_settings

    return Lake.open(load_settings())


def _write(parts: Iterator[str]) -> None:
    for part in parts:
        sys.stdout.write(part)
    sys.stdout.flush()


def _print_coverage(console: Console, row: "TableStatus") -> None:
    from cdc_pipeline.core.log.coverage import HOUR_SIGNS, hour_bars

    legend = "  ".join(f"{sign} {means}" for means, sign in HOUR_SIGNS.items())
    grid = Grid(title=f"coverage of {row.table} (times in UTC)")
    for heading in ("from", "to", "from what", ""):
        grid.add_column(heading)
    for stretch in row.coverage:
        since = time_text(stretch.from_us) if stretch.from_us else "the beginning"
        grid.add_row(since, time_text(stretch.to_us), stretch.means, stretch.note)
    console.print(grid)
    for bar in hour_bars(row.coverage, _TIMELINE_DAYS):
        console.print(bar, highlight=False)
    console.print(f"an hour a sign: {legend}\n", highlight=False)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _moment(time_us: int | None) -> str:
    if not time_us:
        return "-"
    return time_text(time_us)


def _hours_left(time_us: int, kept_hours: int) -> str:
    """Until AWS trims the oldest change that may be unread."""
    if not time_us:
        return "-"
    return f"{kept_hours - (now_us() - time_us) / 3_600_000_000:.1f}"


def _lag(time_us: int) -> str:
    if not time_us:
        return "-"
    return f"{max(0, (now_us() - time_us) // 1_000_000)} s"
