"""DynamoDB Streams: shard listings and iterators; `aws.shards` reads the records."""

from typing import Any

from cdc_pipeline.aws.client.session import cause_code
from cdc_pipeline.aws.shards import ShardClient, StreamDescription
from cdc_pipeline.core.errors import ShardGoneError, SourceError
from cdc_pipeline.core.log.lineage import Shard

_NO_FILTER = {"ValidationException", "SerializationException"}
"""Errors of servers without the parameter ShardFilter."""


class DynamoDBStreams(ShardClient):
    """A reader of one account's streams. Thread-safe."""

    service = "dynamodbstreams"

    def describe(self, arn: str) -> StreamDescription:
        """Describe a stream with all its shards; raises `ShardGoneError` for a deleted stream.

        A page has 100 shards, and AWS allows ten requests per second.
        """
        shards: list[Shard] = []
        description = self._list(arn, shards)
        created = description.get("CreationRequestDateTime")
        return StreamDescription(
            arn,
            description["StreamStatus"],
            description["StreamViewType"],
            shards,
            began_us=int(created.timestamp() * 1_000_000) if created else 0,
        )

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        """List the children of an ended shard: DescribeStream with ShardFilter CHILD_SHARDS.

        Empty until they appear; AWS gives no bound for this delay. None: this server does not
        filter (some emulators refuse the parameter, some ignore it). Raises `SourceError`.
        """
        shards: list[Shard] = []
        try:
            self._list(arn, shards, ShardFilter={"Type": "CHILD_SHARDS", "ShardId": shard_id})
        except ShardGoneError:
            return []  # expired; the next full listing shows whether the stream is gone
        except SourceError as error:
            if cause_code(error) in _NO_FILTER:
                return None
            raise
        return shards if all(shard_id in shard.parents for shard in shards) else None

    def _list(self, arn: str, shards: list[Shard], **arguments: Any) -> dict[str, Any]:
        """Add the shards of all pages to `shards`; returns the description on the last page."""
        part = "StreamDescription"
        while True:
            page = self._call("describe_stream", f"stream {arn}", part, StreamArn=arn, **arguments)
            shards += map(_shard, page[part].get("Shards", ()))
            last = page[part].get("LastEvaluatedShardId")
            if not last:
                return page[part]
            arguments["ExclusiveStartShardId"] = last

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """Get an iterator after sequence number `after`, or, for None, at the oldest record."""
        start: dict[str, str] = (
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
            **start,
        )[part]


def _shard(raw: dict[str, Any]) -> Shard:
    numbers = raw.get("SequenceNumberRange", {})
    return Shard(
        shard_id=raw["ShardId"],
        parent_id=raw.get("ParentShardId"),
        starting=numbers.get("StartingSequenceNumber"),
        ending=numbers.get("EndingSequenceNumber"),
    )
