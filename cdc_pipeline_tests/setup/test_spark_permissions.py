"""Policies for starting Spark jobs: the calls of Dagster's clients, on one application or job."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
from dagster_aws.pipes.clients import emr_serverless, glue

from cdc_pipeline.core.plans.iam import Statement
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.setup.permissions import build_policies
from cdc_pipeline_tests.setup.test_partitions import OWN

_ROLE = f"arn:aws-cn:iam::{OWN}:role/job"
_EMR = {"start": "emr_serverless", "application_id": "00f1", "role_arn": _ROLE}
_GLUE = {"start": "glue", "glue_job": "cdc"}
_AT = f"cn-north-1:{OWN}:"


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")


def _statements(folder: Path, spark: dict[str, Any]) -> list[Statement]:
    raw = {
        "lake": "s3://lake",
        "region": "cn-north-1",
        "aggregates": str(folder),
        "tables": [{"name": "orders"}],
        "spark": spark,
    }
    lake = Lake.open(parse_settings(raw, folder / "cdc_pipeline.yaml"))
    found = build_policies(lake, lake.settings.tables, account=OWN)
    return [s for s in found.pipeline["Statement"] if s["Sid"].startswith("Spark")]


def _called(module: Any, service: str) -> set[str]:
    """Actions that a client of Dagster calls: methods of boto3's client that its source names."""
    methods = boto3.client(service, region_name="us-east-1").meta.method_to_api_mapping
    source = Path(module.__file__).read_text("utf-8")
    return {f"{service}:{api}" for name, api in methods.items() if f"lient.{name}(" in source}


def _resources(statements: list[Statement], action: str) -> list[str]:
    return [r for s in statements if action in s["Action"] for r in s["Resource"]]


def test_emr_serverless(tmp_path: Path) -> None:
    statements = _statements(tmp_path, _EMR)
    allowed = {action for s in statements for action in s["Action"]}
    called = _called(emr_serverless, "emr-serverless")
    assert "emr-serverless:GetDashboardForJobRun" in called
    assert allowed == called | {"iam:PassRole"}
    application = f"arn:aws-cn:emr-serverless:{_AT}/applications/00f1"
    assert _resources(statements, "emr-serverless:StartJobRun") == [application]
    (jobs,) = _resources(statements, "emr-serverless:GetJobRun")
    assert fnmatchcase(f"{application}/jobruns/00f2", jobs)
    (passing,) = (s for s in statements if "iam:PassRole" in s["Action"])
    assert passing["Resource"] == [_ROLE]
    assert passing["Condition"] == {
        "StringEquals": {"iam:PassedToService": "emr-serverless.amazonaws.com"}
    }


def test_glue(tmp_path: Path) -> None:
    (statement,) = _statements(tmp_path, _GLUE)
    assert {*statement["Action"]} == _called(glue, "glue")
    assert statement["Resource"] == [f"arn:aws-cn:glue:{_AT}job/cdc"]


def test_without_a_service_nothing_more_is_allowed(tmp_path: Path) -> None:
    assert _statements(tmp_path, {}) == []
