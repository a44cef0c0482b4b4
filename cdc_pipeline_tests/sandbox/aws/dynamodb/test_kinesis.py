"""Changes in Kinesis: the envelope by our own reader, keys, precision; shards that keep parents."""

import base64
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cdc_pipeline.core.changes.kinesis import from_envelope
from cdc_pipeline_tests.sandbox.clients import Aws, key, read_kinesis, read_stream, wait_for

pytestmark = pytest.mark.slow

_numbers = itertools.count(1)


@pytest.fixture
def stream(aws: Aws) -> str:
    name = f"changes-{next(_numbers)}"
    aws.kinesis.create_stream(StreamName=name, ShardCount=2)
    return name


def _arn(aws: Aws, stream: str) -> str:
    summary = aws.kinesis.describe_stream_summary(StreamName=stream)
    return summary["StreamDescriptionSummary"]["StreamARN"]


def _enable(aws: Aws, table: str, stream: str, precision: str = "MICROSECOND") -> dict[str, Any]:
    return aws.dynamodb.enable_kinesis_streaming_destination(
        TableName=table,
        StreamArn=_arn(aws, stream),
        EnableKinesisStreamingConfiguration={"ApproximateCreationDateTimePrecision": precision},
    )


def _envelopes(aws: Aws, stream: str) -> list[dict[str, Any]]:
    records = sorted(read_kinesis(aws, stream), key=lambda record: record["SequenceNumber"])
    return [json.loads(record["Data"]) for record in records]


def test_changes_have_the_envelope_of_aws(
    aws: Aws, stream: str, make_table: Callable[..., str]
) -> None:
    table = make_table()
    aws.dynamodb.put_item(TableName=table, Item=key("before"))
    _enable(aws, table, stream)
    old = {
        **key("a", 12),
        "raw": {"B": b"\x12\x02\x08\x7b"},
        "set": {"BS": [b"1", b"2"]},
        "deep": {
            "M": {"l": {"L": [{"B": b"x"}, {"N": "12345678901234567890.123456789012345678"}]}}
        },
        "text": {"S": "Zürich"},
    }
    new = {**old, "raw": {"B": b""}}
    start = time.time_ns() // 1000
    aws.dynamodb.put_item(TableName=table, Item=old)
    aws.dynamodb.put_item(TableName=table, Item=old)
    aws.dynamodb.put_item(TableName=table, Item={**old, "set": {"BS": [b"2", b"1"]}})
    aws.dynamodb.put_item(TableName=table, Item=new)
    aws.dynamodb.delete_item(TableName=table, Key=key("a", 12))
    end = time.time_ns() // 1000
    found = _envelopes(aws, stream)
    assert [envelope["eventName"] for envelope in found] == ["INSERT", "MODIFY", "REMOVE"]
    first = found[0]
    assert set(first) == {
        *("awsRegion", "eventID", "eventName", "userIdentity", "recordFormat", "tableName"),
        *("dynamodb", "eventSource"),
    }
    assert first["tableName"] == table
    assert first["userIdentity"] is None
    assert set(first["dynamodb"]) == {
        *("ApproximateCreationDateTime", "ApproximateCreationDateTimePrecision"),
        *("Keys", "NewImage", "SizeBytes"),
    }
    raw = first["dynamodb"]["NewImage"]["raw"]["B"]
    assert base64.b64decode(base64.b64decode(raw)) == b"\x12\x02\x08\x7b"
    changes = [from_envelope(envelope, table_id="t") for envelope in found]
    times = [change.write_time_us for change in changes]
    assert start <= times[0] < times[1] < times[2] <= end
    # The same images as in the table's stream, by our reader of each.
    records = read_stream(aws, table)[1:]
    for change, record in zip(changes, records, strict=True):
        body = record["dynamodb"]
        for image, name in ((change.new_image, "NewImage"), (change.old_image, "OldImage")):
            assert (image and _plain(json.loads(image))) == body.get(name)
        assert _plain(json.loads(change.keys)) == body["Keys"] == key("a", 12)


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    """Canonical DynamoDB JSON with its binaries as bytes, as boto3 has them."""

    def value(content: dict[str, Any]) -> dict[str, Any]:
        ((tag, inner),) = content.items()
        decode = base64.b64decode
        deeper: dict[str, Callable[[Any], Any]] = {
            "B": decode,
            "BS": lambda members: [decode(member) for member in members],
            "M": _plain,
            "L": lambda elements: [value(element) for element in elements],
        }
        return {tag: deeper.get(tag, lambda same: same)(inner)}

    return {name: value(content) for name, content in item.items()}


