"""`cdc-pipeline heal`: close the open gaps of a table."""

import click

from cdc_pipeline.commands.common import open_lake
from cdc_pipeline.core.errors import CannotHealError
from cdc_pipeline.core.run_context import RunContext


@click.command()
@click.argument("table")
@click.option("--plan", is_flag=True, help="Only show what would be exported.")
def heal(table: str, plan: bool) -> None:
    """Heal the open gaps of TABLE from incremental exports, or else by a full export.

    AWS charges an export by the change data it processes, 10 MB at least. Exports use no read
    capacity of the table; only items missing in the exports are read from it.
    """
    from cdc_pipeline.repair.heal import HealResult, close_gaps, open_gaps, planned_heals

    lake = open_lake()
    chosen = lake.table(lake.settings.table(table))
    if not open_gaps(chosen):
        click.echo(f"{table}: no open gap")
    elif plan:
        try:
            for planned in planned_heals(chosen):
                click.echo(f"{table}: {planned}")
        except CannotHealError as error:
            click.echo(f"{error.message}. A full export will become a new baseline instead")
    else:
        context = RunContext(lambda message: click.echo(f"{table}: {message}"))
        for result in close_gaps(chosen, context=context):
            if isinstance(result, HealResult):
                click.echo(
                    f"{table}: healed with {result.lines} changed items from {result.windows} "
                    f"exports, {result.reread} items read again, in {result.seconds:.0f} s"
                )
            else:
                click.echo(
                    f"{table}: a new baseline of {result.items} items in {result.seconds:.0f} s; "
                    "it is published when capture has passed the export time"
                )
