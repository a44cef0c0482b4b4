"""Console output of commands."""

import sys

from rich.console import Console


def console() -> Console:
    """Return a console as wide as the terminal, or 200 columns without a terminal."""
    return Console(width=None if sys.stdout.isatty() else 200)
