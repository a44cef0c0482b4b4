"""The operations of Kinesis, and the few of CloudWatch and DynamoDB, on the model."""

import base64
import binascii
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection
from typing import Any

from cdc_pipeline_tests.simulators.kinesis_model import (
    HASHES,
    MINUTE,
    KinesisModel,
    KinesisShard,
    KinesisStream,
)
from cdc_pipeline_tests.simulators.streams_service import Request, ServiceError, StreamsService

ITERATOR_SECONDS = 5 * 60
TOKEN_SECONDS = 300
FAILED_RECORDS = "FailedToReplicateRecordCount"
METRIC_DIMENSIONS = {"DelegatedOperation": "PutRecord"}
"""Beside TableName."""
_MAX_RECORDS = 10_000
_MAX_BYTES = 10 << 20
_MAX_LISTED = 1000
_READS_PER_SECOND = 5
_BYTES_PER_SECOND = 2 << 20
_PLACE = ("StreamName", "StreamARN", "StreamId")


def _invalid(message: str) -> ServiceError:
    return ServiceError("InvalidArgumentException", message)


def _not_found(what: str) -> ServiceError:
    return ServiceError("ResourceNotFoundException", f"{what} not found")


class KinesisService(StreamsService):
    """What each operation answers. Call it with the simulator's lock held.

    Kinesis' and CloudWatch's operations are named as IAM does it (`kinesis:GetRecords`), DynamoDB's
    and DynamoDB Streams' as ever. `limits`: GetRecords refuses what is too much, by the clock.
    """

    def __init__(
        self,
        model: KinesisModel,
        *,
        strict_trim: bool,
        limits: bool,
        empty_end: bool,
        metric_lag_seconds: float,
    ) -> None:
        super().__init__(model, strict_trim=strict_trim)
        self._kinesis = model
        self._limits = limits
        self.empty_end = empty_end
        self._metric_lag = metric_lag_seconds
        more: dict[str, tuple[Callable[[Request], Any], Collection[str]]] = {
            "DescribeKinesisStreamingDestination": (self._describe_destination, ("TableName",)),
            "kinesis:DescribeStreamSummary": (self._describe_summary, _PLACE),
            "kinesis:ListShards": (
                self._list_shards,
                (*_PLACE, "NextToken", "ExclusiveStartShardId", "MaxResults", "ShardFilter"),
            ),
            "kinesis:GetShardIterator": (
                self._get_kinesis_iterator,
                (
                    *_PLACE,
                    "ShardId",
                    "ShardIteratorType",
                    "StartingSequenceNumber",
                    "Timestamp",
                ),
            ),
            "kinesis:GetRecords": (
                self._get_kinesis_records,
                (*_PLACE, "ShardIterator", "Limit"),
            ),
            "cloudwatch:GetMetricData": (
                self._get_metric_data,
                ("MetricDataQueries", "StartTime", "EndTime", "ScanBy", "MaxDatapoints"),
            ),
            "cloudwatch:GetMetricStatistics": (
                self._get_metric_statistics,
                (
                    "Namespace",
                    "MetricName",
                    "Dimensions",
                    "StartTime",
                    "EndTime",
                    "Period",
                    "Statistics",
                    "Unit",
                ),
            ),
            "cloudwatch:ListMetrics": (
                self._list_metrics,
                ("Namespace", "MetricName", "Dimensions"),
            ),
        }
        self._operations |= more

    def shard_of(self, request: Request) -> str | None:
        iterator = request.get("ShardIterator")
        if iterator is not None and "|" not in iterator:
            try:
                return self._decode_kinesis(iterator)[1]
            except ServiceError:
                return None
        return super().shard_of(request)

    # -------------------------------------------------------------------------------- tables

    def _describe_destination(self, request: Request) -> Any:
        name = self._table(request["TableName"]).name
        found = self._kinesis.destinations.get(name, [])
        listed = []
        for destination in found:
            one = {
                "StreamArn": self._kinesis.kinesis_arn(destination.stream),
                "DestinationStatus": "ACTIVE" if destination.active else "DISABLED",
            }
            if destination.precision is not None:
                one["ApproximateCreationDateTimePrecision"] = destination.precision
            listed.append(one)
        return {"TableName": name, "KinesisDataStreamDestinations": listed}

    # ------------------------------------------------------------------------------- streams

    def _kinesis_stream(self, request: Request) -> KinesisStream:
        arn, name = request.get("StreamARN"), request.get("StreamName")
        if arn is None and name is None:
            raise _invalid("Either StreamName or StreamARN must be specified.")
        name = name or str(arn).rpartition("/")[2]
        stream = self._kinesis.kinesis.get(name)
        if stream is None or arn not in (None, stream.arn):
            raise _not_found(f"Stream {arn or name} under account")
        stream.trim()
        return stream

    def _describe_summary(self, request: Request) -> Any:
        stream = self._kinesis_stream(request)
        strategy = "USER_PARTITION_KEY" if stream.by_partition_key else "AUTO"
        return {
            "StreamDescriptionSummary": {
                "StreamName": stream.name,
                "StreamARN": stream.arn,
                "StreamStatus": "ACTIVE",
                "StreamModeDetails": {"StreamMode": "ON_DEMAND"},
                "RetentionPeriodHours": stream.retention_hours,
                "StreamCreationTimestamp": stream.created_at,
                "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
                "EncryptionType": "NONE",
                "OpenShardCount": len(stream.open_shards()),
                "ConsumerCount": 0,
                "MaxRecordSizeInKiB": stream.max_record_kib,
                "RecordDistributionStrategy": strategy,
            }
        }

    def _list_shards(self, request: Request) -> Any:
        token = request.get("NextToken")
        if token is not None:
            if request.keys() - {"NextToken", "MaxResults"}:
                raise _invalid("NextToken and StreamName cannot be provided together.")
            name, start, wanted, issued = _opened(token, "NextToken")
            if issued + TOKEN_SECONDS <= self._kinesis.clock():
                raise ServiceError("ExpiredNextTokenException", "The NextToken has expired.")
            request = {**request, "StreamName": name}
        else:
            start, wanted = request.get("ExclusiveStartShardId", ""), request.get("ShardFilter")
        stream = self._kinesis_stream(request)
        shards = [s for s in _filtered(stream, wanted) if s.shard_id > start]
        limit = min(request.get("MaxResults", _MAX_LISTED), _MAX_LISTED)
        answer: dict[str, Any] = {"Shards": [_listed_shard(shard) for shard in shards[:limit]]}
        if len(shards) > limit:
            last = shards[limit - 1].shard_id
            answer["NextToken"] = _sealed(stream.name, last, wanted, self._kinesis.clock())
        return answer

    # --------------------------------------------------------------------------------- reads

    def _get_kinesis_iterator(self, request: Request) -> Any:
        stream = self._kinesis_stream(request)
        shard = stream.shards.get(request["ShardId"])
        if shard is None or not stream.is_listed(shard):
            raise _not_found(f"Shard {request['ShardId']} in stream {stream.name}")
        index = self._index(shard, request)
        return {"ShardIterator": self._iterator(stream, shard, index)}

    def _index(self, shard: KinesisShard, request: Request) -> int:
        """Where reading starts; a position that was trimmed is no error but the oldest record."""
        kind, number = request["ShardIteratorType"], request.get("StartingSequenceNumber")
        if kind == "TRIM_HORIZON":
            return shard.trimmed
        if kind == "LATEST":
            return len(shard.records)
        if kind == "AT_TIMESTAMP":
            at = bisect_left(shard.records, request["Timestamp"], key=lambda r: r.arrived)
        elif kind in ("AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"):
            if number is None or not number.isdecimal():
                raise _invalid(f"Invalid StartingSequenceNumber {number}")
            if not shard.starting <= int(number) <= shard.last_number:
                raise _invalid(
                    f"StartingSequenceNumber {number} used in GetShardIterator on shard "
                    f"{shard.shard_id} is invalid because it did not come from this stream."
                )
            find = bisect_left if kind == "AT_SEQUENCE_NUMBER" else bisect_right
            at = find(shard.numbers, int(number))
        else:
            raise _invalid(f"Invalid ShardIteratorType {kind}")
        return max(at, shard.trimmed)

    def _get_kinesis_records(self, request: Request) -> tuple[list[bytes], dict[str, Any]]:
        """The records as they are on the wire, and the rest of the answer."""
        name, shard_id, index, created, issued = self._decode_kinesis(request["ShardIterator"])
        stream = self._kinesis.kinesis.get(name)
        if stream is None or stream.created_at != created:
            raise _not_found(f"Stream {name}")
        stream.trim()
        now = self._kinesis.clock()
        if issued + ITERATOR_SECONDS <= now:
            raise ServiceError("ExpiredIteratorException", "Iterator expired.")
        shard = stream.shards[shard_id]
        if not stream.is_listed(shard):
            raise _not_found(f"Shard {shard_id} in stream {name}")
        if self._limits:
            _count_read(shard, now)
        index = max(index, shard.trimmed)
        end = _page_end(shard, index, min(request.get("Limit", _MAX_RECORDS), _MAX_RECORDS))
        size = _bytes(shard, index, end)
        if self._limits and size > _BYTES_PER_SECOND:
            shard.blocked_until = now + size / _BYTES_PER_SECOND
        behind = now - shard.records[end].arrived if end < len(shard.records) else 0
        rest: dict[str, Any] = {"MillisBehindLatest": max(0, int(behind * 1000))}
        ended = end == len(shard.records) and not shard.is_open
        if ended and not (self.empty_end and end > index):
            rest["ChildShards"] = [_child(s) for s in stream.shards.values() if _is_child(s, shard)]
        else:
            rest["NextShardIterator"] = self._iterator(stream, shard, end)
        return [record.wire for record in shard.records[index:end]], rest

    def _iterator(self, stream: KinesisStream, shard: KinesisShard, index: int) -> str:
        now = self._kinesis.clock()
        return _sealed(stream.name, shard.shard_id, index, stream.created_at, now)

    def _decode_kinesis(self, iterator: str) -> list[Any]:
        return _opened(iterator, "ShardIterator")

    # ------------------------------------------------------------------------------- metrics

    def _datapoints(self, metric: Request, start: float, end: float, period: int) -> dict[int, int]:
        """Sums by the beginning of each period that has data; only all dimensions name a metric.

        A minute is told of when `metric_lag_seconds` have passed since it began.
        """
        if period % MINUTE:
            raise _invalid_parameter(f"Period {period} is no multiple of {MINUTE}")
        given = {d["Name"]: d["Value"] for d in metric.get("Dimensions", [])}
        table = given.pop("TableName", None)
        if (
            metric["Namespace"] != "AWS/DynamoDB"
            or metric["MetricName"] != FAILED_RECORDS
            or given != METRIC_DIMENSIONS
        ):
            return {}
        known_until = self._kinesis.clock() - self._metric_lag
        sums: dict[int, int] = {}
        for minute, count in sorted(self._kinesis.failed.get(table or "", {}).items()):
            if start // MINUTE * MINUTE <= minute < end and minute <= known_until:
                begins = minute // period * period
                sums[begins] = sums.get(begins, 0) + count
        return sums

    def _get_metric_data(self, request: Request) -> Any:
        results = []
        for query in request["MetricDataQueries"]:
            unknown = query.keys() - {"Id", "MetricStat", "ReturnData", "Label"}
            if unknown:
                raise _invalid_parameter(f"the simulator does not model {sorted(unknown)}")
            stat = query["MetricStat"]
            if stat["Stat"] != "Sum":
                raise _invalid_parameter(f"the simulator does not model {stat['Stat']}")
            times = (request["StartTime"], request["EndTime"], stat["Period"])
            points = sorted(
                self._datapoints(stat["Metric"], *times).items(),
                reverse=request.get("ScanBy") != "TimestampAscending",
            )
            if query.get("ReturnData", True):
                results.append(
                    {
                        "Id": query["Id"],
                        "Label": query.get("Label", stat["Metric"]["MetricName"]),
                        "Timestamps": [float(at) for at, _ in points],
                        "Values": [float(count) for _, count in points],
                        "StatusCode": "Complete",
                    }
                )
        return {"MetricDataResults": results, "Messages": []}

    def _get_metric_statistics(self, request: Request) -> Any:
        if request.get("Statistics") != ["Sum"]:
            raise _invalid_parameter(f"the simulator does not model {request.get('Statistics')}")
        times = (request["StartTime"], request["EndTime"], request["Period"])
        points = self._datapoints(request, *times)
        return {
            "Label": request["MetricName"],
            "Datapoints": [
                {"Timestamp": float(at), "Sum": float(count), "Unit": "Count"}
                for at, count in reversed(points.items())
            ],
        }

    def _list_metrics(self, request: Request) -> Any:
        wanted = {d["Name"]: d.get("Value") for d in request.get("Dimensions", [])}
        metrics = []
        for table in self._kinesis.failed:
            has = {"TableName": table, **METRIC_DIMENSIONS}
            if (
                request.get("Namespace", "AWS/DynamoDB") == "AWS/DynamoDB"
                and request.get("MetricName", FAILED_RECORDS) == FAILED_RECORDS
                and all(n in has and value in (None, has[n]) for n, value in wanted.items())
            ):
                dimensions = [{"Name": name, "Value": value} for name, value in has.items()]
                metric = {"Namespace": "AWS/DynamoDB", "MetricName": FAILED_RECORDS}
                metrics.append({**metric, "Dimensions": dimensions})
        return {"Metrics": metrics}


