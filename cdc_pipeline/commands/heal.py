"""`cdc-pipeline heal`: close the open gaps of a table."""

import click

from cdc_pipeline.commands.lake import open_lake
from cdc_pipeline.core.errors import CannotHealError
from cdc_pipeline.core.run_context import RunContext


@click.command()
@click.argument("table")
@click.option("--plan", is_flag=True, help="Only show what would be exported.")
def heal(table: str, plan: bool) -> None:
    """Heal the open gaps of TABLE from incremental exports; where they cannot, by a full export.

    AWS charges for an export by the change data that it processes, 10 MB at least; no read
    capacity of the table is used, but for items that the exports do not speak of.
    """
    from cdc_pipeline.repair.heal import HealResult, close_gaps, open_gaps, planned_heals

    lake = open_lake()
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
