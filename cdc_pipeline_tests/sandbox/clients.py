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


def connect(endpoint_url: str) -> Aws:
    """Return clients that depend on nothing in the environment."""
    session = boto3.Session(
        aws_access_key_id="sandbox", aws_secret_access_key="sandbox", region_name="us-east-1"
    )
    made = {
        name: session.client(service, endpoint_url=endpoint_url, config=Config(proxies={}))
        for name, service in (
            ("dynamodb", "dynamodb"),
            ("streams", "dynamodbstreams"),
            ("s3", "s3"),
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


def wait_for(condition: Callable[[], Any], *, seconds: float = 10.0) -> Any:
    """Return the first true value of `condition`, or fail."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"not so within {seconds} s")
