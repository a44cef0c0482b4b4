"""Resources: the lake, opened from the settings file in each run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.load import load_settings

RUN_ID_VARIABLE = "DAGSTER_RUN_ID"
"""Where `lake.storage.log` looks for the run that it writes for."""


class LakeResource(dg.ConfigurableResource):
    """The lake that a settings file describes. Holds no secrets: those are AWS's chain's."""

    settings_path: str

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["LakeResource"]:
        """The resource; meanwhile, what this process writes to capture logs says of which run.

        Dagster tells a run's id to its code, but not to its process.
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

    def open(self) -> Lake:
        """A lake handle; opening it touches no network."""
        return Lake.open(load_settings(Path(self.settings_path)))
