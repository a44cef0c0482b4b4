"""S3: one prefix of a bucket as an object store, and streamed reads from any bucket."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, error_code
from cdc_pipeline.aws.s3.reads import ObjectStream, list_pages, read_object
from cdc_pipeline.core.errors import LakeError, SourceError

_FIXES = {
    "NoSuchBucket": "create the bucket or correct `lake` in the settings",
    "AccessDenied": "grant the role s3:GetObject, PutObject, DeleteObject and ListBucket on it",
}
_SOURCE_FIXES = {
    "NoSuchBucket": "correct the prefixes under `firehose` in the settings",
    "AccessDenied": "grant the role s3:ListBucket on the bucket and s3:GetObject on the objects",
    "InvalidObjectState": "restore the object from its archive, or raise `start_date`",
}
_NOTHING = {"NoSuchKey": None, "InvalidRange": b""}
"""Results of reads by error code: no object, or no bytes in the range."""
_DELETE_BATCH = 1000  # of DeleteObjects
_DOWNLOAD_CHUNK = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """A stored object. `modified`: seconds since the epoch."""

    key: str
    bytes: int
    modified: float


@dataclass(frozen=True)
class FoundObject:
    """An object in a bucket outside of the lake."""

    key: str
    etag: str
    bytes: int
    modified: datetime


@dataclass(frozen=True)
class Version:
    """One version of an object, or a delete marker."""

    key: str
    version_id: str


class S3Store:
    """Objects under `s3://bucket/prefix`, keys relative to it: a `lake.storage.store.Store`."""

    def __init__(
        self, aws: AwsSession, bucket: str, prefix: str, sse: Mapping[str, str] | None = None
    ) -> None:
        """`sse`: encryption of writes (`output.sse_parameters`)."""
        self.aws = aws
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._sse = sse or {}
        self._client = aws.client("s3")

    def uri(self, key: str) -> str:
        """Return the object's address for Iceberg, DuckDB and people."""
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def read(self, key: str) -> bytes | None:
        """Read the whole object; None: no such object."""
        return self._get(key)

    def read_part(self, key: str, start: int, size: int) -> bytes | None:
        """Read `size` bytes from `start` on, fewer at the end; None: no such object."""
        return self._get(key, Range=f"bytes={start}-{start + size - 1}")

    def _get(self, key: str, **part: str) -> bytes | None:
        try:
            with self._errors(f"reading {key}"):
                return read_object(self._client, Bucket=self.bucket, Key=self.prefix + key, **part)
        except LakeError as error:
            if isinstance(error.__cause__, ClientError):
                code = error_code(error.__cause__)
                if code in _NOTHING:
                    return _NOTHING[code]
            raise

    def write(self, key: str, data: bytes) -> None:
        """Create or replace the object."""
        with self._errors(f"writing {key}"):
            self._client.put_object(
                Bucket=self.bucket, Key=self.prefix + key, Body=data, **self._sse
            )

    def create(self, key: str, data: bytes) -> bool:
        """Create the object unless it exists (PutObject with If-None-Match: *); False: it exists.

        After a lost answer, botocore's own retry may find the object just created. So the caller
        compares contents before it treats False as a lost race.
        """
        while True:
            try:
                self._client.put_object(
                    Bucket=self.bucket,
                    Key=self.prefix + key,
                    Body=data,
                    IfNoneMatch="*",
                    **self._sse,
                )
                return True
            except ClientError as error:
                code = error_code(error)
                if code in ("PreconditionFailed", "412"):
                    return False
                # 409: a concurrent conditional write; its result decides (S3 docs).
                if code not in ("ConditionalRequestConflict", "409"):
                    with self._errors(f"writing {key}"):
                        raise

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Yield keys under `prefix`, in order, after `after`."""
        return (entry["Key"].removeprefix(self.prefix) for entry in self._listed(prefix, after))

    def files(self, prefix: str) -> Iterator[StoredFile]:
        """Yield the objects under `prefix`."""
        for entry in self._listed(prefix):
            key = entry["Key"].removeprefix(self.prefix)
            yield StoredFile(key, entry["Size"], entry["LastModified"].timestamp())

    def _listed(self, prefix: str, after: str = "") -> Iterator[Any]:
        start = {"StartAfter": self.prefix + after} if after else {}
        where = {"Bucket": self.bucket, "Prefix": self.prefix + prefix, **start}
        with self._errors(f"listing {prefix}"):
            for page in list_pages(self._client, **where):
                yield from page.get("Contents", ())

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are no error."""
        for key in keys:
            with self._errors(f"deleting {key}"):
                self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def old_versions(self, prefix: str) -> Iterator[Version]:
        """Yield noncurrent versions under `prefix`, then delete markers.

        Markers come last: deleting them first would restore the objects that they hide. Needs
        s3:ListBucketVersions; an unversioned bucket has none.
        """
        pages = self._client.get_paginator("list_object_versions")
        markers: list[Version] = []
        with self._errors(f"listing versions of {prefix}"):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for raw in page.get("Versions", ()):
                    if not raw["IsLatest"]:
                        yield Version(raw["Key"].removeprefix(self.prefix), raw["VersionId"])
                for raw in page.get("DeleteMarkers", ()):
                    key = raw["Key"].removeprefix(self.prefix)
                    markers.append(Version(key, raw["VersionId"]))
        yield from markers

    def delete_versions(self, versions: Sequence[Version]) -> None:
        """Delete versions permanently; needs s3:DeleteObjectVersion."""
        for start in range(0, len(versions), _DELETE_BATCH):
            batch = versions[start : start + _DELETE_BATCH]
            objects = [{"Key": self.prefix + v.key, "VersionId": v.version_id} for v in batch]
            with self._errors("deleting versions"):
                answer = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
                )
            if failures := answer.get("Errors"):
                raise LakeError(
                    f"lake s3://{self.bucket}/{self.prefix}: {len(failures)} versions could not be "
                    f"deleted, {failures[0]['Key']}: {failures[0]['Code']}",
                    fix="grant s3:DeleteObjectVersion; object locks must have expired",
                )

    def _errors(self, step: str) -> Any:
        return aws_errors(f"lake s3://{self.bucket}/{self.prefix}: {step}", LakeError, **_FIXES)


