"""DynamoDB Streams: shard listings and iterators; `aws.shards` reads the records."""

from typing import Any

from cdc_pipeline.aws.shards import ShardClient, StreamDescription
from cdc_pipeline.core.lineage import Shard


class DynamoDBStreams(ShardClient):
    """A reader of one account's streams. Safe to use from several threads."""

    service = "dynamodbstreams"

    def describe(self, arn: str) -> StreamDescription:
        """DescribeStream, all pages; raises `ShardGoneError` when the stream no longer exists."""
        shards: list[Shard] = []
        start: dict[str, str] = {}
        part = "StreamDescription"
        while True:
            found = self._call("describe_stream", f"stream {arn}", part, StreamArn=arn, **start)[
                part
            ]
            shards += map(_shard, found.get("Shards", ()))
            last = found.get("LastEvaluatedShardId")
            if not last:
                created = found.get("CreationRequestDateTime")
                return StreamDescription(
                    arn,
                    found["StreamStatus"],
                    found["StreamViewType"],
                    shards,
                    began_us=int(created.timestamp() * 1_000_000) if created else 0,
                )
            start = {"ExclusiveStartShardId": last}

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """An iterator behind sequence number `after`, or at the shard's oldest record if None."""
        place: dict[str, str] = (
            {"ShardIteratorType": "TRIM_HORIZON"}
            if after is None
            else {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": after}
        )
        part = "ShardIterator"
        return self._call(
            "get_shard_iterator",
            f"shard {shard_id}",
            part,
            StreamArn=arn,
            ShardId=shard_id,
            **place,
        )[part]


def _shard(raw: dict[str, Any]) -> Shard:
    numbers = raw.get("SequenceNumberRange", {})
    return Shard(
        shard_id=raw["ShardId"],
        parent_id=raw.get("ParentShardId"),
        starting=numbers.get("StartingSequenceNumber"),
        ending=numbers.get("EndingSequenceNumber"),
    )
