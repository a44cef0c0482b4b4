"""The code location's name, and what Dagster keeps under it of sensors and schedules."""

from collections.abc import Iterator

import dagster as dg

LOCATION = "cdc_pipeline.definitions"
"""The module's own name: Dagster gives it wherever nothing else is said."""


def move_sensors(instance: dg.DagsterInstance, former: str) -> Iterator[tuple[str, bool]]:
    """Move the state of sensors and schedules of the code location `former` to `LOCATION`.

    Dagster 1.13 keeps on or off and the cursor under (location, repository, name), so that under
    another name all begins anew, and stopped unless the settings say otherwise. Yields each name
    and whether it was moved; what has a state under the present name already is left alone.
    """
    states = list(instance.all_instigator_state())
    taken = {state.selector_id for state in states}
    for state in states:
        repository = state.origin.repository_origin
        if repository.code_location_origin.location_name != former:
            continue
        place = repository.code_location_origin._replace(location_name=LOCATION)  # type: ignore[attr-defined]
        origin = state.origin._replace(
            repository_origin=repository._replace(code_location_origin=place)
        )
        moved = state._replace(origin=origin)
        if free := moved.selector_id not in taken:
            instance.add_instigator_state(moved)
            instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)
        yield state.name, free
