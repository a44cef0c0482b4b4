"""Job runs: what the process gets, its logs, and every way that it ends, without Java."""

import fcntl
import gzip
import io
import json
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import pytest
from botocore.exceptions import ClientError

from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.sandbox.aws.emr.job_runs import failure_details
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.sandbox.aws.emr.jobs import (
    create_application,
    driver_env,
    ended,
    job_run,
    put_script,
    spark_without_java,
    start,
    submitted,
)
from cdc_pipeline_tests.sandbox.clients import Aws, connect, objects, wait_for

pytestmark = pytest.mark.slow

# Prints what it was given, and what boto3 finds.
_REPORT = """
import json, os, pathlib, sys
import boto3
print(json.dumps({
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "greeting": os.environ.get("GREETING"),
    "region": os.environ["AWS_REGION"],
    "buckets": [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]],
    "packed": {p.name: p.read_text() for p in pathlib.Path("environment").glob("*.txt")},
    "python": os.environ["PYSPARK_PYTHON"],
}))
print("to the error output", file=sys.stderr)
"""
# Starts a child that locks the file for ever, and waits for it.
_HANG = """
import subprocess, sys
code = "import fcntl, signal, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
code += "f.write('locked'); f.flush(); signal.pause()"
subprocess.run([sys.executable, "-c", code, sys.argv[1]])
"""
_LOG = "26/12/01 03:00:00 INFO ShutdownHookManager: Shutdown hook called"


@pytest.fixture
def spark(tmp_path: Path) -> str:
    folder = tmp_path / "spark"
    folder.mkdir()
    return spark_without_java(folder)


@pytest.fixture
def application(aws: Aws) -> str:
    return create_application(aws)


def _logs(bucket: str, **more: str) -> dict[str, object]:
    uri = {"logUri": f"s3://{bucket}/logs/"}
    return {
        "configurationOverrides": {"monitoringConfiguration": {"s3MonitoringConfiguration": uri}}
    }


def _locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _hanging(aws: Aws, bucket: str, application: str, lock: Path, spark: str, **more: int) -> str:
    """Start a job run that hangs with its child; return its id when the child has the lock."""
    entry_point = put_script(aws, bucket, _HANG)
    run = start(aws, application, entry_point, str(lock), parameters=spark, **more)
    wait_for(lambda: lock.exists() and lock.read_text() == "locked")
    assert job_run(aws, application, run)["state"] == "RUNNING"
    return run


