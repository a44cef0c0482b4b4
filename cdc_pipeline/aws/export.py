"""PITR exports: requests, status, manifests and data files (docs/aws_facts.md, exports)."""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

import msgspec

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, cause_code
from cdc_pipeline.aws.s3.objects import open_object
from cdc_pipeline.aws.s3.output import AWS_MANAGED_KEY
from cdc_pipeline.core.errors import ExportError, UnusableExportError

try:  # extra `fast`: inflates in a third of the time
    from isal import isal_zlib as _zlib

    _INFLATE_ERRORS: tuple[Any, ...] = (_zlib.error,)
except ImportError:
    _zlib = zlib
    _INFLATE_ERRORS = ()


FULL, INCREMENTAL = "FULL_EXPORT", "INCREMENTAL_EXPORT"


@dataclass(frozen=True)
class ExportTarget:
    """Location and encryption of an export.

    `owner`: the bucket's account, if AWS requires it. `kms_key`: an ARN, or `aws/s3`; None: the
    bucket's own encryption.
    """

    bucket: str
    prefix: str
    owner: str | None = None
    kms_key: str | None = None


@dataclass(frozen=True)
class ExportStatus:
    """Result of DescribeExport. `status`: IN_PROGRESS, COMPLETED or FAILED.

    `table_id`: of the exported table, which may have been created again since; '': unknown.
    """

    arn: str
    status: str
    bucket: str
    prefix: str
    manifest_key: str | None
    failure: str
    table_id: str = ""


@dataclass(frozen=True)
class DataFile:
    """One line of manifest-files.json. `md5`: base64 MD5 of the compressed object."""

    key: str
    md5: str
    items: int


@dataclass(frozen=True)
class Manifest:
    """A completed export: its files, and their total number of items."""

    bucket: str
    items: int
    table_id: str
    files: list[DataFile]


def request_export(
    aws: AwsSession, table_arn: str, at: datetime, target: ExportTarget, token: str
) -> str:
    """Request a full export of the table as of `at`; the same token returns the same export."""
    return _request(aws, table_arn, target, token, ExportTime=at)


def request_incremental(
    aws: AwsSession,
    table_arn: str,
    window: tuple[datetime, datetime],
    target: ExportTarget,
    token: str,
) -> str:
    """Request an export of the changes in a half-open window [from, to)."""
    specification = {
        "ExportFromTime": window[0],
        "ExportToTime": window[1],
        "ExportViewType": "NEW_AND_OLD_IMAGES",
    }
    return _request(
        aws,
        table_arn,
        target,
        token,
        ExportType=INCREMENTAL,
        IncrementalExportSpecification=specification,
    )


def _request(aws: AwsSession, table_arn: str, target: ExportTarget, token: str, **more: Any) -> str:
    with aws_errors(
        f"export of {table_arn}",
        ExportError,
        PointInTimeRecoveryUnavailableException=(
            "turn on point-in-time recovery: aws dynamodb update-continuous-backups "
            "--point-in-time-recovery-specification PointInTimeRecoveryEnabled=true --table-name …"
        ),
        NoSuchBucket=f"create bucket {target.bucket} or correct `export.bucket` in the settings",
        S3NoSuchBucket=f"create bucket {target.bucket} or correct `export.bucket` in the settings",
    ):
        answer = aws.client("dynamodb").export_table_to_point_in_time(
            TableArn=table_arn,
            S3Bucket=target.bucket,
            S3Prefix=target.prefix,
            ExportFormat="DYNAMODB_JSON",
            ClientToken=token,
            **({"S3BucketOwner": target.owner} if target.owner else {}),
            **_encryption(target.kms_key),
            **more,
        )
    return answer["ExportDescription"]["ExportArn"]


def _encryption(kms_key: str | None) -> dict[str, str]:
    if kms_key is None:
        return {}
    named = {} if kms_key == AWS_MANAGED_KEY else {"S3SseKmsKeyId": kms_key}
    return {"S3SseAlgorithm": "KMS", **named}


def describe_export(aws: AwsSession, arn: str) -> ExportStatus:
    """Describe an export; raises `ExportError`, `UnusableExportError` for an expired one.

    Also for a filtered one, because items missing in it prove nothing. AWS lists exports for 90
    days (botocore model: ListExports).
    """
    try:
        with aws_errors(f"export {arn}", ExportError):
            description = aws.client("dynamodb").describe_export(ExportArn=arn)["ExportDescription"]
    except ExportError as error:
        if cause_code(error) == "ExportNotFoundException":
            raise UnusableExportError(error.message) from error
        raise
    if description.get("FilterSpecification"):
        raise UnusableExportError(f"export {arn} is filtered, so items missing in it prove nothing")
    failure = f"{description.get('FailureCode', '')}: {description.get('FailureMessage', '')}"
    return ExportStatus(
        arn=arn,
        status=description["ExportStatus"],
        bucket=description.get("S3Bucket", ""),
        prefix=description.get("S3Prefix") or "",
        manifest_key=description.get("ExportManifest"),
        failure=failure,
        table_id=description.get("TableId") or "",
    )


class _Summary(msgspec.Struct):
    itemCount: int
    manifestFilesS3Key: str
    tableId: str = ""
    outputFormat: str = "DYNAMODB_JSON"
    exportType: str = FULL  # absent in real full exports


class _File(msgspec.Struct):
    itemCount: int
    md5Checksum: str
    dataFileS3Key: str


