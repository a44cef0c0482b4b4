"""Firehose's deliveries to S3 as AWS makes them: buffered, transformed, many records per object.

ministack 1.5.33 writes one object per record at once and drops failures. Here a stream's records
wait for its buffering hints; then Lambda transforms them in batches, and they become one object,
beside one object per kind of failure. The original records go to the backup with its own hints.
Object names and error documents: reference of AWS, "Amazon S3 object name format" and "Data
transformation". Unsupported settings are refused when a stream is created.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from cdc_pipeline.sandbox.aws.dynamodb.responses import Response
from cdc_pipeline.sandbox.aws.exports.files import FailedError
from cdc_pipeline.sandbox.aws.firehose.parquet import Conversion, UnconvertibleError

_STEP_SECONDS = 0.1
_MB = 1024 * 1024
# Limit of an answer; Lambda itself refuses to return more.
_LARGEST_ANSWER = 6 * _MB
_COMPRESSIONS = ("UNCOMPRESSED", "GZIP")
_PROCESSORS = ("Lambda", "AppendDelimiterToRecord")
_ERROR_TYPE = "!{firehose:error-output-type}"
PROCESSING_FAILED = "processing-failed"
CONVERSION_FAILED = "format-conversion-failed"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """A waiting record; `metadata`: kinesisRecordMetadata of records from Kinesis."""

    record_id: str
    data: bytes
    arrived_ms: int
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A record for the error prefix, with the other fields of its document."""

    record: Record
    details: dict[str, Any]


@dataclass(slots=True)
class Buffer:
    """Waiting records, oldest first; removed after their delivery."""

    records: list[Record] = field(default_factory=list)

    def due(self, config: dict[str, Any]) -> bool:
        """Return whether there are enough bytes, or the oldest record has waited long enough."""
        if not self.records:
            return False
        hints = config.get("BufferingHints") or {}
        waited = time.time() - self.records[0].arrived_ms / 1000
        size = sum(len(record.data) for record in self.records)
        return waited >= int(hints.get("IntervalInSeconds", 300)) or size >= _MB * int(
            hints.get("SizeInMBs", 5)
        )


@dataclass(slots=True)
class _State:
    """One delivery stream: its waiting records, and its position in each shard of its source."""

    stream: dict[str, Any]
    main: Buffer = field(default_factory=Buffer)
    backup: Buffer = field(default_factory=Buffer)
    read: dict[str, str] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        self.main.records.append(record)
        if _destination(self.stream).get("S3BackupMode") == "Enabled":
            self.backup.records.append(record)


