"""The template of a Kinesis channel: valid, as the API takes it, and where the lake looks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

from cdc_pipeline.core.changes.kinesis_channel import folder_of, has_days
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline_tests.infra.template import ACCOUNT, KEY, REGION, STACK, Stack

_PATH = Path(__file__).parents[2] / "infra" / "kinesis_channel.yaml"
_STACKS = {
    "new bucket": Stack(_PATH),
    "all there": Stack(
        _PATH, LakeBucket="old", LakePrefix="a/b/", KmsKeyArn=KEY, Compression="NONE"
    ),
}
_every_stack = pytest.mark.parametrize("stack", _STACKS.values(), ids=_STACKS.keys())


def test_cfn_lint_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "--regions", REGION, "--", _PATH],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _channel(stack: Stack) -> dict[str, Any]:
    """The channel's properties, with ARNs for the attributes that are known to AWS alone."""
    role = f"arn:aws:iam::{ACCOUNT}:role/r"
    stream = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{STACK}"
    (source,) = stack.properties("Channel")["StreamConfigurationList"]
    return {
        **stack.properties("Channel"),
        "ServiceExecutionRoleARN": role,
        "StreamConfigurationList": [{**source, "StreamARN": stream}],
    }


@_every_stack
def test_the_channel_is_what_the_api_takes(stack: Stack) -> None:
    model = botocore.session.get_session().get_service_model("kinesis")
    shape = model.operation_model("CreateChannel").input_shape
    report = ParamValidator().validate(_channel(stack), shape)
    assert not report.has_errors(), report.generate_report()
    stream = stack.properties("Stream")
    assert stream["StreamModeDetails"] == {"StreamMode": "ON_DEMAND"}
    # With the key that AWS manages, a stream gets no channel.
    assert "alias/aws/kinesis" not in str(stream)


@_every_stack
def test_objects_lie_where_the_role_may_write_and_the_lake_looks(stack: Stack) -> None:
    target = _channel(stack)["S3DestinationConfiguration"]
    storage, errors = target["StorageConfiguration"], target["DeadLetterQueueS3Configuration"]
    template = storage["OutputKeyTemplate"]
    assert has_days(template)
    folder = folder_of(template, channel=STACK, channel_id="id", stream=STACK)
    assert not errors["ErrorOutputPrefix"].startswith(folder)
    (allowed,) = (
        s["Resource"]
        for s in stack.properties("ChannelPolicy")["PolicyDocument"]["Statement"]
        if "s3:PutObject" in s["Action"]
    )
    written = [
        f"{storage['BucketARN']}/{folder}*",
        f"{errors['BucketARN']}/{errors['ErrorOutputPrefix']}*",
    ]
    assert allowed == written


@_every_stack
def test_the_settings_name_the_channel(stack: Stack) -> None:
    settings = parse_settings(yaml.safe_load(stack.outputs["Settings"]), Path("settings"))
    (table,) = settings.tables
    assert (table.transport, table.kinesis_channel.channel) == ("kinesis_channel", STACK)
    assert table.name in stack.outputs["EnableKinesis"]
