"""`cdc-pipeline views`: what can be queried, and the same for a DuckDB shell."""

import sys

import click


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--sql", is_flag=True, help="Print CREATE VIEW statements for a plain DuckDB shell.")
def views(tables: tuple[str, ...], sql: bool) -> None:
    r"""List the views that exist, of the TABLES named or of all (`aggregates` is one of them).

    With --sql, print statements that create them in any DuckDB shell, without this package. They
    show the lake as it is now: print them again to see what lands later. Rows that landed since the
    last fold are part of what is printed.

    \b
    Example: cdc-pipeline views --sql orders > views.sql && duckdb -init views.sql
    """
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.lake.query.view_script import list_views, view_script
    from cdc_pipeline.settings.load import load_settings

    lake = Lake.open(load_settings())
    parts = view_script(lake, tables) if sql else (f"{name}\n" for name in list_views(lake, tables))
    for part in parts:
        sys.stdout.write(part)
