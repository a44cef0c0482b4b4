"""An earlier version of the product as a contender: its sources beside the present ones."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Cost

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


def run_earlier(tree: Path, script: str, *arguments: object) -> Cost:
    """Run a script with an earlier version; a cost that it reports in its last line, or none."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        command, cwd=tree, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"the earlier version failed:\n{done.stderr}")
    # DuckDB draws progress bars on standard output.
    costs = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return Cost(**json.loads(costs[-1])) if costs else Cost(0, 0, 0, 1)
