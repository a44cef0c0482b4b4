"""Every fault: what it looks like to the plain client, and to the package's own reader."""

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.aws.table import describe_table, scan_items
from cdc_pipeline.core.errors import ExpiredIteratorError, SourceError
from cdc_pipeline_tests.simulators.clients import plain_client, session
from cdc_pipeline_tests.simulators.faults import (
    Fault,
    children_missing,
    cut,
    cut_error,
    cut_in_character,
    empty_body,
    empty_page,
    error,
    internal_error,
    lagging,
    limit_exceeded,
    meanwhile,
    parent_looks_open,
    reset,
    shard_missing,
    slow,
    throttled,
    throughput_exceeded,
    unavailable,
)
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

ONCE = {"mode": "standard", "total_max_attempts": 1}


@pytest.fixture
def shard(sim: StreamsSimulator) -> str:
    sim.create_table("orders", shards=1)
    for number in range(10):
        sim.put("orders", {"pk": {"S": f"größe {number}"}})
    return sim.open_shards("orders")[0]


@pytest.fixture
def start(sim: StreamsSimulator, shard: str) -> str:
    return plain_client(sim).get_shard_iterator(
        StreamArn=sim.stream_arn("orders"), ShardId=shard, ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]


ERRORS = [
    (throttled, "ThrottlingException", 400),
    (limit_exceeded, "LimitExceededException", 400),
    (throughput_exceeded, "ProvisionedThroughputExceededException", 400),
    (internal_error, "InternalServerError", 500),
    (unavailable, "ServiceUnavailable", 503),
    (lambda: error("ExpiredIteratorException"), "ExpiredIteratorException", 400),
    (cut_error, "400", 400),
]


@pytest.mark.parametrize(("make", "code", "status"), ERRORS)
def test_errors_reach_the_client(
    sim: StreamsSimulator, start: str, make: Callable[[], Fault], code: str, status: int
) -> None:
    fault = make()
    sim.faults.script("GetRecords", fault)
    with pytest.raises(ClientError) as caught:
        plain_client(sim, retries=ONCE).get_records(ShardIterator=start)
    assert caught.value.response["Error"]["Code"] == code
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert sim.faults.count(fault.name, "GetRecords") == 1


BROKEN = [reset, lambda: reset(after_headers=True), cut, lambda: cut(0.999)]


@pytest.mark.parametrize("make", BROKEN)
def test_broken_connections_reach_the_client(
    sim: StreamsSimulator, start: str, make: Callable[[], Fault]
) -> None:
    """A body shorter than its Content-Length is one: urllib3 2 counts, unlike urllib3 1.26."""
    fault = make()
    sim.faults.script("GetRecords", fault)
    with pytest.raises(BotoCoreError):
        plain_client(sim, retries=ONCE).get_records(ShardIterator=start)
    assert sim.faults.count(fault.name) == 1


CUT = [
    lambda: cut(honest_length=True),
    lambda: cut(0.999, honest_length=True),
    empty_body,
]


@pytest.mark.parametrize("make", CUT)
def test_botocore_takes_a_cut_answer_for_one_without_fields(
    sim: StreamsSimulator, start: str, make: Callable[[], Fault]
) -> None:
    """Why the package parses GetRecords itself: no error, no retry, and no next iterator."""
    fault = make()
    sim.faults.script("GetRecords", fault)
    answer = plain_client(sim).get_records(ShardIterator=start)
    assert answer.keys() == {"ResponseMetadata"}
    assert sim.faults.count(fault.name) == 1
    assert [r.operation for r in sim.requests].count("GetRecords") == 1


def test_botocore_cannot_decode_a_cut_character(sim: StreamsSimulator, start: str) -> None:
    sim.faults.script("GetRecords", cut_in_character())
    with pytest.raises(UnicodeDecodeError):
        plain_client(sim).get_records(ShardIterator=start)
    assert sim.faults.count("cut in character") == 1


@pytest.mark.parametrize(
    "make",
    [
        throttled,
        limit_exceeded,
        throughput_exceeded,
        internal_error,
        unavailable,
        lambda: cut_error("InternalServerError", 500),
        *BROKEN,
        *CUT,
        cut_in_character,
        lambda: slow(0.01),
    ],
)
def test_the_package_reads_on_through_every_fault(
    sim: StreamsSimulator, start: str, make: Callable[[], Fault]
) -> None:
    fault = make()
    sim.faults.script("GetRecords", fault, fault)
    streams = DynamoDBStreams(session(sim))
    first = streams.read(start)
    assert [bytes(raw) for raw in first.records] == [r.wire for r in sim.records("orders")]
    assert first.next_iterator
    assert streams.read(first.next_iterator).records == []
    assert sim.faults.count(fault.name, "GetRecords") == 2


def test_the_package_gives_up_on_an_answer_that_is_always_cut(
    sim: StreamsSimulator, start: str
) -> None:
    sim.faults.always("GetRecords", cut(honest_length=True))
    streams = DynamoDBStreams(session(sim))
    with pytest.raises(SourceError, match="cut short"):
        streams.read(start)
    sim.faults.clear()
    assert len(streams.read(start).records) == 10


def test_errors_that_mean_something_are_not_retried(sim: StreamsSimulator, start: str) -> None:
    sim.faults.script("GetRecords", error("ExpiredIteratorException"))
    with pytest.raises(ExpiredIteratorError):
        DynamoDBStreams(session(sim)).read(start)


def test_a_checksum_saves_cut_answers_of_dynamodb_itself(sim: StreamsSimulator, shard: str) -> None:
    aws = session(sim)
    sim.faults.script("DescribeTable", cut(), cut(honest_length=True), empty_body())
    sim.faults.script("Scan", cut(honest_length=True), throttled(), reset())
    assert describe_table(aws, "orders").stream_arn == sim.stream_arn("orders")
    assert list(scan_items(aws, "orders")) != []
    assert sim.faults.unused() == 0


