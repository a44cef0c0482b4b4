"""The source side of each road on a local AWS: the demo's tables and what carries their changes."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cdc_pipeline.core.transports import DYNAMODB_STREAMS, FIREHOSE, KINESIS, KINESIS_CHANNEL
from cdc_pipeline.sandbox.demo.traffic import KEYS, Traffic, create_tables, expire_orders, seed
from cdc_pipeline.sandbox.demo.workspace import BUCKET, DATABASE, LAKE_PREFIX
from cdc_pipeline.sandbox.errors import SandboxError
from cdc_pipeline.sandbox.process import local_client

_ROOT = Path(__file__).resolve().parents[3]
_CODE_BUCKET = "cdc-code"
_CODE_KEY = "firehose_lambda.zip"
_CUSTOMERS_PER_ORDER = 0.1
_WAIT = {"Delay": 1, "MaxAttempts": 60}


def start_traffic(orders: int, rate: float, transport: str = DYNAMODB_STREAMS) -> Traffic:
    """Create and seed the demo tables on a road, then change them from a thread."""
    dynamodb: Any = local_client("dynamodb")
    customers = max(1, int(orders * _CUSTOMERS_PER_ORDER))
    build_road(transport)
    seed(dynamodb, orders=orders, customers=customers)
    traffic = Traffic(dynamodb, orders=orders, customers=customers, rate=rate)
    traffic.start()
    return traffic


def build_road(transport: str) -> None:
    """Make the demo's tables and what `transport` needs beside them; the lake's bucket is there."""
    dynamodb: Any = local_client("dynamodb")
    if transport == FIREHOSE:
        _deploy_stacks()
        expire_orders(dynamodb)
        return
    create_tables(dynamodb)
    if transport in (KINESIS, KINESIS_CHANNEL):
        _connect_streams(dynamodb, on_demand=transport == KINESIS_CHANNEL)
    if transport == KINESIS_CHANNEL:
        _open_channels()


def _connect_streams(dynamodb: Any, *, on_demand: bool) -> None:
    """A Kinesis stream for each table, of two shards unless it scales itself, and its changes."""
    kinesis: Any = local_client("kinesis")
    size: dict[str, Any] = {"ShardCount": 2}
    if on_demand:
        size = {"StreamModeDetails": {"StreamMode": "ON_DEMAND"}}
    for table in KEYS:
        stream = f"{table}-changes"
        kinesis.create_stream(StreamName=stream, **size)
        kinesis.get_waiter("stream_exists").wait(StreamName=stream, WaiterConfig=_WAIT)
        summary = kinesis.describe_stream_summary(StreamName=stream)
        dynamodb.enable_kinesis_streaming_destination(
            TableName=table,
            StreamArn=summary["StreamDescriptionSummary"]["StreamARN"],
            EnableKinesisStreamingConfiguration={
                "ApproximateCreationDateTimePrecision": "MICROSECOND"
            },
        )


def _open_channels() -> None:
    """A channel for each table's stream, which writes it to the lake's bucket."""
    kinesis: Any = local_client("kinesis")
    sts: Any = local_client("sts")
    account = sts.get_caller_identity()["Account"]
    for table in KEYS:
        summary = kinesis.describe_stream_summary(StreamName=f"{table}-changes")
        arn = summary["StreamDescriptionSummary"]["StreamARN"]
        kinesis.create_channel(
            ChannelName=f"{table}-to-s3",
            ServiceExecutionRoleARN=f"arn:aws:iam::{account}:role/{table}-channel",
            StreamConfigurationList=[
                {"StreamARN": arn, "RecordConfiguration": {"RecordFormatType": "JSON"}}
            ],
            S3DestinationConfiguration={
                "DataFreshnessInSeconds": 300,
                "StorageConfiguration": {
                    "BucketARN": f"arn:aws:s3:::{BUCKET}",
                    "ExpectedBucketOwner": account,
                    "CompressionType": "GZIP",
                },
            },
        )


def _deploy_stacks() -> None:
    """infra/cdc_pipeline.yaml per table (docs/transports/firehose.md): table, streams and Lambda.

    Raises SandboxError if the checkout's infra/ is missing or a stack fails.
    """
    template = _ROOT / "infra" / "cdc_pipeline.yaml"
    if not template.exists():
        raise SandboxError(
            f"there is no {template}",
            fix="run this from a checkout of the project, which an installed package is not",
        )
    s3: Any = local_client("s3")
    s3.create_bucket(Bucket=_CODE_BUCKET)
    s3.put_object(Bucket=_CODE_BUCKET, Key=_CODE_KEY, Body=_lambda_zip())
    first = next(iter(KEYS))
    for table, keys in KEYS.items():
        parameters = {
            "TableName": table,
            "CreateTable": "true",
            "PartitionKey": keys[0],
            "SortKey": keys[1] if len(keys) > 1 else "",
            "LakeTable": table,
            "LakeBucket": BUCKET,
            "LakePrefix": f"{LAKE_PREFIX}/",
            "Database": DATABASE,
            "CreateDatabase": "true" if table == first else "false",
            # A demo does not wait five minutes for a file.
            "BufferSeconds": "1",
            "CodeBucket": _CODE_BUCKET,
        }
        _create_stack(f"cdc-{table}", template.read_text(), parameters)


def _lambda_zip() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / _CODE_KEY
        command = [sys.executable, "-m", "infra.build_lambda", str(target)]
        subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)
        return target.read_bytes()


def _create_stack(name: str, template: str, parameters: dict[str, str]) -> None:
    from botocore.exceptions import WaiterError

    cloudformation: Any = local_client("cloudformation")
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=template,
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
        ],
    )
    try:
        waiter = cloudformation.get_waiter("stack_create_complete")
        waiter.wait(StackName=name, WaiterConfig=_WAIT)
    except WaiterError as error:
        events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
        reasons = [
            f"{e['LogicalResourceId']}: {e['ResourceStatusReason']}"
            for e in events
            if e["ResourceStatus"].endswith("FAILED") and "ResourceStatusReason" in e
        ]
        raise SandboxError(f"stack {name} was not created\n" + "\n".join(reasons)) from error