class Deliveries:
    """Delivers the records of all streams with an S3 destination; one task does it all."""

    def __init__(self, firehose: Any, kinesis: Any, glue: Any, s3: Any) -> None:
        self._firehose = firehose
        self._kinesis = kinesis
        self._glue = glue
        self._s3 = s3
        self._states: dict[str, _State] = {}

    def install(self) -> None:
        """Replace the emulator's functions; once per process."""
        module = self._firehose
        module._deliver_records_to_s3 = self._put
        # Records are read from the source's shards instead, whatever their writer.
        module.ingest_from_kinesis_source = lambda *_: None
        module._create_delivery_stream = _checked(module._create_delivery_stream)
        module._HANDLERS["CreateDeliveryStream"] = module._create_delivery_stream

    async def run(self) -> None:
        """Deliver due records for ever. A failed delivery is retried, as in AWS."""
        from ministack.core.responses import request_scope

        while True:
            await asyncio.sleep(_STEP_SECONDS)
            for (account, region, _), stream in list(self._firehose._streams.all_items()):
                with request_scope(account, region):
                    try:
                        await self._serve(self._state(stream))
                    except Exception:  # one stream must not end the deliveries of all
                        _logger.exception("Firehose %s: tried again", stream["name"])

    def _state(self, stream: dict[str, Any]) -> _State:
        known = self._states.get(stream["arn"])
        if known is None or known.stream is not stream:
            known = self._states[stream["arn"]] = _State(stream)
        return known

    def _put(self, stream: dict[str, Any], _: Any, records: list[tuple[str, bytes]]) -> None:
        """Handle PutRecord and PutRecordBatch; called by the emulator."""
        for record_id, data in records:
            self._state(stream).add(Record(record_id, data, _now_ms()))

    async def _serve(self, state: _State) -> None:
        config = _destination(state.stream)
        if not config:
            return
        for record in self._arrivals(state):
            state.add(record)
        if state.backup.due(backup := config.get("S3BackupConfiguration") or {}):
            records = list(state.backup.records)
            await self._write(state.stream, backup, records, _concatenated(records))
            del state.backup.records[: len(records)]
        if state.main.due(config):
            records = list(state.main.records)
            await self._deliver(state.stream, config, records)
            del state.main.records[: len(records)]

    def _arrivals(self, state: _State) -> Iterator[Record]:
        """Return the new records in the shards of the stream's Kinesis source."""
        source = state.stream.get("kinesis_source") or {}
        stream = self._kinesis._resolve_stream_by_arn(source.get("KinesisStreamARN", ""))
        start_ms = int(source.get("DeliveryStartTimestamp", 0) * 1000)
        for shard_id, shard in (stream or {"shards": {}})["shards"].items():
            after = state.read.get(shard_id, "")
            records = shard["records"]
            for entry in records[bisect_right(records, after, key=_sequence_number) :]:
                state.read[shard_id] = _sequence_number(entry)
                arrived_ms = round(entry["ApproximateArrivalTimestamp"] * 1000)
                if arrived_ms >= start_ms:
                    metadata = {
                        "sequenceNumber": _sequence_number(entry),
                        "subsequenceNumber": 0,
                        "partitionKey": entry["PartitionKey"],
                        "shardId": shard_id,
                        "approximateArrivalTimestamp": arrived_ms,
                    }
                    data = base64.b64decode(entry["Data"])
                    yield Record(self._firehose._record_id(), data, arrived_ms, metadata)

    async def _deliver(
        self, stream: dict[str, Any], config: dict[str, Any], records: list[Record]
    ) -> None:
        transformed, failed = await self._transformed(stream, config, records)
        body, unconverted = _concatenated(transformed), []
        if conversion := _conversion(config):
            # In a thread, like the function, so that other requests are answered meanwhile.
            body, unconverted = await asyncio.to_thread(self._converted, conversion, transformed)
        if body:
            await self._write(stream, config, records, body)
        for kind, failures in ((PROCESSING_FAILED, failed), (CONVERSION_FAILED, unconverted)):
            if failures:
                await self._write_failures(stream, config, kind, failures)

    async def _transformed(
        self, stream: dict[str, Any], config: dict[str, Any], records: list[Record]
    ) -> tuple[list[Record], list[Failure]]:
        """Return the processors' output, and the records they failed on."""
        failed: list[Failure] = []
        for processor in _processors(config):
            if processor["Type"] == "AppendDelimiterToRecord":
                records = [_with_data(r, r.data + b"\n") for r in records]
                continue
            taken: list[Record] = []
            for batch in _batches(records, _lambda_bytes(processor)):
                good, bad = await asyncio.to_thread(_processed, stream, processor, batch)
                taken += good
                failed += bad
            records = taken
        return records, failed

    def _converted(
        self, conversion: dict[str, Any], records: list[Record]
    ) -> tuple[bytes, list[Failure]]:
        from ministack.core.responses import get_account_id, get_region

        schema = conversion["SchemaConfiguration"]
        name = f"{schema['DatabaseName']}/{schema['TableName']}".lower()
        conversion_to = Conversion(self._glue._tables.get(name))
        failed = []
        for record in records:
            try:
                conversion_to.add(record.data)
            except UnconvertibleError as error:
                table = {
                    "catalogId": schema.get("CatalogId") or get_account_id(),
                    "databaseName": schema["DatabaseName"],
                    "tableName": schema["TableName"],
                    "region": schema.get("Region") or get_region(),
                    "versionId": schema.get("VersionId", "LATEST"),
                    "catalogArn": None,
                }
                metadata = record.metadata or {}
                details = {
                    "attemptsMade": 1,
                    "lastErrorCode": error.code,
                    "lastErrorMessage": str(error),
                    "sequenceNumber": metadata.get("sequenceNumber"),
                    "subSequenceNumber": metadata.get("subsequenceNumber"),
                    "dataCatalogTable": table,
                }
                failed.append(Failure(record, details))
        return conversion_to.parquet(), failed

    async def _write(
        self, stream: dict[str, Any], config: dict[str, Any], records: list[Record], body: bytes
    ) -> None:
        extension = ".parquet" if _conversion(config) else ""
        if config.get("CompressionFormat") == "GZIP":
            extension, body = ".gz", gzip.compress(body, compresslevel=1)
        extension = config.get("FileExtension") or extension
        oldest = _time(config, records[0].arrived_ms)
        prefix = evaluated(config.get("Prefix", ""), oldest)
        await self._store(config, f"{prefix}{_object_name(stream, oldest)}{extension}", body)

    async def _write_failures(
        self, stream: dict[str, Any], config: dict[str, Any], kind: str, failures: list[Failure]
    ) -> None:
        oldest = _time(config, min(failure.record.arrived_ms for failure in failures))
        prefix = config.get("ErrorOutputPrefix") or config.get("Prefix", "")
        if _ERROR_TYPE not in prefix:
            prefix = f"{prefix}{_ERROR_TYPE}/"
        key = evaluated(prefix, oldest, error_type=kind) + _object_name(stream, oldest)
        lines = [json.dumps(_document(failure)) + "\n" for failure in failures]
        await self._store(config, key, "".join(lines).encode())

    async def _store(self, config: dict[str, Any], key: str, body: bytes) -> None:
        bucket = self._firehose._s3_bucket_from_arn(config["BucketARN"])
        headers = {"host": "127.0.0.1", "content-type": "application/octet-stream"}
        answer = await self._s3.handle_request("PUT", f"/{bucket}/{key}", headers, body, {})
        if answer[0] >= 300:
            raise FailedError("S3", f"S3 answered {answer[0]} for {bucket}/{key}")


