"""Streamed writes of S3 objects."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from cdc_pipeline.aws.client.session import aws_errors
from cdc_pipeline.core.errors import CdcPipelineError, LakeError

_PART_BYTES = 8 << 20  # S3's limits: at least 5 MiB, at most 10,000 parts
_PARALLEL = 2

AWS_MANAGED_KEY = "aws/s3"
"""Alias of the KMS key that AWS manages for S3 in each account."""


def sse_parameters(kms_key: str | None) -> dict[str, str]:
    """Return the encryption of PutObject and CreateMultipartUpload; None: the bucket's own."""
    if kms_key is None:
        return {}
    named = {} if kms_key == AWS_MANAGED_KEY else {"SSEKMSKeyId": kms_key}
    return {"ServerSideEncryption": "aws:kms", **named}


class S3Output:
    """A writable binary file, which becomes an object when it is closed.

    Each request is signed with current credentials, so writing may take any time. Memory: a few
    parts. Raises `LakeError`; nothing is left in the bucket then.
    """

    def __init__(self, client: Any, bucket: str, key: str, sse: Mapping[str, str]) -> None:
        self._client = client
        self._named = {"Bucket": bucket, "Key": key}
        self._sse = sse
        self._buffer = bytearray()
        self._written = 0
        self._upload: dict[str, str] | None = None
        self._parts: list[dict[str, Any]] = []
        self._pending: deque[Future[dict[str, Any]]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self.closed = False

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        size = memoryview(data).nbytes
        self._buffer += data
        self._written += size
        while len(self._buffer) >= _PART_BYTES:
            part = bytes(memoryview(self._buffer)[:_PART_BYTES])
            del self._buffer[:_PART_BYTES]
            self._guarded(lambda part=part: self._send(part))
        return size

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._written

    def flush(self) -> None:
        """Do nothing: the object is readable only after `close`."""

    def close(self) -> None:
        """Create or replace the object."""
        if self.closed:
            return
        self.closed = True
        self._guarded(self._finish)

    def _guarded(self, step: Any) -> None:
        where = f"s3://{self._named['Bucket']}/{self._named['Key']}"
        try:
            with aws_errors(f"writing {where}", LakeError):
                step()
        except BaseException:
            self.closed = True
            self._abort()
            raise

    def _finish(self) -> None:
        rest, self._buffer = bytes(self._buffer), bytearray()
        if self._upload is None:
            self._client.put_object(**self._named, Body=rest, **self._sse)
            return
        if rest:
            self._send(rest)
        while self._pending:
            self._collect()
        self._client.complete_multipart_upload(
            **self._upload, MultipartUpload={"Parts": self._parts}
        )
        self._end_pool()

    def _send(self, part: bytes) -> None:
        if self._upload is None:
            upload = self._client.create_multipart_upload(
                **self._named, ChecksumAlgorithm="CRC32", **self._sse
            )
            self._upload = {**self._named, "UploadId": upload["UploadId"]}
            self._pool = ThreadPoolExecutor(_PARALLEL)
        if len(self._pending) == _PARALLEL:
            self._collect()
        assert self._pool is not None  # made with the upload
        number = len(self._parts) + len(self._pending) + 1
        self._pending.append(self._pool.submit(self._send_part, self._upload, number, part))

    def _send_part(self, upload: dict[str, str], number: int, part: bytes) -> dict[str, Any]:
        answer = self._client.upload_part(
            **upload, PartNumber=number, Body=part, ChecksumAlgorithm="CRC32"
        )
        named = {"PartNumber": number, "ETag": answer["ETag"]}
        checksum = answer.get("ChecksumCRC32")
        return {**named, "ChecksumCRC32": checksum} if checksum else named

    def _collect(self) -> None:
        self._parts.append(self._pending.popleft().result())

    def _abort(self) -> None:
        self._end_pool()
        if self._upload is not None:
            upload, self._upload = self._upload, None
            with suppress(CdcPipelineError), aws_errors("aborting an upload"):
                self._client.abort_multipart_upload(**upload)

    def _end_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
