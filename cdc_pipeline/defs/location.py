"""The code location's name, and the state that Dagster stores under it."""

from collections.abc import Iterator

import dagster as dg

LOCATION = "cdc_pipeline.definitions"
"""The module's name: Dagster's default name of a code location."""


def move_sensors(instance: dg.DagsterInstance, former: str) -> Iterator[tuple[str, bool]]:
    """Move the state of sensors and schedules of the code location `former` to `LOCATION`.

    Dagster 1.13 stores status and cursor under (location, repository, name). Under another name,
    sensors would start without a cursor, and stopped unless the settings start them. Yields each
    name and whether it was moved; a sensor with a state under the present name is not moved.
    """
    states = list(instance.all_instigator_state())
    taken = {state.selector_id for state in states}
    for state in states:
        repository = state.origin.repository_origin
        if repository.code_location_origin.location_name != former:
            continue
        location = repository.code_location_origin._replace(location_name=LOCATION)  # type: ignore[attr-defined]
        origin = state.origin._replace(
            repository_origin=repository._replace(code_location_origin=location)
        )
        moved = state._replace(origin=origin)
        if is_free := moved.selector_id not in taken:
            instance.add_instigator_state(moved)
            instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)
        yield state.name, is_free
