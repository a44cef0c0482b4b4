"""The package of a Spark job, built for real: it runs elsewhere, compiles nothing, makes tables."""

import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.errors import SettingsError, WorkersError
from cdc_pipeline.core.run_context import SILENT
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.spark.package import (
    ARCHIVE,
    ENTRY,
    Package,
    build_package,
    package_folder,
    upload_package,
)
from cdc_pipeline_tests.e2e.deployment import deploy, failure
from cdc_pipeline_tests.e2e.test_workers import NAME, exported, fill
from cdc_pipeline_tests.e2e.world import make_world, quick_sandbox
from cdc_pipeline_tests.spark import session

_EMR = {
    "start": "emr_serverless",
    "application_id": "00f1example",
    "role_arn": "arn:aws:iam::000000000001:role/job",
}
_NO_FILES = Package((), "3.11", "x86_64", (2, 17))

_COUNT = """
import gc, json
from cdc_pipeline.transform.precompile import precompile
from numba.core import event
from numba.core.dispatcher import Dispatcher
with event.install_recorder("numba:compile") as compilations:
    precompile()
own = [d for d in gc.get_objects() if isinstance(d, Dispatcher)]
own = [d for d in own if d.py_func.__module__.startswith("cdc_pipeline.")]
hits = sum(sum(d.stats.cache_hits.values()) for d in own)
misses = sum(sum(d.stats.cache_misses.values()) for d in own)
print(json.dumps([hits, misses, len(compilations.buffer)]))
"""
_ABOUT = """
import json, sys
import cdc_pipeline.spark.job.main, cdc_pipeline.spark.job.tasks
from cdc_pipeline.spark.exchange import code_version
print(json.dumps([sys.prefix, cdc_pipeline.__file__, code_version(), "dagster" in sys.modules]))
"""


def _lake(folder: Path, **more: Any) -> Lake:
    raw = {"lake": "s3://lake/dynamodb", "tables": [{"name": "orders"}], **more}
    return Lake.open(parse_settings(raw, folder / "cdc_pipeline.yaml"))


def test_the_folder_is_in_the_lake_or_that_of_the_settings(tmp_path: Path) -> None:
    assert package_folder(_lake(tmp_path).settings) == "s3://lake/dynamodb/_cdc/spark/"
    other = _lake(tmp_path, spark={"package": "s3://other/a"})
    assert package_folder(other.settings) == "s3://other/a/"


def test_a_local_lake_needs_no_upload(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the lake is a local folder"):
        list(upload_package(_lake(tmp_path, lake="lake"), _NO_FILES))


def test_a_package_that_emr_cannot_run_is_not_uploaded(tmp_path: Path) -> None:
    package = replace(_NO_FILES, glibc=(2, 36))
    with pytest.raises(SettingsError, match=r"needs glibc 2\.36, EMR and Glue have 2\.34"):
        list(upload_package(_lake(tmp_path, spark=_EMR), package))
    assert list(upload_package(_lake(tmp_path, spark=_EMR), _NO_FILES)) == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Package:
    try:
        return build_package(tmp_path_factory.mktemp("package"), SILENT)
    except WorkersError as error:
        if "pip" in error.message:
            pytest.skip(f"pip could not install what a job needs: {error.message}")
        raise


@pytest.fixture(scope="module")
def unpacked(built: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("else where")
    with tarfile.open(built.files[0]) as archive:
        archive.extractall(folder, filter="tar")
    return folder


def _printed(folder: Path, code: str) -> Any:
    """What the packaged Python prints, as JSON, with nothing in its environment."""
    command = [folder / "bin" / "python", "-c", code]
    done = subprocess.run(command, env={}, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.spark
def test_it_runs_where_it_is_unpacked(built: Package, unpacked: Path) -> None:
    assert [file.name for file in built.files[:2]] == [ARCHIVE, ENTRY]
    prefix, module, number, has_dagster = _printed(unpacked, _ABOUT)
    assert (prefix, has_dagster) == (str(unpacked), False)
    assert Path(module).is_relative_to(unpacked)
    assert f"cdc_pipeline-{number}-py3-none-any.whl" == built.files[2].name


@pytest.mark.spark
def test_it_compiles_nothing(unpacked: Path) -> None:
    hits, misses, compilations = _printed(unpacked, _COUNT)
    assert hits > 10
    assert (misses, compilations) == (0, 0)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    if reason := session.unavailable():
        pytest.skip(f"Spark: {reason}")
    with quick_sandbox() as process:
        yield process


@pytest.mark.spark
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition")
@pytest.mark.filterwarnings("ignore:Function `PipesMessageReader.expected_writer_count`")
def test_emr_serverless_makes_a_baseline_with_it(
    built: Package, sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(sandbox, tmp_path, "s3")
    world.activate(monkeypatch)
    world.make_table(NAME)
    fill(world, seed=9)
    world.configure(NAME)
    world.snapshot(NAME)
    alone = exported(world)
    application = world.client("emr-serverless").create_application(
        name="cdc", releaseLabel="emr-7.13.0", type="SPARK"
    )
    role = f"arn:aws:iam::{world.account}:role/job"
    options = {**_EMR, "application_id": application["applicationId"], "role_arn": role}
    world.configure(NAME, engine="spark", spark=options)
    # What this machine's glibc is does not matter to the sandbox.
    addresses = list(upload_package(world.lake(), replace(built, glibc=(2, 17))))
    assert addresses[0] == f"{package_folder(world.lake().settings)}{ARCHIVE}"
    with deploy(world) as made:
        result: Any = made.materialize(NAME, "pitr_export")
        assert result.success, failure(result)
    own = ["_order_key", "_write_time_us"]
    assert exported(world).drop_columns(own) == alone.drop_columns(own)
