"""The CloudFormation template: valid, least privilege, prefixes as the lake has them, commands."""

import re
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore import xform_name
from botocore.validate import ParamValidator

from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.names import TablePaths, day_folder
from cdc_pipeline_tests.infra.template import ACCOUNT, KEY, PATH, REGION, STACK, Stack
from infra.lambda_handler import TABLE_IDS, handler

_ROOT = Path(__file__).parents[2]
_DOCS = _ROOT / "docs" / "aws.md"
_DAY = date(2026, 3, 7)
_PATHS = TablePaths("cdc", "orders")
_STACKS = {
    "new bucket": Stack(),
    "new table": Stack(CreateTable="true", SortKey="line", SortKeyType="N"),
    "all there": Stack(
        LakeBucket="old",
        LakePrefix="a/b/",
        CreateDatabase="false",
        KmsKeyArn=KEY,
        StreamMode="PROVISIONED",
    ),
}
_every_stack = pytest.mark.parametrize("stack", _STACKS.values(), ids=_STACKS.keys())


def test_cfn_lint_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "--regions", REGION, "--", PATH],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


@_every_stack
def test_roles_may_do_what_they_need_to_what_they_need(stack: Stack) -> None:
    statements = [s for of_role in stack.roles().values() for s in of_role]
    assert len(statements) > 8
    for statement in statements:
        assert statement["Effect"] == "Allow"
        for action in _listed(statement["Action"]):
            assert re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action)
        for resource in _listed(statement["Resource"]):
            assert "*" not in resource.removesuffix("*"), "a wildcard in the middle"
            assert resource.startswith("arn:aws:")
            assert resource.count(":") >= 5
            # Wildcards stand behind this table's folders and this stack's logs only.
            if resource.endswith("*"):
                assert re.search(r"/cdc/orders/\*$|:the-firehoselogs:log-stream:\*$", resource)


@_every_stack
def test_objects_that_firehose_may_write_are_those_it_writes(stack: Stack) -> None:
    (allowed,) = (
        statement["Resource"]
        for statement in stack.roles()["FirehoseRole"]
        if "s3:PutObject" in statement["Action"]
    )
    destination = stack.properties("DeliveryStream")["ExtendedS3DestinationConfiguration"]
    backup = destination["S3BackupConfiguration"]
    written = [
        f"{place['BucketARN']}/{place[prefix]}"
        for place in (destination, backup)
        for prefix in ("Prefix", "ErrorOutputPrefix")
    ]
    for prefix in written:
        assert sum(prefix.startswith(resource.removesuffix("*")) for resource in allowed) == 1
    for resource in allowed:
        assert any(prefix.startswith(resource.removesuffix("*")) for prefix in written)


def test_keys_are_allowed_where_there_is_one() -> None:
    def keys(stack: Stack) -> list[Any]:
        statements = stack.roles()["FirehoseRole"]
        return [s["Resource"] for s in statements if "kms:Decrypt" in s["Action"]]

    assert keys(_STACKS["all there"]) == [KEY]
    assert keys(_STACKS["new bucket"]) == []


def test_docs_list_what_roles_may_do() -> None:
    rows = re.findall(r"^\| `(\w+Role)` \| (.+?) \|", _DOCS.read_text("utf-8"), re.MULTILINE)
    listed: dict[str, set[str]] = {}
    for role, actions in rows:
        listed.setdefault(role, set()).update(re.findall(r"`([a-z0-9]+:\w+)`", actions))
    allowed = {
        role: {action for s in statements for action in _listed(s["Action"])}
        for role, statements in Stack(KmsKeyArn=KEY).roles().items()
    }
    assert listed == allowed


def _evaluated(prefix: str, error_type: str = "") -> str:
    """A prefix as Firehose evaluates it on `_DAY`."""
    java = {"yyyy": "%Y", "MM": "%m", "dd": "%d"}
    prefix = prefix.replace("!{firehose:error-output-type}", error_type)
    evaluated = re.sub(r"!\{timestamp:(\w+)\}", lambda found: _DAY.strftime(java[found[1]]), prefix)
    assert "!" not in evaluated
    return evaluated


