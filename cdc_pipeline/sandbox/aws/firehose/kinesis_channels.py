"""Kinesis channels as AWS describes them: operations, deliveries to S3, dead letters, metrics.

ministack 1.5.33 has no channels. Shapes: botocore's model of Kinesis; limits, keys and metrics: the
Kinesis guide's pages on data delivery. What AWS leaves open is set by commands to the sandbox: the
delimiter, and records that become dead letters. Other than in AWS, one second here is five minutes
there: a channel with the shortest freshness, 300 s, delivers after one second.
"""

import asyncio
import base64
import gzip
import json
import logging
import re
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.responses import RefusedError, Response, answering
from cdc_pipeline.sandbox.aws.exports.files import FailedError

FASTER = 300
"""Seconds of AWS's freshness per second in the sandbox."""
_STEP_SECONDS = 0.1
_LEAST, _MOST = 300, 900
_EXTENSIONS = {"NONE": "", "GZIP": ".gz", "ZSTD": ".zst"}
_ENDINGS = re.compile(r"!\{extension(?::([^}]*))?\}$")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Record:
    stream_arn: str
    shard_id: str
    sequence_number: str
    data: bytes
    arrived: float


@dataclass(slots=True)
class _Channel:
    """A channel: its description, its waiting records, and its position in each shard."""

    described: dict[str, Any]
    account: str
    region: str
    waiting: list[_Record] = field(default_factory=list)
    read: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass
class Faults:
    """Settings that AWS leaves open, by tests: delimiter of records, number of dead letters."""

    delimiter: str = ""
    dead_letters: int = 0


