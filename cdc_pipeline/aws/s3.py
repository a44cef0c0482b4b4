"""S3: one prefix of a bucket as an object store, and streamed reads from any bucket."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from cdc_pipeline.aws.session import AwsSession, aws_errors, error_code
from cdc_pipeline.core.errors import LakeError

_FIXES = {
    "NoSuchBucket": "create the bucket or correct `lake` in the settings",
    "AccessDenied": "grant the role s3:GetObject, PutObject, DeleteObject and ListBucket on it",
}


@dataclass(frozen=True)
class StoredFile:
    """A stored object. `modified`: seconds since the epoch."""

    key: str
    bytes: int
    modified: float


class S3Store:
    """Objects under `s3://bucket/prefix`; keys are relative to it. See `lake.store.Store`."""

    def __init__(self, aws: AwsSession, bucket: str, prefix: str) -> None:
        self.aws = aws
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = aws.client("s3")

    def uri(self, key: str) -> str:
        """The object's address for Iceberg, DuckDB and people."""
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def read(self, key: str) -> bytes | None:
        """The whole object, None if there is none."""
        try:
            with self._errors(f"reading {key}"):
                found = self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)
                return found["Body"].read()
        except LakeError as error:
            if isinstance(error.__cause__, ClientError) and (
                error_code(error.__cause__) == "NoSuchKey"
            ):
                return None
            raise

    def write(self, key: str, data: bytes) -> None:
        """Create or replace the object."""
        with self._errors(f"writing {key}"):
            self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        """Create the object unless there is one (PutObject with If-None-Match: *).

        False means one is there. After a lost answer botocore's own retry may find ours, so the
        caller compares contents before it believes it lost.
        """
        while True:
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=self.prefix + key, Body=data, IfNoneMatch="*"
                )
                return True
            except ClientError as error:
                code = error_code(error)
                if code in ("PreconditionFailed", "412"):
                    return False
                # 409: another conditional write was under way; its outcome decides (S3 docs).
                if code not in ("ConditionalRequestConflict", "409"):
                    with self._errors(f"writing {key}"):
                        raise

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Keys under `prefix`, in order, behind `after`."""
        return (entry["Key"].removeprefix(self.prefix) for entry in self._listed(prefix, after))

    def files(self, prefix: str) -> Iterator[StoredFile]:
        """What lies under `prefix`."""
        for entry in self._listed(prefix):
            key = entry["Key"].removeprefix(self.prefix)
            yield StoredFile(key, entry["Size"], entry["LastModified"].timestamp())

    def _listed(self, prefix: str, after: str = "") -> Iterator[Any]:
        start = {"StartAfter": self.prefix + after} if after else {}
        pages = self._client.get_paginator("list_objects_v2")
        with self._errors(f"listing {prefix}"):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix, **start):
                yield from page.get("Contents", ())

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; missing ones are fine."""
        for key in keys:
            with self._errors(f"deleting {key}"):
                self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def _errors(self, doing: str) -> Any:
        return aws_errors(f"lake s3://{self.bucket}/{self.prefix}: {doing}", LakeError, **_FIXES)


def open_object(aws: AwsSession, bucket: str, key: str) -> BinaryIO | None:
    """A stream of the object's bytes, None if there is no such object; raises `LakeError`."""
    try:
        with aws_errors(f"s3://{bucket}/{key}", LakeError, **_FIXES):
            return cast(BinaryIO, aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"])
    except LakeError as error:
        if isinstance(error.__cause__, ClientError) and error_code(error.__cause__) == "NoSuchKey":
            return None
        raise
