"""EMR Serverless: life of an application, client tokens, lists, and what is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cdc_pipeline_tests.sandbox.aws.emr.jobs import (
    ROLE,
    create_application,
    driver_env,
    ended,
    job_run,
    spark_without_java,
    start,
)
from cdc_pipeline_tests.sandbox.clients import Aws, connect

pytestmark = pytest.mark.slow

_NO_JAVA = driver_env(JAVA_HOME="/nowhere")
_DRIVER = {"sparkSubmit": {"entryPoint": "/job.py", "sparkSubmitParameters": _NO_JAVA}}


@contextmanager
def _refused(code: str, status: int, message: str | None = None) -> Iterator[None]:
    with pytest.raises(ClientError, match=message) as caught:
        yield
    assert caught.value.response["Error"]["Code"] == code
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


def _state(aws: Aws, application: str) -> str:
    return aws.emr.get_application(applicationId=application)["application"]["state"]


def test_an_application_is_created_started_stopped_and_deleted(aws: Aws) -> None:
    application = create_application(aws, name="merge", tags={"team": "data"})
    described = aws.emr.get_application(applicationId=application)["application"]
    assert described["state"] == "CREATED"
    # As AWS spells it in answers, and Dagster's client expects it.
    assert described["type"] == "Spark"
    assert described["name"] == "merge"
    assert described["tags"] == {"team": "data"}
    assert described["arn"].endswith(f":000000000000:/applications/{application}")
    assert described["autoStopConfiguration"] == {"enabled": True, "idleTimeoutMinutes": 15}
    aws.emr.start_application(applicationId=application)
    assert _state(aws, application) == "STARTED"
    with _refused("ValidationException", 400, r"\[CREATED, STOPPED\]. Current status: STARTED"):
        aws.emr.delete_application(applicationId=application)
    aws.emr.stop_application(applicationId=application)
    assert _state(aws, application) == "STOPPED"
    with _refused("ValidationException", 400, r"\[STARTING, STARTED\]"):
        aws.emr.stop_application(applicationId=application)
    aws.emr.delete_application(applicationId=application)
    assert _state(aws, application) == "TERMINATED"
    assert application not in [a["id"] for a in aws.emr.list_applications()["applications"]]
    terminated = aws.emr.list_applications(states=["TERMINATED"])["applications"]
    assert application in [a["id"] for a in terminated]
    with _refused("ValidationException", 400, "TERMINATED"):
        aws.emr.start_application(applicationId=application)


def test_a_client_token_creates_one_application(aws: Aws) -> None:
    first = create_application(aws, clientToken="app-1")
    assert create_application(aws, clientToken="app-1") == first
    with _refused("ConflictException", 409):
        create_application(aws, clientToken="app-1", name="other")


def test_a_client_token_starts_one_job_run_of_an_application(aws: Aws) -> None:
    one, two = create_application(aws), create_application(aws)
    token = {"clientToken": "run-1", "parameters": _NO_JAVA}
    first = start(aws, one, "/job.py", **token)
    assert start(aws, one, "/job.py", **token) == first
    ended(aws, one, first)
    # Of a job that has ended, too.
    assert start(aws, one, "/job.py", **token) == first
    assert start(aws, two, "/job.py", **token) != first
    with _refused("ConflictException", 409):
        start(aws, one, "/other.py", **token)
    assert len(aws.emr.list_job_runs(applicationId=one)["jobRuns"]) == 1


def test_unknown_names_are_not_found(aws: Aws) -> None:
    application = create_application(aws)
    unknown = "00000000000000aa"
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (aws.emr.get_application, {}),
        (aws.emr.start_application, {}),
        (aws.emr.stop_application, {}),
        (aws.emr.delete_application, {}),
        (aws.emr.start_job_run, {"executionRoleArn": ROLE, "jobDriver": _DRIVER}),
    ]
    for call, more in calls:
        with _refused("ResourceNotFoundException", 404, unknown):
            call(applicationId=unknown, **more)
    for call in (aws.emr.get_job_run, aws.emr.cancel_job_run, aws.emr.get_dashboard_for_job_run):
        with _refused("ResourceNotFoundException", 404, unknown):
            call(applicationId=application, jobRunId=unknown)


def test_another_account_sees_nothing(aws: Aws) -> None:
    application = create_application(aws)
    other = connect(aws.endpoint_url, account="111111111111")
    assert other.emr.list_applications()["applications"] == []
    with _refused("ResourceNotFoundException", 404):
        other.emr.get_application(applicationId=application)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mode": "STREAMING"}, "mode"),
        ({"retryPolicy": {"maxAttempts": 2}}, "retryPolicy"),
        ({"jobDriver": {"hive": {"query": "s3://b/q.sql"}}}, "sparkSubmit"),
        ({"jobDriver": {"sparkSubmit": {"entryPoint": "a", "sparkSubmitParameters": "x"}}}, "x is"),
    ],
)
def test_jobs_that_the_sandbox_cannot_run_are_refused(
    aws: Aws, more: dict[str, Any], message: str
) -> None:
    request = {"executionRoleArn": ROLE, "jobDriver": _DRIVER, **more}
    with _refused("ValidationException", 400, message):
        aws.emr.start_job_run(applicationId=create_application(aws), **request)


@pytest.mark.parametrize("more", [{"type": "HIVE"}, {"releaseLabel": "latest"}])
def test_applications_that_the_sandbox_lacks_are_refused(aws: Aws, more: dict[str, str]) -> None:
    with _refused("ValidationException", 400):
        create_application(aws, **more)


def test_an_application_starts_with_its_first_job_unless_that_is_off(aws: Aws) -> None:
    automatic = create_application(aws)
    ended(aws, automatic, start(aws, automatic, "/job.py", parameters=_NO_JAVA))
    assert _state(aws, automatic) == "STARTED"
    manual = create_application(aws, autoStartConfiguration={"enabled": False})
    with _refused("ValidationException", 400, r"\[STARTED\]. Current status: CREATED"):
        start(aws, manual, "/job.py", parameters=_NO_JAVA)


def test_a_missing_java_fails_the_job_run(aws: Aws) -> None:
    application = create_application(aws)
    described = ended(aws, application, start(aws, application, "/job.py", parameters=_NO_JAVA))
    assert described["state"] == "FAILED"
    assert "install a Java 17 runtime" in described["stateDetails"]
    assert "JAVA_HOME (/nowhere)" in described["stateDetails"]


def test_job_runs_are_listed_newest_first_in_pages(aws: Aws, tmp_path: Path) -> None:
    application = create_application(aws)
    assert aws.emr.list_job_runs(applicationId=application)["jobRuns"] == []
    job = tmp_path / "job.py"
    job.write_text("")
    spark = spark_without_java(tmp_path)
    good = start(aws, application, str(job), parameters=spark, name="good")
    ended(aws, application, good)
    bad = start(aws, application, "/job.py", parameters=_NO_JAVA)
    ended(aws, application, bad)
    pages = aws.emr.get_paginator("list_job_runs").paginate(
        applicationId=application, PaginationConfig={"PageSize": 1}
    )
    assert [[run["id"] for run in page["jobRuns"]] for page in pages] == [[bad], [good]]

    def ids(**filters: Any) -> list[str]:
        found = aws.emr.list_job_runs(applicationId=application, **filters)
        return [run["id"] for run in found["jobRuns"]]

    assert ids(states=["SUCCESS"]) == [good]
    assert ids(states=["SUCCESS", "FAILED"]) == [bad, good]
    assert (
        ids(createdAtBefore=job_run(aws, application, good)["createdAt"].replace(year=2020)) == []
    )
    assert ids(mode="STREAMING") == []


def test_a_job_run_is_described_as_it_was_requested(aws: Aws) -> None:
    application = create_application(aws)
    request = {
        "name": "merge orders",
        "tags": {"a": "b"},
        "configurationOverrides": {
            "monitoringConfiguration": {"managedPersistenceMonitoringConfiguration": {}}
        },
    }
    run = start(aws, application, "/job.py", "one", parameters=_NO_JAVA, **request)
    described = ended(aws, application, run)
    assert {name: described[name] for name in request} == request
    assert described["jobDriver"]["sparkSubmit"]["entryPointArguments"] == ["one"]
    assert described["executionRole"] == ROLE
    assert described["executionTimeoutMinutes"] == 720
    assert described["releaseLabel"] == "emr-7.9.0"
    assert described["attempt"] == 1
    assert described["createdAt"] <= described["endedAt"]
    assert described["arn"].endswith(f"/applications/{application}/jobruns/{run}")