def test_empty_pages_stand_where_they_are(sim: StreamsSimulator, start: str, shard: str) -> None:
    sim.faults.script("GetRecords", empty_page(), empty_page())
    streams = DynamoDBStreams(session(sim))
    page = streams.read(start)
    for _ in range(2):
        assert page.records == []
        assert page.next_iterator
        page = streams.read(page.next_iterator)
    assert len(page.records) == 10
    assert sim.faults.count("empty page") == 2
    # The end of a closed shard is no place for one.
    sim.rotate("orders")
    assert page.next_iterator
    sim.faults.script("GetRecords", empty_page())
    assert streams.read(page.next_iterator).next_iterator is None
    assert sim.faults.count("empty page") == 2
    assert sim.faults.unused() == 1


def test_slow_answers_are_slow(sim: StreamsSimulator, start: str) -> None:
    sim.faults.script("GetRecords", slow(0.2))
    started = time.monotonic()
    plain_client(sim).get_records(ShardIterator=start)
    assert time.monotonic() - started >= 0.2


def test_listings_that_lag_behind(sim: StreamsSimulator, shard: str) -> None:
    (child,) = sim.rotate("orders")
    client, arn = plain_client(sim), sim.stream_arn("orders")

    def listed() -> dict[str, bool]:
        shards = client.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
        return {s["ShardId"]: "EndingSequenceNumber" in s["SequenceNumberRange"] for s in shards}

    sim.faults.script(
        "DescribeStream",
        parent_looks_open(),
        children_missing(),
        children_missing(),
        shard_missing(child),
        shard_missing(),
        lagging(),
    )
    assert listed() == {shard: False, child: False}
    assert listed() == {shard: True}
    assert listed() == {shard: True}
    assert listed() == {shard: True}
    assert len(listed()) == 1
    assert listed() == {shard: False}
    assert listed() == {shard: True, child: False}
    assert sim.faults.count("children missing", "DescribeStream") == 2
    assert sim.faults.count("shard missing") == 2
    assert sim.faults.count("parent looks open") == 1


def test_faults_of_one_shard_leave_others_alone(sim: StreamsSimulator) -> None:
    sim.create_table("orders", shards=2)
    one, other = sim.open_shards("orders")
    sim.faults.always("GetShardIterator", internal_error(), shard=one)
    sim.faults.always("GetRecords", internal_error(), shard=one)
    streams, arn = DynamoDBStreams(session(sim)), sim.stream_arn("orders")
    assert streams.read(streams.iterator(arn, other, None)).records == []
    with pytest.raises(SourceError):
        streams.iterator(arn, one, None)
    assert {r.shard_id for r in sim.requests} == {one, other}


def test_scripts_run_in_order_and_chance_is_bounded(sim: StreamsSimulator, start: str) -> None:
    client = plain_client(sim, retries=ONCE)
    seen: list[Any] = []

    def call() -> str:
        try:
            client.get_records(ShardIterator=start)
        except ClientError as failed:
            return failed.response["Error"]["Code"]
        return "fine"

    sim.faults.script(
        "GetRecords", throttled(), None, unavailable(), meanwhile(lambda: seen.append(1))
    )
    outcomes = [call() for _ in range(5)]
    assert outcomes == ["ThrottlingException", "fine", "ServiceUnavailable", "fine", "fine"]
    assert seen == [1]
    sim.faults.clear()
    sim.faults.chance("GetRecords", 1.0, throttled(), unavailable(), in_a_row=2)
    assert [call() == "fine" for _ in range(6)] == [False, False, True] * 2
    assert sum(sim.faults.counts.values()) == 7


def test_chance_repeats_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcomes(seed: int) -> list[int]:
        with StreamsSimulator(seed=seed) as sim:
            sim.create_table("orders")
            sim.faults.chance("ListStreams", 0.5, throttled(), unavailable(), in_a_row=9)
            return [sim.answer("ListStreams", b"{}").status for _ in range(40)]

    assert outcomes(1) == outcomes(1)
    assert outcomes(1) != outcomes(2)
    assert {200, 400, 503} <= {*outcomes(1), *outcomes(2)}


def test_a_record_can_be_spoiled(sim: StreamsSimulator, start: str) -> None:
    third = sim.records("orders")[2]
    sim.spoil(third, lambda record: {**record, "eventName": "OTHER"})
    page = DynamoDBStreams(session(sim)).read(start)
    names = [msgspec.json.decode(raw)["eventName"] for raw in page.records]
    assert names == ["INSERT", "INSERT", "OTHER", *["INSERT"] * 7]


def test_writers_and_readers_side_by_side(sim: StreamsSimulator) -> None:
    sim.create_table("orders", shards=2)

    def write(writer: int) -> None:
        for number in range(300):
            sim.put("orders", {"pk": {"S": f"{writer}/{number}"}})
            if number % 100 == 50:
                sim.rotate("orders")

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in writers:
        thread.start()
    streams, arn = DynamoDBStreams(session(sim)), sim.stream_arn("orders")
    while any(thread.is_alive() for thread in writers):
        streams.describe(arn)
    found = []
    for shard in streams.describe(arn).shards:
        following = streams.iterator(arn, shard.shard_id, None)
        while following is not None:
            page = streams.read(following)
            found += [bytes(raw) for raw in page.records]
            following = page.next_iterator if page.records else None
    assert sorted(found) == sorted(record.wire for record in sim.records("orders"))
    assert len(found) == 1200
