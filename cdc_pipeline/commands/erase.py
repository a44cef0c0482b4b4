"""`cdc-pipeline erase`: erase one item from the lake."""

import click

from cdc_pipeline.commands.common import open_lake
from cdc_pipeline.core.run_context import RunContext


@click.command()
@click.argument("table")
@click.argument("key")
@click.option("--dry-run", is_flag=True, help="Only show which files hold the item.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(table: str, key: str, dry_run: bool, yes: bool) -> None:
    """Erase the item with KEY of TABLE from the lake, with its whole history.

    KEY is JSON of the key attributes, plain or typed: '{"order_id": "o-1"}'. Delete the item in
    the source first. Erased are: landing zone, cdc, current_state, baselines, aggregates (rebuilt),
    quarantine, backups, exports, all earlier versions of the tables and, in a versioned bucket, of
    their files. A salted hash of the key remains, so that no late change restores the item. Reads
    every file of the table twice. Not erased: DynamoDB's own backups and copies made by others.
    """
    from cdc_pipeline.erase.erase import erase_item, erase_target, find_traces

    lake = open_lake()
    chosen = lake.table(lake.settings.table(table))
    if dry_run:
        holdings, versions = find_traces(erase_target(chosen, key))
        for holding in holdings:
            click.echo(f"{holding.place}: {holding.key}, {holding.rows} rows")
        click.echo(f"{len(holdings)} files hold the item; {versions} earlier versions would go")
        return
    if not yes:
        click.confirm(f"Erase this item of {table} and its whole history for good?", abort=True)
    done = erase_item(chosen, key, context=RunContext(click.echo))
    click.echo(
        f"{table}: erased; {done.files_read} files read, none holds the item "
        f"({done.seconds:.0f} s). Key hash {done.erasure.key_hash[:16]}"
    )
    if done.elsewhere:
        click.echo(
            f"The catalogue keeps {', '.join(done.elsewhere)} outside the lake: no version of "
            "these tables has the item any more; the catalogue's service removes the files of "
            "earlier versions (S3 Tables: by default 13 days after, docs/catalogues.md)"
        )
