"""Resources: the lake, opened from the settings file in each run."""

from pathlib import Path

import dagster as dg

from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import load_settings


class LakeResource(dg.ConfigurableResource):
    """The lake that a settings file describes. Holds no secrets: those are AWS's chain's."""

    settings_path: str

    def open(self) -> Lake:
        """A lake handle; opening it touches no network."""
        return Lake.open(load_settings(Path(self.settings_path)))
