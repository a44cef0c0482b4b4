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
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cdc_pipeline.sandbox.aws.exports.files import FailedError
from cdc_pipeline.sandbox.aws.firehose.object_names import evaluate_prefix, local_time, object_name
from cdc_pipeline.sandbox.aws.firehose.parquet import Conversion, UnconvertibleError
from cdc_pipeline.sandbox.aws.firehose.records import (
    Buffer,
    Failure,
    Record,
    batches,
    concatenate,
    with_data,
)
from cdc_pipeline.sandbox.aws.firehose.stream_settings import (
    ERROR_TYPE,
    conversion_of,
    destination_of,
    processors_of,
    with_checks,
)
from cdc_pipeline.sandbox.aws.firehose.transformation import lambda_bytes, transform_by_lambda

_STEP_SECONDS = 0.1
PROCESSING_FAILED = "processing-failed"
CONVERSION_FAILED = "format-conversion-failed"

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _State:
    """One delivery stream: its waiting records, and its position in each shard of its source."""

    stream: dict[str, Any]
    main: Buffer = field(default_factory=Buffer)
    backup: Buffer = field(default_factory=Buffer)
    read: dict[str, str] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        self.main.records.append(record)
        if destination_of(self.stream).get("S3BackupMode") == "Enabled":
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
        module._create_delivery_stream = with_checks(module._create_delivery_stream)
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
        config = destination_of(state.stream)
        if not config:
            return
        for record in self._arrivals(state):
            state.add(record)
        if state.backup.due(backup := config.get("S3BackupConfiguration") or {}):
            records = list(state.backup.records)
            await self._write(state.stream, backup, records, concatenate(records))
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
        body, unconverted = concatenate(transformed), []
        if conversion := conversion_of(config):
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
        for processor in processors_of(config):
            if processor["Type"] == "AppendDelimiterToRecord":
                records = [with_data(r, r.data + b"\n") for r in records]
                continue
            taken: list[Record] = []
            for batch in batches(records, lambda_bytes(processor)):
                good, bad = await asyncio.to_thread(transform_by_lambda, stream, processor, batch)
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
        extension = ".parquet" if conversion_of(config) else ""
        if config.get("CompressionFormat") == "GZIP":
            extension, body = ".gz", gzip.compress(body, compresslevel=1)
        extension = config.get("FileExtension") or extension
        oldest = local_time(config, records[0].arrived_ms)
        prefix = evaluate_prefix(config.get("Prefix", ""), oldest)
        await self._store(config, f"{prefix}{object_name(stream, oldest)}{extension}", body)

    async def _write_failures(
        self, stream: dict[str, Any], config: dict[str, Any], kind: str, failures: list[Failure]
    ) -> None:
        oldest = local_time(config, min(failure.record.arrived_ms for failure in failures))
        prefix = config.get("ErrorOutputPrefix") or config.get("Prefix", "")
        if ERROR_TYPE not in prefix:
            prefix = f"{prefix}{ERROR_TYPE}/"
        key = evaluate_prefix(prefix, oldest, error_type=kind) + object_name(stream, oldest)
        lines = [json.dumps(_document(failure)) + "\n" for failure in failures]
        await self._store(config, key, "".join(lines).encode())

    async def _store(self, config: dict[str, Any], key: str, body: bytes) -> None:
        bucket = self._firehose._s3_bucket_from_arn(config["BucketARN"])
        headers = {"host": "127.0.0.1", "content-type": "application/octet-stream"}
        answer = await self._s3.handle_request("PUT", f"/{bucket}/{key}", headers, body, {})
        if answer[0] >= 300:
            raise FailedError("S3", f"S3 answered {answer[0]} for {bucket}/{key}")


def _document(failure: Failure) -> dict[str, Any]:
    return {
        **failure.details,
        "arrivalTimestamp": failure.record.arrived_ms,
        "attemptEndingTimestamp": _now_ms(),
        "rawData": base64.b64encode(failure.record.data).decode(),
    }


def _sequence_number(entry: dict[str, Any]) -> str:
    return entry["SequenceNumber"]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