def evaluated(template: str, moment: datetime, *, error_type: str = "") -> str:
    """Return a prefix with its expressions evaluated; a prefix without a time gets one appended.

    Java's week-year YYYY, a frequent mistake, gives the year of the week.
    """

    def fill(match: re.Match[str]) -> str:
        kind, text = match.groups()
        if kind == "timestamp":
            return _java_time(text, moment)
        if text == "random-string":
            return uuid.uuid4().hex[:11]
        return error_type

    prefix = re.sub(r"!\{(timestamp|firehose):([^}]*)\}", fill, template)
    return prefix if "!{timestamp:" in template else f"{prefix}{moment:%Y/%m/%d/%H}/"


def _java_time(pattern: str, moment: datetime) -> str:
    # In the United States a week begins on Sunday, and belongs to the year of its last day.
    week_year = (moment + timedelta(days=6 - (moment.weekday() + 1) % 7)).year
    fields = {
        "yyyy": f"{moment:%Y}",
        "YYYY": str(week_year),
        "MM": f"{moment:%m}",
        "dd": f"{moment:%d}",
        "HH": f"{moment:%H}",
        "mm": f"{moment:%M}",
        "ss": f"{moment:%S}",
    }

    def fill(match: re.Match[str]) -> str:
        return match["quoted"] if match["quoted"] is not None else fields[match[0]]

    return re.sub(rf"'(?P<quoted>[^']*)'|{'|'.join(fields)}", fill, pattern)


def _object_name(stream: dict[str, Any], moment: datetime) -> str:
    return f"{stream['name']}-{stream['version']}-{moment:%Y-%m-%d-%H-%M-%S}-{uuid.uuid4()}"


def _time(config: dict[str, Any], milliseconds: int) -> datetime:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    zone = config.get("CustomTimeZone")
    return moment.astimezone(ZoneInfo(zone)) if zone else moment


def _processed(
    stream: dict[str, Any], processor: dict[str, Any], batch: list[Record]
) -> tuple[list[Record], list[Failure]]:
    """Pass one batch to Lambda; return its output and the records it failed on."""
    arn = _parameter(processor, "LambdaArn", "")
    tries = 1 + int(_parameter(processor, "NumberOfRetries", 3))
    answers: dict[str, Any] = {}
    code = message = ""
    for _ in range(tries):
        answers, code, message = _invoked(stream, arn, batch)
        if not code:
            break
    good: list[Record] = []
    failed: list[Failure] = []
    for record in batch:
        answer = answers.get(record.record_id) or {}
        result = answer.get("result")
        if result == "Ok":
            good.append(_with_data(record, base64.b64decode(answer["data"])))
        elif result != "Dropped":
            default = _UNSUCCESSFUL if result == "ProcessingFailed" else _MISSING
            details = {
                "attemptsMade": tries if code else 1,
                "errorCode": code or default[0],
                "errorMessage": message or default[1],
                "lambdaArn": arn,
            }
            failed.append(Failure(record, details))
    return good, failed


_UNSUCCESSFUL = ("Lambda.ProcessingFailedStatus", "ProcessingFailed status set for record")
_MISSING = (
    "Lambda.MissingRecordId",
    "One or more record Ids were not returned. Ensure that the Lambda function returns all "
    "received record Ids.",
)


def _invoked(
    stream: dict[str, Any], arn: str, batch: list[Record]
) -> tuple[dict[str, Any], str, str]:
    """Return the answer to each record id, or an error's code and message."""
    from ministack.core.responses import get_region
    from ministack.services import lambda_svc

    source = stream.get("kinesis_source")
    event = {
        "invocationId": str(uuid.uuid4()),
        **({"sourceKinesisStreamArn": source["KinesisStreamARN"]} if source else {}),
        "deliveryStreamArn": stream["arn"],
        "region": get_region(),
        "records": [_lambda_record(record) for record in batch],
    }
    function, _ = lambda_svc._get_func_record_for_qualifier(
        *lambda_svc._resolve_name_and_qualifier(arn)
    )
    if function is None:
        return {}, "Lambda.ResourceNotFound", f"The Lambda function was not found: {arn}"
    result = lambda_svc._execute_function(function, event)
    body = result.get("body")
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    if result.get("error") or len(text) > _LARGEST_ANSWER:
        return {}, "Lambda.FunctionError", "The Lambda function returned an error result."
    try:
        answers = json.loads(text)["records"]
        return {answer["recordId"]: answer for answer in answers}, "", ""
    except (KeyError, TypeError, ValueError):
        return {}, "Lambda.JsonProcessingException", "The Lambda function's answer has no records."


