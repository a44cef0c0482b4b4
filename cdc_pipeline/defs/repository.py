"""The code location as Dagster's processes use it: built as far as it is needed.

A run loads the code location in a process of its own. Runs of `capture`, started every minute, need
one job and no asset; building the assets of a hundred tables takes longer than such a run.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from cdc_pipeline.defs.operations.glue import repair_glue_partitions
from cdc_pipeline.defs.operations.heal import heal
from cdc_pipeline.defs.resources import lake_resources
from cdc_pipeline.defs.tables.capture import capture

JOBS = (capture, heal, repair_glue_partitions)
"""Jobs of ops: they name the tables in their run configuration."""

NAME = "__repository__"
"""Dagster's name of the only repository of a code location; sensors' state is kept under it."""


def open_repository(path: Path, build: Callable[[], dg.Definitions]) -> dg.RepositoryDefinition:
    """Return the code location of the settings at `path`; `build` makes all definitions."""
    return dg.RepositoryDefinition(NAME, repository_data=_Repository(path, build))


class _Repository(dg.RepositoryData):
    """Jobs of ops without the assets; everything else from all definitions, built once."""

    def __init__(self, path: Path, build: Callable[[], dg.Definitions]) -> None:
        self._path = path
        self._build = build

    @cached_property
    def _jobs(self) -> dg.RepositoryDefinition:
        definitions = dg.Definitions(jobs=JOBS, resources=lake_resources(self._path))
        return definitions.get_repository_def()

    @cached_property
    def _whole(self) -> dg.RepositoryDefinition:
        return self._build().get_repository_def()

    def has_job(self, job_name: str) -> bool:
        return self._jobs.has_job(job_name) or self._whole.has_job(job_name)

    def get_job(self, job_name: str) -> dg.JobDefinition:
        owner = self._jobs if self._jobs.has_job(job_name) else self._whole
        return owner.get_job(job_name)

    def get_all_jobs(self) -> Sequence[dg.JobDefinition]:
        return self._whole.get_all_jobs()

    def get_job_names(self) -> Sequence[str]:
        return self._whole.job_names

    def get_all_schedules(self) -> Sequence[dg.ScheduleDefinition]:
        return self._whole.schedule_defs

    def get_all_sensors(self) -> Sequence[dg.SensorDefinition]:
        return self._whole.sensor_defs

    def get_top_level_resources(self) -> Mapping[str, dg.ResourceDefinition]:
        return self._jobs.get_top_level_resources()

    def get_env_vars_by_top_level_resource(self) -> Mapping[str, Any]:
        return self._jobs.get_env_vars_by_top_level_resource()

    def get_source_assets_by_key(self) -> Mapping[dg.AssetKey, dg.SourceAsset]:
        return self._whole.source_assets_by_key

    def get_assets_defs_by_key(self) -> Mapping[dg.AssetKey, dg.AssetsDefinition]:
        return self._whole.assets_defs_by_key

    def get_asset_checks_defs_by_key(
        self,
    ) -> Mapping[dg.AssetCheckKey, dg.AssetChecksDefinition]:
        return self._whole.asset_checks_defs_by_key

    def load_all_definitions(self) -> None:
        self._whole.load_all_definitions()
