"""ARNs of partitions other than `aws`, in every document and in every fix."""

import json
import re
from pathlib import Path

import pytest

from cdc_pipeline.core.plans.iam import SourceTable, source_statements
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.setup.checks.findings import AwsProbe
from cdc_pipeline.setup.permissions import build_policies

OWN, OTHER = "111111111111", "222222222222"


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        ("eu-west-1", "aws"),
        ("cn-north-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
        ("eusc-de-east-1", "aws-eusc"),
    ],
)
def test_documents(region: str, partition: str, tmp_path: Path) -> None:
    key = f"arn:{partition}:kms:{region}:{OWN}:key/k"
    raw = {
        "lake": "s3://lake/dynamodb",
        "region": region,
        "kms_key": key,
        "aggregates": str(tmp_path),
        "tables": [
            {"name": "orders", "region": region},
            {
                "name": "landed",
                "transport": "firehose",
                "firehose": {"prefixes": ["s3://raw/changes"]},
            },
            {"name": "theirs", "role_arn": f"arn:{partition}:iam::{OTHER}:role/reader"},
        ],
    }
    lake = Lake.open(parse_settings(raw, tmp_path / "cdc_pipeline.yaml"))
    found = build_policies(lake, lake.settings.tables, account=OWN)
    ((policy, trust),) = found.roles.values()
    said = json.dumps([found.pipeline, found.erase, policy, trust, found.export_bucket])
    assert {*re.findall(r"arn:([a-z-]+):", said)} == {partition}
    services = {*re.findall(rf"arn:{partition}:([a-z0-9]+):", said)}
    assert services >= {"dynamodb", "s3", "glue", "iam", "kms"}
    keys = [s["Resource"] for s in found.pipeline["Statement"] if s["Sid"] == "Keys"]
    assert keys == [[key]], "a key of the settings needs no --kms-key"


def test_any_stream_of_kinesis_and_any_key() -> None:
    table = SourceTable("t", "cn-north-1", OWN, "kinesis", partition="aws-cn")
    statements = source_statements([table])
    assert "arn:aws:" not in json.dumps(statements)
    assert AwsProbe("me", statements)._partition() == "aws-cn"
