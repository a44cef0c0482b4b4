"""`cdc-pipeline move-sensors`: move the state of sensors from a former code location name."""

import click


@click.command("move-sensors")
@click.option("--from", "former", required=True, metavar="NAME", help="The former name.")
def move_sensors(former: str) -> None:
    """Keep the state of sensors and schedules when the code location is renamed.

    Moves whether each is on, and its cursor, from the code location NAME to the present one. Run
    it once in Dagster's environment (DAGSTER_HOME), while Dagster is stopped.
    """
    import dagster as dg

    from cdc_pipeline.defs.location import LOCATION, move_sensors

    with dg.DagsterInstance.get() as instance:
        results = list(move_sensors(instance, former))
    for name, is_moved in results:
        kept = f"left unchanged, because {LOCATION} already has one in use"
        click.echo(f"{name}: {f'moved to {LOCATION}' if is_moved else kept}")
    if not results:
        click.echo(f"Dagster has no sensor or schedule of a code location {former!r}.")