def test_an_item_stays_in_one_shard_and_ttl_is_marked(
    aws: Aws, stream: str, make_table: Callable[..., str]
) -> None:
    table = make_table()
    _enable(aws, table, stream)
    for n in range(60):
        aws.dynamodb.put_item(TableName=table, Item={**key(f"i{n % 20}"), "n": {"N": str(n)}})
    shards = defaultdict(set)
    keys = defaultdict(set)
    for record in read_kinesis(aws, stream):
        item = json.loads(record["Data"])["dynamodb"]["Keys"]["pk"]["S"]
        shards[item].add(record["ShardId"])
        keys[item].add(record["PartitionKey"])
    assert len(keys) == len({k for found in keys.values() for k in found}) == 20
    assert all(len(found) == 1 for found in shards.values())
    assert len({shard for found in shards.values() for shard in found}) == 2
    aws.dynamodb.update_time_to_live(
        TableName=table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "gone"}
    )
    past = str(int(time.time()) - 5)
    aws.dynamodb.put_item(TableName=table, Item={**key("expired"), "gone": {"N": past}})

    def removed() -> list[dict[str, Any]]:
        return [e for e in _envelopes(aws, stream) if e["eventName"] == "REMOVE"]

    identity = {"principalId": "dynamodb.amazonaws.com", "type": "Service"}
    assert wait_for(removed)[0]["userIdentity"] == identity


def test_precision_changes_and_disabling_stops(
    aws: Aws, stream: str, make_table: Callable[..., str]
) -> None:
    table = make_table(stream=False)
    _enable(aws, table, stream, "MILLISECOND")
    aws.dynamodb.put_item(TableName=table, Item=key("ms"))
    target = {"TableName": table, "StreamArn": _arn(aws, stream)}
    aws.dynamodb.update_kinesis_streaming_destination(
        **target,
        UpdateKinesisStreamingConfiguration={"ApproximateCreationDateTimePrecision": "MICROSECOND"},
    )
    (described,) = aws.dynamodb.describe_kinesis_streaming_destination(TableName=table)[
        "KinesisDataStreamDestinations"
    ]
    assert described["DestinationStatus"] == "ACTIVE"
    assert described["ApproximateCreationDateTimePrecision"] == "MICROSECOND"
    aws.dynamodb.put_item(TableName=table, Item=key("us"))
    bodies = [envelope["dynamodb"] for envelope in _envelopes(aws, stream)]
    precisions = [body["ApproximateCreationDateTimePrecision"] for body in bodies]
    assert precisions == ["MILLISECOND", "MICROSECOND"]
    ratio = bodies[1]["ApproximateCreationDateTime"] / bodies[0]["ApproximateCreationDateTime"]
    assert 999 < ratio < 1001
    aws.dynamodb.disable_kinesis_streaming_destination(**target)
    aws.dynamodb.put_item(TableName=table, Item=key("unseen"))
    assert len(_envelopes(aws, stream)) == 2


def test_what_cannot_be_enabled(aws: Aws, stream: str, make_table: Callable[..., str]) -> None:
    table = make_table()
    missing = _arn(aws, stream) + "-missing"
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        aws.dynamodb.enable_kinesis_streaming_destination(TableName=table, StreamArn=missing)
    _enable(aws, table, stream)
    with pytest.raises(ClientError, match="must be DISABLED to perform ENABLE"):
        _enable(aws, table, stream)


