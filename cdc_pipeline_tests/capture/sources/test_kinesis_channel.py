"""Capture of what a Kinesis channel wrote to S3, over a local AWS: whole tables are compared."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture.firehose.channel_counts import compare_counts
from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.sources.reading import KinesisProtocol
from cdc_pipeline.capture.sources.source_choice import open_source, with_measured_lateness
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import KINESIS_CHANNEL
from cdc_pipeline.repair.heal import heal_gap
from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.capture.firehose.delivery import measure
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_no_orphans,
    assert_nothing_twice,
    make_world,
    quick_sandbox,
)
from cdc_pipeline_tests.sandbox.clients import wait_for

pytestmark = pytest.mark.slow

NAME = "orders"
UNDATED = "a/!{yyyy}-!{MM}-!{dd}.!{HH}!{extension:.json}"
HIVE = "a/!{stream-name}/year=!{yyyy}/month=!{MM}/day=!{dd}/!{HH}!{extension:.json}"
QUICK = {"lag_minutes": 0, "measured": False}
AT_ONCE = {"late_seconds": 0, "metric_minutes": 0}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with quick_sandbox() as process:
        yield process


@dataclass
class Road:
    """A table `orders`, its stream `changes`, and the channel that writes that to S3."""

    world: World
    stream_arn: str

    @property
    def kinesis(self) -> Any:
        return self.world.client("kinesis")

    def configure(self, transport: str = KINESIS_CHANNEL, **channel: Any) -> None:
        table = {"name": NAME, "transport": transport, "kinesis": AT_ONCE}
        exports = {"bucket": self.world.bucket, "poll_seconds": 0.05, "least_window_minutes": 0.02}
        self.world.configure({**table, "kinesis_channel": {**QUICK, **channel}}, export=exports)

    def open_channel(
        self, errors: dict[str, str] | None = None, compression: str = "NONE", **storage: str
    ) -> str:
        bucket = {
            "BucketARN": f"arn:aws:s3:::{self.world.bucket}",
            "ExpectedBucketOwner": self.world.account,
        }
        letters = {"DeadLetterQueueS3Configuration": {**bucket, **errors}} if errors else {}
        made = self.kinesis.create_channel(
            ChannelName="to-s3",
            ServiceExecutionRoleARN=f"arn:aws:iam::{self.world.account}:role/channel",
            StreamConfigurationList=[
                {"StreamARN": self.stream_arn, "RecordConfiguration": {"RecordFormatType": "JSON"}}
            ],
            S3DestinationConfiguration={
                "DataFreshnessInSeconds": 300,
                "StorageConfiguration": {**bucket, "CompressionType": compression, **storage},
                **letters,
            },
        )
        return made["ChannelDescription"]["ChannelARN"]

    def keys(self, prefix: str = "kinesis-channel/") -> list[str]:
        listed = self.world.client("s3").list_objects_v2(Bucket=self.world.bucket, Prefix=prefix)
        return [found["Key"] for found in listed.get("Contents", ())]

    @contextmanager
    def delivery(self) -> Iterator[None]:
        """Wait behind the one write in it until the channel has written that."""
        before = len(self.keys())
        yield
        wait_for(lambda: len(self.keys()) > before)

    def order(self, **orders: Any) -> None:
        control(self.world.endpoint_url, **orders)

    def state(self) -> LogState:
        return self.world.table_lake(NAME).log.load()

    def causes(self) -> list[str]:
        return [gap.cause for gap in self.state().gaps.values()]

    def heal(self) -> None:
        lake, table = self.world.lake(), self.world.table(NAME)
        for gap in self.state().open_gaps():
            # A heal ends where capture has passed the window of its export, in whole seconds.
            while self.state().watermark_us <= gap.to_us + 1_500_000:
                time.sleep(0.1)
                self.world.capture(NAME)
            heal_gap(lake.table(table), gap)

    def counts(self) -> tuple[int, int, int]:
        """What the channel counted, what was read, and what is missing, as of half an hour on."""
        now_us = time.time_ns() // 1000 + 1800_000_000
        counts = compare_counts(self.world.table_lake(NAME), self.state(), now_us)
        assert counts is not None
        return counts.delivered, counts.found, counts.missing

    def changes(self) -> list[tuple[Any, ...]]:
        sql = f"SELECT data->>'pk', op, transport FROM {NAME}.raw_stream ORDER BY order_key"
        return self.world.rows(sql, NAME)

    def written(self, *pks: str) -> list[tuple[Any, ...]]:
        return [(pk, "I", KINESIS_CHANNEL) for pk in pks]


@pytest.fixture
def road(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Road:
    world = make_world(sandbox, tmp_path, "s3")
    world.activate(monkeypatch)
    world.make_table(NAME, view=None)
    kinesis = world.client("kinesis")
    kinesis.create_stream(StreamName="changes", StreamModeDetails={"StreamMode": "ON_DEMAND"})
    found = kinesis.describe_stream_summary(StreamName="changes")["StreamDescriptionSummary"]
    made = Road(world, found["StreamARN"])
    connect(made)
    made.order(channel_delimiter="", channel_dead_letters=0)
    made.configure()
    return made


def connect(road: Road) -> None:
    road.world.dynamodb.enable_kinesis_streaming_destination(
        TableName=NAME,
        StreamArn=road.stream_arn,
        EnableKinesisStreamingConfiguration={"ApproximateCreationDateTimePrecision": "MICROSECOND"},
    )


@pytest.mark.parametrize(
    ("compression", "delimiter", "template"),
    [
        ("NONE", "\n", HIVE),
        ("ZSTD", "", None),
    ],
)
def test_a_mirror_from_a_channels_objects(
    road: Road, compression: str, delimiter: str, template: str | None
) -> None:
    world = road.world
    road.order(channel_delimiter=delimiter)
    world.put(NAME, "before", n={"N": "1"})
    storage: dict[str, Any] = {"OutputKeyTemplate": template} if template else {}
    road.open_channel(compression=compression, **storage)
    world.capture(NAME)
    world.put(NAME, "a", n={"N": "1.50"}, raw={"B": b"\x12\x02\x08{"}, text={"S": '}{ ä "{'})
    world.put(NAME, "b", n={"N": "2"})
    # Others write to the stream, too: that is another table's, and this is none of ours.
    road.kinesis.put_record(StreamName="changes", Data=b'{"not": "ours"}', PartitionKey="x")
    wait_for(lambda: road.keys(template[:2] if template else "kinesis-channel/"))
    world.bootstrap(NAME)
    world.put(NAME, "a", n={"N": "3"})
    world.delete(NAME, "b")
    after = len(road.keys(""))
    wait_for(lambda: len(road.keys("")) > after)
    wait_for(lambda: world.capture(NAME).rows == 2)
    world.publish(NAME)
    world.build_cdc(NAME)
    assert assert_mirrors(world, NAME) == 2
    assert_nothing_twice(world, NAME)
    assert_no_orphans(world, NAME)
    assert [(op, transport) for _, op, transport in road.changes()] == [
        (op, KINESIS_CHANNEL) for op in "IIUD"
    ]
    reasons = [q.reasons for q in road.state().quarantined.values()]
    assert reasons == [{"a record of an unknown kind": 1}]
    assert world.capture(NAME).rows == 0
    assert road.causes() == []
    # What the channel counted is what was found, and an object that goes is missed.
    assert road.counts() == (5, 5, 0)
    world.client("s3").delete_object(
        Bucket=world.bucket, Key=road.keys("a/" if template else "kinesis-channel/")[0]
    )
    delivered, found, missing = road.counts()
    assert (delivered, missing) == (5, 5 - found)
    assert missing > 0


def test_dead_letters_are_read_again_from_the_stream_once(road: Road) -> None:
    road.open_channel()
    road.world.bootstrap(NAME)
    road.order(channel_dead_letters=2)
    for pk in "abc":
        road.world.put(NAME, pk)
    wait_for(lambda: len(road.keys()) >= 2)
    wait_for(lambda: road.world.capture(NAME).rows or len(road.changes()) == 3)
    road.world.capture(NAME)
    assert road.changes() == road.written("a", "b", "c")
    # What is no JSON is given up by the channel itself, and kept where the lake keeps such records.
    with road.delivery():
        road.kinesis.put_record(StreamName="changes", Data=b"no JSON", PartitionKey="x")
    road.world.capture(NAME)
    quarantined = road.state().quarantined.values()
    assert [q.reasons for q in quarantined] == [{"a record that is not JSON": 1}]
    assert len(road.keys("kinesis-channel/errors/")) == 2
    assert (road.world.capture(NAME).rows, road.causes()) == (0, [])
    road.world.publish(NAME)
    assert assert_mirrors(road.world, NAME) == 3


def test_a_dead_letter_whose_record_is_gone_is_a_gap_and_is_healed(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = road.world
    # Recovery reaches back to the second in which it was turned on, and must to before the gap.
    time.sleep(1.2)
    road.open_channel()
    world.bootstrap(NAME)
    road.order(channel_dead_letters=1)
    with road.delivery():
        world.put(NAME, "lost")
    (letter,) = road.keys("kinesis-channel/errors/")
    s3 = world.client("s3")
    body = s3.get_object(Bucket=world.bucket, Key=letter)["Body"].read().decode()
    # As if the stream did not hold it any more: reading begins at the oldest record left.
    number = body.split('"sequenceNumber": "')[1].split('"')[0]
    gone = body.replace(number, str(int(number) - 1).zfill(len(number)))
    s3.put_object(Bucket=world.bucket, Key=letter, Body=gone + '{"no": "letter"}\n')
    s3.put_object(Bucket=world.bucket, Key=f"{letter}-2", Body=b"\x1f\x8b in name only")
    with road.delivery():
        world.put(NAME, "later")
    with monkeypatch.context() as patch:
        patch.setattr(Lander, "land", _killed)  # behind the entry that tells of the gap
        with pytest.raises(Killed):
            world.capture(NAME)
    assert road.causes() == ["not delivered"]
    assert road.changes() == []
    result = world.capture(NAME)
    assert [gap.cause for gap in result.gaps] == ["not delivered"]
    assert road.causes() == ["not delivered"] * 2
    assert road.changes() == road.written("later")
    (quarantined,) = road.state().quarantined.values()
    assert quarantined.reasons == {
        "a dead letter without its shard": 1,
        "an object whose compressed rest cannot be read": 1,
    }
    gap = next(iter(road.state().gaps.values()))
    written_us = gap.from_us, gap.to_us
    assert written_us[0] <= road.state().began_us < written_us[1]
    world.capture(NAME)
    assert road.causes() == ["not delivered"] * 2
    road.heal()
    with road.delivery():
        world.put(NAME, "last")
    world.capture(NAME)
    world.publish(NAME)
    assert assert_mirrors(world, NAME) == 3
    assert set(world.items(NAME)) == {"lost", "later", "last"}


class Killed(BaseException):
    """Not caught by anything."""


def _killed(*_: object) -> None:
    raise Killed


def test_another_channel_and_a_destination_that_was_off_are_gaps(road: Road) -> None:
    world = road.world
    arn = road.open_channel()
    world.bootstrap(NAME)
    road.kinesis.delete_channel(ChannelARN=arn)
    with pytest.raises(SourceError, match="no channel writes it to S3"):
        world.capture(NAME)
    world.put(NAME, "between channels")
    time.sleep(0.2)
    road.open_channel()
    world.capture(NAME)
    assert road.causes() == ["new stream"]
    road.heal()
    world.dynamodb.disable_kinesis_streaming_destination(TableName=NAME, StreamArn=road.stream_arn)
    with pytest.raises(SourceError, match="it writes to no Kinesis stream"):
        world.capture(NAME)
    world.put(NAME, "while it was off")
    connect(road)
    world.capture(NAME)
    assert road.causes() == ["new stream", "new stream"]
    with road.delivery():
        world.put(NAME, "last")
    road.heal()
    world.capture(NAME)
    world.publish(NAME)
    assert assert_mirrors(world, NAME) == 3


def test_switching_to_a_channel_loses_and_doubles_nothing(road: Road) -> None:
    world = road.world
    stream = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    world.dynamodb.update_table(TableName=NAME, StreamSpecification=stream)
    road.open_channel()
    road.configure("dynamodb_streams")
    world.capture(NAME)
    expected: list[str] = []

    def write(pk: str) -> None:
        world.put(NAME, pk)
        expected.append(pk)
        # Where both have it, the order must be known.
        time.sleep(0.002)

    write("before")
    world.capture(NAME)
    road.configure()
    deadline = time.monotonic() + 120
    while not _follows(road, KINESIS_CHANNEL):
        world.capture(NAME)
        write(f"on the way, {len(expected)}")
        assert time.monotonic() < deadline
    write("behind the cut")
    wait_for(lambda: world.capture(NAME).rows == 0 and len(road.changes()) >= len(expected))
    assert road.state().gaps == {}
    found = road.changes()
    assert [pk for pk, _, _ in found] == expected
    assert {transport for _, _, transport in found} == {"dynamodb_streams", KINESIS_CHANNEL}


def _follows(road: Road, transport: str) -> bool:
    state = road.state()
    return state.stream is not None and (state.stream.transport, state.cut) == (transport, None)


def test_channels_that_cannot_be_read_are_refused_by_name(road: Road) -> None:
    errors = {"ErrorOutputPrefix": "a/errors/"}
    road.open_channel(errors, OutputKeyTemplate="a/!{yyyy}-!{MM}-!{dd}/")
    with pytest.raises(SourceError, match="are among its objects"):
        road.world.capture(NAME)
    road.configure(channel="another")
    with pytest.raises(SourceError, match="no channel another writes it to S3"):
        road.world.capture(NAME)


def test_the_watermark_is_what_the_metric_proves(road: Road) -> None:
    road.open_channel()
    road.configure(measured=True, lag_minutes=60)
    listed_us = time.time_ns() // 1000
    road.world.capture(NAME)
    # Nothing was ever delivered, so the promise counts.
    assert listed_us - 3600_000_000 <= road.state().watermark_us < listed_us
    found = road.kinesis.list_channels()["ChannelSummaries"][0]
    where = {
        "StreamName": "changes",
        "ChannelName": found["ChannelName"],
        "ChannelId": found["ChannelId"],
    }
    minute = int(time.time()) // 60 * 60 - 180
    measure(
        road.world,
        "AWS/Kinesis",
        "DeliveryToS3.DataFreshness",
        where,
        {minute: 310, minute - 60: 400},
    )
    road.world.capture(NAME)
    assert road.state().watermark_us == (minute - 400) * 1_000_000
    # DynamoDB itself is behind: that comes on top, and is told.
    replication = {"TableName": NAME, "DelegatedOperation": "PutRecord"}
    ages = {minute: 120_000}
    measure(road.world, "AWS/DynamoDB", "AgeOfOldestUnreplicatedRecord", replication, ages)
    measure(road.world, "AWS/Kinesis", "DeliveryToS3.DataFreshness", where, {minute + 60: 10})
    result = road.world.capture(NAME)
    assert any("DynamoDB is 120 s behind" in warning for warning in result.warnings)
    # It never goes back.
    assert road.state().watermark_us == (minute - 400) * 1_000_000
    # The same counts where Kinesis itself is read.
    road.configure("kinesis")
    lake, table = road.world.lake(), road.world.table(NAME)
    source, warnings = with_measured_lateness(lake.table(table), open_source(lake.table(table)))
    assert isinstance(source.reading, KinesisProtocol)
    assert (source.reading.late_seconds, len(warnings)) == (120, 1)
