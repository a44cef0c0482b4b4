"""How commands print for people."""

import sys

from rich.console import Console


def console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 200)