def test_a_record_too_large_is_counted_and_left_out(
    aws: Aws, stream: str, make_table: Callable[..., str]
) -> None:
    table = make_table()
    _enable(aws, table, stream)
    # Encoded twice, two images of this are more than the 1 MB of a record.
    for first in (b"1", b"2"):
        item = {**key("large"), "raw": {"B": first + bytes(390_000)}}
        aws.dynamodb.put_item(TableName=table, Item=item)
    assert [envelope["eventName"] for envelope in _envelopes(aws, stream)] == ["INSERT"]
    assert len(read_stream(aws, table)) == 2
    now = datetime.now(UTC)
    (point,) = aws.cloudwatch.get_metric_statistics(
        Namespace="AWS/DynamoDB",
        MetricName="FailedToReplicateRecordCount",
        Dimensions=[
            {"Name": "TableName", "Value": table},
            {"Name": "DelegatedOperation", "Value": "PutRecord"},
        ],
        StartTime=now - timedelta(minutes=5),
        EndTime=now + timedelta(minutes=5),
        Period=3600,
        Statistics=["Sum"],
    )["Datapoints"]
    assert point["Sum"] == 1


def test_resharding_keeps_parents_and_their_records(aws: Aws) -> None:
    name = "resharded"
    aws.kinesis.create_stream(StreamName=name, ShardCount=1)

    def put(start: int) -> None:
        for n in range(start, start + 20):
            aws.kinesis.put_record(StreamName=name, Data=str(n).encode(), PartitionKey=str(n))

    put(0)
    aws.kinesis.update_shard_count(
        StreamName=name, TargetShardCount=2, ScalingType="UNIFORM_SCALING"
    )
    put(20)
    root, left, right = aws.kinesis.list_shards(StreamName=name)["Shards"]
    assert "EndingSequenceNumber" in root["SequenceNumberRange"]
    assert left["ParentShardId"] == right["ParentShardId"] == root["ShardId"]
    assert "EndingSequenceNumber" not in left["SequenceNumberRange"]
    iterator = aws.kinesis.get_shard_iterator(
        StreamName=name, ShardId=root["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    page = aws.kinesis.get_records(ShardIterator=iterator, Limit=15)
    assert page["NextShardIterator"]
    last = aws.kinesis.get_records(ShardIterator=page["NextShardIterator"], Limit=15)
    assert len(last["Records"]) == 5
    assert "NextShardIterator" not in last
    children = {child["ShardId"]: child["ParentShards"] for child in last["ChildShards"]}
    assert children == {shard["ShardId"]: [root["ShardId"]] for shard in (left, right)}
    aws.kinesis.merge_shards(
        StreamName=name, ShardToMerge=left["ShardId"], AdjacentShardToMerge=right["ShardId"]
    )
    put(40)
    merged = aws.kinesis.list_shards(StreamName=name)["Shards"][-1]
    parents = {merged["ParentShardId"], merged["AdjacentParentShardId"]}
    assert parents == {left["ShardId"], right["ShardId"]}
    summary = aws.kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
    assert summary["OpenShardCount"] == 1
    by_shard = defaultdict(set)
    for record in read_kinesis(aws, name):
        by_shard[record["ShardId"]].add(int(record["Data"]))
    assert by_shard[root["ShardId"]] == set(range(20))
    assert by_shard[left["ShardId"]] | by_shard[right["ShardId"]] == set(range(20, 40))
    assert by_shard[merged["ShardId"]] == set(range(40, 60))
    with pytest.raises(ClientError, match="already been merged or split"):
        aws.kinesis.split_shard(
            StreamName=name, ShardToSplit=root["ShardId"], NewStartingHashKey="5"
        )
