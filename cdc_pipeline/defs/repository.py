"""The code location as Dagster's processes use it: built as far as it is needed.

A run loads the code location in a process of its own, and so does each of its steps. A run of
`capture`, started every minute, needs one job and no asset; a run of assets mostly needs those of
one table. Building the assets of a hundred tables takes longer than such a run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from cdc_pipeline.defs.operations.glue import repair_glue_partitions
from cdc_pipeline.defs.operations.heal import heal
from cdc_pipeline.defs.resources import lake_resources
from cdc_pipeline.defs.tables.capture import capture
from cdc_pipeline.settings.model import Settings

JOBS = (capture, heal, repair_glue_partitions)
"""Jobs of ops: they name the tables in their run configuration."""

NAME = "__repository__"
"""Dagster's name of the only repository of a code location; sensors' state is kept under it."""

ASSET_JOB = "__ASSET_JOB"
"""Dagster's name of the job of runs that are started for assets."""


def open_repository(
    settings: Settings, path: Path, build: Callable[[], dg.Definitions]
) -> dg.RepositoryDefinition:
    """Return the code location of the settings from `path`; `build` makes all definitions."""
    return dg.RepositoryDefinition(NAME, repository_data=_Repository(settings, path, build))


class _Repository(dg.RepositoryData):
    """Jobs of ops, and runs of some tables, without the rest; the rest is built in one piece."""

    def __init__(self, settings: Settings, path: Path, build: Callable[[], dg.Definitions]) -> None:
        self._settings = settings
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
        if self._jobs.has_job(job_name):
            return self._jobs.get_job(job_name)
        if job_name == ASSET_JOB and "_whole" not in vars(self):
            return _AssetJob(self._settings, self._path, lambda: self._whole.get_job(ASSET_JOB))
        return self._whole.get_job(job_name)

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


class _AssetJob(dg.JobDefinition):
    """Dagster's job of all assets; a selection of assets of some tables is made of these alone.

    It has no state of its own. At its first use for anything else it takes that of the job that
    `load` returns.
    """

    def __init__(  # the base class's is not called, see `__getattr__`
        self, settings: Settings, path: Path, load: Callable[[], dg.JobDefinition]
    ) -> None:
        self._settings = settings
        self._path = path
        self._load = load

    def __getattr__(self, name: str) -> Any:
        load = vars(self).pop("_load", None)
        if load is None:
            raise AttributeError(name)
        vars(self).update(vars(load()))
        return getattr(self, name)

    def get_subset(
        self,
        *,
        op_selection: Iterable[str] | None = None,
        asset_selection: AbstractSet[dg.AssetKey] | None = None,
        asset_check_selection: AbstractSet[dg.AssetCheckKey] | None = None,
    ) -> dg.JobDefinition:
        keys = {*(asset_selection or ()), *(c.asset_key for c in asset_check_selection or ())}
        named = {key.path[0] for key in keys}
        tables = [table for table in self._settings.tables if table.safe_name in named]
        if op_selection or not keys or len(tables) < len(named):
            subset = super().get_subset
        else:
            chosen = self._settings.model_copy(update={"tables": tables})
            subset = _tables_repository(chosen, self._path).get_job(ASSET_JOB).get_subset
        return subset(
            op_selection=op_selection,
            asset_selection=asset_selection,
            asset_check_selection=asset_check_selection,
        )


def _tables_repository(settings: Settings, path: Path) -> dg.RepositoryDefinition:
    """Return the assets and checks of the tables in the settings, and nothing else."""
    from cdc_pipeline.defs.operations.reconcile import build_reconcile_defs
    from cdc_pipeline.defs.tables.table import build_table_defs

    parts = [build_table_defs(table, settings) for table in settings.tables]
    parts.append(build_reconcile_defs(settings))
    return dg.Definitions(
        assets=[asset for part in parts for asset in part.assets or ()],
        asset_checks=[check for part in parts for check in part.asset_checks or ()],
        resources=lake_resources(path),
    ).get_repository_def()
