"""The wheel of what runs here: what a job imports is required, and pip would take it."""

import ast
import json
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

import cdc_pipeline
from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.spark import wheel as module
from cdc_pipeline.spark.wheel import NEEDED, constraints, write_wheel

_ROOT = Path(cdc_pipeline.__file__).parents[1]
_LOADED = """
import json, sys
import cdc_pipeline.spark.job.main, cdc_pipeline.spark.job.tasks
import cdc_pipeline.spark.job.distribution, cdc_pipeline.transform.precompile
ours = [m.__file__ for n, m in sys.modules.items() if n.startswith("cdc_pipeline.")]
print(json.dumps([[path for path in ours if path], "dagster" in sys.modules]))
"""


def _imported(path: Path) -> set[str]:
    """Top-level modules that a file imports, those inside functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_what_a_job_imports_is_required() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True, cwd=_ROOT
    )
    files, has_dagster = json.loads(done.stdout)
    assert not has_dagster
    installed = packages_distributions()
    imported = {name for file in files for name in _imported(Path(file))} - {"pyspark"}
    found = {installed[name][0] for name in imported if name in installed}
    # Iceberg's and Numba's own; Spark's libraries are the cluster's.
    assert found - {"cdc-pipeline", "botocore", "llvmlite", "pydantic_core"} <= {*NEEDED}
    assert len(found) > 8


def test_the_wheel_is_the_code_that_runs_here(tmp_path: Path) -> None:
    path = write_wheel(tmp_path)
    number = version("cdc-pipeline")
    assert path.name == f"cdc_pipeline-{number}-py3-none-any.whl"
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target]
    subprocess.run([*pip, path], check=True, capture_output=True)
    for source in ("spark/job/entry.py", "transform/sql/fold.sql", "py.typed"):
        installed = target / "cdc_pipeline" / source
        assert installed.read_bytes() == (_ROOT / "cdc_pipeline" / source).read_bytes()
    with zipfile.ZipFile(path) as archive:
        metadata = archive.read(f"cdc_pipeline-{number}.dist-info/METADATA").decode()
    assert f"Requires-Dist: pyarrow=={version('pyarrow')}" in metadata.splitlines()
    assert "dagster==" not in metadata


def test_the_same_code_is_the_same_wheel(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = write_wheel(tmp_path / "again").read_bytes()
    assert write_wheel(tmp_path).read_bytes() == again


def test_constraints_are_versions_of_others() -> None:
    lines = constraints()
    assert f"duckdb=={version('duckdb')}" in lines
    assert not any(line.startswith("cdc") for line in lines)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEEDED", ("no-such-package",))
    with pytest.raises(SettingsError, match=r"no-such-package is not installed.*\n.*fast"):
        write_wheel(tmp_path)
