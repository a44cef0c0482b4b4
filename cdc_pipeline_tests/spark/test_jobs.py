"""Assets that Dagster lets a real Spark make equal those of one process."""

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.spark.job import entry
from cdc_pipeline_tests.e2e.deployment import deploy, failure
from cdc_pipeline_tests.e2e.test_workers import NAME, exported, fill
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, make_world, quick_sandbox
from cdc_pipeline_tests.spark import session

pytestmark = [
    pytest.mark.spark,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
    pytest.mark.filterwarnings("ignore:Function `PipesMessageReader.expected_writer_count`"),
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    if reason := session.unavailable():
        pytest.skip(f"Spark: {reason}")
    with quick_sandbox() as process:
        yield process


@pytest.fixture
def world(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = make_world(sandbox, tmp_path, "s3")
    world.activate(monkeypatch)
    world.make_table(NAME)
    return world


def test_emr_serverless_makes_the_same_baseline(world: World) -> None:
    fill(world, seed=9)
    world.configure(NAME)
    world.snapshot(NAME)
    alone = exported(world)
    emr = world.client("emr-serverless")
    application = emr.create_application(
        name="cdc", releaseLabel="emr-7.13.0", type="SPARK", clientToken="one"
    )["applicationId"]
    package(world)
    role = f"arn:aws:iam::{world.account}:role/spark"
    chosen = {"start": "emr_serverless", "application_id": application, "role_arn": role}
    world.configure(NAME, engine="spark", spark=chosen)
    with deploy(world) as made:
        result: Any = made.materialize(NAME, "pitr_export")
        assert result.success, failure(result)
        told = lines(made.instance, result.run_id)
    own = ["_order_key", "_write_time_us"]
    assert exported(world).drop_columns(own) == alone.drop_columns(own)
    assert any("convert the export: 4 of 4 tasks done" in line for line in told), told
    (run,) = emr.list_job_runs(applicationId=application)["jobRuns"]
    assert run["state"] == "SUCCESS"
    assert not [line for line in told if "authToken" in line or "file:" in line]
    # What a job and its run told each other is gone, and nothing is left in the bucket's root.
    listed = world.client("s3").list_objects_v2(Bucket=world.bucket)["Contents"]
    zones = {entry["Key"].split("/")[0] for entry in listed}
    assert zones == {"lake", "dynamo-export"}
    assert not world.stored(world.table_lake(NAME).paths.staging)


def package(world: World) -> None:
    """Put into the lake what `cdc-pipeline spark package` puts there, with the tests' Python."""
    program = f'#!/bin/sh\nexec {sys.executable} "$@"\n'.encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("bin/python")
        member.size, member.mode = len(program), 0o755
        tar.addfile(member, io.BytesIO(program))
    s3 = world.client("s3")
    for name, body in (
        ("environment.tar.gz", archive.getvalue()),
        ("entry.py", Path(entry.__file__).read_bytes()),
    ):
        s3.put_object(Bucket=world.bucket, Key=f"lake/_cdc/spark/{name}", Body=body)


def lines(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [
        record.event_log_entry.user_message
        for record in instance.get_records_for_run(run_id).records
    ]


def test_spark_submit_makes_the_same_baseline(world: World) -> None:
    fill(world, seed=8)
    world.configure(NAME)
    world.snapshot(NAME)
    alone = exported(world)
    world.configure(NAME, engine="spark", spark={"master": "local[2]"})
    with deploy(world) as made:
        result: Any = made.materialize(NAME, "pitr_export")
        assert result.success, failure(result)
        told = lines(made.instance, result.run_id)
    own = ["_order_key", "_write_time_us"]
    assert exported(world).drop_columns(own) == alone.drop_columns(own)
    assert any("convert the export: 4 of 4 tasks done" in line for line in told), told
    world.capture_past_handover(NAME)
    world.publish(NAME)
    assert assert_mirrors(world, NAME) == len(alone)
