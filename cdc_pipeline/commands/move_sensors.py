"""`cdc-pipeline move-sensors`: keep the state of sensors under another code location's name."""

import click


@click.command("move-sensors")
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