@pytest.mark.parametrize("prefix", ["", "a/b/"])
def test_prefixes_are_those_of_the_lake(prefix: str) -> None:
    stack = Stack(LakePrefix=prefix)
    destination = stack.properties("DeliveryStream")["ExtendedS3DestinationConfiguration"]
    backup = destination["S3BackupConfiguration"]
    day = day_folder(_DAY)
    assert _evaluated(destination["Prefix"]) == f"{prefix}dynamo-firehose/cdc/orders/{day}"
    assert _evaluated(backup["Prefix"]) == f"{prefix}{_PATHS.backups}{day}"
    for place in (destination, backup):
        evaluated = _evaluated(place["ErrorOutputPrefix"], "processing-failed")
        assert evaluated == f"{prefix}dynamo-firehose-error/cdc/orders/processing-failed/{day}"
    root = f"s3://{stack.outputs['Bucket']}/"
    settings = yaml.safe_load(stack.outputs["Settings"])
    assert settings == {
        "lake": root + prefix,
        "database": "cdc",
        "region": REGION,
        "tables": [
            {
                "name": "orders",
                "transport": "firehose",
                "firehose": {
                    "delivery_stream": STACK,
                    "prefixes": [root + _before_date(destination["Prefix"])],
                    "error_prefixes": [root + _before_date(destination["ErrorOutputPrefix"])],
                },
            }
        ],
    }
    assert stack.outputs["Backups"] == root + _before_date(backup["Prefix"])


def _before_date(prefix: str) -> str:
    """The folder that Firehose's expressions begin in."""
    return re.split(r"year=|!", prefix)[0]


@_every_stack
def test_the_glue_table_has_the_landing_columns(stack: Stack) -> None:
    glue = stack.properties("GlueTable")
    storage = glue["TableInput"]["StorageDescriptor"]
    columns = [(column["Name"], column["Type"]) for column in storage["Columns"]]
    assert columns == [(column.name, column.type) for column in LANDING_COLUMNS]
    destination = stack.properties("DeliveryStream")["ExtendedS3DestinationConfiguration"]
    folder = _before_date(destination["Prefix"])
    assert storage["Location"] == f"s3://{stack.outputs['Bucket']}/{folder}"
    schema = destination["DataFormatConversionConfiguration"]["SchemaConfiguration"]
    name = glue["TableInput"]["Name"]
    assert (
        (schema["DatabaseName"], schema["TableName"]) == ("cdc", "orders_firehose") == ("cdc", name)
    )
    assert "GlueTable" in stack.resources["DeliveryStream"]["DependsOn"]


def test_firehose_is_within_its_limits_and_keeps_copies() -> None:
    stack = _STACKS["new bucket"]
    destination = stack.properties("DeliveryStream")["ExtendedS3DestinationConfiguration"]
    processing = destination["ProcessingConfiguration"]
    (processor,) = processing["Processors"]
    parameters = {p["ParameterName"]: p["ParameterValue"] for p in processor["Parameters"]}
    assert processing["Enabled"]
    assert float(parameters["BufferSizeInMBs"]) <= 1
    assert destination["BufferingHints"]["SizeInMBs"] >= 64
    assert destination["CompressionFormat"] == "UNCOMPRESSED"
    assert destination["S3BackupMode"] == "Enabled"
    assert destination["S3BackupConfiguration"]["CompressionFormat"] == "GZIP"
    logged = [destination["CloudWatchLoggingOptions"]]
    logged.append(destination["S3BackupConfiguration"]["CloudWatchLoggingOptions"])
    assert all(options["Enabled"] for options in logged)
    assert len({options["LogStreamName"] for options in logged}) == 2


def test_the_function_is_ours_and_ends_before_firehose_gives_up() -> None:
    function = _STACKS["new bucket"].properties("Function")
    assert function["Handler"] == f"lambda_handler.{handler.__name__}"
    assert 10 <= function["Timeout"] <= 300
    assert function["Environment"]["Variables"] == {TABLE_IDS: '{"orders": "<TableId.TableId>"}'}


def _expiring(stack: Stack) -> list[str]:
    rules = stack.properties("Bucket")["LifecycleConfiguration"]["Rules"]
    assert all(rule["Status"] == "Enabled" for rule in rules)
    return [rule["Prefix"] for rule in rules if "ExpirationInDays" in rule]


@pytest.mark.parametrize("prefix", ["", "a/b/"])
def test_what_the_lake_needs_never_expires(prefix: str) -> None:
    stack = Stack(LakePrefix=prefix, BackupDays="400")
    assert _expiring(stack) == [f"{prefix}dynamo-firehose/", f"{prefix}dynamo-backup/"]
    needed = [
        _PATHS.landing,
        _PATHS.quarantine,
        _PATHS.state,
        _PATHS.exports,
        "iceberg/cdc/orders_snapshot/",
        "dynamo-firehose-error/cdc/orders/",
    ]
    for place in needed:
        assert not any((prefix + place).startswith(gone) for gone in _expiring(stack))
    assert _expiring(Stack(FirehoseFileDays="0")) == []
    rules = stack.properties("Bucket")["LifecycleConfiguration"]["Rules"]
    (unfinished,) = (r for r in rules if "AbortIncompleteMultipartUpload" in r)
    (earlier,) = (r for r in rules if "NoncurrentVersionExpiration" in r)
    assert "Prefix" not in unfinished | earlier