class Channels:
    """All channels; one task delivers for all of them."""

    def __init__(self, kinesis: Any, s3: Any, cloudwatch: Any) -> None:
        self._kinesis, self._s3, self._cloudwatch = kinesis, s3, cloudwatch
        self._channels: dict[str, _Channel] = {}
        self.faults = Faults()

    def install(self) -> None:
        """Handle the operations of channels before the emulator's; once per process."""
        module, original = self._kinesis, self._kinesis.handle_request
        operations = {
            "CreateChannel": answering(self._create),
            "DescribeChannel": answering(self._describe),
            "ListChannels": answering(self._list),
            "UpdateChannel": answering(self._update),
            "DeleteChannel": answering(self._delete),
        }

        async def handle(method: str, path: str, headers: Any, body: bytes, query: Any) -> Any:
            operation = operations.get(headers.get("x-amz-target", "").rpartition(".")[2])
            if operation is not None:
                return operation(json.loads(body or b"{}"))
            return await original(method, path, headers, body, query)

        module.handle_request = handle
        module._delete_stream = self._keeping_sources(module._delete_stream)

    def _keeping_sources(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def delete(data: dict[str, Any]) -> Response:
            from ministack.core.responses import error_response_json

            _, stream = self._kinesis._resolve_stream(data)
            arn = stream["StreamARN"] if stream else None
            if any(arn in _streams(c.described) for c in self._channels.values()):
                return error_response_json("ResourceInUseException", "it has a channel", 400)
            return original(data)

        return delete

    # Operations

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        from ministack.core.responses import get_account_id, get_region

        if "S3TablesDestinationConfiguration" in request:
            raise RefusedError("InvalidArgumentException", "the sandbox has no S3 Tables channels")
        target = request["S3DestinationConfiguration"]
        freshness = target.get("DataFreshnessInSeconds", _LEAST)
        if not _LEAST <= freshness <= _MOST:
            raise RefusedError("InvalidArgumentException", "DataFreshnessInSeconds is 300 to 900")
        streams = [self._source(one) for one in request["StreamConfigurationList"]]
        name = request["ChannelName"]
        account, region = get_account_id(), get_region()
        if any(
            c.described["ChannelName"] == name and (c.account, c.region) == (account, region)
            for c in self._channels.values()
        ):
            raise RefusedError("ResourceInUseException", f"channel {name} exists")
        taken = {arn for c in self._channels.values() for arn in _streams(c.described)}
        if taken & {one["StreamARN"] for one in streams}:
            raise RefusedError("LimitExceededException", "a stream has one channel to S3")
        channel_id = uuid.uuid4().hex[:20]
        storage = dict(target["StorageConfiguration"])
        ending = "!{extension}" if storage["CompressionType"] != "NONE" else ""
        template = storage.setdefault(
            "OutputKeyTemplate",
            "kinesis-channel/!{channel-name}/!{channel-id}/!{yyyy}/!{MM}/!{dd}/!{HH}/"
            "!{channel-name}-!{channel-id}-!{yyyy}-!{MM}-!{dd}-!{HH}-!{mm}" + ending,
        )
        if ending and not _ENDINGS.search(template):
            raise RefusedError("InvalidArgumentException", "a compressed key ends in !{extension}")
        errors = dict(target.get("DeadLetterQueueS3Configuration") or {})
        errors.setdefault("BucketARN", storage["BucketARN"])
        errors.setdefault("ExpectedBucketOwner", storage["ExpectedBucketOwner"])
        errors.setdefault("ErrorOutputPrefix", f"kinesis-channel/errors/{name}/{channel_id}/")
        described = {
            "ChannelName": name,
            "ChannelARN": f"arn:aws:kinesis:{region}:{account}:channel/{channel_id}",
            "ChannelId": channel_id,
            "ChannelStatus": "ACTIVE",
            "ChannelCreationTimestamp": time.time(),
            "ServiceExecutionRoleARN": request["ServiceExecutionRoleARN"],
            "StreamConfigurationList": streams,
            "S3DestinationConfiguration": {
                "DataFreshnessInSeconds": freshness,
                "StorageConfiguration": {"StorageClass": "STANDARD", **storage},
                "DeadLetterQueueS3Configuration": errors,
            },
            "LoggingConfiguration": request.get("LoggingConfiguration")
            or {"CloudWatchLogs": {"Enabled": False}},
        }
        channel = _Channel(described, account, region)
        # No backfill: only records written from now on.
        for one in streams:
            stream = self._kinesis._resolve_stream_by_arn(one["StreamARN"])
            for shard_id, shard in stream["shards"].items():
                last = shard["records"][-1]["SequenceNumber"] if shard["records"] else ""
                channel.read[one["StreamARN"], shard_id] = last
        self._channels[described["ChannelARN"]] = channel
        return {"ChannelDescription": described}

    def _source(self, requested: dict[str, Any]) -> dict[str, Any]:
        arn = requested["StreamARN"]
        stream = self._kinesis._resolve_stream_by_arn(arn)
        if stream is None:
            raise RefusedError("ResourceNotFoundException", f"Stream {arn} not found")
        mode = (stream.get("StreamModeDetails") or {}).get("StreamMode")
        if mode != "ON_DEMAND":
            raise RefusedError("InvalidArgumentException", "channels are for on-demand streams")
        if stream.get("KeyId") == "alias/aws/kinesis":
            raise RefusedError("InvalidArgumentException", "not for streams with AWS's own key")
        kind = requested["RecordConfiguration"]["RecordFormatType"]
        if kind == "GSR_JSON":
            raise RefusedError("InvalidArgumentException", "the sandbox has no schema registry")
        created = stream.get("StreamCreationTimestamp") or time.time()
        return {**requested, "StreamCreationTimestamp": created}

    def _found(self, request: dict[str, Any]) -> _Channel:
        arn = request["ChannelARN"]
        if arn not in self._channels:
            raise RefusedError("ResourceNotFoundException", f"Channel {arn} not found")
        return self._channels[arn]

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"ChannelDescription": self._found(request).described}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        from ministack.core.responses import get_account_id, get_region

        arns = {one["StreamARN"] for one in request.get("StreamFilter") or ()}
        own = (get_account_id(), get_region())
        names = ("ChannelName", "ChannelARN", "ChannelId", "ChannelStatus")
        summaries = [
            {
                **{name: c.described[name] for name in (*names, "ChannelCreationTimestamp")},
                "ChannelDestinationType": "S3",
                "Streams": [
                    {name: s[name] for name in ("StreamARN", "StreamCreationTimestamp")}
                    for s in c.described["StreamConfigurationList"]
                ],
            }
            for c in self._channels.values()
            if (c.account, c.region) == own and (not arns or arns & set(_streams(c.described)))
        ]
        return {"ChannelSummaries": summaries}

    def _update(self, request: dict[str, Any]) -> dict[str, Any]:
        channel = self._found(request)
        target = request.get("S3DestinationConfiguration")
        if target:
            freshness = target["DataFreshnessInSeconds"]
            if not _LEAST <= freshness <= _MOST:
                raise RefusedError("InvalidArgumentException", "freshness is 300 to 900 seconds")
            known = channel.described["S3DestinationConfiguration"]
            known["DataFreshnessInSeconds"] = freshness
        return {"ChannelDescription": channel.described}

    def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        self._found(request)
        del self._channels[request["ChannelARN"]]
        return {}

    # Deliveries

    async def run(self) -> None:
        """Deliver due records for ever. A failed delivery is retried, as in AWS."""
        from ministack.core.responses import request_scope

        while True:
            await asyncio.sleep(_STEP_SECONDS)
            for channel in list(self._channels.values()):
                with request_scope(channel.account, channel.region):
                    try:
                        await self._serve(channel)
                    except Exception:  # one channel must not end the deliveries of all
                        name = channel.described["ChannelName"]
                        _logger.exception("channel %s: tried again", name)

    async def _serve(self, channel: _Channel) -> None:
        self._read(channel)
        if not channel.waiting:
            return
        target = channel.described["S3DestinationConfiguration"]
        age = time.time() - channel.waiting[0].arrived
        if age < target["DataFreshnessInSeconds"] / FASTER:
            return
        batch = list(channel.waiting)
        formats = {
            one["StreamARN"]: one["RecordConfiguration"]["RecordFormatType"]
            for one in channel.described["StreamConfigurationList"]
        }
        good: list[_Record] = []
        failed: list[_Record] = []
        for record in batch:
            give_up = self.faults.dead_letters > 0
            self.faults.dead_letters -= give_up
            sound = not give_up and _is_sound(record.data, formats[record.stream_arn])
            (good if sound else failed).append(record)
        for arn in _streams(channel.described):
            await self._deliver(channel, arn, [r for r in good if r.stream_arn == arn])
        if failed:
            await self._give_up(channel, failed)
        del channel.waiting[: len(batch)]
        self._measure(channel, batch, good, failed, age)

    def _read(self, channel: _Channel) -> None:
        for arn in _streams(channel.described):
            stream = self._kinesis._resolve_stream_by_arn(arn)
            for shard_id, shard in (stream or {"shards": {}})["shards"].items():
                after = channel.read.get((arn, shard_id), "")
                records = shard["records"]
                for entry in records[bisect_right(records, after, key=_sequence_number) :]:
                    channel.read[arn, shard_id] = _sequence_number(entry)
                    channel.waiting.append(
                        _Record(
                            arn,
                            shard_id,
                            _sequence_number(entry),
                            base64.b64decode(entry["Data"]),
                            entry["ApproximateArrivalTimestamp"],
                        )
                    )

    async def _deliver(self, channel: _Channel, stream_arn: str, records: list[_Record]) -> None:
        if not records:
            return
        storage = channel.described["S3DestinationConfiguration"]["StorageConfiguration"]
        end = self.faults.delimiter.encode()
        body = b"".join(record.data + end for record in records)
        if storage["CompressionType"] == "GZIP":
            body = gzip.compress(body, compresslevel=1)
        elif storage["CompressionType"] == "ZSTD":
            import pyarrow as pa

            body = pa.compress(body, codec="zstd", asbytes=True)
        key = key_of(channel.described, stream_arn, datetime.now(UTC))
        await self._put(storage["BucketARN"], key, body)

    async def _give_up(self, channel: _Channel, records: list[_Record]) -> None:
        target = channel.described["S3DestinationConfiguration"]
        errors = target["DeadLetterQueueS3Configuration"]
        letters = [
            {
                "streamArn": record.stream_arn,
                "shardId": record.shard_id,
                "sequenceNumber": record.sequence_number,
                "errorCode": "InvalidRecord",
                "errorMessage": "the record could not be delivered",
            }
            for record in records
        ]
        name = f"{datetime.now(UTC):%Y/%m/%d/%H}/{uuid.uuid4()}.json"
        body = "".join(json.dumps(one) + "\n" for one in letters).encode()
        await self._put(errors["BucketARN"], errors["ErrorOutputPrefix"] + name, body)

    def _measure(
        self,
        channel: _Channel,
        batch: list[_Record],
        good: list[_Record],
        failed: list[_Record],
        age: float,
    ) -> None:
        for arn in _streams(channel.described):
            where = {
                "StreamName": arn.rpartition("/")[2],
                "ChannelName": channel.described["ChannelName"],
                "ChannelId": channel.described["ChannelId"],
            }
            counts = (("", batch), ("Successful", good), ("Failed", failed))
            for kind, records in counts:
                number = sum(record.stream_arn == arn for record in records)
                name = f"DeliveryToS3.{kind}RecordCount"
                self._cloudwatch.record_metric("AWS/Kinesis", name, number, "Count", where)
            name = "DeliveryToS3.DataFreshness"
            self._cloudwatch.record_metric("AWS/Kinesis", name, age, "Seconds", where)

    async def _put(self, bucket_arn: str, key: str, body: bytes) -> None:
        bucket = bucket_arn.rpartition(":")[2]
        headers = {"host": "127.0.0.1", "content-type": "application/octet-stream"}
        answer = await self._s3.handle_request("PUT", f"/{bucket}/{key}", headers, body, {})
        if answer[0] >= 300:
            raise FailedError("S3", f"S3 answered {answer[0]} for {bucket}/{key}")


