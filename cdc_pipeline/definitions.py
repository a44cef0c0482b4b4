"""The code location: settings in, definitions out; nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import dagster as dg

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.settings.load import load_settings, settings_path
from cdc_pipeline.settings.model import Settings


def _defs() -> dg.RepositoryDefinition:
    """All assets, jobs, sensors and schedules of the tables in the settings file."""
    path = settings_path()
    if not path.exists():
        from cdc_pipeline.defs.build import explain_missing_settings

        return explain_missing_settings(path).get_repository_def()
    from cdc_pipeline.defs.repository import open_repository

    try:
        settings = load_settings(path)
    except SettingsError as error:
        # Dagster prints the frames that an error passed through; this one needs none.
        raise error.with_traceback(None) from None
    return open_repository(settings, path, lambda: _build(settings, path))


# Dagster accepts a repository, too, which the type of the decorator does not say.
defs = cast(Callable[[], dg.RepositoryDefinition], dg.definitions(_defs))  # type: ignore[arg-type]


def _build(settings: Settings, path: Path) -> dg.Definitions:
    from cdc_pipeline.defs.build import build_definitions

    try:
        return build_definitions(settings, path)
    except SettingsError as error:
        raise error.with_traceback(None) from None
