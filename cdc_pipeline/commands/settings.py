"""`cdc-pipeline tables` and `settings-schema`: the settings file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table as Grid

from cdc_pipeline.commands.common import console
from cdc_pipeline.core.plans.table_list import TableList, TableRow

if TYPE_CHECKING:
    from cdc_pipeline.settings.table import Table


@click.group()
def tables() -> None:
    """Add, list and remove tables of the settings file; its comments and order are kept."""


@tables.command()
@click.argument("names", nargs=-1)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="One table per row. Columns: name, region, role_arn, transport, owner, or as named in "
    "the first row.",
)
@click.option("--region", help="AWS region of tables without one.")
@click.option("--role-arn", help="Role to assume for tables without one.")
@click.option("--external-id", help="External id required by the role.")
@click.option("--transport", help="Transport of changes to the lake.")
@click.option("--owner", help="E-mail address or team:name.")
@click.option("--alias", help="Name in the lake, for a single table.")
@click.option("--lake", help="Create a settings file with this lake: s3://bucket/prefix.")
@click.option("--check/--no-check", default=True, help="Look each table up in AWS first (default).")
def add(
    names: tuple[str, ...], source: Path | None, lake: str | None, check: bool, **more: str
) -> None:
    r"""Add the tables NAMES, or the tables of a CSV file, to the settings: all or none.

    \b
    Examples:
      cdc-pipeline tables add orders customers --owner team:sales
      cdc-pipeline tables add --from tables.csv
      cdc-pipeline tables add orders --lake s3://my-lake/dynamodb --region eu-central-1
    """
    from cdc_pipeline.settings.load import settings_path
    from cdc_pipeline.setup.onboarding import add_tables, read_table_list

    if bool(names) == bool(source):
        raise click.UsageError("give either table names or a file with --from")
    path = settings_path()
    if lake and path.exists():
        raise click.UsageError(f"{path} names a lake already; --lake creates a new file")
    if not lake and not path.exists():
        raise click.UsageError(f"there is no {path} yet: add --lake s3://bucket/prefix")
    listed = read_table_list(source) if source else TableList("the names given", _named(names))
    if more["alias"] and len(listed.rows) > 1:
        raise click.UsageError("--alias needs a single table")
    given = {name: value for name, value in more.items() if value}
    top = {"lake": lake or "", **({"region": given["region"]} if "region" in given else {})}
    if lake:
        given.pop("region", None)
    rows = [TableRow(row.line, {**row.values, **_missing(given, row)}) for row in listed.rows]
    added = add_tables(path, replace(listed, rows=rows), top=top, check=check)
    click.echo(f"Added to {path} ({len(added)}): {', '.join(table.label for table in added)}")
    click.echo("Next: cdc-pipeline preflight; then reload the code location in Dagster")


@tables.command("list")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def list_tables(form: str) -> None:
    """List the tables of the settings file."""
    from cdc_pipeline.settings.load import load_settings

    settings = load_settings()
    rows = [_row(table, settings.region) for table in settings.tables]
    if form == "json":
        click.echo(json.dumps(rows, indent=1))
        return
    # Columns without any value are left out.
    shown = [name for name in rows[0] if name in ("table", "name") or any(r[name] for r in rows)]
    grid = Grid(title=f"{len(rows)} tables of lake {settings.lake}, database {settings.database}")
    for name in shown:
        grid.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        grid.add_row(*(row[name] or "-" for name in shown))
    console().print(grid)


@tables.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Remove table NAME from the settings. Its data stays in the lake."""
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings.load import load_settings, settings_path
    from cdc_pipeline.setup.onboarding import data_uris, remove_table

    path, settings = settings_path(), load_settings()
    table = settings.table(name)
    if not yes:
        click.confirm(
            f"Remove {table.label} from {path}? Its changes are no longer captured", abort=True
        )
    remove_table(path, name)
    click.echo(f"{table.label} removed from {path}. Its data stays:")
    for place in data_uris(Lake.open(settings).table(table)):
        click.echo(f"  {place}")
    if settings.catalog_type == "s3tables" and settings.catalog:
        click.echo(f"  {settings.catalog.properties['warehouse']}: tables {table.safe_name}_*")
    if settings.has_glue:
        click.echo(f"  Glue tables {table.safe_name}_* of database {settings.database}")
    click.echo("Streams keep changes for 24 hours: adding the table again after that opens a gap")


@click.command("settings-schema")
def settings_schema() -> None:
    """Print the JSON schema of the settings file, for editors."""
    from cdc_pipeline.settings.load import settings_schema as schema

    click.echo(json.dumps(schema(), indent=2))


def _named(names: tuple[str, ...]) -> list[TableRow]:
    return [TableRow(number, {"name": name}) for number, name in enumerate(names, 1)]


def _missing(given: dict[str, str], row: TableRow) -> dict[str, str]:
    return {name: value for name, value in given.items() if name not in row.values}


def _row(table: "Table", region: str | None) -> dict[str, str | None]:
    return {
        "table": table.safe_name,
        "name": table.name,
        "region": table.region or region,
        "account": table.account,
        "role_arn": table.role_arn,
        "transport": table.transport,
        "owner": table.owner,
    }
