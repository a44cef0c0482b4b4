"""The simulated API, as the real botocore client sees it."""

import json
import time
from collections.abc import Callable
from http.client import HTTPConnection
from itertools import pairwise
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cdc_pipeline_tests.simulators.clients import plain_client
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.items import hash_of
from cdc_pipeline_tests.simulators.streams_model import Record
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

HOUR = 3600


def item(pk: str, **values: str) -> dict[str, Any]:
    return {"pk": {"S": pk}, **{name: {"N": value} for name, value in values.items()}}


def error_code(call: Callable[..., Any], **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response["Error"]["Code"]


def iterator(
    client: Any, sim: StreamsSimulator, shard: str, kind: str = "TRIM_HORIZON", **where: str
) -> str:
    return client.get_shard_iterator(
        StreamArn=sim.stream_arn("orders"), ShardId=shard, ShardIteratorType=kind, **where
    )["ShardIterator"]


def read(client: Any, start: str, **options: Any) -> list[dict[str, Any]]:
    """Every answer from an iterator on, up to the end of the shard or the first empty page."""
    pages = [client.get_records(ShardIterator=start, **options)]
    while pages[-1]["Records"] and "NextShardIterator" in pages[-1]:
        pages.append(client.get_records(ShardIterator=pages[-1]["NextShardIterator"], **options))
    return pages


def numbers(pages: list[dict[str, Any]]) -> list[str]:
    return [record["dynamodb"]["SequenceNumber"] for page in pages for record in page["Records"]]


def written(records: list[Record], shard: str) -> list[str]:
    return [record.sequence_number for record in records if record.shard_id == shard]


def listing(client: Any, sim: StreamsSimulator, **options: Any) -> list[dict[str, Any]]:
    arn = sim.stream_arn("orders")
    return client.describe_stream(StreamArn=arn, **options)["StreamDescription"]["Shards"]


@pytest.fixture
def client(sim: StreamsSimulator) -> Any:
    sim.create_table("orders", shards=1)
    return plain_client(sim)


@pytest.fixture
def shard(sim: StreamsSimulator, client: Any) -> str:
    return sim.open_shards("orders")[0]


def test_a_shard_gives_its_records_in_write_order(
    sim: StreamsSimulator, client: Any, shard: str
) -> None:
    for number in range(2500):
        sim.put("orders", item(f"k{number % 7}", n=str(number)))
    pages = read(client, iterator(client, sim, shard))
    assert [len(page["Records"]) for page in pages] == [1000, 1000, 500, 0]
    assert numbers(pages) == written(sim.records("orders"), shard)
    assert numbers(read(client, iterator(client, sim, shard), Limit=700)) == numbers(pages)


def test_pages_hold_a_megabyte_or_one_record(
    sim: StreamsSimulator, client: Any, shard: str
) -> None:
    for size in (700_000, 200_000, 200_000, 1_300_000, 10):
        sim.put("orders", {"pk": {"S": str(size)}, "text": {"S": "x" * size}})
        sim.put("orders", {"pk": {"S": str(size)}, "text": {"S": ""}})
    sim.rotate("orders")
    pages = read(client, iterator(client, sim, shard))
    assert [len(page["Records"]) for page in pages] == [1, 2, 3, 1, 1, 2]
    assert "NextShardIterator" not in pages[-1]


def test_only_a_closed_shard_read_to_its_end_has_no_next_iterator(
    sim: StreamsSimulator, client: Any, shard: str
) -> None:
    sim.put("orders", item("a"))
    tip = read(client, iterator(client, sim, shard))[-1]
    assert tip["Records"] == []
    assert tip["NextShardIterator"]
    assert "EndingSequenceNumber" not in listing(client, sim)[0]["SequenceNumberRange"]
    (child,) = sim.rotate("orders")
    end = client.get_records(ShardIterator=tip["NextShardIterator"])
    assert end["Records"] == []
    assert "NextShardIterator" not in end
    assert [len(page["Records"]) for page in read(client, iterator(client, sim, shard))] == [1]
    listed = {s["ShardId"]: s for s in listing(client, sim)}
    ended = int(listed[shard]["SequenceNumberRange"]["EndingSequenceNumber"])
    assert listed[child]["ParentShardId"] == shard
    assert int(listed[child]["SequenceNumberRange"]["StartingSequenceNumber"]) > ended


def test_iterators_start_at_after_and_behind(
    sim: StreamsSimulator, client: Any, shard: str
) -> None:
    for number in range(5):
        sim.put("orders", item("a", n=str(number)))
    all_numbers = written(sim.records("orders"), shard)

    def from_(kind: str, **where: str) -> list[str]:
        return numbers(read(client, iterator(client, sim, shard, kind, **where)))

    assert from_("TRIM_HORIZON") == all_numbers
    assert from_("AT_SEQUENCE_NUMBER", SequenceNumber=all_numbers[2]) == all_numbers[2:]
    assert from_("AFTER_SEQUENCE_NUMBER", SequenceNumber=all_numbers[2]) == all_numbers[3:]
    assert from_("AFTER_SEQUENCE_NUMBER", SequenceNumber=all_numbers[-1]) == []
    latest = iterator(client, sim, shard, "LATEST")
    late = sim.put("orders", item("b"))
    assert late is not None
    assert numbers(read(client, latest)) == [late.sequence_number]


def test_iterators_are_opaque_and_expire(
    sim: StreamsSimulator, client: Any, shard: str, clock: SimulatedClock
) -> None:
    sim.put("orders", item("a"))
    first = iterator(client, sim, shard)
    assert first != iterator(client, sim, shard)
    assert len(first) <= 2048
    clock.advance(15 * 60 - 1)
    following = client.get_records(ShardIterator=first)["NextShardIterator"]
    clock.advance(1)
    assert error_code(client.get_records, ShardIterator=first) == "ExpiredIteratorException"
    assert client.get_records(ShardIterator=following)["Records"] == []
    assert error_code(client.get_records, ShardIterator="made up") == "ValidationException"


def test_records_are_trimmed_one_by_one_after_24_hours(
    sim: StreamsSimulator, client: Any, shard: str, clock: SimulatedClock
) -> None:
    for hour in range(3):
        sim.put("orders", item("a", n=str(hour)))
        clock.advance(HOUR)
    all_numbers = written(sim.records("orders"), shard)
    clock.advance(21 * HOUR - 10)
    waiting = iterator(client, sim, shard)
    assert numbers(read(client, waiting)) == all_numbers
    clock.advance(10)
    assert numbers(read(client, iterator(client, sim, shard))) == all_numbers[1:]
    assert error_code(client.get_records, ShardIterator=waiting) == "TrimmedDataAccessException"
    for kind, index in (("AT_SEQUENCE_NUMBER", 0), ("AFTER_SEQUENCE_NUMBER", 0)):
        code = error_code(
            client.get_shard_iterator,
            StreamArn=sim.stream_arn("orders"),
            ShardId=shard,
            ShardIteratorType=kind,
            SequenceNumber=all_numbers[index],
        )
        assert code == "TrimmedDataAccessException"
    after = iterator(client, sim, shard, "AFTER_SEQUENCE_NUMBER", SequenceNumber=all_numbers[1])
    assert numbers(read(client, after)) == all_numbers[2:]
    clock.advance(48 * HOUR)
    assert [s["ShardId"] for s in listing(client, sim)] == [shard]
    assert numbers(read(client, iterator(client, sim, shard))) == []
    assert len(sim.records("orders")) == 3


def test_a_lenient_trim_forgives_a_trimmed_checkpoint_with_nothing_lost(
    clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StreamsSimulator(clock=clock, strict_trim=False) as sim:
        sim.create_table("orders", shards=1)
        client, shard = plain_client(sim), sim.open_shards("orders")[0]
        first = sim.put("orders", item("a"))
        clock.advance(25 * HOUR)
        second = sim.put("orders", item("b"))
        assert first is not None
        assert second is not None
        after = iterator(
            client, sim, shard, "AFTER_SEQUENCE_NUMBER", SequenceNumber=first.sequence_number
        )
        assert numbers(read(client, after)) == [second.sequence_number]


@pytest.mark.parametrize("exact", [True, False])
def test_bounds_of_shards(clock: SimulatedClock, exact: bool) -> None:
    with StreamsSimulator(clock=clock, exact_bounds=exact) as sim:
        sim.create_table("orders", shards=1)
        records = [sim.put("orders", item("a", n=str(number))) for number in range(3)]
        sim.rotate("orders")
        sim.rotate("orders")
        ids = [shard.shard_id for shard in sim.shards("orders")]
        by_id = {s["ShardId"]: s["SequenceNumberRange"] for s in listing(plain_client(sim), sim)}
        bounds = [
            int(by_id[shard_id][name])
            for shard_id in ids
            for name in ("StartingSequenceNumber", "EndingSequenceNumber")
            if name in by_id[shard_id]
        ]
        found = [int(r.sequence_number) for r in records if r]
        assert bounds == sorted(bounds)
        assert bounds[0] <= found[0] <= found[-1] <= bounds[1] < bounds[2]
        assert (bounds[:2] == [found[0], found[-1]]) == exact
        assert (bounds[2] == bounds[3]) == exact


def test_closed_shards_are_unlisted_when_their_last_record_is_trimmed(
    sim: StreamsSimulator, client: Any, shard: str, clock: SimulatedClock
) -> None:
    sim.put("orders", item("a"))
    clock.advance(HOUR)
    (child,) = sim.rotate("orders")
    reading = iterator(client, sim, shard)
    (grandchild,) = sim.rotate("orders")
    clock.advance(23 * HOUR - 10)
    assert [s["ShardId"] for s in listing(client, sim)] == sorted([shard, child, grandchild])
    clock.advance(10)
    # The empty child's 24 hours count from its closing.
    left = listing(client, sim)
    assert [s["ShardId"] for s in left] == sorted([child, grandchild])
    assert {s["ShardId"]: s["ParentShardId"] for s in left}[child] == shard
    code = error_code(
        client.get_shard_iterator,
        StreamArn=sim.stream_arn("orders"),
        ShardId=shard,
        ShardIteratorType="TRIM_HORIZON",
    )
    assert code == "ResourceNotFoundException"
    assert error_code(client.get_records, ShardIterator=reading) == "ExpiredIteratorException"


def test_listings_page_at_100_shards(sim: StreamsSimulator, client: Any) -> None:
    for _ in range(250):
        sim.rotate("orders")
    arn, found, start = sim.stream_arn("orders"), [], {}
    sizes = []
    while True:
        page = client.describe_stream(StreamArn=arn, **start)["StreamDescription"]
        sizes.append(len(page["Shards"]))
        found += [s["ShardId"] for s in page["Shards"]]
        if "LastEvaluatedShardId" not in page:
            break
        start = {"ExclusiveStartShardId": page["LastEvaluatedShardId"]}
    assert sizes == [100, 100, 51]
    assert sorted(found) == sorted(s.shard_id for s in sim.shards("orders"))
    assert len(listing(client, sim, Limit=7)) == 7


def test_lineage_splits_the_hash_range(sim: StreamsSimulator, client: Any, shard: str) -> None:
    keys = [item(f"k{number}") for number in range(200)]
    for key in keys:
        sim.put("orders", key)
    children = sim.split("orders", shard)
    found = listing(client, sim, ShardFilter={"Type": "CHILD_SHARDS", "ShardId": shard})
    assert sorted(s["ShardId"] for s in found) == sorted(children)
    assert sim.open_shards("orders") == children
    for key in keys:
        record = sim.put("orders", {**key, "n": {"N": "1"}})
        assert record is not None
        assert record.shard_id == children[hash_of(key) >= 2**31]
    grandchildren = sim.rotate("orders", children[0])
    assert sim.open_shards("orders") == [*grandchildren, children[1]]
    assert sim.put("orders", item("k0")) is not None


def test_sequence_numbers_rise_with_holes_and_grow_in_length(sim: StreamsSimulator) -> None:
    sim.create_table("orders", shards=16)
    for number in range(4000):
        if number % 500 == 499:
            sim.rotate("orders")
        sim.put("orders", item(f"k{number % 50}", n=str(number)))
    records = sim.records("orders")
    by_key: dict[str, list[int]] = {}
    for record in records:
        by_key.setdefault(record.keys["pk"]["S"], []).append(int(record.sequence_number))
    assert all(a < b for found in by_key.values() for a, b in pairwise(found))
    lengths = {shard: set() for shard in {r.shard_id for r in records}}
    for record in records:
        lengths[record.shard_id].add(len(record.sequence_number))
    assert min(min(found) for found in lengths.values()) >= 21
    assert any(len(found) > 1 for found in lengths.values())
    assert len({r.event_id for r in records}) == len(records)
    # Across shards they say nothing.
    in_order = [int(r.sequence_number) for r in records]
    assert in_order != sorted(in_order)


@pytest.mark.parametrize(
    ("view_type", "images"),
    [
        ("KEYS_ONLY", set()),
        ("NEW_IMAGE", {"NewImage"}),
        ("OLD_IMAGE", {"OldImage"}),
        ("NEW_AND_OLD_IMAGES", {"NewImage", "OldImage"}),
    ],
)
def test_view_types(sim: StreamsSimulator, view_type: str, images: set[str]) -> None:
    sim.create_table("orders", key=("pk", "sk"), view_type=view_type, shards=1)
    client = plain_client(sim)
    full = {"pk": {"S": "a"}, "sk": {"B": b"\x00\xff"}, "v": {"N": "1"}}
    sim.put("orders", full)
    sim.put("orders", {**full, "v": {"N": "2"}})
    sim.delete("orders", full, by_ttl=True)
    shard = sim.open_shards("orders")[0]
    found = read(client, iterator(client, sim, shard))[0]["Records"]
    assert [r["eventName"] for r in found] == ["INSERT", "MODIFY", "REMOVE"]
    insert, modify, remove = (r["dynamodb"] for r in found)
    keys = {"pk": full["pk"], "sk": full["sk"]}
    assert [b["Keys"] for b in (insert, modify, remove)] == [keys] * 3
    present = [{"NewImage", "OldImage"} & b.keys() for b in (insert, modify, remove)]
    assert present == [images & {"NewImage"}, images, images & {"OldImage"}]
    assert insert.get("NewImage", full) == full
    assert modify.get("NewImage", {"v": {"N": "2"}})["v"] == {"N": "2"}
    assert modify.get("OldImage", full) == full
    assert {b["StreamViewType"] for b in (insert, modify, remove)} == {view_type}
    assert all(b["SizeBytes"] >= 1 for b in (insert, modify, remove))
    assert insert["ApproximateCreationDateTime"].timestamp() == int(sim.clock())
    assert "userIdentity" not in found[1]
    assert found[2]["userIdentity"] == {
        "PrincipalId": "dynamodb.amazonaws.com",
        "Type": "Service",
    }


def test_writes_that_change_nothing_leave_no_record(sim: StreamsSimulator) -> None:
    sim.create_table("orders")
    value = {"pk": {"S": "a"}, "n": {"N": "1.0"}, "s": {"SS": ["x", "y"]}, "m": {"M": {}}}
    assert sim.put("orders", value) is not None
    assert sim.put("orders", value) is None
    assert sim.put("orders", {**value, "n": {"N": "1"}, "s": {"SS": ["y", "x"]}}) is None
    assert sim.put("orders", {**value, "m": {"L": []}}) is not None
    assert sim.delete("orders", item("b")) is None
    value["m"]["M"]["changed afterwards"] = {"S": "x"}
    assert sim.items("orders")[0]["m"] == {"L": []}


def test_turning_the_stream_off_and_on(
    sim: StreamsSimulator, client: Any, shard: str, clock: SimulatedClock
) -> None:
    tables = plain_client(sim, "dynamodb")
    sim.put("orders", item("a"))
    old = sim.stream_arn("orders")
    sim.disable_stream("orders")
    described = tables.describe_table(TableName="orders")["Table"]
    assert "StreamSpecification" not in described
    assert described["LatestStreamArn"] == old
    assert sim.put("orders", item("unseen")) is None
    sim.enable_stream("orders")
    new = sim.stream_arn("orders")
    assert new != old
    assert tables.describe_table(TableName="orders")["Table"]["LatestStreamArn"] == new
    stopped = client.describe_stream(StreamArn=old)["StreamDescription"]
    assert stopped["StreamStatus"] == "DISABLED"
    assert all("EndingSequenceNumber" in s["SequenceNumberRange"] for s in stopped["Shards"])
    start = client.get_shard_iterator(
        StreamArn=old, ShardId=shard, ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    assert len(client.get_records(ShardIterator=start)["Records"]) == 1
    streams = client.list_streams(TableName="orders")["Streams"]
    assert [s["StreamArn"] for s in streams] == sorted([old, new])
    clock.advance(24 * HOUR)
    assert error_code(client.describe_stream, StreamArn=old) == "ResourceNotFoundException"
    assert len(client.list_streams(Limit=1)["Streams"]) == 1


def test_a_recreated_table_has_another_id_and_stream(sim: StreamsSimulator, client: Any) -> None:
    tables = plain_client(sim, "dynamodb")
    sim.put("orders", item("a"))
    before = tables.describe_table(TableName="orders")["Table"]
    assert before["TableId"] == sim.table_id("orders")
    assert before["ItemCount"] == 1
    sim.recreate_table("orders")
    after = tables.describe_table(TableName="orders")["Table"]
    assert after["TableArn"] == before["TableArn"]
    assert after["TableId"] != before["TableId"]
    assert after["LatestStreamArn"] != before["LatestStreamArn"]
    assert after["ItemCount"] == 0
    assert [r.table_id for r in sim.records("orders")] == [before["TableId"]]
    sim.delete_table("orders")
    assert error_code(tables.describe_table, TableName="orders") == "ResourceNotFoundException"
    client.describe_stream(StreamArn=after["LatestStreamArn"])


def test_items_are_read_consistently(sim: StreamsSimulator) -> None:
    sim.create_table("orders", key=("pk", "sk"), backups=False)
    tables = plain_client(sim, "dynamodb")
    all_items = [
        {"pk": {"S": f"k{number % 9}"}, "sk": {"N": str(number)}, "b": {"B": b"\x01" * 4000}}
        for number in range(900)
    ]
    for value in all_items:
        sim.put("orders", value)
    pages = list(tables.get_paginator("scan").paginate(TableName="orders", ConsistentRead=True))
    assert len(pages) > 2

    def sorted_items(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(found, key=lambda value: int(value["sk"]["N"]))

    assert sorted_items([i for page in pages for i in page["Items"]]) == all_items
    segments = [
        found
        for segment in range(3)
        for page in tables.get_paginator("scan").paginate(
            TableName="orders", Segment=segment, TotalSegments=3, Limit=50
        )
        for found in page["Items"]
    ]
    assert sorted_items(segments) == all_items
    keys = [{"pk": value["pk"], "sk": value["sk"]} for value in all_items[:99]]
    missing = {"pk": {"S": "none"}, "sk": {"N": "0"}}
    answer = tables.batch_get_item(
        RequestItems={"orders": {"Keys": [*keys, missing], "ConsistentRead": True}}
    )
    assert sorted_items(answer["Responses"]["orders"]) == all_items[:99]
    assert answer["UnprocessedKeys"] == {}
    same_key = {"pk": keys[5]["pk"], "sk": {"N": "5.0"}}
    assert tables.get_item(TableName="orders", Key=same_key)["Item"] == all_items[5]
    assert "Item" not in tables.get_item(TableName="orders", Key=missing)
    backups = tables.describe_continuous_backups(TableName="orders")
    recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    assert recovery == {"PointInTimeRecoveryStatus": "DISABLED"}


def test_what_is_not_modelled_is_refused(sim: StreamsSimulator) -> None:
    sim.create_table("orders")
    tables = plain_client(sim, "dynamodb")
    code = error_code(tables.scan, TableName="orders", FilterExpression="a = b")
    assert code == "ValidationException"
    assert error_code(tables.list_tables) == "UnknownOperationException"


def test_a_bare_loop_reads_whole_pages(sim: StreamsSimulator, client: Any, shard: str) -> None:
    """As benchmarks read them. The best rate of a few is printed (`pytest -s`), never asserted."""
    for number in range(20_000):
        sim.put("orders", item(f"k{number}", n=str(number)))
    sim.rotate("orders")
    connection = HTTPConnection(sim.endpoint_url.removeprefix("http://"))
    target = {"X-Amz-Target": "DynamoDBStreams_20120810.GetRecords"}

    def rate() -> float:
        following, records, started = iterator(client, sim, shard), 0, time.perf_counter()
        while following:
            body = json.dumps({"ShardIterator": following})
            connection.request("POST", "/", body, target)
            answer = connection.getresponse().read()
            records += answer.count(b'"eventID"')
            following = answer.partition(b'"NextShardIterator":"')[2].rstrip(b'"}').decode()
        assert records == 20_000
        return records / (time.perf_counter() - started)

    print(f"{max(rate() for _ in range(3)):,.0f} records a second")
    connection.close()