def read_manifest(aws: AwsSession, export: ExportStatus, kind: str = FULL) -> Manifest:
    """Read and verify the manifests of a completed export; raises `ExportError`."""
    if export.manifest_key is None:
        raise ExportError(f"export {export.arn} is complete, but has no manifest")
    summary = _decode(_Summary, _verified(aws, export, export.manifest_key), export.manifest_key)
    if summary.exportType != kind or summary.outputFormat != "DYNAMODB_JSON":
        raise ExportError(
            f"export {export.arn} is {summary.exportType} in {summary.outputFormat}; "
            f"expected {kind} in DYNAMODB_JSON"
        )
    lines = _verified(aws, export, summary.manifestFilesS3Key).splitlines()
    files = [_decode(_File, line, summary.manifestFilesS3Key) for line in lines if line.strip()]
    file_items = sum(file.itemCount for file in files)
    if file_items != summary.itemCount:
        raise ExportError(
            f"export {export.arn}: its summary counts {summary.itemCount} items, "
            f"its files {file_items}"
        )
    return Manifest(
        bucket=export.bucket,
        items=summary.itemCount,
        table_id=summary.tableId,
        files=[DataFile(f.dataFileS3Key, f.md5Checksum, f.itemCount) for f in files],
    )


def _decode(kind: type, data: bytes, key: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise ExportError(f"{key} is not an export manifest: {error}") from None


def _verified(aws: AwsSession, export: ExportStatus, key: str) -> bytes:
    """Read a manifest and check its `.md5` (real exports) or `.checksum` (AWS's docs)."""
    data = _whole(aws, export, key)
    if data is None:
        raise ExportError(f"s3://{export.bucket}/{key} is missing")
    for suffix in (".md5", ".checksum"):
        expected = _whole(aws, export, key.removesuffix(".json") + suffix) or _whole(
            aws, export, key + suffix
        )
        if expected is not None:
            if _md5(data) != expected.decode().strip():
                raise ExportError(f"s3://{export.bucket}/{key} does not match its checksum")
            return data
    raise ExportError(f"s3://{export.bucket}/{key} has no checksum beside it")


def _whole(aws: AwsSession, export: ExportStatus, key: str) -> bytes | None:
    """Read an object by a manifest's key; in AWS's examples the key lacks the prefix."""
    for candidate in dict.fromkeys((key, f"{export.prefix}/{key}")):
        stream = open_object(aws, export.bucket, candidate)
        if stream is not None:
            with stream:
                return stream.read()
    return None


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


_PIECE_BYTES = 1 << 20
_LONGEST_LINE = 64 << 20
"""Upper bound of a line: an item of 400 kB is at most some 6 MB of JSON."""


def read_data_file(aws: AwsSession, export: ExportStatus, file: DataFile) -> Iterator[bytes]:
    """Yield decompressed pieces of one data file; see `verified`."""
    with _open_data_file(aws, export, file) as stream:
        yield from verified(stream, file, f"s3://{export.bucket}/{file.key}")


def check_data_file(aws: AwsSession, export: ExportStatus, file: DataFile) -> int:
    """Check a data file's MD5; returns its size in bytes. Raises `ExportError`."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with _open_data_file(aws, export, file) as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    _require_md5(digest.digest(), file, f"s3://{export.bucket}/{file.key}")
    return size


def _open_data_file(aws: AwsSession, export: ExportStatus, file: DataFile) -> BinaryIO:
    stream = open_object(aws, export.bucket, file.key) or open_object(
        aws, export.bucket, f"{export.prefix}/{file.key}"
    )
    if stream is None:
        raise ExportError(f"data file s3://{export.bucket}/{file.key} is missing")
    return stream


def _require_md5(digest: bytes, file: DataFile, where: str) -> None:
    if base64.b64encode(digest).decode() != file.md5:
        raise ExportError(f"data file {where} does not match the MD5 in its manifest")


def verified(stream: BinaryIO, file: DataFile, where: str) -> Iterator[bytes]:
    """Yield decompressed pieces of one data file, and check its MD5 at the end.

    Callers must not use any piece before the end: a missing or damaged file, or one that is not
    GZIP, raises `ExportError` only there. Memory: some MB, at any rate of compression.
    """
    digest = hashlib.md5(usedforsecurity=False)

    def compressed() -> Iterator[bytes]:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            yield piece

    yield from _gunzip(compressed(), where)
    _require_md5(digest.digest(), file, where)


def _gunzip(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    """Inflate GZIP files, which may have several members."""
    inflate = _inflater()
    try:
        for piece in pieces:
            while piece:
                if inflate.eof:
                    inflate = _inflater()
                if data := inflate.decompress(piece, _PIECE_BYTES):
                    yield data
                piece = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
        if not inflate.eof and (data := inflate.flush()):
            yield data
    except (zlib.error, EOFError, *_INFLATE_ERRORS):
        raise ExportError(f"data file {where} is not GZIP or is damaged") from None
    if not inflate.eof:
        raise ExportError(f"data file {where} ends in the middle")


def _inflater() -> Any:
    return _zlib.decompressobj(wbits=31)


def whole_lines(pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    """Split the same bytes after newlines; a last line without a newline gets one.

    Raises `ExportError` for a line too long for an item, so that memory is bounded.
    """
    rest: list[bytes] = []
    for piece in pieces:
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield b"".join((*rest, piece[:cut]))
            rest = []
        if cut < len(piece):
            rest.append(piece[cut:])
            if sum(map(len, rest)) > _LONGEST_LINE:
                raise ExportError(f"{where} has a line that is too long for an item")
    if rest:
        yield b"".join((*rest, b"\n"))