def _lambda_record(record: Record) -> dict[str, Any]:
    return {
        "recordId": record.record_id,
        "approximateArrivalTimestamp": record.arrived_ms,
        "data": base64.b64encode(record.data).decode(),
        **({"kinesisRecordMetadata": record.metadata} if record.metadata else {}),
    }


def _document(failure: Failure) -> dict[str, Any]:
    return {
        **failure.details,
        "arrivalTimestamp": failure.record.arrived_ms,
        "attemptEndingTimestamp": _now_ms(),
        "rawData": base64.b64encode(failure.record.data).decode(),
    }


def _checked(original: Callable[..., Response]) -> Callable[..., Response]:
    """Refuse settings that AWS refuses or the sandbox does not support."""

    def create(data: dict[str, Any]) -> Response:
        from ministack.core.responses import error_response_json

        config = data.get("ExtendedS3DestinationConfiguration") or {}
        wrong = _wrong(config) or _wrong(config.get("S3BackupConfiguration") or {})
        if wrong:
            return error_response_json("InvalidArgumentException", wrong, 400)
        return original(data)

    return create


def _wrong(config: dict[str, Any]) -> str | None:
    prefix, error_prefix = config.get("Prefix", ""), config.get("ErrorOutputPrefix", "")
    compression = config.get("CompressionFormat", "UNCOMPRESSED")
    hints = config.get("BufferingHints") or {}
    dynamic = config.get("DynamicPartitioningConfiguration") or {}
    if "!{" in prefix and not error_prefix:
        return "ErrorOutputPrefix cannot be null or empty when Prefix contains expressions"
    if "!{" in error_prefix and _ERROR_TYPE not in error_prefix:
        return f"ErrorOutputPrefix must contain at least one instance of {_ERROR_TYPE}"
    if _conversion(config) and compression != "UNCOMPRESSED":
        return "CompressionFormat must be UNCOMPRESSED when data format conversion is enabled"
    if _conversion(config) and int(hints.get("SizeInMBs", 128)) < 64:
        return "SizeInMBs must be at least 64 when data format conversion is enabled"
    if compression not in _COMPRESSIONS:
        return f"the sandbox compresses with one of {', '.join(_COMPRESSIONS)}"
    if _true(dynamic.get("Enabled", False)):
        return "the sandbox has no dynamic partitioning"
    unknown = {p["Type"] for p in _processors(config)} - set(_PROCESSORS)
    return f"the sandbox has no processors of type {sorted(unknown)}" if unknown else None


def _destination(stream: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the S3 destination, empty for another destination."""
    for destination in stream["destinations"]:
        if destination["type"] in ("ExtendedS3", "S3"):
            return destination["config"]
    return {}


def _conversion(config: dict[str, Any]) -> dict[str, Any] | None:
    conversion = config.get("DataFormatConversionConfiguration")
    return conversion if conversion and _true(conversion.get("Enabled", True)) else None


def _processors(config: dict[str, Any]) -> list[dict[str, Any]]:
    processing = config.get("ProcessingConfiguration") or {}
    return processing.get("Processors") or [] if _true(processing.get("Enabled", False)) else []


def _parameter(processor: dict[str, Any], name: str, default: Any) -> Any:
    for parameter in processor.get("Parameters") or []:
        if parameter["ParameterName"] == name:
            return parameter["ParameterValue"]
    return default


def _lambda_bytes(processor: dict[str, Any]) -> int:
    return int(float(_parameter(processor, "BufferSizeInMBs", 1)) * _MB)


def _batches(records: list[Record], most_bytes: int) -> Iterator[list[Record]]:
    """Split records into batches by a limit of bytes, with at least one record each."""
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and size + len(record.data) > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.data)
    if batch:
        yield batch


def _with_data(record: Record, data: bytes) -> Record:
    return Record(record.record_id, data, record.arrived_ms, record.metadata)


def _concatenated(records: list[Record]) -> bytes:
    return b"".join(record.data for record in records)


def _sequence_number(entry: dict[str, Any]) -> str:
    return entry["SequenceNumber"]


def _true(value: Any) -> bool:
    """Return a boolean of a template, whose values may be text."""
    return str(value).lower() == "true"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
