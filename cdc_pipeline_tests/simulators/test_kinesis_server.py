"""The simulated Kinesis, as real botocore clients see it."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from cdc_pipeline_tests.simulators import faults
from cdc_pipeline_tests.simulators.clients import plain_client, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.kinesis_model import HASHES
from cdc_pipeline_tests.simulators.kinesis_server import KinesisSimulator
from cdc_pipeline_tests.simulators.test_streams_server import HOUR, error_code, item


@pytest.fixture
def sim(clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[KinesisSimulator]:
    with KinesisSimulator(clock=clock) as simulator:
        use(simulator, monkeypatch)
        simulator.create_kinesis("changes")
        simulator.create_table("orders")
        simulator.replicate("orders", "changes")
        yield simulator


@pytest.fixture
def client(sim: KinesisSimulator) -> Any:
    return plain_client(sim, "kinesis")


def iterator(client: Any, shard: int | str = 0, kind: str = "TRIM_HORIZON", **where: Any) -> str:
    shard_id = shard if isinstance(shard, str) else f"shardId-{shard:012d}"
    arn = "arn:aws:kinesis:us-east-1:000000000000:stream/changes"
    return client.get_shard_iterator(
        StreamARN=arn, ShardId=shard_id, ShardIteratorType=kind, **where
    )["ShardIterator"]


def read(client: Any, start: str, **options: Any) -> list[dict[str, Any]]:
    """Every answer from an iterator on, up to the end of the shard or the tip."""
    pages = [client.get_records(ShardIterator=start, **options)]
    while pages[-1]["MillisBehindLatest"] or pages[-1]["Records"]:
        if "NextShardIterator" not in pages[-1]:
            break
        pages.append(client.get_records(ShardIterator=pages[-1]["NextShardIterator"], **options))
    return pages


def numbers(pages: list[dict[str, Any]]) -> list[str]:
    return [record["SequenceNumber"] for page in pages for record in page["Records"]]


def envelopes(pages: list[dict[str, Any]]) -> list[Any]:
    return [json.loads(record["Data"]) for page in pages for record in page["Records"]]


def listing(client: Any, **options: Any) -> dict[str, dict[str, Any]]:
    found = client.list_shards(StreamName="changes", **options)["Shards"]
    return {shard["ShardId"]: shard for shard in found}


def test_the_envelope_of_an_insert_an_update_and_a_ttl_delete(
    sim: KinesisSimulator, client: Any, clock: SimulatedClock
) -> None:
    raw = b"\x12\x02\x08\x7b"
    first = {**item("a", n="1"), "b": {"B": raw}, "m": {"M": {"l": {"L": [{"BS": [raw]}]}}}}
    sim.put("orders", first)
    sim.set_precision("orders", "MILLISECOND")
    clock.advance(0.000_250)
    sim.put("orders", item("a", n="2"))
    sim.set_precision("orders", None)
    clock.advance(0.001)
    sim.delete("orders", item("a"), by_ttl=True)
    insert, update, delete = envelopes(read(client, iterator(client)))
    start_us = 1_767_268_800_500_000
    twice = "RWdJSWV3PT0="
    assert base64.b64decode(base64.b64decode(twice)) == raw
    stored = {**item("a", n="1"), "b": {"B": twice}}
    stored["m"] = {"M": {"l": {"L": [{"BS": [twice]}]}}}
    assert insert == {
        "awsRegion": "us-east-1",
        "eventID": sim.changes("orders")[0].event_id,
        "eventName": "INSERT",
        "userIdentity": None,
        "recordFormat": "application/json",
        "tableName": "orders",
        "dynamodb": {
            "ApproximateCreationDateTime": start_us,
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
            "Keys": item("a"),
            "NewImage": stored,
            "SizeBytes": insert["dynamodb"]["SizeBytes"],
        },
        "eventSource": "aws:dynamodb",
    }
    assert update["dynamodb"]["OldImage"] == stored
    assert update["dynamodb"]["NewImage"] == item("a", n="2")
    assert update["dynamodb"]["ApproximateCreationDateTime"] == start_us // 1000
    assert update["dynamodb"]["ApproximateCreationDateTimePrecision"] == "MILLISECOND"
    assert delete["dynamodb"]["ApproximateCreationDateTime"] == start_us // 1000 + 1
    assert "ApproximateCreationDateTimePrecision" not in delete["dynamodb"]
    assert delete["userIdentity"] == {"type": "Service", "principalId": "dynamodb.amazonaws.com"}
    assert "NewImage" not in delete["dynamodb"]
    assert [change.time_us - start_us for change in sim.changes("orders")] == [0, 0, 1000]


def test_the_order_of_fields_differs(sim: KinesisSimulator, client: Any) -> None:
    for number in range(9):
        sim.put("orders", item("a", n=str(number)))
    found = envelopes(read(client, iterator(client)))
    assert len({tuple(envelope) for envelope in found}) > 1
    assert len({tuple(envelope["dynamodb"]) for envelope in found[1:]}) > 1


def test_dynamodb_tells_where_a_table_goes(sim: KinesisSimulator) -> None:
    tables = plain_client(sim, "dynamodb")
    sim.create_kinesis("other")
    sim.stop_replicating("orders")
    sim.put("orders", item("unseen"))
    sim.replicate("orders", "other", precision=None)
    answer = tables.describe_kinesis_streaming_destination(TableName="orders")
    assert answer["KinesisDataStreamDestinations"] == [
        {
            "StreamArn": sim.kinesis_arn("changes"),
            "DestinationStatus": "DISABLED",
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
        },
        {"StreamArn": sim.kinesis_arn("other"), "DestinationStatus": "ACTIVE"},
    ]
    assert sim.changes("orders")[0].stream is None
    assert tables.get_item(TableName="orders", Key=item("unseen"))["Item"] == item("unseen")


def test_duplicates_and_disorder(sim: KinesisSimulator, client: Any) -> None:
    sim.create_table("users")
    sim.replicate("users", "changes")
    children = sim.split_kinesis("changes", sim.open_kinesis("changes")[0])
    sim.hold("orders")
    for value in ("1", "2", "1", "2"):
        sim.put("orders", item("a", n=value))
    sim.put("users", item("u"))
    sim.release("orders", backwards=True)
    first, *_ = sim.changes("orders")
    sim.again(first, children[0])
    sim.again(first, children[1])
    deliveries = first.deliveries
    assert len({d.sequence_number for d in deliveries}) == 3
    assert {d.shard_id for d in deliveries} == set(children)
    assert len({json.dumps(json.loads(d.data), sort_keys=True) for d in deliveries}) == 1
    home = deliveries[0].shard_id
    mine = [e for e in envelopes(read(client, iterator(client, home))) if e["tableName"] != "users"]
    newest_first = [c.event_id for c in reversed(sim.changes("orders"))]
    assert [envelope["eventID"] for envelope in mine] == [*newest_first, first.event_id]
    assert len({envelope["dynamodb"]["ApproximateCreationDateTime"] for envelope in mine}) == 1

    sim.disturb("orders", duplicates=0.3, late=0.3)
    for number in range(200):
        sim.put("orders", item(f"k{number % 5}", n=str(number)))
    sim.release("orders")
    random = sim.changes("orders")[4:]
    assert all(change.deliveries for change in random)
    assert 20 < sum(len(change.deliveries) - 1 for change in random) < 100
    arrived = sorted(random, key=lambda c: int(c.deliveries[0].sequence_number))
    assert [c.order for c in arrived] != [c.order for c in random]


def test_splits_and_merges(sim: KinesisSimulator, client: Any) -> None:
    (root,) = sim.open_kinesis("changes")
    left, right = sim.split_kinesis("changes", root, HASHES // 4)
    for number in range(40):
        sim.put("orders", item(f"k{number}"))
    homes = [change.deliveries[0].shard_id for change in sim.changes("orders")]
    assert 0 < homes.count(left) < homes.count(right)
    child = sim.merge_kinesis("changes", left, right)
    sim.put("orders", item("k0", n="1"))
    shards = listing(client)
    assert list(shards) == [root, left, right, child]
    assert "ParentShardId" not in shards[root]
    assert shards[left]["ParentShardId"] == root
    assert "AdjacentParentShardId" not in shards[left]
    assert shards[child]["ParentShardId"] == left
    assert shards[child]["AdjacentParentShardId"] == right
    assert shards[left]["HashKeyRange"] == {
        "StartingHashKey": "0",
        "EndingHashKey": str(HASHES // 4 - 1),
    }
    ranges = [shards[s]["HashKeyRange"] for s in (root, child)]
    assert ranges == [{"StartingHashKey": "0", "EndingHashKey": str(HASHES - 1)}] * 2
    bounds = {s: shard["SequenceNumberRange"] for s, shard in shards.items()}
    assert "EndingSequenceNumber" not in bounds[child]
    ended = max(int(bounds[s]["EndingSequenceNumber"]) for s in (left, right))
    assert ended < int(bounds[child]["StartingSequenceNumber"])
    pages = read(client, iterator(client, left))
    assert "NextShardIterator" not in pages[-1]
    assert [(c["ShardId"], c["ParentShards"]) for c in pages[-1]["ChildShards"]] == [
        (child, [left, right])
    ]
    assert "ChildShards" not in read(client, iterator(client, child))[-1]
    with pytest.raises(ValueError, match="closed already"):
        sim.split_kinesis("changes", left)


def test_an_empty_page_may_come_before_the_end(
    clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KinesisSimulator(clock=clock, empty_end=True) as sim:
        use(sim, monkeypatch)
        sim.create_kinesis("changes")
        sim.put_data("changes", b"x")
        sim.split_kinesis("changes", sim.open_kinesis("changes")[0])
        client = plain_client(sim, "kinesis")
        pages = read(client, iterator(client))
        assert [len(page["Records"]) for page in pages] == [1, 0]
        assert ["NextShardIterator" in page for page in pages] == [True, False]


def test_trimmed_positions_do_not_raise(
    sim: KinesisSimulator, client: Any, clock: SimulatedClock
) -> None:
    for hour in range(4):
        sim.put("orders", item("a", n=str(hour)))
        clock.advance(HOUR)
    every = [change.deliveries[0].sequence_number for change in sim.changes("orders")]
    waiting = iterator(client)
    summary = client.describe_stream_summary(StreamName="changes")["StreamDescriptionSummary"]
    assert summary["RetentionPeriodHours"] == 24
    clock.advance(20 * HOUR)
    at = iterator(client, 0, "AT_SEQUENCE_NUMBER", StartingSequenceNumber=every[0])
    after = iterator(client, 0, "AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=every[1])
    assert numbers(read(client, at)) == every[1:]
    assert numbers(read(client, after)) == every[2:]
    assert error_code(client.get_records, ShardIterator=waiting) == "ExpiredIteratorException"
    sim.set_retention("changes", 8760)
    clock.advance(300 * 24 * HOUR)
    assert numbers(read(client, iterator(client))) == every[1:]
    sim.set_retention("changes", 24)
    assert numbers(read(client, iterator(client))) == []
    sim.set_retention("changes", 8760)
    assert numbers(read(client, iterator(client))) == []
    at = iterator(client, 0, "AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=every[3])
    assert read(client, at)[0]["MillisBehindLatest"] == 0


def test_iterators_by_number_and_time(
    sim: KinesisSimulator, client: Any, clock: SimulatedClock
) -> None:
    times = []
    for number in range(3):
        times.append(datetime.fromtimestamp(clock(), UTC))
        sim.put("orders", item("a", n=str(number)))
        clock.advance(10)
    every = [change.deliveries[0].sequence_number for change in sim.changes("orders")]

    def from_(kind: str, **where: Any) -> list[str]:
        return numbers(read(client, iterator(client, 0, kind, **where)))

    assert from_("AT_SEQUENCE_NUMBER", StartingSequenceNumber=every[1]) == every[1:]
    assert from_("AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=every[1]) == every[2:]
    assert from_("AT_TIMESTAMP", Timestamp=times[1]) == every[1:]
    assert from_("LATEST") == []
    pages = read(client, iterator(client), Limit=1)
    assert [page["MillisBehindLatest"] for page in pages] == [20_000, 10_000, 0, 0]
    arrivals = [page["Records"][0]["ApproximateArrivalTimestamp"] for page in pages[:3]]
    assert arrivals == times
    start = iterator(client)
    clock.advance(299)
    client.get_records(ShardIterator=start)
    clock.advance(1)
    assert error_code(client.get_records, ShardIterator=start) == "ExpiredIteratorException"
    assert error_code(client.get_records, ShardIterator="made up") == "InvalidArgumentException"


def test_closed_shards_stay_listed_until_they_are_trimmed(
    sim: KinesisSimulator, client: Any, clock: SimulatedClock
) -> None:
    sim.put("orders", item("a"))
    root = sim.open_kinesis("changes")[0]
    clock.advance(HOUR)
    halfway = datetime.fromtimestamp(clock() + 1, UTC)
    children = sim.split_kinesis("changes", root)
    clock.advance(23 * HOUR - 10)
    assert list(listing(client)) == [root, *children]
    assert list(listing(client, ShardFilter={"Type": "AT_LATEST"})) == children
    assert list(listing(client, ShardFilter={"Type": "AT_TRIM_HORIZON"})) == [root]
    assert list(listing(client, ShardFilter={"Type": "FROM_TRIM_HORIZON"})) == [root, *children]
    after = {"Type": "AFTER_SHARD_ID", "ShardId": children[0]}
    assert list(listing(client, ShardFilter=after)) == children[1:]
    for kind in ("AT_TIMESTAMP", "FROM_TIMESTAMP"):
        found = listing(client, ShardFilter={"Type": kind, "Timestamp": halfway})
        assert list(found) == children
    waiting = iterator(client)
    clock.advance(HOUR - 290)
    assert list(listing(client)) == [root, *children]
    waiting = iterator(client)
    clock.advance(290 + 10)
    assert list(listing(client)) == children
    assert listing(client)[children[0]]["ParentShardId"] == root
    assert error_code(client.get_records, ShardIterator=waiting) == "ExpiredIteratorException"
    code = error_code(
        client.get_shard_iterator,
        StreamName="changes",
        ShardId=root,
        ShardIteratorType="TRIM_HORIZON",
    )
    assert code == "ResourceNotFoundException"


def test_listings_page_and_their_tokens_expire(
    sim: KinesisSimulator, client: Any, clock: SimulatedClock
) -> None:
    for _ in range(700):
        children = sim.split_kinesis("changes", sim.open_kinesis("changes")[0])
        sim.merge_kinesis("changes", *children)
    first = client.list_shards(StreamName="changes")
    second = client.list_shards(NextToken=first["NextToken"])
    third = client.list_shards(NextToken=second["NextToken"])
    pages = [first, second, third]
    assert [len(page["Shards"]) for page in pages] == [1000, 1000, 101]
    assert "NextToken" not in third
    every = [shard.shard_id for shard in sim.kinesis_shards("changes")]
    assert [shard["ShardId"] for page in pages for shard in page["Shards"]] == every
    both = {"NextToken": first["NextToken"], "StreamName": "changes"}
    assert error_code(client.list_shards, **both) == "InvalidArgumentException"
    clock.advance(300)
    code = error_code(client.list_shards, NextToken=first["NextToken"])
    assert code == "ExpiredNextTokenException"


def test_limits_of_pages_and_of_reads(
    clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KinesisSimulator(clock=clock, limits=True) as sim:
        use(sim, monkeypatch)
        sim.create_kinesis("changes")
        for _ in range(10_100):
            sim.put_data("changes", b"x")
        for _ in range(12):
            sim.put_data("changes", b"x" * (1 << 20))
        client = plain_client(sim, "kinesis", retries={"max_attempts": 0})
        page = client.get_records(ShardIterator=iterator(client))
        assert len(page["Records"]) == 10_000
        page = client.get_records(ShardIterator=page["NextShardIterator"])
        assert len(page["Records"]) == 100 + 9
        too_much = "ProvisionedThroughputExceededException"
        following = {"ShardIterator": page["NextShardIterator"]}
        assert error_code(client.get_records, **following) == too_much
        clock.advance(4.5)
        assert error_code(client.get_records, **following) == too_much
        clock.advance(0.5)
        assert len(client.get_records(**following)["Records"]) == 3
        clock.advance(1.5)
        for _ in range(5):
            client.get_records(ShardIterator=iterator(client, 0, "LATEST"))
        assert error_code(client.get_records, **following) == too_much
        clock.advance(1)
        client.get_records(**following)


def metric(sim: KinesisSimulator, clock: SimulatedClock, **dimensions: str) -> list[Any]:
    """The failures by minute, from both of CloudWatch's calls."""
    client = plain_client(sim, "cloudwatch")
    what = {
        "Namespace": "AWS/DynamoDB",
        "MetricName": "FailedToReplicateRecordCount",
        "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions.items()],
    }
    times = {
        "StartTime": datetime.fromtimestamp(clock() - 6 * HOUR, UTC),
        "EndTime": datetime.fromtimestamp(clock() + 1, UTC),
    }
    stat = {"Metric": what, "Period": 60, "Stat": "Sum"}
    query = {"Id": "failed", "MetricStat": stat}
    (data,) = client.get_metric_data(
        MetricDataQueries=[query], ScanBy="TimestampAscending", **times
    )["MetricDataResults"]
    points = client.get_metric_statistics(**what, **times, Period=60, Statistics=["Sum"])
    by_time = {p["Timestamp"]: p["Sum"] for p in points["Datapoints"]}
    found = [
        (at.timestamp(), count)
        for at, count in zip(data["Timestamps"], data["Values"], strict=True)
    ]
    assert found == sorted((at.timestamp(), count) for at, count in by_time.items())
    return found


