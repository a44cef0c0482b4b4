"""Kinesis Data Streams of DynamoDB tables: shard listings, iterators, destinations."""

import time
from typing import Any

import msgspec

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, cause_code
from cdc_pipeline.aws.shards import ShardClient, StreamDescription
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.lineage import Shard
from cdc_pipeline.core.transports import NEW_AND_OLD_IMAGES

WRITTEN_TO = {"ACTIVE", "UPDATING"}
"""States of a stream, and of a destination, in which DynamoDB writes to it."""
MOST_RETENTION_US = 365 * 24 * 3_600_000_000
_MOST_PAGES = 1000
_PAUSE_SECONDS = 0.2  # 5 reads per second and shard


class _Numbered(msgspec.Struct):
    SequenceNumber: str


_numbered = msgspec.json.Decoder(_Numbered).decode


class KinesisStreams(ShardClient):
    """A reader of the Kinesis streams in one table's account. Thread-safe."""

    service = "kinesis"

    def __init__(self, aws: AwsSession, table: str) -> None:
        super().__init__(aws)
        self._aws = aws
        self._table = table

    def describe(self, arn: str) -> StreamDescription:
        """Describe the stream, ENABLED while the table writes to it, with all its shards.

        Closed shards are listed until their last record has expired. Raises `ShardGoneError` for a
        deleted stream.
        """
        summary = self._summary(arn)
        is_destination = destinations(self._aws, self._table).get(arn, "") in WRITTEN_TO
        is_written = is_destination and summary["StreamStatus"] in WRITTEN_TO
        return StreamDescription(
            arn,
            "ENABLED" if is_written else "DISABLED",
            NEW_AND_OLD_IMAGES,
            self._list(arn),
            summary["RetentionPeriodHours"],
            _created_us(summary),
        )

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        """Return None: ListShards suffices, as it is consistent and has 1000 shards a page."""
        return None

    def created_us(self, arn: str) -> int:
        """Return a stream's creation time, 0: unknown. A new stream may reuse the ARN.

        Raises `ShardGoneError`, `SourceError`.
        """
        return _created_us(self._summary(arn))

    def _summary(self, arn: str) -> dict[str, Any]:
        part = "StreamDescriptionSummary"
        return self._call("describe_stream_summary", f"stream {arn}", part, StreamARN=arn)[part]

    def _list(self, arn: str) -> list[Shard]:
        """List all shards, 1000 a page; starts again if the token expires (300 s)."""
        for _ in range(3):
            shards: list[Shard] = []
            start: dict[str, Any] = {"StreamARN": arn}
            try:
                while True:
                    page = self._call("list_shards", f"stream {arn}", "Shards", **start)
                    shards += map(_shard, page["Shards"])
                    if not page.get("NextToken"):
                        return shards
                    start = {"NextToken": page["NextToken"]}
            except SourceError as error:
                if cause_code(error) != "ExpiredNextTokenException":
                    raise
        raise SourceError(f"stream {arn}: its list of shards takes too long")

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """Get an iterator after sequence number `after`, or, for None, at the oldest record.

        `after` may be an expired record: reading then begins at the oldest remaining one.
        """
        start: dict[str, str] = (
            {"ShardIteratorType": "TRIM_HORIZON"}
            if after is None
            else {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": after}
        )
        part = "ShardIterator"
        return self._call(
            "get_shard_iterator",
            f"shard {shard_id}",
            part,
            StreamARN=arn,
            ShardId=shard_id,
            **start,
        )[part]

    def record_at(
        self, arn: str, shard_id: str, sequence_number: str
    ) -> tuple[msgspec.Raw | None, int]:
        """Read one record by its sequence number (None: expired), and the stream's retention in µs.

        Kinesis reports no error for an expired record, but continues with the oldest remaining one,
        and pages before a record may be empty. Raises `ShardGoneError`, `SourceError`.
        """
        retention_us = self._summary(arn)["RetentionPeriodHours"] * 3_600_000_000
        part = "ShardIterator"
        try:
            iterator: str | None = self._call(
                "get_shard_iterator",
                f"shard {shard_id}",
                part,
                StreamARN=arn,
                ShardId=shard_id,
                ShardIteratorType="AT_SEQUENCE_NUMBER",
                StartingSequenceNumber=sequence_number,
            )[part]
        except SourceError as error:
            # The number is not of this shard: of another stream with this ARN, or malformed.
            if cause_code(error) != "InvalidArgumentException":
                raise
            return None, retention_us
        for _ in range(_MOST_PAGES):
            if iterator is None:
                return None, retention_us
            page = self.read(iterator)
            if page.records:
                first = page.records[0]
                is_wanted = _numbered(first).SequenceNumber == sequence_number
                return first if is_wanted else None, retention_us
            if not page.behind_ms:
                return None, retention_us
            iterator = page.next_iterator
            time.sleep(_PAUSE_SECONDS)
        raise SourceError(f"shard {shard_id}: {_MOST_PAGES} empty answers before a record")


def destinations(aws: AwsSession, table: str) -> dict[str, str]:
    """Return the states of a table's Kinesis destinations, by stream ARN.

    Empty for a deleted table. Raises `SourceError`.
    """
    try:
        with aws_errors(f"Kinesis destinations of table {table}"):
            answer = aws.client("dynamodb").describe_kinesis_streaming_destination(TableName=table)
    except SourceError as error:
        if cause_code(error) == "ResourceNotFoundException":
            return {}
        raise
    states: dict[str, str] = {}
    for destination in answer.get("KinesisDataStreamDestinations", ()):
        # A stream that was turned off and on again may be listed more than once.
        if states.get(destination["StreamArn"]) not in WRITTEN_TO:
            states[destination["StreamArn"]] = destination["DestinationStatus"]
    return states


def active_destination(aws: AwsSession, table: str) -> str:
    """Return the ARN of the stream that a table writes to; raises `SourceError` without one."""
    states = destinations(aws, table)
    active = [arn for arn, state in states.items() if state in WRITTEN_TO]
    if active:
        return active[0]
    listed = ", ".join(f"{arn} is {state}" for arn, state in states.items())
    example = f"arn:{aws.partition}:kinesis:REGION:ACCOUNT:stream/NAME"
    raise SourceError(
        f"table {table}: it writes to no Kinesis stream ({listed or 'no destination'})",
        fix=f"aws dynamodb enable-kinesis-streaming-destination --table-name {table} "
        f"--stream-arn {next(iter(states), example)} --enable-kinesis-streaming-configuration "
        "ApproximateCreationDateTimePrecision=MICROSECOND",
    )


def _created_us(summary: dict[str, Any]) -> int:
    created = summary.get("StreamCreationTimestamp")
    return int(created.timestamp() * 1000) * 1000 if created else 0


def _shard(raw: dict[str, Any]) -> Shard:
    numbers = raw["SequenceNumberRange"]
    return Shard(
        shard_id=raw["ShardId"],
        parent_id=raw.get("ParentShardId"),
        starting=numbers["StartingSequenceNumber"],
        ending=numbers.get("EndingSequenceNumber"),
        adjacent_id=raw.get("AdjacentParentShardId"),
    )