def open_object(aws: AwsSession, bucket: str, key: str) -> BinaryIO | None:
    """Open a stream of the object's bytes; None: no such object. Raises `LakeError`.

    If the body breaks off, the stream requests the rest; see `ObjectStream`.
    """
    client, where = aws.client("s3"), {"Bucket": bucket, "Key": key}
    try:
        with aws_errors(f"s3://{bucket}/{key}", LakeError, **_FIXES):
            return cast(BinaryIO, ObjectStream(client, client.get_object(**where), **where))
    except LakeError as error:
        if isinstance(error.__cause__, ClientError) and error_code(error.__cause__) == "NoSuchKey":
            return None
        raise


class SourceBucket:
    """A read-only bucket, written by other programs."""

    def __init__(self, aws: AwsSession, bucket: str) -> None:
        self.bucket = bucket
        self._client = aws.client("s3")

    def folders(self, prefix: str) -> tuple[list[str], list[str]]:
        """List folders and object names directly under `prefix`; raises `SourceError`."""
        folders: list[str] = []
        names: list[str] = []
        for page in self._pages(prefix, Delimiter="/"):
            folders += [f["Prefix"].removeprefix(prefix) for f in page.get("CommonPrefixes", ())]
            names += [f["Key"].removeprefix(prefix) for f in page.get("Contents", ())]
        return folders, names

    def objects(self, prefix: str, after: str = "") -> Iterator[FoundObject]:
        """Yield objects whose keys begin with `prefix`, after `after`; raises `SourceError`."""
        start = {"StartAfter": after} if after else {}
        for page in self._pages(prefix, **start):
            for entry in page.get("Contents", ()):
                etag = entry["ETag"].strip('"')
                yield FoundObject(entry["Key"], etag, entry["Size"], entry["LastModified"])

    def _pages(self, prefix: str, **arguments: str) -> Iterator[Any]:
        with self._errors(f"listing {prefix}"):
            yield from list_pages(self._client, Bucket=self.bucket, Prefix=prefix, **arguments)

    def download(self, found: FoundObject, file: BinaryIO) -> bool:
        """Write the whole object to `file`; False: it was deleted.

        Raises `SourceError`, also for an object replaced meanwhile (the next listing shows it).
        """
        where = {"Bucket": self.bucket, "Key": found.key}
        changed = SourceError(f"s3://{self.bucket}/{found.key} changed while it was read")
        with self._errors(found.key):
            try:
                answer = self._client.get_object(**where)
                if answer["ETag"].strip('"') != found.etag:
                    raise changed
                with ObjectStream(self._client, answer, **where) as stream:
                    while chunk := stream.read(_DOWNLOAD_CHUNK):
                        file.write(chunk)
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    return False
                if error_code(error) == "PreconditionFailed":
                    raise changed from error
                raise
        return True

    def _errors(self, operation: str) -> Any:
        return aws_errors(f"s3://{self.bucket}: {operation}", SourceError, **_SOURCE_FIXES)