def _invalid_parameter(message: str) -> ServiceError:
    return ServiceError("InvalidParameterValueException", message)


def _count_read(shard: KinesisShard, now: float) -> None:
    """Five reads a second, and none for a while after a large page."""
    shard.asked = [at for at in shard.asked if at > now - 1]
    if len(shard.asked) >= _READS_PER_SECOND or now < shard.blocked_until:
        raise ServiceError(
            "ProvisionedThroughputExceededException",
            f"Rate exceeded for shard {shard.shard_id}",
        )
    shard.asked.append(now)


def _bytes(shard: KinesisShard, start: int, end: int) -> int:
    before = shard.ends[start - 1] if start else 0
    return shard.ends[end - 1] - before if end > start else 0


def _page_end(shard: KinesisShard, start: int, limit: int) -> int:
    most = min(start + limit, len(shard.records))
    if most == start:
        return start
    before = shard.ends[start - 1] if start else 0
    fitting = bisect_right(shard.ends, before + _MAX_BYTES, lo=start, hi=most)
    return max(fitting, start + 1)


def _filtered(stream: KinesisStream, wanted: Request | None) -> list[KinesisShard]:
    """The listed shards that a ShardFilter names."""
    listed = stream.listed()
    kind = wanted["Type"] if wanted else "FROM_TRIM_HORIZON"
    at = (wanted or {}).get("Timestamp", stream.horizon)
    if kind == "AFTER_SHARD_ID":
        return [s for s in listed if s.shard_id > (wanted or {})["ShardId"]]
    if kind == "AT_LATEST":
        return [s for s in listed if s.is_open]
    if kind in ("AT_TRIM_HORIZON", "AT_TIMESTAMP"):
        began = max(at, min((s.opened_at for s in listed), default=at))
        return [s for s in listed if s.opened_at <= began and (s.is_open or s.closed_at >= began)]
    if kind in ("FROM_TRIM_HORIZON", "FROM_TIMESTAMP"):
        return [s for s in listed if s.is_open or s.closed_at >= at]
    raise _invalid(f"Invalid ShardFilter type {kind}")


