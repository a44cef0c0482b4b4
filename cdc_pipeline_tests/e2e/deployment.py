"""A world with Dagster on top: its definitions, a real instance, and how tests run them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg

from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline_tests.e2e.world import World


@dataclass
class Deployment:
    """Definitions as a code server would build them, and an instance with storage of its own."""

    world: World
    defs: dg.Definitions
    instance: dg.DagsterInstance

    def materialize(self, *path: str, tags: dict[str, str] | None = None, day: Any = None) -> Any:
        """One asset through the implicit job; the result, whether it succeeded or not."""
        return self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(list(path))],
            partition_key=str(day) if day else None,
            tags=tags,
            instance=self.instance,
            raise_on_error=False,
        )

    def run_job(self, name: str, run_config: Any = None, tags: dict[str, str] | None = None) -> Any:
        return self.defs.resolve_job_def(name).execute_in_process(
            run_config=run_config, instance=self.instance, raise_on_error=False, tags=tags
        )

    def tick(self, sensor: str, cursor: str | None = None) -> Any:
        """One evaluation of a sensor, as the daemon would do it."""
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=cursor,
            repository_def=self.defs.get_repository_def(),
            resources={"lake": LakeResource(settings_path=str(self.world.settings_path))},
        ) as context:
            return self.defs.resolve_sensor_def(sensor).evaluate_tick(context)

    def follow(self, ticks: int = 6) -> list[str]:
        """What the sensor `downstream` starts until nothing is stale; which assets, in order."""
        cursor, started = None, []
        for _ in range(ticks):
            tick = self.tick("downstream", cursor)
            cursor = tick.cursor
            if not tick.run_requests:
                return started
            for request in tick.run_requests:
                result = self.run_request(request)
                assert result.success, failure(result)
                started += [key.to_user_string() for key in request.asset_selection or ()]
        raise AssertionError(f"still stale after {ticks} ticks: {started}")

    def run_request(self, request: dg.RunRequest) -> Any:
        """What a sensor asked for, as the daemon would have it run."""
        return self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=request.asset_selection,
            partition_key=request.partition_key,
            tags={**request.tags, "dagster/sensor_name": "downstream"},
            instance=self.instance,
            raise_on_error=False,
        )


@contextmanager
def deploy(world: World) -> Iterator[Deployment]:
    """Definitions of the world's settings file and a DAGSTER_HOME inside its folder."""
    path = world.settings_path
    home = world.folder / "dagster_home"
    home.mkdir(exist_ok=True)
    with dg.instance_for_test(temp_dir=str(home)) as instance:
        yield Deployment(world, build_definitions(load_settings(path), path), instance)


def follow(world: World) -> list[str]:
    """Let the world's derived tables catch up with its lake, as the sensor `downstream` does."""
    with deploy(world) as made:
        return made.follow()


def today() -> date:
    return datetime.now(UTC).date()


def metadata(result: Any, *path: str) -> dict[str, Any]:
    """All metadata of an asset's materialisations in a run, by name, as plain values."""
    key = dg.AssetKey(list(path))
    return {
        name: value.value
        for found in materializations(result)
        if found.asset_key == key
        for name, value in found.metadata.items()
    }


def materializations(result: Any) -> list[dg.AssetMaterialization]:
    return [
        event.step_materialization_data.materialization
        for event in result.all_events
        if event.is_step_materialization
    ]


def failure(result: Any) -> str:
    """What a person reads of a failed step: the description of its `dg.Failure`."""
    assert not result.success
    events = [event for event in result.all_events if event.is_step_failure]
    described = [event.step_failure_data.user_failure_data for event in events]
    assert described, "no step failed"
    assert all(described), "a step failed with something else than a dg.Failure"
    return "\n".join(str(data.description) for data in described)


def requested_tables(tick: Any) -> list[str]:
    """The tables that a tick of shard_sensor wants captured."""
    configs: Sequence[Any] = [request.run_config for request in tick.run_requests or ()]
    return [t for c in configs for t in c["ops"]["capture_streams"]["config"]["tables"]]
