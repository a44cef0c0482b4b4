"""Applications and job runs for tests, and a Spark that only runs the driver's Python."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from cdc_pipeline_tests.sandbox.clients import Aws, wait_for

ROLE = "arn:aws:iam::000000000000:role/job"
ENDED = ("SUCCESS", "FAILED", "CANCELLED")
_numbers = itertools.count(1)

# Reports its arguments as the first line, then is the driver.
_SUBMIT = """
import json, os, sys
arguments = iter(sys.argv[1:])
entry = next(word for word in arguments if not (word.startswith("--") and next(arguments)))
print(json.dumps(sys.argv[1:]), flush=True)
python = os.environ["PYSPARK_PYTHON"]
os.execv(python, [python, entry, *arguments])
"""


def driver_env(**environment: str) -> str:
    """The options that set environment variables of the driver."""
    return " ".join(
        f"--conf spark.emr-serverless.driverEnv.{name}={value}"
        for name, value in environment.items()
    )


def spark_without_java(folder: Path) -> str:
    """Options for a Spark in `folder` that starts no Java."""
    (folder / "bin").mkdir()
    code = folder / "submit.py"
    code.write_text(_SUBMIT)
    for name in ("java", "spark-submit"):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{code}" "$@"\n')
        script.chmod(0o755)
    return driver_env(SPARK_HOME=str(folder), JAVA_HOME=str(folder))


def create_application(aws: Aws, **more: Any) -> str:
    request = {"releaseLabel": "emr-7.9.0", "type": "SPARK", **more}
    return aws.emr.create_application(**request)["applicationId"]


def start(
    aws: Aws,
    application: str,
    entry_point: str,
    *arguments: str,
    parameters: str | None = None,
    **more: Any,
) -> str:
    """Start a job run; return its id."""
    spark: dict[str, Any] = {"entryPoint": entry_point, "entryPointArguments": list(arguments)}
    if parameters is not None:
        spark["sparkSubmitParameters"] = parameters
    return aws.emr.start_job_run(
        applicationId=application,
        executionRoleArn=ROLE,
        jobDriver={"sparkSubmit": spark},
        **more,
    )["jobRunId"]


def job_run(aws: Aws, application: str, run: str) -> dict[str, Any]:
    return aws.emr.get_job_run(applicationId=application, jobRunId=run)["jobRun"]


def ended(aws: Aws, application: str, run: str, *, seconds: float = 60) -> dict[str, Any]:
    """Wait for the end of a job run; return its description."""

    def found() -> dict[str, Any] | None:
        described = job_run(aws, application, run)
        return described if described["state"] in ENDED else None

    return wait_for(found, seconds=seconds)


def put_script(aws: Aws, bucket: str, code: str) -> str:
    """Store a script; return its URI."""
    key = f"scripts/job-{next(_numbers)}.py"
    aws.s3.put_object(Bucket=bucket, Key=key, Body=code.encode())
    return f"s3://{bucket}/{key}"


def submitted(stdout: bytes) -> list[str]:
    """Return the arguments that `spark_without_java` got."""
    return json.loads(stdout.splitlines()[0])