def key_of(described: dict[str, Any], stream_arn: str, moment: datetime) -> str:
    """Return the key of an object: the filled template, a unique suffix, and the extension."""
    storage = described["S3DestinationConfiguration"]["StorageConfiguration"]
    template = storage["OutputKeyTemplate"]
    ending = _ENDINGS.search(template)
    extension = _EXTENSIONS[storage["CompressionType"]]
    extension = f"{ending[1] or ''}{extension}" if ending else ""
    names = {
        "channel-name": described["ChannelName"],
        "channel-id": described["ChannelId"],
        "stream-name": stream_arn.rpartition("/")[2],
        **{name: f"{moment:{form}}" for name, form in _TIMES},
    }
    stem = template[: ending.start()] if ending else template
    filled = re.sub(r"!\{([^}]*)\}", lambda m: names[m[1]], stem)
    return f"{filled}-{uuid.uuid4()}{extension}"


_TIMES = (("yyyy", "%Y"), ("yy", "%y"), ("MM", "%m"), ("dd", "%d"), ("HH", "%H"), ("mm", "%M"))


def _is_sound(data: bytes, kind: str) -> bool:
    try:
        if kind == "JSON":
            json.loads(data)
        elif kind == "STRING":
            data.decode()
    except ValueError:
        return False
    return True


def _streams(described: dict[str, Any]) -> list[str]:
    return [one["StreamARN"] for one in described["StreamConfigurationList"]]


def _sequence_number(entry: dict[str, Any]) -> str:
    return entry["SequenceNumber"]
