"""`cdc-pipeline query`, `views` and `athena-sql`: SQL on the lake, run here or printed."""

import sys
import warnings
from collections.abc import Iterator

import click

from cdc_pipeline.commands.common import console, open_lake


@click.command()
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
    help="Query the tables as of the end of this second, such as 2026-11-20T12:00Z.",
)
def query(sql: str | None, form: str, as_of: str | None) -> None:
    """Run SQL on the lake, from the argument or standard input.

    Each table is a schema with the views current_state, cdc, history, raw_stream and pitr_export;
    the aggregates are in the schema aggregates.

    Example: cdc-pipeline query "SELECT status, count(*) FROM orders.current_state GROUP BY 1"
    """
    from cdc_pipeline.lake.query.query import as_csv, as_json, connect_for, run_query, show
    from cdc_pipeline.lake.query.time_travel import parse_moment

    text = sys.stdin.read() if sql in (None, "-") else str(sql)
    if not text.strip():
        raise click.UsageError("no SQL: pass it as an argument or on standard input")
    moment = parse_moment(as_of) if as_of else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connection = connect_for(open_lake(), text, moment)
    for warning in caught:
        click.echo(f"Warning: {warning.message}", err=True)
    with connection:
        result = run_query(connection, text)
        if result is None:
            return
        if form == "table":
            show(result, console().width)
            return
        _write(as_json(result) if form == "json" else as_csv(result))


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--sql", is_flag=True, help="Print CREATE VIEW statements for a plain DuckDB shell.")
def views(tables: tuple[str, ...], sql: bool) -> None:
    r"""List the existing views of the TABLES, by default of all (`aggregates` counts as a table).

    With --sql, print CREATE VIEW statements for any DuckDB shell, without this package. The views
    show the lake as of now, rows landed since the last fold included: print them again for later
    changes.

    \b
    Example: cdc-pipeline views --sql orders > views.sql && duckdb -init views.sql
    """
    from cdc_pipeline.lake.query.view_script import list_views, view_script

    lake = open_lake()
    parts = view_script(lake, tables) if sql else (f"{name}\n" for name in list_views(lake, tables))
    for part in parts:
        sys.stdout.write(part)


@click.command("athena-sql")
@click.argument("table")
@click.argument("names", nargs=-1)
@click.option("--key", metavar="JSON", help="Key of the item, for queries about one item.")
def athena_sql(table: str, names: tuple[str, ...], key: str | None) -> None:
    """Print ready queries on TABLE for Athena or Trino: all, or the NAMES given.

    A comment above each query states its result and the data it reads. KEY is plain or typed:
    '{"order_id": "o-1"}'.

    Example: cdc-pipeline athena-sql orders item_history --key '{"order_id": "o-1"}'
    """
    from cdc_pipeline.lake.query.athena import athena_script

    lake = open_lake()
    for part in athena_script(lake.table(lake.settings.table(table)), names, key):
        sys.stdout.write(part)


def _write(parts: Iterator[str]) -> None:
    for part in parts:
        sys.stdout.write(part)
    sys.stdout.flush()