def _archive() -> bytes:
    """A packed Python environment with one file; its Python is a link, as in those of AWS."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        text = tarfile.TarInfo("packed.txt")
        text.size = 5
        archive.addfile(text, io.BytesIO(b"hello"))
        script = f'#!/bin/sh\nPACKED=1 exec "{sys.executable}" "$@"\n'.encode()
        python = tarfile.TarInfo("bin/python3")
        python.size, python.mode = len(script), 0o755
        archive.addfile(python, io.BytesIO(script))
        link = tarfile.TarInfo("bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, "python3"
        archive.addfile(link)
    return packed.getvalue()


def test_a_job_gets_arguments_environment_and_archive_and_leaves_logs(
    aws: Aws, bucket: str, application: str, spark: str
) -> None:
    aws.s3.put_object(Bucket=bucket, Key="env.tar.gz", Body=_archive())
    parameters = [
        "--conf spark.executor.memory=64g --num-executors 100 --conf spark.sql.x=1",
        f"--conf spark.archives=s3://{bucket}/env.tar.gz#environment",
        spark,
        driver_env(GREETING="hello=1", PYSPARK_PYTHON="./environment/bin/python"),
    ]
    entry_point = put_script(aws, bucket, _REPORT)
    run = start(
        aws, application, entry_point, "a b", "$c", parameters=" ".join(parameters), **_logs(bucket)
    )
    described = ended(aws, application, run)
    assert (described["stateDetails"], described["state"]) == ("", "SUCCESS")
    assert described["createdAt"] <= described["startedAt"] <= described["endedAt"]
    folder = f"logs/applications/{application}/jobs/{run}/SPARK_DRIVER"
    logs = {key: gzip.decompress(body) for key, body in objects(aws, bucket, "logs/").items()}
    assert logs.keys() == {f"{folder}/stdout.gz", f"{folder}/stderr.gz"}
    assert logs[f"{folder}/stderr.gz"] == b"to the error output\n"
    stdout = logs[f"{folder}/stdout.gz"]
    options = submitted(stdout)
    assert options[:2] == ["--master", "local[2]"]
    assert "spark.sql.x=1" in options
    assert not [o for o in options if "emr-serverless" in o or "memory" in o or "num-" in o]
    report = json.loads(stdout.splitlines()[1])
    assert report["arguments"] == ["a b", "$c"]
    assert report["greeting"] == "hello=1"
    assert report["region"] == "us-east-1"
    assert bucket in report["buckets"]
    assert report["packed"] == {"packed.txt": "hello"}
    assert report["python"] == "./environment/bin/python"
    # The logs stay, the folder of the job does not.
    assert not Path(report["folder"]).exists()
    url = aws.emr.get_dashboard_for_job_run(applicationId=application, jobRunId=run)["url"]
    assert (Path(urlparse(url).path) / "stdout").read_bytes() == stdout


def test_a_job_belongs_to_the_account_and_region_that_started_it(
    aws: Aws, spark: str, tmp_path: Path
) -> None:
    import boto3

    session = boto3.Session("222222222222", "sandbox", region_name="eu-central-1")
    names = ("emr-serverless", "s3")
    emr, s3 = (session.client(name, endpoint_url=aws.endpoint_url) for name in names)
    where = {"LocationConstraint": "eu-central-1"}
    s3.create_bucket(Bucket="of-another-account", CreateBucketConfiguration=where)
    s3.put_object(Bucket="of-another-account", Key="job.py", Body=_REPORT.encode())
    other = connect(aws.endpoint_url, account="222222222222")
    there = Aws(**{**vars(other), "emr": emr, "s3": s3})
    application = create_application(there)
    uri = "s3://of-another-account/job.py"
    run = start(there, application, uri, parameters=spark, **_logs("of-another-account"))
    assert ended(there, application, run)["state"] == "SUCCESS"
    logs = objects(there, "of-another-account", "logs/")
    stdout = next(gzip.decompress(body) for key, body in logs.items() if key.endswith("stdout.gz"))
    report = json.loads(stdout.splitlines()[1])
    assert report["buckets"] == ["of-another-account"]
    assert report["region"] == "eu-central-1"


def test_a_failed_job_has_its_last_lines_in_its_details(
    aws: Aws, bucket: str, application: str, spark: str
) -> None:
    entry_point = put_script(aws, bucket, "import sys\nraise ValueError('no such table: orders')")
    described = ended(aws, application, start(aws, application, entry_point, parameters=spark))
    assert described["state"] == "FAILED"
    assert "ExitCode: 1" in described["stateDetails"]
    assert described["stateDetails"].endswith("exceptions: ValueError: no such table: orders")


@pytest.mark.parametrize(
    ("entry_point", "archives", "message"),
    [
        ("s3://{bucket}/missing.py", "", "S3 answered 404 for s3://"),
        ("{local}", "s3://{bucket}/missing.tar.gz#e", "S3 answered 404 for s3://"),
        ("{local}", "s3://{bucket}/broken.tar.gz#e", "the archive for e is not readable"),
        ("{local}", "s3://{bucket}/env.zip#e", "is no .tar.gz"),
    ],
)
def test_a_job_without_its_files_fails(
    aws: Aws,
    bucket: str,
    application: str,
    spark: str,
    tmp_path: Path,
    entry_point: str,
    archives: str,
    message: str,
) -> None:
    local = tmp_path / "job.py"
    local.write_text("")
    aws.s3.put_object(Bucket=bucket, Key="broken.tar.gz", Body=b"no archive")
    conf = f"--conf spark.archives={archives.format(bucket=bucket)}"
    uri = entry_point.format(bucket=bucket, local=local)
    run = start(aws, application, uri, parameters=f"{spark} {conf}")
    described = ended(aws, application, run)
    assert described["state"] == "FAILED"
    assert message in described["stateDetails"]


def test_a_log_bucket_that_is_missing_does_not_fail_the_job(
    aws: Aws, bucket: str, application: str, spark: str
) -> None:
    entry_point = put_script(aws, bucket, "")
    run = start(aws, application, entry_point, parameters=spark, **_logs("no-such-bucket"))
    assert ended(aws, application, run)["state"] == "SUCCESS"


def test_cancelling_ends_the_job_with_its_children(
    aws: Aws, bucket: str, application: str, spark: str, tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    run = _hanging(aws, bucket, application, lock, spark)
    with pytest.raises(ClientError, match="cancel its job runs"):
        aws.emr.stop_application(applicationId=application)
    cancelled = aws.emr.cancel_job_run(applicationId=application, jobRunId=run)
    assert cancelled["jobRunId"] == run
    assert ended(aws, application, run)["state"] == "CANCELLED"
    wait_for(lambda: not _locked(lock))
    with pytest.raises(ClientError, match="not in a cancellable state") as caught:
        aws.emr.cancel_job_run(applicationId=application, jobRunId=run)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    aws.emr.stop_application(applicationId=application)


def test_a_job_run_is_cancelled_at_its_timeout(
    aws: Aws, bucket: str, application: str, spark: str, tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    control(aws.endpoint_url, job_minute_seconds=1.5)
    try:
        entry_point = put_script(aws, bucket, _HANG)
        run = start(
            aws,
            application,
            entry_point,
            str(lock),
            parameters=spark,
            executionTimeoutMinutes=1,
        )
    finally:
        control(aws.endpoint_url, job_minute_seconds=60)
    described = ended(aws, application, run)
    assert described["state"] == "CANCELLED"
    assert described["stateDetails"] == "the job run took longer than 1 minutes"
    wait_for(lambda: not lock.exists() or not _locked(lock))


def _kill(process: SandboxProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not process.running)


@pytest.mark.parametrize("end", [SandboxProcess.stop, _kill])
def test_jobs_end_with_the_sandbox(
    end: Callable[[SandboxProcess], None], spark: str, tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    with SandboxProcess() as process:
        aws = connect(process.endpoint_url)
        aws.s3.create_bucket(Bucket="jobs")
        application = create_application(aws)
        run = _hanging(aws, "jobs", application, lock, spark)
        url = aws.emr.get_dashboard_for_job_run(applicationId=application, jobRunId=run)["url"]
        end(process)
    wait_for(lambda: not _locked(lock))
    folder = Path(urlparse(url).path)
    if end is _kill:
        # What a killed sandbox cannot remove goes with the test.
        shutil.rmtree(folder.parents[1])
    assert not folder.exists()


@pytest.mark.parametrize(
    ("stdout", "stderr", "found"),
    [
        # Of a Python driver, which chains exceptions.
        ("a\nTraceback (most recent call last):\n  File x\nKeyError: 1\n\nDuring ...:\n\n"
         "Traceback (most recent call last):\n  File y\n    raise z\nValueError: no\n  at q\n",
         f"{_LOG}\nUsing Spark's default log4j profile\n", "ValueError: no"),
        # Of spark-submit itself.
        ("", f"WARNING: modules\n{_LOG}\nException in thread main: no class\n\tat a.b\n{_LOG}\n",
         "Exception in thread main: no class"),
        ("1\n2\n3\n4\n", "", "2\n3\n4"),
        ("", _LOG, ""),
    ],
)  # fmt: skip
def test_details_of_a_failure_are_its_last_exception(stdout: str, stderr: str, found: str) -> None:
    details = failure_details(1, stdout.encode(), stderr.encode())
    assert details.partition("Last few exceptions: ")[2] == found


def test_details_of_a_failure_are_cut_as_in_the_model() -> None:
    details = failure_details(1, b"", b"Error: " + b"x" * 1000)
    assert len(details) == 256
    assert details.endswith("xxx...")
