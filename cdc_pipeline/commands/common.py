"""What several commands need: the lake of the settings file, and a console."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from cdc_pipeline.lake.lake import Lake


def open_lake() -> "Lake":
    """Return the lake of the settings file; opening it touches no network."""
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings.load import load_settings

    return Lake.open(load_settings())


def console() -> "Console":
    """Return a console as wide as the terminal, or 200 columns without a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)
