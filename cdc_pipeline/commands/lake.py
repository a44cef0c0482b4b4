"""The lake of the settings file."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import Lake


def open_lake() -> "Lake":
    """Return the lake of the settings file; opening it touches no network."""
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings.load import load_settings

    return Lake.open(load_settings())
