"""The template of Spark jobs: valid, as the API takes it, and a role of what jobs call."""

import subprocess
import sys
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.spark.package import ARCHIVE, package_folder
from cdc_pipeline_tests.infra.template import ACCOUNT, KEY, REGION, STACK, Stack

_PATH = Path(__file__).parents[2] / "infra" / "spark.yaml"
_STACKS = {
    "defaults": Stack(_PATH),
    "all": Stack(
        _PATH,
        LakePrefix="a/b/",
        ExportBucket="exports",
        ExportPrefix="c/",
        KmsKeyArn=KEY,
        SubnetIds="subnet-1,subnet-2",
        SecurityGroupIds="sg-1",
        Architecture="ARM64",
    ),
}
_LAKES = {"defaults": "s3://lake", "all": "s3://lake/a/b"}
_EXPORTS = {"defaults": "lake/", "all": "exports/c/"}
_each = pytest.mark.parametrize("name", _STACKS)
_PATHS = TablePaths("cdc", "orders")


def test_cfn_lint_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "--regions", REGION, "--", _PATH],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _lower_first(value: Any) -> Any:
    """Names as the API has them: those of CloudFormation begin with a capital letter."""
    if isinstance(value, dict):
        return {k[0].lower() + k[1:]: _lower_first(v) for k, v in value.items()}
    return value


@_each
def test_the_application_is_what_the_api_takes(name: str) -> None:
    properties = _lower_first(_STACKS[name].properties("Application"))
    idle = properties["autoStopConfiguration"]
    properties["autoStopConfiguration"] = {
        **idle,
        "idleTimeoutMinutes": int(idle["idleTimeoutMinutes"]),
    }
    network = properties.get("networkConfiguration")
    assert (network is None) == (name == "defaults")
    if network is not None:  # lists of parameters are text here
        properties["networkConfiguration"] = {k: v.split(",") for k, v in network.items()}
    model = botocore.session.get_session().get_service_model("emr-serverless")
    shape = model.operation_model("CreateApplication").input_shape
    report = ParamValidator().validate({**properties, "clientToken": "t"}, shape)
    assert not report.has_errors(), report.generate_report()
    assert properties["autoStopConfiguration"]["enabled"]
    assert properties["maximumCapacity"]["cpu"] == "64 vCPU"
    assert properties["name"] == STACK


def _allowed(stack: Stack, action: str) -> list[str]:
    statements = stack.roles()["JobRole"]
    resources = [s["Resource"] for s in statements if action in s["Action"]]
    return [r for each in resources for r in ([each] if isinstance(each, str) else each)]


def _may(stack: Stack, action: str, key: str) -> bool:
    return any(fnmatchcase(f"arn:aws:s3:::{key}", arn) for arn in _allowed(stack, action))


@_each
def test_a_job_reads_and_writes_where_it_must_and_deletes_nothing(name: str) -> None:
    stack, lake = _STACKS[name], _LAKES[name].removeprefix("s3://")
    written = [
        f"{lake}/{_PATHS.staging}x/part",
        f"{lake}/{_PATHS.work}x/answers/1.json",
        f"{lake}/iceberg/cdc/orders_current_state/data/1.parquet",
        f"{lake}/{_PATHS.healed(date(2026, 3, 7), 5, 'x')}",
    ]
    read = [
        f"{_EXPORTS[name]}{_PATHS.exports}/AWSDynamoDB/1/data/a.json.gz",
        f"{lake}/dynamo-cdc/cdc/orders/year=2026/month=03/day=07/1.parquet",
        f"{lake}/{_PATHS.entries}000000000001.json",
        f"{lake}/iceberg/cdc/orders_current_state/metadata/1.metadata.json",
    ]
    assert all(_may(stack, "s3:PutObject", key) for key in written)
    assert all(_may(stack, "s3:GetObject", key) for key in [*written, *read])
    assert not any(_may(stack, "s3:PutObject", key) for key in read)
    assert not any("Delete" in str(s["Action"]) for s in stack.roles()["JobRole"])
    buckets = {place.partition("/")[0] for place in (lake, _EXPORTS[name])}
    assert {*_allowed(stack, "s3:ListBucket")} == {f"arn:aws:s3:::{b}" for b in buckets}
    assert _allowed(stack, "kms:Decrypt") == ([KEY] if name == "all" else [])


@_each
def test_the_settings_take_the_outputs(name: str) -> None:
    stack = _STACKS[name]
    text = stack.outputs["Settings"].replace("<Application.ApplicationId>", "00f1example")
    role = f"arn:aws:iam::{ACCOUNT}:role/job"
    text = text.replace(str(stack.outputs["RoleArn"]), role)
    raw = {"lake": _LAKES[name], "tables": [{"name": "orders"}], **yaml.safe_load(text)}
    settings = parse_settings(raw, Path("settings"))
    assert settings.spark.start == "emr_serverless"
    assert settings.spark.role_arn == role
    archive = f"{package_folder(settings)}{ARCHIVE}".removeprefix("s3://")
    assert _may(stack, "s3:GetObject", archive)
