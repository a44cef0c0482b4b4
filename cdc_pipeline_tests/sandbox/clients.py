"""Real boto3 clients of a sandbox, and what tests do with them again and again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.config import Config


@dataclass(frozen=True)
class Aws:
    """Real clients of one sandbox."""

    endpoint_url: str
    dynamodb: Any
    streams: Any
    s3: Any
    cloudformation: Any
    cloudwatch: Any
    emr: Any
    firehose: Any
    glue: Any
    kinesis: Any
    lambdas: Any


def connect(endpoint_url: str, account: str = "sandbox") -> Aws:
    """Return clients that depend on nothing in the environment."""
    session = boto3.Session(
        aws_access_key_id=account, aws_secret_access_key="sandbox", region_name="us-east-1"
    )
    made = {
        name: session.client(service, endpoint_url=endpoint_url, config=Config(proxies={}))
        for name, service in (
            ("dynamodb", "dynamodb"),
            ("streams", "dynamodbstreams"),
            ("s3", "s3"),
            ("cloudformation", "cloudformation"),
            ("cloudwatch", "cloudwatch"),
            ("emr", "emr-serverless"),
            ("firehose", "firehose"),
            ("glue", "glue"),
            ("kinesis", "kinesis"),
            ("lambdas", "lambda"),
        )
    }
    return Aws(endpoint_url, **made)


def key(pk: str, sk: int = 1) -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"N": str(sk)}}


def read_stream(aws: Aws, table: str) -> list[dict[str, Any]]:
    """Return all records of a table's stream so far."""
    arn = aws.dynamodb.describe_table(TableName=table)["Table"]["LatestStreamArn"]
    shards = aws.streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
    iterator = aws.streams.get_shard_iterator(
        StreamArn=arn, ShardId=shards[0]["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    records: list[dict[str, Any]] = []
    while True:
        page = aws.streams.get_records(ShardIterator=iterator)
        if not page["Records"]:
            return records
        records += page["Records"]
        iterator = page["NextShardIterator"]


def wait_for(condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """Return the first true value of `condition`, or fail."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"not so within {seconds} s")


def read_kinesis(aws: Aws, stream: str) -> list[dict[str, Any]]:
    """Return all records of a Kinesis stream so far, shard by shard, closed ones too."""
    records: list[dict[str, Any]] = []
    for shard in aws.kinesis.list_shards(StreamName=stream)["Shards"]:
        iterator = aws.kinesis.get_shard_iterator(
            StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while iterator:
            page = aws.kinesis.get_records(ShardIterator=iterator)
            records += [{**record, "ShardId": shard["ShardId"]} for record in page["Records"]]
            iterator = page.get("NextShardIterator") if page["Records"] else None
    return records


def objects(aws: Aws, bucket: str, prefix: str = "") -> dict[str, bytes]:
    """Return the objects of a bucket, by key."""
    listed = aws.s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {
        entry["Key"]: aws.s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        for entry in listed
    }
