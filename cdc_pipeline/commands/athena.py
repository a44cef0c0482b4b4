"""`cdc-pipeline athena-sql`: ready queries for Athena."""

import sys

import click


@click.command("athena-sql")
@click.argument("table")
@click.argument("names", nargs=-1)
@click.option("--key", metavar="JSON", help="Key of the item that queries about one item are for.")
def athena_sql(table: str, names: tuple[str, ...], key: str | None) -> None:
    """Print ready queries on TABLE for Athena or Trino: all of them, or those of the NAMES.

    Each says what it means and what it reads. KEY is plain or typed: '{"order_id": "o-1"}'.

    Example: cdc-pipeline athena-sql orders item_history --key '{"order_id": "o-1"}'
    """
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.lake.query.athena import athena_script
    from cdc_pipeline.settings.load import load_settings

    lake = Lake.open(load_settings())
    for part in athena_script(lake.table(lake.settings.table(table)), names, key):
        sys.stdout.write(part)
