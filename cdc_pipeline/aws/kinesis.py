"""Kinesis Data Streams that DynamoDB writes to: shard listings, iterators, destinations."""

import time
from typing import Any

import msgspec

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, code_behind
from cdc_pipeline.aws.shards import ShardClient, StreamDescription
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.lineage import Shard
from cdc_pipeline.core.transports import NEW_AND_OLD_IMAGES

WRITTEN_TO = {"ACTIVE", "UPDATING"}
"""States of a stream, and of a destination, in which DynamoDB writes to it."""
MOST_RETENTION_US = 365 * 24 * 3_600_000_000
_MOST_PAGES = 1000
_PAUSE_SECONDS = 0.2  # 5 reads a second and shard


class _Numbered(msgspec.Struct):
    SequenceNumber: str


_numbered = msgspec.json.Decoder(_Numbered).decode


class KinesisStreams(ShardClient):
    """A reader of the Kinesis streams of one table's account. Safe to use from several threads."""

    service = "kinesis"

    def __init__(self, aws: AwsSession, table: str) -> None:
        super().__init__(aws)
        self._aws = aws
        self._table = table

    def describe(self, arn: str) -> StreamDescription:
        """The stream, ENABLED while the table writes to it, and all its shards.

        Closed shards are listed until their last record has expired. Raises `ShardGoneError` when
        the stream no longer exists.
        """
        found = self._summary(arn)
        written = destinations(self._aws, self._table).get(arn, "") in WRITTEN_TO
        on = written and found["StreamStatus"] in WRITTEN_TO
        return StreamDescription(
            arn,
            "ENABLED" if on else "DISABLED",
            NEW_AND_OLD_IMAGES,
            self._list(arn),
            found["RetentionPeriodHours"],
            _created_us(found),
        )

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        """None, always: ListShards is consistent and has 1000 shards a page, so it does."""
        return None

    def created_us(self, arn: str) -> int:
        """When a stream was made, 0 if that is not known; one made anew has the same ARN.

        Raises `ShardGoneError`, `SourceError`.
        """
        return _created_us(self._summary(arn))

    def _summary(self, arn: str) -> dict[str, Any]:
        part = "StreamDescriptionSummary"
        return self._call("describe_stream_summary", f"stream {arn}", part, StreamARN=arn)[part]

    def _list(self, arn: str) -> list[Shard]:
        """ListShards, all pages, of 1000 shards each; begun anew if its token expires (300 s)."""
        for _ in range(3):
            shards: list[Shard] = []
            place: dict[str, Any] = {"StreamARN": arn}
            try:
                while True:
                    found = self._call("list_shards", f"stream {arn}", "Shards", **place)
                    shards += map(_shard, found["Shards"])
                    if not found.get("NextToken"):
                        return shards
                    place = {"NextToken": found["NextToken"]}
            except SourceError as error:
                if code_behind(error) != "ExpiredNextTokenException":
                    raise
        raise SourceError(f"stream {arn}: its list of shards takes too long")

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """An iterator behind sequence number `after`, or at the shard's oldest record if None.

        A record that has expired makes no difference: reading begins at the oldest one left.
        """
        place: dict[str, str] = (
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
            **place,
        )[part]

    def record_at(
        self, arn: str, shard_id: str, sequence_number: str
    ) -> tuple[msgspec.Raw | None, int]:
        """One record by its sequence number, None if it has expired, and the stream's retention.

        Kinesis does not say so when a record has expired: it goes on with the oldest one left,
        and pages may be empty before a record. Raises `ShardGoneError`, `SourceError`.
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
            # A number that is not the shard's: that of a stream made anew, or no number at all.
            if code_behind(error) != "InvalidArgumentException":
                raise
            return None, retention_us
        for _ in range(_MOST_PAGES):
            if iterator is None:
                return None, retention_us
            page = self.read(iterator)
            if page.records:
                first = page.records[0]
                found = _numbered(first).SequenceNumber == sequence_number
                return first if found else None, retention_us
            if not page.behind_ms:
                return None, retention_us
            iterator = page.next_iterator
            time.sleep(_PAUSE_SECONDS)
        raise SourceError(f"shard {shard_id}: {_MOST_PAGES} empty answers before a record")


def destinations(aws: AwsSession, table: str) -> dict[str, str]:
    """The Kinesis streams that a table was told to write to, each with its state, by ARN.

    Empty for a table that no longer exists. Raises `SourceError`.
    """
    try:
        with aws_errors(f"Kinesis destinations of table {table}"):
            answer = aws.client("dynamodb").describe_kinesis_streaming_destination(TableName=table)
    except SourceError as error:
        if code_behind(error) == "ResourceNotFoundException":
            return {}
        raise
    found = answer.get("KinesisDataStreamDestinations", ())
    states: dict[str, str] = {}
    for one in found:
        # A stream that was turned off and on again may be listed more than once.
        if states.get(one["StreamArn"]) not in WRITTEN_TO:
            states[one["StreamArn"]] = one["DestinationStatus"]
    return states


def active_destination(aws: AwsSession, table: str) -> str:
    """The ARN of the stream that a table writes to; raises `SourceError` when there is none."""
    found = destinations(aws, table)
    active = [arn for arn, state in found.items() if state in WRITTEN_TO]
    if active:
        return active[0]
    listed = ", ".join(f"{arn} is {state}" for arn, state in found.items())
    example = f"arn:{aws.partition}:kinesis:REGION:ACCOUNT:stream/NAME"
    raise SourceError(
        f"table {table}: it writes to no Kinesis stream ({listed or 'none was ever named'})",
        fix=f"aws dynamodb enable-kinesis-streaming-destination --table-name {table} "
        f"--stream-arn {next(iter(found), example)} --enable-kinesis-streaming-configuration "
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
