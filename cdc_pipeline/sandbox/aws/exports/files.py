"""The objects of an export: data files, manifests, their checksums, and the upload.

Names, field order, spacing and the gzip header are those of real exports of January 2026
(gurre/ddb-pitr, s3exportdata).
"""

import base64
import hashlib
import json
import secrets
import struct
import threading
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cdc_pipeline.sandbox.aws.dynamodb.journal import Change, Item, compact, roll_back
from cdc_pipeline.sandbox.aws.exports.requests import NEW_AND_OLD_IMAGES, Window

_ITEMS_PER_FILE = 10_000
# Billed size of real incremental exports of few items or none (also DDB-EXPORT-019).
_LEAST_BILLED_BYTES = 10_000_000

Record = TypeVar("Record")
SizeOf = Callable[[Item], int]

# Formats of WriteTimestampMicros: real exports have {"N":"..."}, some documents a bare number or
# string. Readers should accept all three.
WRITE_TIMES: dict[str, Callable[[int], Any]] = {
    "typed": lambda micros: {"N": str(micros)},
    "number": int,
    "string": str,
}


class FailedError(Exception):
    """An accepted export that cannot be completed: FailureCode and FailureMessage."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class DataFile:
    """One compressed data file of an export, with its values for the manifest."""

    name: str
    body: bytes
    item_count: int
    item_bytes: int


@dataclass(frozen=True, slots=True)
class TableState:
    """A table at a point in time: `items` without their newest changes, `later`."""

    items: dict[Hashable, Item]
    later: list[Change]

    def data_files(self, size_of: SizeOf, stopping: threading.Event) -> Iterator[DataFile]:
        """Yield the data files of a full export."""

        def line(item: Item) -> tuple[str, int]:
            return _json({"Item": item}), size_of(item)

        state = roll_back(self.items, self.later)
        return _spread(state.items(), len(state), line, stopping)

    def billed_bytes(self, item_bytes: int) -> int:
        """Return billedSizeBytes; AWS may return 0 for a small table."""
        return item_bytes


@dataclass(frozen=True, slots=True)
class WindowChanges:
    """The changes of a table in a window, oldest first, and their format."""

    changes: list[Change]
    window: Window
    key_names: list[str]
    write_time: str

    def data_files(self, size_of: SizeOf, stopping: threading.Event) -> Iterator[DataFile]:
        """Yield the data files of an incremental export: one line per changed item."""

        def line(change: Change) -> tuple[str, int]:
            size = sum(size_of(image) for image in (change.old, change.new) if image is not None)
            return _json(self._line(change)), size

        net = compact(self.changes)
        keyed = ((change.key, change) for change in net)
        return _spread(keyed, len(net), line, stopping, salt=str(self.window.start))

    def billed_bytes(self, item_bytes: int) -> int:
        """Return billedSizeBytes, at least 10 MB."""
        return max(item_bytes, _LEAST_BILLED_BYTES)

    def _line(self, change: Change) -> dict[str, Any]:
        image = change.old if change.new is None else change.new
        assert image is not None  # a compacted change has at least one image
        line: dict[str, Any] = {
            "Metadata": {"WriteTimestampMicros": WRITE_TIMES[self.write_time](change.micros)},
            "Keys": {name: image[name] for name in self.key_names},
        }
        if change.old is not None and self.window.view == NEW_AND_OLD_IMAGES:
            line["OldImage"] = dict(sorted(change.old.items()))
        if change.new is not None:
            line["NewImage"] = dict(sorted(change.new.items()))
        return line


def _spread(
    records: Iterable[tuple[Hashable, Record]],
    count: int,
    line_of: Callable[[Record], tuple[str, int]],
    stopping: threading.Event,
    salt: str = "",
) -> Iterator[DataFile]:
    """Yield data files of lines; `line_of` returns line and counted size of a record.

    As in AWS each file has a hash range of partition keys, without a meaningful order, and an empty
    range gives an empty file; the last file is always empty. `salt` determines the order.
    """
    parts: list[list[tuple[int, Record]]] = [[] for _ in range(4 + count // _ITEMS_PER_FILE)]
    for key, record in records:
        pk, _ = key  # type: ignore[misc]
        part = zlib.crc32(str(pk).encode()) % (len(parts) - 1)
        parts[part].append((zlib.crc32(f"{salt}{key}".encode()), record))
    for part in parts:
        lines = []
        size = 0
        for _, record in sorted(part, key=lambda entry: entry[0]):
            if stopping.is_set():
                return
            text, record_size = line_of(record)
            lines.append(f"{text}\n")
            size += record_size
        yield DataFile(_file_name(), _gzip("".join(lines).encode()), len(part), size)


def manifest_files(entries: Iterable[tuple[DataFile, str, str]]) -> bytes:
    """Return manifest-files.json of (file, ETag, key)."""
    lines = (
        {
            "itemCount": file.item_count,
            "md5Checksum": md5(file.body),
            "etag": etag,
            "dataFileS3Key": key,
        }
        for file, etag, key in entries
    )
    return "".join(f"{_json(line)}\n" for line in lines).encode()


def manifest_summary(
    description: dict[str, Any],
    files_key: str,
    counts: dict[str, int],
    times: dict[str, str],
) -> bytes:
    """Return manifest-summary.json.

    `times`: startTime, endTime, and exportTime or exportFromTime and exportToTime. The summary of a
    full export has no exportType.
    """
    window = description.get("IncrementalExportSpecification")
    summary = {
        "version": "2023-08-01" if window else "2020-06-30",
        "exportArn": description["ExportArn"],
        "startTime": times["startTime"],
        "endTime": times["endTime"],
        "tableArn": description["TableArn"],
        "tableId": description["TableId"],
        **times,
        "s3Bucket": description["S3Bucket"],
        "s3Prefix": description.get("S3Prefix"),
        "s3SseAlgorithm": description["S3SseAlgorithm"],
        "s3SseKmsKeyId": description.get("S3SseKmsKeyId"),
        "manifestFilesS3Key": files_key,
        **counts,
        "outputFormat": description["ExportFormat"],
    }
    if window:
        summary["outputView"] = window["ExportViewType"]
        summary["exportType"] = description["ExportType"]
    return _json(summary).encode()


async def multipart_put(
    s3: Any, bucket: str, key: str, body: bytes, headers: dict[str, str]
) -> str:
    """Write one object as a multipart upload of one part, as exports do; return its ETag.

    The ETag of a multipart object is `<md5 of the part md5s>-<parts>`, repeated in manifests. The
    object is written as the bucket's owner: permissions are checked before.
    """
    from ministack.core.responses import set_request_account_id

    set_request_account_id(s3._bucket_owner_account(bucket) or "")
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
    raise FailedError(f"S3{code or status}", messages.get(code, f"S3 answered {status} {code}"))


def md5(body: bytes) -> str:
    """Return the base64 MD5 for manifests and `.md5` objects."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _file_name() -> str:
    return base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower() + ".json.gz"


def _gzip(body: bytes) -> bytes:
    """Compress with the gzip header of real exports: an empty file is the same 20 bytes there."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    data = compressor.compress(body) + compressor.flush()
    return header + data + struct.pack("<LL", zlib.crc32(body), len(body) & 0xFFFFFFFF)
