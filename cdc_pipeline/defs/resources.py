"""Dagster resources: the lake, opened from the settings file in each run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.load import load_settings

RUN_ID_VARIABLE = "DAGSTER_RUN_ID"
"""Environment variable from which `lake.storage.log` takes the run id of an entry's owner."""


def lake_resources(path: Path) -> dict[str, "LakeResource"]:
    """Return the resources of all definitions, by the settings file at `path`."""
    return {"lake": LakeResource(settings_path=str(path.resolve()))}


class LakeResource(dg.ConfigurableResource):
    """The lake of a settings file. Holds no secrets: they come from AWS's credential chain."""

    settings_path: str

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["LakeResource"]:
        """Yield the resource; meanwhile this process's log entries carry the run id.

        Dagster passes a run's id to its code, but not to its process's environment.
        """
        if context.run is None:
            yield self
            return
        before = os.environ.get(RUN_ID_VARIABLE)
        os.environ[RUN_ID_VARIABLE] = context.run.run_id
        try:
            yield self
        finally:
            del os.environ[RUN_ID_VARIABLE]
            if before is not None:
                os.environ[RUN_ID_VARIABLE] = before

    def open(self, context: dg.OpExecutionContext | dg.AssetExecutionContext | None = None) -> Lake:
        """Open the lake; touches no network. `context`: of a run, which can start Spark jobs."""
        lake = Lake.open(load_settings(Path(self.settings_path)))
        if context is not None:
            from cdc_pipeline.defs.spark import workers_of

            lake.workers_of = workers_of(context)
        return lake
