"""`cdc-pipeline erase`: erase one item from the lake."""

import click

from cdc_pipeline.commands.lake import open_lake
from cdc_pipeline.core.run_context import RunContext


@click.command()
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

    lake = open_lake()
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
