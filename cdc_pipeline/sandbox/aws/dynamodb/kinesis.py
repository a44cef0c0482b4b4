"""Changes of DynamoDB tables in Kinesis streams, in AWS's envelope; shards with lineage.

ministack 1.5.33 uses an envelope of its own (whole seconds, no table name, a random partition key),
accepts streams that do not exist, and removes shards that are split or merged.
"""

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.journal import Item
from cdc_pipeline.sandbox.aws.dynamodb.responses import RefusedError, Response, answering
from cdc_pipeline.sandbox.aws.dynamodb.streams import Writes

MICROSECOND = "MICROSECOND"
# Limit of a stream's record; DynamoDB counts changes it could not replicate and continues.
_LARGEST_BYTES = 1024 * 1024


class Replication:
    """Writes each change of a table to its Kinesis stream as DynamoDB does."""

    def __init__(self, dynamodb: Any, kinesis: Any, cloudwatch: Any, writes: Writes) -> None:
        self._dynamodb = dynamodb
        self._kinesis = kinesis
        self._cloudwatch = cloudwatch
        self._writes = writes

    def install(self) -> None:
        """Replace the emulator's functions; once per process."""
        module = self._dynamodb
        self._enable = module._enable_kinesis_streaming_destination
        module._enable_kinesis_streaming_destination = self._enabled
        module._fan_out_to_kinesis = self._replicate

    def _enabled(self, data: dict[str, Any]) -> Response:
        from ministack.core.responses import error_response_json

        arn = data.get("StreamArn")
        if arn and self._kinesis._resolve_stream_by_arn(arn) is None:
            message = f"Requested resource not found: Kinesis stream {arn}"
            return error_response_json("ResourceNotFoundException", message, 400)
        if self._active(self._dynamodb._normalize_table_name(data.get("TableName"))):
            return error_response_json(
                "ValidationException",
                "Table is not in a valid state to enable Kinesis Streaming Destination: "
                "KinesisStreamingDestination must be DISABLED to perform ENABLE operation.",
                400,
            )
        return self._enable(data)

    def _active(self, table_name: str) -> list[dict[str, Any]]:
        destinations = self._dynamodb._kinesis_destinations.get(table_name, [])
        return [d for d in destinations if d["DestinationStatus"] == "ACTIVE"]

    def _replicate(self, table_name: str, record: dict[str, Any]) -> None:
        """Replicate a write; called by the emulator with its own kind of record."""
        body = record["dynamodb"]
        if body.get("OldImage") == body.get("NewImage"):
            return
        for destination in self._active(table_name):
            content = envelope(
                record,
                table_name,
                self._writes.latest_micros,
                destination["ApproximateCreationDateTimePrecision"],
            )
            data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
            if len(data) > _LARGEST_BYTES:
                self._count_failed(table_name)
                continue
            key = partition_key(body["Keys"])
            self._kinesis.put_record_internal(destination["StreamArn"], key, data)

    def _count_failed(self, table_name: str) -> None:
        self._cloudwatch.record_metric(
            "AWS/DynamoDB",
            "FailedToReplicateRecordCount",
            1,
            "Count",
            {"TableName": table_name, "DelegatedOperation": "PutRecord"},
        )


def envelope(
    record: dict[str, Any], table_name: str, micros: int, precision: str
) -> dict[str, Any]:
    """Return DynamoDB's Kinesis record of a stream record, written at `micros`."""
    body = record["dynamodb"]
    identity = record.get("userIdentity")
    content: dict[str, Any] = {
        "ApproximateCreationDateTime": micros if precision == MICROSECOND else micros // 1000,
        "Keys": _encoded_again(body["Keys"]),
    }
    for name in ("NewImage", "OldImage"):
        if name in body:
            content[name] = _encoded_again(body[name])
    content["SizeBytes"] = body["SizeBytes"]
    content["ApproximateCreationDateTimePrecision"] = precision
    return {
        "awsRegion": record["awsRegion"],
        "eventID": str(uuid.uuid4()),
        "eventName": record["eventName"],
        "userIdentity": identity
        and {"principalId": identity["PrincipalId"], "type": identity["Type"]},
        "recordFormat": "application/json",
        "tableName": table_name,
        "dynamodb": content,
        "eventSource": "aws:dynamodb",
    }


