"""EMR Serverless of the sandbox with a real Spark: by boto3, and from an asset of Dagster."""

import gzip
import io
import json
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.sandbox.process import SandboxProcess, child_environment
from cdc_pipeline_tests.sandbox.aws.emr.jobs import (
    create_application,
    driver_env,
    ended,
    job_run,
    put_script,
    start,
)
from cdc_pipeline_tests.sandbox.clients import Aws, connect, objects, wait_for
from cdc_pipeline_tests.spark import emr_asset, session

pytestmark = [
    pytest.mark.spark,
    # Of calls inside Dagster's own pipes.
    pytest.mark.filterwarnings("ignore:AssetExecutionContext.(dagster_run|run_id) is deprecated"),
    pytest.mark.filterwarnings("ignore:Function `PipesMessageReader.expected_writer_count`"),
]

_COUNT = """
import json, os, sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
print("report:", json.dumps({
    "rows": spark.range(1000).count(),
    "master": spark.sparkContext.master,
    "shuffle": spark.conf.get("spark.sql.shuffle.partitions"),
    "greeting": os.environ["GREETING"],
    "packed": open("environment/packed.txt").read(),
    "driver": os.environ["PYTHON_OF"],
    "executors": spark.range(2).rdd.map(
        lambda row: [os.environ["PYTHON_OF"], os.environ["SHARED"]]
    ).first(),
}))
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    reason = session.unavailable()
    if reason:
        pytest.skip(f"Spark: {reason}")
    with SandboxProcess() as process:
        found = connect(process.endpoint_url)
        found.s3.create_bucket(Bucket="jobs")
        yield found


@pytest.fixture
def application(aws: Aws) -> str:
    return create_application(aws)


def _environment() -> bytes:
    """A packed environment: a file, and a Python that sets a variable."""
    packed = io.BytesIO()
    script = f'#!/bin/sh\nPYTHON_OF=archive exec "{sys.executable}" "$@"\n'
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (("packed.txt", "hello"), ("bin/python", script)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o755
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def test_a_script_counts_with_its_environment_and_archive(aws: Aws, application: str) -> None:
    aws.s3.put_object(Bucket="jobs", Key="env.tar.gz", Body=_environment())
    python = "./environment/bin/python"
    run = start(
        aws,
        application,
        put_script(aws, "jobs", _COUNT),
        parameters=" ".join(
            [
                "--conf spark.sql.shuffle.partitions=3 --conf spark.executorEnv.SHARED=yes",
                "--conf spark.driver.memory=14g --conf spark.emr-serverless.driver.disk=30g",
                "--conf spark.archives=s3://jobs/env.tar.gz#environment",
                f"--conf spark.executorEnv.PYSPARK_PYTHON={python}",
                driver_env(GREETING="hello", PYSPARK_PYTHON=python, PYSPARK_DRIVER_PYTHON=python),
            ]
        ),
        configurationOverrides={
            "monitoringConfiguration": {"s3MonitoringConfiguration": {"logUri": "s3://jobs/logs"}}
        },
    )
    described = ended(aws, application, run, seconds=200)
    assert (described["stateDetails"], described["state"]) == ("", "SUCCESS")
    folder = f"logs/applications/{application}/jobs/{run}/SPARK_DRIVER"
    stdout = gzip.decompress(objects(aws, "jobs", f"{folder}/stdout.gz").popitem()[1]).decode()
    report = next(line for line in stdout.splitlines() if line.startswith("report:"))
    assert json.loads(report.removeprefix("report:")) == {
        "rows": 1000,
        "master": "local[2]",
        "shuffle": "3",
        "greeting": "hello",
        "packed": "hello",
        "driver": "archive",
        "executors": ["archive", "yes"],
    }


def _instance(folder: Path) -> dg.DagsterInstance:
    """An instance that another thread can read during a run."""
    return dg.DagsterInstance.local_temp(str(folder), {"telemetry": {"enabled": False}})


def _logs(instance: dg.DagsterInstance) -> list[str]:
    ids = instance.get_run_ids()
    return [entry.user_message for run_id in ids for entry in instance.all_logs(run_id)]


def _materialize(aws: Aws, application: str, instance: dg.DagsterInstance, what: str) -> Any:
    entry_point = put_script(aws, "jobs", emr_asset.DRIVER)
    asset = emr_asset.orders_asset(aws.endpoint_url, application, entry_point, "jobs", what)
    return dg.materialize([asset], instance=instance, raise_on_error=False)


def test_an_asset_shows_the_log_of_its_job_live_and_its_results(
    aws: Aws, application: str, tmp_path: Path
) -> None:
    with _instance(tmp_path) as instance:
        finished = threading.Event()

        def let_go() -> None:
            # The job counts only after its first line was seen here.
            while not finished.wait(0.1):
                if "the job has begun" in _logs(instance):
                    aws.s3.put_object(Bucket="jobs", Key="go", Body=b"")
                    return

        watcher = threading.Thread(target=let_go)
        watcher.start()
        try:
            result = _materialize(aws, application, instance, "count")
        finally:
            finished.set()
            watcher.join()
        assert result.success
        (materialization,) = result.asset_materializations_for_node("orders")
        metadata = {name: value.value for name, value in materialization.metadata.items()}
        (run,) = aws.emr.list_job_runs(applicationId=application)["jobRuns"]
        assert metadata["rows"] == 1000
        assert metadata["AWS EMR Serverless Job Run ID"] == run["id"]
        assert materialization.tags["dagster/data_version"] == "v1"
        assert "reported: ({'rows': 1000},)" in _logs(instance)
        described = job_run(aws, application, run["id"])
        assert described["tags"]["dagster/run-id"] == result.run_id


def test_an_asset_fails_with_its_job(aws: Aws, application: str, tmp_path: Path) -> None:
    with _instance(tmp_path) as instance:
        result = _materialize(aws, application, instance, "fail")
        assert not result.success
        (failure,) = (e for e in result.all_events if e.is_step_failure)
        assert "EMR Serverless job failed" in str(failure.event_specific_data)
        assert any("ValueError: no such table: orders" in line for line in _logs(instance))


def test_terminating_the_asset_cancels_its_job(aws: Aws, application: str) -> None:
    entry_point = put_script(aws, "jobs", emr_asset.DRIVER)
    arguments = (aws.endpoint_url, application, entry_point, "jobs")
    with subprocess.Popen(
        [sys.executable, "-m", "cdc_pipeline_tests.spark.emr_asset", *arguments],
        env=child_environment(),
        stderr=subprocess.PIPE,
    ) as process:

        def running() -> str | None:
            found = aws.emr.list_job_runs(applicationId=application, states=["RUNNING"])["jobRuns"]
            return found[0]["id"] if found else None

        run = wait_for(running)
        # Not before the client waits for the job: only then it cancels it.
        assert process.stderr is not None
        lines = iter(process.stderr.readline, b"")
        next(line for line in lines if b"job is running" in line)
        process.send_signal(signal.SIGINT)
        assert ended(aws, application, run)["state"] == "CANCELLED"
        output = b"".join(lines).decode()
        assert process.wait() != 0
    assert f"Terminating EMR Serverless job run {run}" in output