def test_the_bucket_is_private_encrypted_and_stays() -> None:
    for stack, kind in ((Stack(), "AES256"), (Stack(KmsKeyArn=KEY), "aws:kms")):
        bucket = stack.properties("Bucket")
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        encryption = rule["ServerSideEncryptionByDefault"]
        assert encryption["SSEAlgorithm"] == kind
        assert encryption.get("KMSMasterKeyID") == (KEY if kind == "aws:kms" else None)
        assert bucket["VersioningConfiguration"]["Status"] == "Suspended"
    stack = _STACKS["new table"]
    for name in ("Bucket", "BucketPolicy", "Table", "GlueDatabase"):
        assert stack.resources[name]["DeletionPolicy"] == "Retain"
        assert stack.resources[name]["UpdateReplacePolicy"] == "Retain"
    assert not {"Bucket", "BucketPolicy", "GlueDatabase"} & set(_STACKS["all there"].resources)


def test_streams() -> None:
    assert "ShardCount" not in Stack().properties("Stream")
    provisioned = Stack(StreamMode="PROVISIONED", ShardCount="3", KmsKeyArn=KEY)
    stream = provisioned.properties("Stream")
    assert stream["StreamModeDetails"] == {"StreamMode": "PROVISIONED"}
    assert stream["ShardCount"] == "3"
    assert stream["StreamEncryption"] == {"EncryptionType": "KMS", "KeyId": KEY}
    assert Stack().properties("Stream")["StreamEncryption"]["KeyId"] == "alias/aws/kinesis"


def test_a_new_table_is_as_capture_needs_it() -> None:
    table = _STACKS["new table"].properties("Table")
    assert table["StreamSpecification"] == {"StreamViewType": "NEW_AND_OLD_IMAGES"}
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert table["KinesisStreamSpecification"] == {
        "StreamArn": f"arn:aws:service:{REGION}:{ACCOUNT}:the-stream",
        "ApproximateCreationDateTimePrecision": "MICROSECOND",
    }
    assert [key["AttributeName"] for key in table["KeySchema"]] == ["id", "line"]
    assert {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]} == {
        "id": "S",
        "line": "N",
    }
    assert [
        k["AttributeName"] for k in Stack(CreateTable="true").properties("Table")["KeySchema"]
    ] == ["id"]


@pytest.mark.parametrize(
    ("output", "operation", "parameters"),
    [
        (
            "EnableStream",
            "UpdateTable",
            {
                "StreamSpecification": {
                    "StreamEnabled": True,
                    "StreamViewType": "NEW_AND_OLD_IMAGES",
                }
            },
        ),
        (
            "EnableRecovery",
            "UpdateContinuousBackups",
            {"PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True}},
        ),
        (
            "EnableKinesis",
            "EnableKinesisStreamingDestination",
            {
                "StreamArn": f"arn:aws:service:{REGION}:{ACCOUNT}:the-stream",
                "EnableKinesisStreamingConfiguration": {
                    "ApproximateCreationDateTimePrecision": "MICROSECOND"
                },
            },
        ),
    ],
)
def test_commands_for_an_existing_table(
    output: str, operation: str, parameters: dict[str, Any]
) -> None:
    """They are commands of DynamoDB's own model, with its parameters."""
    assert output not in _STACKS["new table"].outputs
    model = botocore.session.get_session().get_service_model("dynamodb")
    shape: Any = model.operation_model(operation).input_shape
    program, service, command, *options = shlex.split(_STACKS["all there"].outputs[output])
    assert (program, service) == ("aws", "dynamodb")
    assert command == xform_name(operation, "-")
    names = {f"--{xform_name(name, '-')}": name for name in shape.members}
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given.pop("--region") == REGION
    found = {names[option]: _shorthand(value) for option, value in given.items()}
    assert found == {"TableName": "orders", **parameters}
    assert not ParamValidator().validate(found, shape).has_errors()


def _shorthand(value: str) -> Any:
    if "=" not in value:
        return value
    pairs = (pair.split("=") for pair in value.split(","))
    return {name: True if content == "true" else content for name, content in pairs}


def test_the_page_deploys_this_template() -> None:
    text = (_ROOT / "docs/transports/firehose.md").read_text("utf-8").replace("\\\n", " ")
    commands = [
        shlex.split(c) for c in re.findall(r"^ *(aws cloudformation deploy .*)$", text, re.M)
    ]
    assert len(commands) == 2
    for command in commands:
        options = command[command.index("deploy") + 1 :]
        assert (_ROOT / options[options.index("--template-file") + 1]).samefile(PATH)
        assert options[options.index("--capabilities") + 1] == "CAPABILITY_IAM"
        given = [o.split("=") for o in options[options.index("--parameter-overrides") + 1 :]]
        stack = Stack(PATH, **dict(given))
        assert {name for name, _ in given} >= stack.required
