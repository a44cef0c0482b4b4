"""Which parameters of a job reach spark-submit, and what is found of Java and Spark."""

import sys
from pathlib import Path

import pytest

from cdc_pipeline.sandbox.aws.emr.protocol import RefusedError
from cdc_pipeline.sandbox.aws.emr.submission import (
    JobFailedError,
    Submission,
    job_environment,
    spark_defaults,
    spark_home,
    submission_of,
)


def _submission(parameters: str, **defaults: str) -> Submission:
    spark = {"entryPoint": "s3://b/job.py", "sparkSubmitParameters": parameters}
    return submission_of({"sparkSubmit": spark}, {f"spark.{n}": v for n, v in defaults.items()})


def _kept(parameters: str, **defaults: str) -> list[str]:
    """The options beyond those of every job."""
    every = _submission("").options
    return [o for o in _submission(parameters, **defaults).options if o not in every]


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ("", []),
        ("--conf spark.sql.shuffle.partitions=2", ["spark.sql.shuffle.partitions=2"]),
        ("--conf=spark.a=b=c -c spark.d='e f'", ["spark.a=b=c", "spark.d=e f"]),
        ("--conf spark.a=1 --conf spark.a=2", ["spark.a=2"]),
        ("--class a.B --name x", ["--class", "a.B", "--name", "x"]),
        ("--verbose --name x", ["--verbose", "--name", "x"]),
        ("--conf spark.executorEnv.A=1", ["spark.executorEnv.A=1"]),
        ("--conf spark.driver.extraJavaOptions=-Da=1", ["spark.driver.extraJavaOptions=-Da=1"]),
        # Of a cluster.
        ("--master yarn --deploy-mode=cluster --driver-memory 4g", []),
        ("--conf spark.driver.memory=14g --conf spark.executor.cores=4", []),
        ("--conf spark.executor.memoryOverheadFactor=0.1", []),
        ("--conf spark.dynamicAllocation.maxExecutors=9 --conf spark.executor.instances=3", []),
        ("--conf spark.emr-serverless.driver.disk=30g", []),
    ],
)
def test_options_of_one_machine_are_kept(parameters: str, kept: list[str]) -> None:
    assert _kept(parameters) == kept


def test_parameters_override_defaults() -> None:
    assert _kept("--conf spark.a=2", a="1", b="3", **{"executor.memory": "9g"}) == [
        "spark.a=2",
        "spark.b=3",
    ]


def test_environment_and_archives_are_taken_out() -> None:
    found = _submission(
        "--conf spark.emr-serverless.driverEnv.A=b=c --archives s3://b/e.tar.gz#e,/f.tar.gz"
    )
    assert found.environment == {"A": "b=c"}
    assert found.archives == ("s3://b/e.tar.gz#e", "/f.tar.gz")
    assert found.options == _submission("").options


@pytest.mark.parametrize("parameters", ["job.py", "--conf spark.a", "--name 'x"])
def test_parameters_that_are_no_options_are_refused(parameters: str) -> None:
    with pytest.raises(RefusedError):
        _submission(parameters)


def test_defaults_are_those_of_spark_only() -> None:
    configurations = [
        {"classification": "spark-defaults", "properties": {"spark.a": "1", "spark.b": "1"}},
        {"classification": "spark-driver-log4j2", "properties": {"level": "error"}},
        {"classification": "spark-defaults", "properties": {"spark.a": "2"}},
    ]
    assert spark_defaults(configurations) == {"spark.a": "2", "spark.b": "1"}


def test_a_job_gets_nothing_of_the_shell_that_changes_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "SPARK_HOME", "PYSPARK_DRIVER_PYTHON"):
        monkeypatch.setenv(name, "/of/the/shell")
    monkeypatch.setenv("KEPT", "1")
    found = job_environment(_submission(""), tmp_path, "111111111111", "eu-west-1")
    assert "/of/the/shell" not in found.values()
    assert found["KEPT"] == "1"
    assert found["PYSPARK_PYTHON"] == sys.executable
    assert found["AWS_ACCESS_KEY_ID"] == "111111111111"
    assert found["AWS_DEFAULT_REGION"] == "eu-west-1"


def test_a_missing_spark_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.touch(0o755)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(JobFailedError, match=r"pip install 'cdc-pipeline\[spark\]'"):
        spark_home({"JAVA_HOME": str(tmp_path)})
    assert spark_home({"PATH": str(java.parent), "SPARK_HOME": "/spark"}) == Path("/spark")
    with pytest.raises(JobFailedError, match="no java on PATH"):
        spark_home({"PATH": "/nowhere"})
