"""Point-in-time recovery and full exports to S3, which the emulator lacks.

Layout, names, field order and gzip header are those of real exports of January 2026. What AWS does
not document is decided here and said in docs/sandbox.md. Incremental exports need nothing but
`TableJournal.changes`.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import struct
import threading
import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.sandbox.journal import Change, Clock, Item, TableJournal, roll_back
from cdc_pipeline.sandbox.streams import Writes

Response = tuple[int, dict[str, str], bytes]

_DAY_MICROS = 24 * 3600 * 1_000_000
# ClientToken: "valid for 8 hours after the first request that uses it is completed".
_TOKEN_MICROS = 8 * 3600 * 1_000_000
_DEFAULT_RECOVERY_DAYS = 35
_PAGE_LIMIT = 25
_ITEMS_PER_FILE = 10_000
_DESCRIBED = (
    "ClientToken",
    "S3Bucket",
    "S3BucketOwner",
    "S3Prefix",
    "S3SseAlgorithm",
    "S3SseKmsKeyId",
)


class RefusedError(Exception):
    """A request that DynamoDB answers with an error code and a message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _FailedError(Exception):
    """An export that was accepted and cannot be finished: FailureCode and FailureMessage."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Export:
    """One accepted export: the ExportDescription it answers with, and what it started from."""

    description: dict[str, Any]
    request: dict[str, Any]
    end_micros: int | None = None

    @property
    def arn(self) -> str:
        """Its ARN, which ends in the ExportId."""
        return self.description["ExportArn"]

    @property
    def folder(self) -> str:
        """`<S3Prefix>/AWSDynamoDB/<ExportId>`, without the prefix if there is none."""
        prefix = self.description.get("S3Prefix")
        tail = f"AWSDynamoDB/{self.arn.rsplit('/', 1)[1]}"
        return f"{prefix}/{tail}" if prefix else tail


@dataclass(frozen=True, slots=True)
class DataFile:
    """One compressed data file of an export and what the manifest says of it."""

    name: str
    body: bytes
    item_count: int
    item_bytes: int


class Exports:
    """Answers the export and continuous-backup operations in place of the emulator.

    `put_object(bucket, key, body, headers)` writes to the sandbox's S3 and returns the ETag; it is
    awaited on the event loop that serves requests.
    """

    def __init__(
        self,
        dynamodb: Any,
        writes: Writes,
        clock: Clock,
        put_object: Callable[..., Any],
        *,
        delay_seconds: float,
    ) -> None:
        self._dynamodb = dynamodb
        self._writes = writes
        self._clock = clock
        self._put_object = put_object
        self._delay_seconds = delay_seconds
        self._exports: dict[str, Export] = {}
        self._recovery_days: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = threading.Event()

    def install(self) -> None:
        """Replace the emulator's handlers; once per process."""
        module = self._dynamodb
        self._update_backups = module._update_continuous_backups
        self._delete_table = module._delete_table
        self._reset = module.reset
        module._export_table_to_point_in_time = _answering(self._start)
        module._describe_export = _answering(self._describe)
        module._list_exports = _answering(self._list)
        module._describe_continuous_backups = _answering(self._describe_backups)
        module._update_continuous_backups = _answering(self._change_backups)
        module._delete_table = self._forget_table
        module.reset = self._forget_all

    def stop(self) -> None:
        """Abandon running exports, for a quick shutdown."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()

    # Continuous backups

    def _table(self, data: dict[str, Any]) -> dict[str, Any]:
        name = self._dynamodb._normalize_table_name(data.get("TableName"))
        table = self._dynamodb._tables.get(name)
        if table is None:
            raise RefusedError("TableNotFoundException", f"Table not found: {name}")
        return table

    def _change_backups(self, data: dict[str, Any]) -> dict[str, Any]:
        table = self._table(data)
        specification = data.get("PointInTimeRecoverySpecification") or {}
        enabled = bool(specification.get("PointInTimeRecoveryEnabled"))
        days = specification.get("RecoveryPeriodInDays", _DEFAULT_RECOVERY_DAYS)
        if not 1 <= days <= _DEFAULT_RECOVERY_DAYS:
            raise RefusedError(
                "ValidationException", "RecoveryPeriodInDays must be between 1 and 35"
            )
        self._update_backups(data)
        table_id = table["TableId"]
        self._recovery_days[table_id] = days
        if not enabled:
            # Turning recovery off loses its history, in AWS too.
            self._writes.journals.pop(table_id, None)
        elif table_id not in self._writes.journals:
            self._writes.journals[table_id] = TableJournal(self._clock.tick())
        return self._describe_backups(data)

    def _describe_backups(self, data: dict[str, Any]) -> dict[str, Any]:
        table = self._table(data)
        journal = self._writes.journals.get(table["TableId"])
        recovery: dict[str, Any] = {"PointInTimeRecoveryStatus": "DISABLED"}
        if journal is not None:
            recovery = {
                "PointInTimeRecoveryStatus": "ENABLED",
                "RecoveryPeriodInDays": self._days(table["TableId"]),
                # Up to the next millisecond: the time reported must itself be restorable.
                "EarliestRestorableDateTime": -(-self._earliest(table) // 1000) / 1000,
                "LatestRestorableDateTime": self._clock.now() // 1000 / 1000,
            }
        return {
            "ContinuousBackupsDescription": {
                "ContinuousBackupsStatus": "ENABLED",
                "PointInTimeRecoveryDescription": recovery,
            }
        }

    def _days(self, table_id: str) -> int:
        return self._recovery_days.get(table_id, _DEFAULT_RECOVERY_DAYS)

    def _earliest(self, table: dict[str, Any]) -> int:
        window = self._days(table["TableId"]) * _DAY_MICROS
        enabled = self._writes.journals[table["TableId"]].enabled_micros
        return max(enabled, self._clock.now() - window)

    def _forget_table(self, data: dict[str, Any]) -> Response:
        name = self._dynamodb._normalize_table_name(data.get("TableName"))
        table = self._dynamodb._tables.get(name)
        response = self._delete_table(data)
        if response[0] == 200 and table is not None:
            self._writes.journals.pop(table["TableId"], None)
            self._writes.ttl.configure(table, None)
        return response

    def _forget_all(self) -> None:
        self._reset()
        self._writes.clear()
        self._exports.clear()
        self._recovery_days.clear()

    # Exports

    def _start(self, data: dict[str, Any]) -> dict[str, Any]:
        for name in ("TableArn", "S3Bucket"):
            if not data.get(name):
                raise RefusedError("ValidationException", f"{name} must not be null or empty")
        request = {key: value for key, value in data.items() if key != "ClientToken"}
        known = self._by_token(data.get("ClientToken"))
        if known is not None:
            if known.request != request:
                raise RefusedError(
                    "ExportConflictException",
                    "There was a conflict when writing to the specified S3 bucket: the "
                    "ClientToken was used before with other parameters",
                )
            return {"ExportDescription": known.description}
        _refuse_unsupported(data)
        table = self._exportable(data["TableArn"])
        micros = self._export_micros(table, data.get("ExportTime"))
        export = self._accept(table, data, request, micros)
        self._launch(table, export, micros)
        return {"ExportDescription": dict(export.description)}

    def _by_token(self, token: str | None) -> Export | None:
        horizon = self._clock.now() - _TOKEN_MICROS
        for export in self._exports.values():
            fresh = export.end_micros is None or export.end_micros > horizon
            if token and fresh and export.description.get("ClientToken") == token:
                return export
        return None

    def _exportable(self, arn: str) -> dict[str, Any]:
        name = self._dynamodb._table_name_from_arn(arn)
        table = self._dynamodb._tables.get(name) if name else None
        if table is None or table["TableArn"] != arn:
            raise RefusedError("TableNotFoundException", f"Table not found: {arn}")
        if table["TableId"] not in self._writes.journals:
            raise RefusedError(
                "PointInTimeRecoveryUnavailableException",
                f"Point in time recovery is not enabled for table '{name}'",
            )
        return table

    def _export_micros(self, table: dict[str, Any], requested: float | str | None) -> int:
        now = self._clock.now()
        # Whole milliseconds, as reported: the content is the state at the time we name.
        micros = now // 1000 * 1000 if requested is None else _micros(requested)
        earliest = self._earliest(table)
        # Right after recovery was turned on there is no whole millisecond yet.
        micros = max(micros, earliest) if requested is None else micros
        if not earliest <= micros <= now:
            raise RefusedError(
                "InvalidExportTimeException",
                f"ExportTime {_iso(micros)} is not between EarliestRestorableDateTime "
                f"{_iso(earliest)} and LatestRestorableDateTime {_iso(now)}",
            )
        return micros

    def _accept(
        self, table: dict[str, Any], data: dict[str, Any], request: dict[str, Any], micros: int
    ) -> Export:
        start = self._clock.tick() // 1000
        export_id = f"{start:014d}-{secrets.token_hex(4)}"
        description = {
            "ExportArn": f"{table['TableArn']}/export/{export_id}",
            "ExportStatus": "IN_PROGRESS",
            "StartTime": start / 1000,
            "TableArn": table["TableArn"],
            "TableId": table["TableId"],
            "ExportTime": micros // 1000 / 1000,
            "S3SseAlgorithm": "AES256",
            **{name: data[name] for name in _DESCRIBED if data.get(name) is not None},
            "ExportFormat": "DYNAMODB_JSON",
            "ExportType": "FULL_EXPORT",
        }
        export = Export(description, request)
        self._exports[export.arn] = export
        return export

    def _launch(self, table: dict[str, Any], export: Export, micros: int) -> None:
        # No request runs while this does, and stored items are never changed in place: a copy of
        # the references is a consistent snapshot.
        items: dict[Hashable, Item] = {
            (pk, sk): item
            for pk, partition in table["items"].items()
            for sk, item in partition.items()
        }
        later = self._writes.journals[table["TableId"]].after(micros)
        task = asyncio.get_running_loop().create_task(self._run(export, items, later))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, export: Export, items: dict[Hashable, Item], later: list[Change]) -> None:
        due = asyncio.get_running_loop().time() + self._delay_seconds
        description = export.description
        try:
            await self._put(export, "_started", b"")
            files = await asyncio.to_thread(
                lambda: list(data_files(items, later, self._dynamodb, self._stopping))
            )
            entries = [await self._put_data(export, file) for file in files]
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            counts = {
                "billedSizeBytes": sum(file.item_bytes for file in files),
                "itemCount": sum(file.item_count for file in files),
            }
            export.end_micros = self._clock.now()
            await self._put_manifests(export, entries, counts)
        except _FailedError as failure:
            export.end_micros = self._clock.now()
            description["FailureCode"] = failure.code
            description["FailureMessage"] = str(failure)
            description["ExportStatus"] = "FAILED"
        else:
            description["ExportManifest"] = f"{export.folder}/manifest-summary.json"
            description["BilledSizeBytes"] = counts["billedSizeBytes"]
            description["ItemCount"] = counts["itemCount"]
            description["ExportStatus"] = "COMPLETED"
        description["EndTime"] = export.end_micros // 1000 / 1000

    async def _put(self, export: Export, name: str, body: bytes) -> str:
        description = export.description
        headers = {"x-amz-server-side-encryption": _s3_sse(description["S3SseAlgorithm"])}
        if "S3SseKmsKeyId" in description:
            headers["x-amz-server-side-encryption-aws-kms-key-id"] = description["S3SseKmsKeyId"]
        key = f"{export.folder}/{name}"
        return await self._put_object(description["S3Bucket"], key, body, headers)

    async def _put_data(self, export: Export, file: DataFile) -> dict[str, Any]:
        name = f"data/{file.name}"
        etag = await self._put(export, name, file.body)
        return {
            "itemCount": file.item_count,
            "md5Checksum": _md5(file.body),
            "etag": etag,
            "dataFileS3Key": f"{export.folder}/{name}",
        }

    async def _put_manifests(
        self, export: Export, entries: list[dict[str, Any]], counts: dict[str, int]
    ) -> None:
        lines = "".join(f"{_json(entry)}\n" for entry in entries).encode()
        await self._put(export, "manifest-files.json", lines)
        await self._put(export, "manifest-files.md5", _md5(lines).encode())
        summary = _json(_summary(export, counts)).encode()
        # The summary last: readers take its presence as "all of it is there".
        await self._put(export, "manifest-summary.md5", _md5(summary).encode())
        await self._put(export, "manifest-summary.json", summary)

    def _describe(self, data: dict[str, Any]) -> dict[str, Any]:
        export = self._exports.get(data.get("ExportArn") or "")
        if export is None:
            raise RefusedError(
                "ExportNotFoundException", f"Export not found: {data.get('ExportArn')}"
            )
        return {"ExportDescription": export.description}

    def _list(self, data: dict[str, Any]) -> dict[str, Any]:
        size = data.get("MaxResults", _PAGE_LIMIT)
        if not 1 <= size <= _PAGE_LIMIT:
            raise RefusedError("ValidationException", f"MaxResults must be from 1 to {_PAGE_LIMIT}")
        arns = [
            export.arn
            for export in self._exports.values()
            if data.get("TableArn") in (None, export.description["TableArn"])
        ]
        start = _position(arns, data.get("NextToken"))
        page = arns[start : start + size]
        answer: dict[str, Any] = {"ExportSummaries": [self._summarised(arn) for arn in page]}
        if start + size < len(arns):
            answer["NextToken"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
        return answer

    def _summarised(self, arn: str) -> dict[str, str]:
        description = self._exports[arn].description
        return {name: description[name] for name in ("ExportArn", "ExportStatus", "ExportType")}


def data_files(
    items: dict[Hashable, Item], later: list[Change], dynamodb: Any, stopping: threading.Event
) -> Iterator[DataFile]:
    """Yield the data files of a full export: `items` before `later`, spread by partition key.

    As in AWS each file holds a hash range of partition keys, the order inside means nothing, and
    an empty range gives an empty file; the last file is always empty.
    """
    state = roll_back(items, later)
    parts: list[list[tuple[int, Item]]] = [[] for _ in range(4 + len(state) // _ITEMS_PER_FILE)]
    for key, item in state.items():
        pk, _ = key  # type: ignore[misc]
        part = zlib.crc32(str(pk).encode()) % (len(parts) - 1)
        parts[part].append((zlib.crc32(str(key).encode()), item))
    for part in parts:
        lines = []
        size = 0
        for _, item in sorted(part, key=lambda entry: entry[0]):
            if stopping.is_set():
                return
            lines.append(f'{{"Item":{_json(item)}}}\n')
            size += dynamodb._item_size_bytes(item)
        body = _gzip("".join(lines).encode())
        yield DataFile(_file_name(), body, len(part), size)


async def multipart_put(
    s3: Any, bucket: str, key: str, body: bytes, headers: dict[str, str]
) -> str:
    """Write one object as a multipart upload of one part, as exports do; return its ETag.

    The ETag of a multipart object is `<md5 of the part md5s>-<parts>`, which manifests repeat.
    """
    path = f"/{bucket}/{key}"
    common = {"host": "127.0.0.1"}
    created = await s3.handle_request("POST", path, {**common, **headers}, b"", {"uploads": [""]})
    text = _checked(bucket, created).decode()
    upload = text.partition("<UploadId>")[2].partition("</UploadId>")[0]
    part = {"partNumber": ["1"], "uploadId": [upload]}
    _checked(bucket, await s3.handle_request("PUT", path, common, body, part))
    etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
    complete = (
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
        f"<ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    )
    done = await s3.handle_request("POST", path, common, complete.encode(), {"uploadId": [upload]})
    _checked(bucket, done)
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    return f"{hashlib.md5(digest, usedforsecurity=False).hexdigest()}-1"


def _checked(bucket: str, response: tuple[int, Any, Any]) -> bytes:
    status, _, body = response
    if status < 300:
        return body
    code = bytes(body).decode(errors="replace").partition("<Code>")[2].partition("</Code>")[0]
    messages = {
        "NoSuchBucket": f"The specified bucket does not exist: {bucket}",
        "AccessDenied": f"Access to the bucket is denied: {bucket}",
    }
    raise _FailedError(f"S3{code or status}", messages.get(code, f"S3 answered {status} {code}"))


def _answering(operation: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Response]:
    def handler(data: dict[str, Any]) -> Response:
        from ministack.core.responses import error_response_json, json_response

        try:
            return json_response(operation(data))
        except RefusedError as refused:
            return error_response_json(refused.code, str(refused), 400)

    return handler


def _refuse_unsupported(data: dict[str, Any]) -> None:
    if data.get("ExportFormat", "DYNAMODB_JSON") != "DYNAMODB_JSON":
        raise RefusedError(
            "ValidationException", "The sandbox exports in DYNAMODB_JSON only, not in ION"
        )
    if data.get("ExportType", "FULL_EXPORT") != "FULL_EXPORT":
        raise RefusedError(
            "ValidationException", "The sandbox makes full exports only, no INCREMENTAL_EXPORT yet"
        )
    for name in ("FilterSpecification", "IncrementalExportSpecification"):
        if data.get(name):
            raise RefusedError("ValidationException", f"{name} is not supported by the sandbox")


def _summary(export: Export, counts: dict[str, int]) -> dict[str, Any]:
    """Return manifest-summary.json of a full export; note that it has no exportType."""
    description = export.description
    return {
        "version": "2020-06-30",
        "exportArn": export.arn,
        "startTime": _iso(round(description["StartTime"] * 1_000_000)),
        "endTime": _iso(export.end_micros or 0),
        "tableArn": description["TableArn"],
        "tableId": description["TableId"],
        "exportTime": _iso(round(description["ExportTime"] * 1_000_000)),
        "s3Bucket": description["S3Bucket"],
        "s3Prefix": description.get("S3Prefix"),
        "s3SseAlgorithm": description["S3SseAlgorithm"],
        "s3SseKmsKeyId": description.get("S3SseKmsKeyId"),
        "manifestFilesS3Key": f"{export.folder}/manifest-files.json",
        **counts,
        "outputFormat": "DYNAMODB_JSON",
    }


def _position(arns: list[str], token: str | None) -> int:
    if token is None:
        return 0
    with contextlib.suppress(ValueError):
        return arns.index(base64.urlsafe_b64decode(token.encode()).decode()) + 1
    raise RefusedError("ValidationException", "NextToken is not valid")


def _s3_sse(algorithm: str) -> str:
    return "aws:kms" if algorithm == "KMS" else algorithm


def _micros(moment: float | str) -> int:
    """Return microseconds of a time on the wire: epoch seconds, or ISO text."""
    if isinstance(moment, str):
        try:
            parsed = datetime.fromisoformat(moment)
        except ValueError:
            raise RefusedError(
                "ValidationException", f"ExportTime is not a time: {moment}"
            ) from None
        moment = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    return round(moment * 1000) * 1000


def _iso(micros: int) -> str:
    moment = datetime.fromtimestamp(micros // 1_000_000, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{micros // 1000 % 1000:03d}Z"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _file_name() -> str:
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower() + ".json.gz"


def _gzip(body: bytes) -> bytes:
    """Compress with the gzip header of real exports: an empty file is the same 20 bytes."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    data = compressor.compress(body) + compressor.flush()
    return header + data + struct.pack("<LL", zlib.crc32(body), len(body) & 0xFFFFFFFF)