def test_what_could_not_be_replicated_is_counted_and_absent(
    sim: KinesisSimulator, client: Any, clock: SimulatedClock
) -> None:
    begun = clock() // 60 * 60
    sim.put("orders", {**item("a"), "text": {"S": "x" * 600_000}})
    sim.put("orders", {**item("a"), "text": {"S": "y" * 600_000}})
    sim.skip_next("orders", 2)
    sim.put("orders", item("b"))
    clock.advance(130)
    sim.put("orders", item("c"))
    sim.put("orders", item("d"))
    assert [c.skipped for c in sim.changes("orders")] == [False, True, True, True, False]
    found = envelopes(read(client, iterator(client)))
    assert [e["dynamodb"]["Keys"]["pk"]["S"] for e in found] == ["a", "d"]
    named = {"TableName": "orders", "DelegatedOperation": "PutRecord"}
    assert metric(sim, clock, **named) == [(begun, 2.0), (begun + 120, 1.0)]
    assert metric(sim, clock, TableName="orders") == []
    (listed,) = plain_client(sim, "cloudwatch").list_metrics(
        Dimensions=[{"Name": "TableName", "Value": "orders"}]
    )["Metrics"]
    assert {d["Name"]: d["Value"] for d in listed["Dimensions"]} == named


def test_faults_of_kinesis(sim: KinesisSimulator, client: Any) -> None:
    sim.put("orders", item("a"))
    start = iterator(client)
    sim.faults.script("kinesis:GetRecords", faults.cut(honest_length=True))
    assert "Records" not in client.get_records(ShardIterator=start)
    sim.faults.script("kinesis:GetRecords", faults.empty_page())
    page = client.get_records(ShardIterator=start)
    assert page["Records"] == []
    assert client.get_records(ShardIterator=page["NextShardIterator"])["Records"]
    sim.faults.script(
        "kinesis:GetRecords", faults.throughput_exceeded(), faults.internal_error(), faults.reset()
    )
    assert len(client.get_records(ShardIterator=start)["Records"]) == 1
    children = sim.split_kinesis("changes", "shardId-000000000000")
    merged = sim.merge_kinesis("changes", *children)
    sim.faults.script("kinesis:ListShards", faults.lagging())
    hidden = listing(client)
    assert list(hidden) == ["shardId-000000000000", *children]
    assert ["EndingSequenceNumber" in s["SequenceNumberRange"] for s in hidden.values()] == [
        True,
        False,
        False,
    ]
    sim.faults.script("kinesis:ListShards", faults.shard_missing(children[1]))
    assert list(listing(client)) == ["shardId-000000000000", children[0], merged]
    # DynamoDB Streams are not concerned.
    assert sim.faults.count("cut, honest length", "kinesis:GetRecords") == 1
    sim.faults.always("kinesis:GetRecords", faults.error("AccessDeniedException"))
    streams, arn = plain_client(sim), sim.stream_arn("orders")
    for shard in sim.open_shards("orders"):
        place = streams.get_shard_iterator(
            StreamArn=arn, ShardId=shard, ShardIteratorType="TRIM_HORIZON"
        )
        streams.get_records(ShardIterator=place["ShardIterator"])