def partition_key(keys: Item) -> str:
    """Return the hash of an item's key, which sends all its changes to one shard."""
    text = json.dumps(keys, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest().upper()


def _encoded_again(item: Item) -> Item:
    """Return the item with its binaries (already base64 text) encoded once more."""
    return {name: _value(value) for name, value in item.items()}


def _value(value: dict[str, Any]) -> dict[str, Any]:
    ((tag, content),) = value.items()
    if tag == "B":
        return {tag: _base64(content)}
    if tag == "BS":
        return {tag: [_base64(member) for member in content]}
    if tag == "M":
        return {tag: _encoded_again(content)}
    if tag == "L":
        return {tag: [_value(element) for element in content]}
    return value


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Shards:
    """Splits and merges that close parent shards but keep their records for the retention."""

    def __init__(self, kinesis: Any) -> None:
        self._kinesis = kinesis

    def install(self) -> None:
        """Replace the emulator's functions; once per process."""
        module = self._kinesis
        module._split_shard = self._keeping_parents(module._split_shard)
        module._merge_shards = self._keeping_parents(module._merge_shards)
        module._update_shard_count = answering(self._update_count)
        module._get_records = self._ending(module._get_records)
        module._shard_out = _with_end(module._shard_out)
        module._describe_stream_summary = self._counting_open(module._describe_stream_summary)
        module._route_to_shard = _route
        module._expire_records = _expire

    def _keeping_parents(self, original: Callable[..., Response]) -> Callable[..., Response]:
        def handler(data: dict[str, Any]) -> Response:
            from ministack.core.responses import error_response_json

            _, stream = self._kinesis._resolve_stream(data)
            shards = stream["shards"] if stream else {}
            parents = [
                shards.get(data.get(name), {})
                for name in ("ShardToSplit", "ShardToMerge", "AdjacentShardToMerge")
            ]
            if any(map(_closed, parents)):
                return error_response_json(
                    "InvalidArgumentException", "A shard has already been merged or split", 400
                )
            before = dict(shards)
            end = self._kinesis._next_sequence_number()
            response = original(data)
            for shard_id in before.keys() - shards.keys():
                shards[shard_id] = {**before[shard_id], "ending_sequence_number": end}
            return response

        return handler

    def _update_count(self, data: dict[str, Any]) -> dict[str, Any]:
        module = self._kinesis
        name, stream = module._resolve_stream(data)
        if stream is None:
            raise RefusedError("ResourceNotFoundException", f"Stream {name} not found")
        shards = [(i, s) for i, s in stream["shards"].items() if not _closed(s)]
        shards.sort(key=lambda entry: int(entry[1]["starting_hash_key"]))
        target = int(data["TargetShardCount"])
        if target == 2 * len(shards):
            for shard_id, shard in shards:
                start, end = int(shard["starting_hash_key"]), int(shard["ending_hash_key"])
                middle = str((start + end + 1) // 2)
                split = {"ShardToSplit": shard_id, "NewStartingHashKey": middle}
                module._split_shard({"StreamARN": stream["StreamARN"], **split})
        elif 2 * target == len(shards):
            for (left, _), (right, _) in zip(shards[::2], shards[1::2], strict=True):
                merge = {"ShardToMerge": left, "AdjacentShardToMerge": right}
                module._merge_shards({"StreamARN": stream["StreamARN"], **merge})
        else:
            raise RefusedError("LimitExceededException", "the sandbox doubles or halves shards")
        return {
            "StreamName": stream["StreamName"],
            "StreamARN": stream["StreamARN"],
            "CurrentShardCount": len(shards),
            "TargetShardCount": target,
        }

    def _ending(self, original: Callable[..., Response]) -> Callable[..., Response]:
        def get_records(data: dict[str, Any]) -> Response:
            state = self._kinesis._shard_iterators.get(data.get("ShardIterator")) or {}
            response = original(data)
            stream = self._kinesis._streams.get(state.get("stream"))
            shard = stream["shards"].get(state["shard_id"]) if stream else None
            if response[0] != 200 or not shard or not _closed(shard):
                return response
            answer = json.loads(response[2])
            if state["position"] + len(answer["Records"]) < len(shard["records"]):
                return response
            # A closed shard read to its end has children instead of a next iterator.
            del answer["NextShardIterator"]
            answer["ChildShards"] = _children(stream, state["shard_id"])
            return response[0], response[1], json.dumps(answer).encode()

        return get_records

    def _counting_open(self, original: Callable[..., Response]) -> Callable[..., Response]:
        def describe(data: dict[str, Any]) -> Response:
            status, headers, body = original(data)
            _, stream = self._kinesis._resolve_stream(data)
            if status == 200 and stream is not None:
                answer = json.loads(body)
                is_open = [not _closed(shard) for shard in stream["shards"].values()]
                answer["StreamDescriptionSummary"]["OpenShardCount"] = sum(is_open)
                body = json.dumps(answer).encode()
            return status, headers, body

        return describe


def _closed(shard: dict[str, Any]) -> bool:
    return "ending_sequence_number" in shard


def _children(stream: dict[str, Any], shard_id: str) -> list[dict[str, Any]]:
    children = []
    for child_id, child in stream["shards"].items():
        parents = [child["parent_shard_id"], child["adjacent_parent_shard_id"]]
        if shard_id in parents:
            ends = {
                "StartingHashKey": child["starting_hash_key"],
                "EndingHashKey": child["ending_hash_key"],
            }
            known = [parent for parent in parents if parent]
            children.append({"ShardId": child_id, "ParentShards": known, "HashKeyRange": ends})
    return children


def _with_end(original: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def describe(shard_id: str, shard: dict[str, Any]) -> dict[str, Any]:
        described = original(shard_id, shard)
        if _closed(shard):
            end = shard["ending_sequence_number"]
            described["SequenceNumberRange"]["EndingSequenceNumber"] = end
        return described

    return describe


def _route(hash_key: int, stream: dict[str, Any]) -> str:
    for shard_id, shard in stream["shards"].items():
        start, end = int(shard["starting_hash_key"]), int(shard["ending_hash_key"])
        if not _closed(shard) and start <= hash_key <= end:
            return shard_id
    raise LookupError(f"no open shard of {stream['StreamName']} for {hash_key}")


def _expire(stream: dict[str, Any]) -> None:
    """Remove records older than the retention; must be fast, as it runs at every write."""
    horizon = time.time() - stream["RetentionPeriodHours"] * 3600
    for shard in stream["shards"].values():
        records = shard["records"]
        if records and records[0]["ApproximateArrivalTimestamp"] < horizon:
            shard["records"] = [r for r in records if r["ApproximateArrivalTimestamp"] >= horizon]
