"""The operations of DynamoDB Streams, and the few of DynamoDB, on the model: request to answer."""

import base64
import binascii
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection
from typing import Any

from cdc_pipeline_tests.simulators.items import hash_of, identity, key_of, size_of
from cdc_pipeline_tests.simulators.streams_model import Shard, Stream, StreamsModel, Table

Request = dict[str, Any]

ITERATOR_SECONDS = 15 * 60
_MAX_RECORDS = 1000
_MAX_BYTES = 1 << 20
_MAX_LISTED = 100
_MAX_BATCH_KEYS = 100
_MAX_BATCH_BYTES = 16 << 20

_DYNAMODB = "com.amazonaws.dynamodb.v20120810#"
_VALIDATE = "com.amazon.coral.validate#"


class ServiceError(Exception):
    """An answer of AWS that is an error. `kind` is what it says in `__type`."""

    def __init__(self, kind: str, message: str, status: int = 400) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message
        self.status = status


def _invalid(message: str) -> ServiceError:
    return ServiceError(f"{_VALIDATE}ValidationException", message)


def _not_found(what: str) -> ServiceError:
    return ServiceError(
        f"{_DYNAMODB}ResourceNotFoundException", f"Requested resource not found: {what} not found"
    )


def _trimmed() -> ServiceError:
    return ServiceError(
        f"{_DYNAMODB}TrimmedDataAccessException",
        "The operation attempted to read past the oldest stream record in a shard.",
    )


