"""Reads from S3: truncated bodies and listings are requested again.

botocore retries a request until its answer begins. It leaves a body that breaks off later (reset
connection, fewer bytes than announced) to the caller, and reports no error for a truncated listing.
"""

import io
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from botocore.exceptions import (
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError

_ATTEMPTS = 5
_RETRY_SECONDS = 0.05
# HTTPClientError: botocore's class for reset connections, timeouts and broken streams.
_BROKEN = (HTTPClientError, IncompleteReadError, FlexibleChecksumError)


def read_object(client: Any, **wanted: str) -> bytes:
    """Read one GetObject in full; `wanted`: its arguments. Raises botocore's errors."""
    for attempt in range(_ATTEMPTS):
        _pause(attempt)
        # Not as a context manager: that returns the raw stream, which does not check the length.
        body = client.get_object(**wanted)["Body"]
        try:
            return body.read()
        except _BROKEN:
            body.close()
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def list_pages(client: Any, **wanted: str) -> Iterator[dict[str, Any]]:
    """Yield complete pages of ListObjectsV2. Raises botocore's errors."""
    token: dict[str, str] = {}
    while True:
        page = _page(client, {**wanted, **token})
        yield page
        if not page["IsTruncated"]:
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _page(client: Any, wanted: dict[str, str]) -> dict[str, Any]:
    for attempt in range(_ATTEMPTS):
        _pause(attempt)
        # botocore retries broken connections, but not answers that it cannot parse.
        with suppress(ResponseParserError):
            page = client.list_objects_v2(**wanted)
            # An empty body parses as a page without objects: the lake would appear empty.
            if "IsTruncated" in page:
                return page
    raise ResponseStreamingError(error=f"the listing was cut short {_ATTEMPTS} times in a row")


class ObjectStream(io.RawIOBase):
    """An object's bytes in order; if the body breaks off, the rest is requested.

    `answer`: of GetObject for the whole object. Only the same version is continued: raises
    botocore's `ClientError` (PreconditionFailed) if the object was replaced meanwhile.
    """

    def __init__(self, client: Any, answer: dict[str, Any], **wanted: str) -> None:
        super().__init__()
        self._client, self._wanted = client, {**wanted, "IfMatch": answer["ETag"]}
        self._body: Any = answer["Body"]
        self._size: int = answer["ContentLength"]
        self._position = 0
        self._failed = 0

    def readable(self) -> bool:
        """Return True: the stream is readable."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read the next `size` bytes, fewer only at the end; without `size` all remaining ones."""
        left = self._size - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        pieces: list[bytes] = []
        while wanted:
            piece = self._next(wanted)
            self._position += len(piece)
            wanted -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Release the connection."""
        self._body.close()
        super().close()

    def _next(self, size: int) -> bytes:
        """Read some of the next `size` bytes, at least one."""
        while True:
            try:
                piece = self._body.read(size)
            except _BROKEN:
                if self._failed == _ATTEMPTS - 1:
                    raise
                piece = b""
            if piece:
                self._failed = 0
                return piece
            # botocore reports an early end only at the next read after it.
            self._failed += 1
            if self._failed == _ATTEMPTS:
                raise IncompleteReadError(actual_bytes=self._position, expected_bytes=self._size)
            self._body.close()
            _pause(self._failed)
            part = f"bytes={self._position}-"
            self._body = self._client.get_object(**self._wanted, Range=part)["Body"]


def _pause(attempt: int) -> None:
    if attempt:
        time.sleep(_RETRY_SECONDS * 2**attempt * random.random())
