"""An earlier version of the product as a contender: its sources beside the present ones."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def checked_out(commit: str) -> Iterator[Path | None]:
    """A folder with the sources of a commit; None: this is no clone, or the clone lacks it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "sources.tar"
        wanted = ["git", "archive", "--output", str(archive), commit]
        if subprocess.run(wanted, cwd=_ROOT, capture_output=True, check=False).returncode:
            yield None
            return
        subprocess.run(["tar", "--extract", "--file", str(archive)], cwd=folder, check=True)
        yield Path(folder)