class StreamsService:
    """What each operation answers. Call it with the simulator's lock held.

    GetRecords gives its records as they are on the wire, see `Answer` in `answer`.
    """

    def __init__(self, model: StreamsModel, *, strict_trim: bool) -> None:
        self._model = model
        self._strict_trim = strict_trim
        self._operations: dict[str, tuple[Callable[[Request], Any], Collection[str]]] = {
            "ListStreams": (
                self._list_streams,
                ("TableName", "Limit", "ExclusiveStartStreamArn"),
            ),
            "DescribeStream": (
                self._describe_stream,
                ("StreamArn", "Limit", "ExclusiveStartShardId", "ShardFilter"),
            ),
            "GetShardIterator": (
                self._get_shard_iterator,
                ("StreamArn", "ShardId", "ShardIteratorType", "SequenceNumber"),
            ),
            "GetRecords": (self._get_records, ("ShardIterator", "Limit")),
            "DescribeTable": (self._describe_table, ("TableName",)),
            "DescribeContinuousBackups": (self._describe_backups, ("TableName",)),
            "GetItem": (self._get_item, ("TableName", "Key", "ConsistentRead")),
            "BatchGetItem": (self._batch_get_item, ("RequestItems",)),
            "Scan": (
                self._scan,
                (
                    "TableName",
                    "Limit",
                    "ExclusiveStartKey",
                    "ConsistentRead",
                    "Segment",
                    "TotalSegments",
                ),
            ),
        }

    def answer(self, operation: str, request: Request) -> Any:
        """The answer as an object, of GetRecords as `(wire records, the rest of it)`.

        Raises `ServiceError`.
        """
        found = self._operations.get(operation)
        if found is None:
            raise ServiceError("com.amazon.coral.service#UnknownOperationException", operation)
        run, parameters = found
        unknown = request.keys() - set(parameters)
        if unknown:
            raise _invalid(f"the simulator does not model {', '.join(sorted(unknown))}")
        return run(request)

    def shard_of(self, request: Request) -> str | None:
        """The shard that a request is about."""
        if "ShardIterator" in request:
            try:
                return self._decode(request["ShardIterator"])[1]
            except ServiceError:
                return None
        return request.get("ShardId")

    # ------------------------------------------------------------------------------- streams

    def _stream(self, arn: str) -> Stream:
        stream = self._model.streams.get(arn)
        if stream is None or not stream.exists():
            raise _not_found(f"Stream: {arn}")
        return stream

    def _list_streams(self, request: Request) -> Any:
        name, start = request.get("TableName"), request.get("ExclusiveStartStreamArn", "")
        limit = min(request.get("Limit", _MAX_LISTED), _MAX_LISTED)
        found = sorted(
            (s for s in self._model.streams.values() if s.exists() and s.arn > start),
            key=lambda s: s.arn,
        )
        found = [s for s in found if name in (None, s.table.name)]
        streams = [
            {"StreamArn": s.arn, "TableName": s.table.name, "StreamLabel": s.label}
            for s in found[:limit]
        ]
        answer: dict[str, Any] = {"Streams": streams}
        if len(found) > limit:
            answer["LastEvaluatedStreamArn"] = streams[-1]["StreamArn"]
        return answer

    def _describe_stream(self, request: Request) -> Any:
        stream = self._stream(request["StreamArn"])
        start = request.get("ExclusiveStartShardId", "")
        limit = min(request.get("Limit", _MAX_LISTED), _MAX_LISTED)
        wanted = request.get("ShardFilter")
        if wanted is not None and (wanted.get("Type") != "CHILD_SHARDS" or "ShardId" not in wanted):
            raise _invalid("ShardFilter needs Type CHILD_SHARDS and a ShardId")
        shards = stream.listed(start, limit + 1, wanted["ShardId"] if wanted else None)
        description = {
            "StreamArn": stream.arn,
            "StreamLabel": stream.label,
            "StreamStatus": "ENABLED" if stream.disabled_at is None else "DISABLED",
            "StreamViewType": stream.view_type,
            "CreationRequestDateTime": stream.created_at,
            "TableName": stream.table.name,
            "KeySchema": _key_schema(stream.table),
            "Shards": [_listed_shard(shard) for shard in shards[:limit]],
        }
        if len(shards) > limit:
            description["LastEvaluatedShardId"] = shards[limit - 1].shard_id
        return {"StreamDescription": description}

    def _get_shard_iterator(self, request: Request) -> Any:
        stream = self._stream(request["StreamArn"])
        shard = stream.shards.get(request["ShardId"])
        now = self._model.clock()
        if shard is None or not shard.is_listed(now):
            raise _not_found(f"Shard: {request['ShardId']} in Stream: {stream.arn}")
        shard.trim(now)
        index = self._position(shard, request["ShardIteratorType"], request.get("SequenceNumber"))
        return {"ShardIterator": self._encode(stream, shard, index)}

    def _position(self, shard: Shard, kind: str, number: str | None) -> int:
        if kind == "TRIM_HORIZON":
            return shard.trimmed
        if kind == "LATEST":
            return len(shard.records)
        if kind not in ("AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"):
            raise _invalid(f"the simulator does not model iterators of type {kind}")
        if number is None or not number.isdecimal() or not 21 <= len(number) <= 40:
            raise _invalid(f"Invalid SequenceNumber {number}")
        at = bisect_left(shard.numbers, int(number))
        if kind == "AT_SEQUENCE_NUMBER":
            position, named = at, at
        else:
            position = bisect_right(shard.numbers, int(number))
            # The record with this number, or the first behind it: the position as AWS names it.
            named = at if self._strict_trim else position
        if named < shard.trimmed:
            raise _trimmed()
        return position

    def _get_records(self, request: Request) -> tuple[list[bytes], dict[str, Any]]:
        arn, shard_id, index, issued = self._decode(request["ShardIterator"])
        stream = self._stream(arn)
        now = self._model.clock()
        if issued + ITERATOR_SECONDS <= now:
            raise ServiceError(
                f"{_DYNAMODB}ExpiredIteratorException",
                "The shard iterator has expired. Shard iterators are valid for 15 minutes.",
            )
        shard = stream.shards[shard_id]
        shard.trim(now)
        if index < shard.trimmed:
            raise _trimmed()
        if not shard.is_listed(now):
            raise _not_found(f"Shard: {shard_id} in Stream: {arn}")
        end = self._page_end(shard, index, min(request.get("Limit", _MAX_RECORDS), _MAX_RECORDS))
        ended = end == len(shard.records) and not shard.is_open
        rest = {} if ended else {"NextShardIterator": self._encode(stream, shard, end)}
        return [record.wire for record in shard.records[index:end]], rest

    def _page_end(self, shard: Shard, start: int, limit: int) -> int:
        most = min(start + limit, len(shard.records))
        if most == start:
            return start
        before = shard.ends[start - 1] if start else 0
        fitting = bisect_right(shard.ends, before + _MAX_BYTES, lo=start, hi=most)
        return max(fitting, start + 1)

    def _encode(self, stream: Stream, shard: Shard, index: int) -> str:
        salt = self._model.random.getrandbits(32)
        inside = json.dumps([salt, shard.shard_id, index, self._model.clock()]).encode()
        return f"{stream.arn}|1|{base64.b64encode(inside).decode()}"

    def _decode(self, iterator: str) -> tuple[str, str, int, float]:
        arn, _, inside = iterator.partition("|1|")
        try:
            _, shard_id, index, issued = json.loads(base64.b64decode(inside, validate=True))
        except (binascii.Error, ValueError):
            raise _invalid("Invalid ShardIterator") from None
        return arn, shard_id, index, issued

    # -------------------------------------------------------------------------------- tables

    def _table(self, name: str) -> Table:
        table = self._model.tables.get(name)
        if table is None:
            raise _not_found(f"Table: {name}")
        return table

    def _describe_table(self, request: Request) -> Any:
        table = self._table(request["TableName"])
        description: dict[str, Any] = {
            "TableName": table.name,
            "TableArn": table.arn,
            "TableId": table.table_id,
            "TableStatus": "ACTIVE",
            "CreationDateTime": table.created_at,
            "KeySchema": _key_schema(table),
            "AttributeDefinitions": _key_types(table),
            "ItemCount": len(table.stored),
            "TableSizeBytes": sum(map(size_of, table.items())),
        }
        if table.replicas:
            description["Replicas"] = [
                {"RegionName": region, "ReplicaStatus": "ACTIVE"} for region in table.replicas
            ]
            consistency = "STRONG" if table.strongly_consistent else "EVENTUAL"
            description["MultiRegionConsistency"] = consistency
        if table.active_stream is not None:
            description["StreamSpecification"] = {
                "StreamEnabled": True,
                "StreamViewType": table.active_stream.view_type,
            }
        if table.stream is not None:
            description["LatestStreamArn"] = table.stream.arn
            description["LatestStreamLabel"] = table.stream.label
        return {"Table": description}

    def _describe_backups(self, request: Request) -> Any:
        table = self._table(request["TableName"])
        recovery: dict[str, Any] = {"PointInTimeRecoveryStatus": "DISABLED"}
        if table.backups:
            recovery = {
                "PointInTimeRecoveryStatus": "ENABLED",
                "RecoveryPeriodInDays": 35,
                "EarliestRestorableDateTime": table.created_at,
                "LatestRestorableDateTime": self._model.clock() - 300,
            }
        return {
            "ContinuousBackupsDescription": {
                "ContinuousBackupsStatus": "ENABLED",
                "PointInTimeRecoveryDescription": recovery,
            }
        }

    def _get_item(self, request: Request) -> Any:
        item = self._table(request["TableName"]).get(request["Key"])
        return {} if item is None else {"Item": item}

    def _batch_get_item(self, request: Request) -> Any:
        wanted = [
            (name, key, part)
            for name, part in request["RequestItems"].items()
            for key in part["Keys"]
        ]
        if len(wanted) > _MAX_BATCH_KEYS:
            raise _invalid(f"Too many items requested for the BatchGetItem call: {len(wanted)}")
        responses: dict[str, list[Any]] = {name: [] for name in request["RequestItems"]}
        left: dict[str, Any] = {}
        size = 0
        for name, key, part in wanted:
            unknown = part.keys() - {"Keys", "ConsistentRead"}
            if unknown:
                raise _invalid(f"the simulator does not model {', '.join(sorted(unknown))}")
            item = self._table(name).get(key)
            size += size_of(item) if item else 0
            if size > _MAX_BATCH_BYTES:
                left.setdefault(name, {**part, "Keys": []})["Keys"].append(key)
            elif item is not None:
                responses[name].append(item)
        return {"Responses": responses, "UnprocessedKeys": left}

    def _scan(self, request: Request) -> Any:
        table = self._table(request["TableName"])
        segments = request.get("TotalSegments", 1)
        keyed = ((key_of(item, table.key_names), item) for item in table.items())
        ordered = sorted(
            ((hash_of(key), str(identity(key))), key, item)
            for key, item in keyed
            if hash_of(key) * segments >> 32 == request.get("Segment", 0)
        )
        start = request.get("ExclusiveStartKey")
        if start is not None:
            start = key_of(start, table.key_names)
            place = (hash_of(start), str(identity(start)))
            ordered = ordered[bisect_right(ordered, place, key=lambda entry: entry[0]) :]
        taken, size = 0, 0
        for _, _, item in ordered[: request.get("Limit")]:
            size += size_of(item)
            taken += 1
            if size > _MAX_BYTES:
                break
        answer: dict[str, Any] = {
            "Items": [item for _, _, item in ordered[:taken]],
            "Count": taken,
            "ScannedCount": taken,
        }
        if taken < len(ordered):
            answer["LastEvaluatedKey"] = ordered[taken - 1][1]
        return answer


def _key_types(table: Table) -> list[dict[str, str]]:
    """As of some item: tables here do not declare them."""
    some = next(iter(table.items()), {})
    return [
        {"AttributeName": name, "AttributeType": next(iter(some.get(name, {"S": ""})))}
        for name in table.key_names
    ]


def _key_schema(table: Table) -> list[dict[str, str]]:
    return [
        {"AttributeName": name, "KeyType": kind}
        for name, kind in zip(table.key_names, ("HASH", "RANGE"), strict=False)
    ]


def _listed_shard(shard: Shard) -> dict[str, Any]:
    numbers = {"StartingSequenceNumber": str(shard.starting)}
    if shard.ending is not None:
        numbers["EndingSequenceNumber"] = str(shard.ending)
    listed: dict[str, Any] = {"ShardId": shard.shard_id, "SequenceNumberRange": numbers}
    if shard.parent_id is not None:
        listed["ParentShardId"] = shard.parent_id
    return listed
