"""How DynamoDB Streams is read: listings, iterators, pages, errors, and a stream's life."""

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.aws.table import wire_form
from cdc_pipeline.capture.sources.streams_records import sequence_number
from cdc_pipeline.core.changes.change import from_stream_record
from cdc_pipeline.core.changes.fold import KeyedChange, fold, items
from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.errors import ShardGoneError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline_tests.contract.backends import (
    BOTH_IMAGES,
    KEY_NAMES,
    Backend,
    error_code,
    key,
    read_shard,
    read_stream,
)
from cdc_pipeline_tests.contract.deviations import holds

pytestmark = pytest.mark.contract

NOT_FOUND = "ResourceNotFoundException"


def _write(backend: Backend, table: str, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        backend.put(table, {**key("a"), "n": {"N": str(number)}})


def _shard_of_a(backend: Backend, arn: str) -> str:
    """The shard that holds the changes of item `a`."""
    for shard in backend.shard_ids(arn):
        if read_shard(backend, backend.iterator(arn, shard, "TRIM_HORIZON")):
            return shard
    raise AssertionError("no shard has records")


def _numbers(records: list[dict[str, Any]]) -> list[int]:
    return [int(record["dynamodb"]["NewImage"]["n"]["N"]) for record in records]


@pytest.fixture
def table(backend: Backend) -> str:
    """A table with five versions of item `a`."""
    made = backend.create_table()
    _write(backend, made, 5)
    assert len(read_stream(backend, backend.arn(made), 5)) == 5
    return made


@pytest.fixture
def arn(backend: Backend, table: str) -> str:
    return backend.arn(table)


@pytest.fixture
def shard(backend: Backend, arn: str) -> str:
    return _shard_of_a(backend, arn)


@pytest.fixture
def ours(backend: Backend) -> DynamoDBStreams:
    """The package's own reader of the backend."""
    return DynamoDBStreams(AwsSession(region="us-east-1", endpoint_url=backend.endpoint_url))


def test_a_description_of_a_stream(backend: Backend, table: str, arn: str) -> None:
    found = backend.streams.describe_stream(StreamArn=arn)["StreamDescription"]
    assert found["StreamArn"] == arn
    assert found["StreamStatus"] == "ENABLED"
    assert found["StreamViewType"] == BOTH_IMAGES
    assert found["TableName"] == table
    key_names = [k["AttributeName"] for k in found.get("KeySchema", ())]
    holds(backend, "a stream's description names the keys", key_names, list(KEY_NAMES))
    dated = re.match(r"\d{4}-\d\d-\d\dT\d\d:", found["StreamLabel"]) is not None
    holds(backend, "the label of a stream is a time in ISO 8601", dated, True)
    assert arn.endswith(f":table/{table}/stream/{found['StreamLabel']}")
    assert found["Shards"]
    assert not found.get("LastEvaluatedShardId")
    for shard in found["Shards"]:
        numbers = shard["SequenceNumberRange"]
        assert numbers["StartingSequenceNumber"].isdecimal()
        is_open = "EndingSequenceNumber" not in numbers
        holds(backend, "a shard that takes records has no end", is_open, True)
        assert not shard.get("ParentShardId")


def test_a_tables_description_names_its_stream(backend: Backend, table: str) -> None:
    found = backend.describe(table)
    holds(backend, "tables have an id", "TableId" in found, True)
    assert found["LatestStreamArn"].endswith(found["LatestStreamLabel"])
    assert found["StreamSpecification"] == {"StreamEnabled": True, "StreamViewType": BOTH_IMAGES}
    listed = backend.streams.list_streams(TableName=table)["Streams"]
    assert [stream["StreamArn"] for stream in listed] == [found["LatestStreamArn"]]


def test_listings_page_and_end(backend: Backend, arn: str, ours: DynamoDBStreams) -> None:
    whole = [s["ShardId"] for s in backend.describe_stream(arn)["Shards"]]
    paged: list[str] = []
    start: dict[str, str] = {}
    for _ in range(len(whole) + 1):
        answer = backend.streams.describe_stream(StreamArn=arn, Limit=1, **start)
        page = answer["StreamDescription"]
        assert len(page["Shards"]) <= 1
        paged += [shard["ShardId"] for shard in page["Shards"]]
        if not page.get("LastEvaluatedShardId"):
            break
        start = {"ExclusiveStartShardId": page["LastEvaluatedShardId"]}
    else:
        pytest.fail("the listing never ended")
    assert paged == whole
    behind = backend.streams.describe_stream(StreamArn=arn, ExclusiveStartShardId=whole[-1])
    shards = len(behind["StreamDescription"]["Shards"])
    holds(backend, "a listing begins behind ExclusiveStartShardId", shards, 0)
    assert [shard.shard_id for shard in ours.describe(arn).shards] == whole


def test_an_open_shard_has_no_children(
    backend: Backend, arn: str, shard: str, ours: DynamoDBStreams
) -> None:
    """Those that list it all the same do not know ShardFilter; then our reader lists whole."""
    assert backend.describe_stream(arn)["StreamStatus"] == "ENABLED"
    holds(backend, "ShardFilter gives a shard's children", ours.children(arn, shard), [])


def test_iterators(backend: Backend, table: str, arn: str, shard: str) -> None:
    latest = backend.iterator(arn, shard, "LATEST")
    everything = read_shard(backend, backend.iterator(arn, shard, "TRIM_HORIZON"))
    third = everything[2]["dynamodb"]["SequenceNumber"]
    last = everything[-1]["dynamodb"]["SequenceNumber"]

    def behind(kind: str, number: str) -> list[int]:
        return _numbers(read_shard(backend, backend.iterator(arn, shard, kind, number)))

    assert behind("AT_SEQUENCE_NUMBER", third) == [2, 3, 4]
    assert behind("AFTER_SEQUENCE_NUMBER", third) == [3, 4]
    assert behind("AFTER_SEQUENCE_NUMBER", last) == []
    at_tip = backend.iterator(arn, shard, "AFTER_SEQUENCE_NUMBER", last)
    _write(backend, table, 2, start=5)
    assert len(read_stream(backend, arn, 7)) == 7
    assert _numbers(read_shard(backend, at_tip)) == [5, 6]
    assert _numbers(read_shard(backend, latest)) == [5, 6]


def test_an_iterator_can_be_used_again(backend: Backend, arn: str, shard: str) -> None:
    iterator = backend.iterator(arn, shard, "TRIM_HORIZON")
    pages = [backend.streams.get_records(ShardIterator=iterator)["Records"] for _ in range(2)]
    assert pages[0] == pages[1] != []


def test_an_empty_page_at_the_tip_is_not_the_end(
    backend: Backend, table: str, arn: str, shard: str, ours: DynamoDBStreams
) -> None:
    iterator = backend.iterator(arn, shard, "LATEST")
    for _ in range(5):
        page = backend.streams.get_records(ShardIterator=iterator)
        assert page["Records"] == []
        iterator = page["NextShardIterator"]
    ours_page = ours.read(iterator)
    assert ours_page.records == []
    assert ours_page.next_iterator
    _write(backend, table, 1, start=5)
    assert len(read_stream(backend, arn, 6)) == 6
    assert _numbers(read_shard(backend, ours_page.next_iterator)) == [5]


def test_pages_are_as_long_as_asked_for(backend: Backend, arn: str, shard: str) -> None:
    iterator: str | None = backend.iterator(arn, shard, "TRIM_HORIZON")
    lengths: list[int] = []
    while iterator and sum(lengths) < 5:
        page = backend.streams.get_records(ShardIterator=iterator, Limit=2)
        lengths.append(len(page["Records"]))
        iterator = page.get("NextShardIterator")
    assert [n for n in lengths if n] == [2, 2, 1]


def test_a_page_has_at_most_1000_records_and_1_mb(backend: Backend) -> None:
    table = backend.create_table("NEW_IMAGE")
    for number in range(1010):
        backend.put(table, key("a", number))
    text = {"S": "x" * 100_000}
    for number in range(24):
        backend.put(table, {**key("a"), "n": {"N": str(number)}, "text": text})
    arn = backend.arn(table)
    assert len(read_stream(backend, arn, 1034)) == 1034
    shard = _shard_of_a(backend, arn)
    iterator: str | None = backend.iterator(arn, shard, "TRIM_HORIZON")
    counts: list[int] = []
    sizes: list[int] = []
    while iterator and sum(counts) < 1034:
        page = backend.streams.get_records(ShardIterator=iterator)
        counts.append(len(page["Records"]))
        sizes.append(sum(r["dynamodb"]["SizeBytes"] for r in page["Records"]))
        iterator = page.get("NextShardIterator")
    holds(backend, "a page has at most 1000 records", max(counts) <= 1000, True)
    holds(backend, "a page has at most 1 MB", max(sizes) <= 1 << 20, True)


def test_our_reader_reads_what_botocore_reads(
    backend: Backend, arn: str, shard: str, ours: DynamoDBStreams
) -> None:
    theirs = read_shard(backend, backend.iterator(arn, shard, "TRIM_HORIZON"))
    numbers = [record["dynamodb"]["SequenceNumber"] for record in theirs]
    page = ours.read(ours.iterator(arn, shard, None))
    assert [sequence_number(record) for record in page.records] == numbers
    rest = ours.read(ours.iterator(arn, shard, numbers[1]))
    assert [sequence_number(record) for record in rest.records] == numbers[2:]


def test_what_our_reader_reads_is_the_table(backend: Backend, ours: DynamoDBStreams) -> None:
    """Over those, too, that a whole capture cannot run over."""
    table = backend.create_table()
    for number in range(40):
        where = key("aA"[number % 2], number % 7)
        if number % 5 == 4:
            backend.delete(table, where)
        elif number % 3:
            backend.update(table, where, n={"N": str(number)}, s={"SS": ["b", "a"]})
        else:
            backend.put(table, {**where, "n": {"N": f"{number}.50"}, "b": {"B": b"\x00"}})
    arn = backend.arn(table)
    changes = [
        from_stream_record(msgspec.json.decode(raw), table_id="t", shard_id=shard, depth=0)
        for shard in backend.shard_ids(arn)
        for raw in ours.read(ours.iterator(arn, shard, None)).records
    ]
    rows = [KeyedChange(c.keys, order_key(1, c.position), c.new_image) for c in changes]
    wanted = [canonical_item(wire_form(item)) for item in backend.scan(table)]
    assert sorted(items(fold({}, rows)).values()) == sorted(map(to_json, wanted))


def test_what_does_not_exist(backend: Backend, arn: str, shard: str, ours: DynamoDBStreams) -> None:
    nowhere = f"{arn.rpartition('/')[0]}/1999-01-01T00:00:00.000"
    other = shard[:-2] + ("00" if shard[-2:] != "00" else "11")
    asked = {"ShardIteratorType": "TRIM_HORIZON"}
    get_iterator = backend.streams.get_shard_iterator
    codes = {
        "stream": error_code(backend.streams.describe_stream, StreamArn=nowhere),
        "shard": error_code(get_iterator, StreamArn=arn, ShardId=other, **asked),
        "shard of no stream": error_code(get_iterator, StreamArn=nowhere, ShardId=shard, **asked),
    }
    for what, code in codes.items():
        holds(backend, f"an unknown {what} is not found", code, NOT_FOUND)
    calls: list[Callable[[], object]] = [
        lambda: ours.describe(nowhere),
        lambda: ours.iterator(arn, other, None),
        lambda: ours.iterator(nowhere, shard, None),
    ]
    for call, code in zip(calls, codes.values(), strict=True):
        if code == NOT_FOUND:
            with pytest.raises(ShardGoneError):
                call()


def test_a_broken_iterator_is_an_error_and_no_end(backend: Backend, arn: str, shard: str) -> None:
    iterator = backend.iterator(arn, shard, "TRIM_HORIZON")
    code = error_code(backend.streams.get_records, ShardIterator=iterator[: len(iterator) // 2])
    holds(backend, "a broken iterator is invalid", code, "ValidationException")


def test_a_stream_turned_off_and_on_again(backend: Backend, table: str, arn: str) -> None:
    backend.disable_stream(table)
    off = backend.describe(table)
    on = off.get("StreamSpecification", {}).get("StreamEnabled", False)
    assert not on
    code = error_code(backend.put, table=table, item={**key("a"), "n": {"N": "9"}})
    holds(backend, "a table whose stream is off takes writes", code, "")
    backend.sleep(0.01)
    code = error_code(backend.enable_stream, name=table)
    if not holds(backend, "a stream that is off can be turned on again", code, ""):
        return
    renewed = backend.arn(table)
    assert renewed != arn
    _write(backend, table, 2, start=10)
    found = _numbers(read_stream(backend, renewed, 2))
    holds(backend, "a stream turned on again begins empty", found, [10, 11])
    assert backend.describe_stream(renewed)["StreamStatus"] == "ENABLED"


def test_a_stream_that_is_off_is_readable_and_ends(
    backend: Backend, table: str, arn: str, shard: str
) -> None:
    backend.disable_stream(table)
    code = error_code(backend.describe_stream, arn=arn)
    if not holds(backend, "a stream that is off is still described", code, ""):
        return
    described = backend.describe_stream(arn)
    status = described["StreamStatus"]
    holds(backend, "a stream that is off says so", status in ("DISABLING", "DISABLED"), True)
    iterator: str | None = backend.iterator(arn, shard, "TRIM_HORIZON")
    found: list[dict[str, Any]] = []
    for _ in range(5):
        if iterator:
            page = backend.streams.get_records(ShardIterator=iterator)
            found += page["Records"]
            iterator = page.get("NextShardIterator")
    assert _numbers(found) == list(range(5))
    holds(backend, "the shards of a stream that is off end", iterator, None)
    closed = {"EndingSequenceNumber" in s["SequenceNumberRange"] for s in described["Shards"]}
    holds(backend, "the shards of a stream that is off are closed", closed, {True})


def test_a_table_made_again_has_another_id_and_stream(
    backend: Backend, table: str, arn: str
) -> None:
    before = backend.describe(table)
    backend.delete_table(table)
    backend.sleep(0.01)
    backend.create_table(name=table)
    after = backend.describe(table)
    same_id = after.get("TableId") == before.get("TableId")
    holds(backend, "a table made again has another id", same_id, False)
    assert after["TableArn"] == before["TableArn"]
    assert after["LatestStreamArn"] != arn
    backend.put(table, {**key("a"), "n": {"N": "7"}})
    numbers = _numbers(read_stream(backend, after["LatestStreamArn"], 1))
    holds(backend, "the stream of a table made again begins empty", numbers, [7])
    code = error_code(backend.streams.describe_stream, StreamArn=arn)
    holds(backend, "the stream of a deleted table is still described", code, "")
