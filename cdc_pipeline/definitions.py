"""The code location: settings in, Definitions out; nothing else."""

import dagster as dg

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.defs.build import build_definitions, explain_missing_settings
from cdc_pipeline.settings.load import load_settings, settings_path


@dg.definitions
def defs() -> dg.Definitions:
    """All assets, jobs, sensors and schedules of the tables in the settings file."""
    path = settings_path()
    if not path.exists():
        return explain_missing_settings(path)
    try:
        return build_definitions(load_settings(path), path)
    except SettingsError as error:
        # Dagster prints the frames that an error passed through; this one needs none.
        raise error.with_traceback(None) from None
