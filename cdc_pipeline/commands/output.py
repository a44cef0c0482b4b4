"""How commands print for people."""

import os
import sys

from rich.console import Console


def console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else 200)