def test_a_stream_of_the_same_name_is_another_stream(
    sim: KinesisSimulator, client: Any, clock: SimulatedClock
) -> None:
    sim.put("orders", item("a"))
    number = sim.changes("orders")[0].deliveries[0].sequence_number
    start = iterator(client)
    sim.delete_kinesis("changes")
    missing = "ResourceNotFoundException"
    assert error_code(client.list_shards, StreamName="changes") == missing
    assert error_code(client.get_records, ShardIterator=start) == missing
    clock.advance(1)
    sim.create_kinesis("changes")
    assert error_code(client.get_records, ShardIterator=start) == missing
    with pytest.raises(client.exceptions.InvalidArgumentException):
        iterator(client, 0, "AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=number)
    assert sim.put("orders", item("b")) is not None
    assert numbers(read(client, iterator(client))) == []
    sim.replicate("orders", "changes")
    sim.put("orders", item("c"))
    assert len(numbers(read(client, iterator(client)))) == 1


def test_records_of_others(sim: KinesisSimulator, client: Any) -> None:
    sim.put_data("changes", b"\xf3\x89\x9a\xc2 aggregated")
    sim.ignore_partition_keys("changes")
    sim.split_kinesis("changes", "shardId-000000000000")
    for number in range(20):
        sim.put("orders", item("a", n=str(number)))
    homes = {change.deliveries[0].shard_id for change in sim.changes("orders")}
    assert homes == set(sim.open_kinesis("changes"))
    (record,) = read(client, iterator(client))[0]["Records"]
    assert record["Data"] == b"\xf3\x89\x9a\xc2 aggregated"