def _hash_range(shard: KinesisShard) -> dict[str, str]:
    assert shard.high <= HASHES
    return {"StartingHashKey": str(shard.low), "EndingHashKey": str(shard.high - 1)}


def _listed_shard(shard: KinesisShard) -> dict[str, Any]:
    numbers = {"StartingSequenceNumber": str(shard.starting)}
    if shard.ending is not None:
        numbers["EndingSequenceNumber"] = str(shard.ending)
    names = ("ParentShardId", "AdjacentParentShardId")
    return {
        "ShardId": shard.shard_id,
        **dict(zip(names, shard.parents, strict=False)),
        "HashKeyRange": _hash_range(shard),
        "SequenceNumberRange": numbers,
    }


def _is_child(shard: KinesisShard, parent: KinesisShard) -> bool:
    return parent.shard_id in shard.parents


def _child(shard: KinesisShard) -> dict[str, Any]:
    return {
        "ShardId": shard.shard_id,
        "ParentShards": list(shard.parents),
        "HashKeyRange": _hash_range(shard),
    }


def _sealed(*inside: Any) -> str:
    return base64.b64encode(json.dumps(inside).encode()).decode()


def _opened(text: str, what: str) -> list[Any]:
    try:
        return json.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise _invalid(f"Invalid {what}") from None
