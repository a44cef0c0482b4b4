"""Concatenated JSON, as Firehose writes it, split into records, with or without delimiters.

Separators that users' functions write between records are ignored: white space, commas, the
brackets of arrays, byte-order marks, and the record separators of RFC 7464.
Broken data loses nothing else: reading continues at the next beginning of a whole record. Memory is
bounded by the largest record.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cdc_pipeline.core.changes.change import OPS
from cdc_pipeline.core.changes.forwarded import is_flat

MOST_BYTES = 16 << 20
"""More than the largest record: 10 MiB in Kinesis, a third more as rawData in base64."""

_CHUNK = 1 << 20
_START = re.compile(r'\{\s*(?:"|\Z)')
_SPACE = re.compile(r"[\s,\[\]\ufeff\x1e]*").match
NOT_JSON = "a stretch that is not JSON"
_TOKEN = 16  # longer than any token that the end of a chunk could cut


class Piece(NamedTuple):
    """A parsed record, or (`value` None) a stretch that is not JSON. `raw`: its bytes."""

    value: dict[str, Any] | None
    raw: bytes


def pieces(read: Callable[[int], bytes], most: int = MOST_BYTES) -> Iterator[Piece]:
    """Split the bytes of `read(size)` (at most `size`; empty at the end); nothing is left out.

    Errors of `read` are raised after all pieces before them.
    """
    return _Cutter(read, most).run()


def is_record(value: Any) -> bool:
    """Whether JSON is a whole record in a format that Firehose delivers, not a part of one.

    Attributes of items are tagged, `{"S": "..."}`, so a part of an image never matches.
    """
    if not isinstance(value, dict):
        return False
    body = value.get("dynamodb")
    if isinstance(body, dict):
        return value.get("eventName") in list(OPS) and isinstance(body.get("Keys"), dict)
    if is_flat(value) and value["eventName"] in list(OPS):
        return True
    return isinstance(value.get("rawData"), str) or all(
        isinstance(value.get(name), str) for name in ("uuid", "op")
    )


class _Incomplete(Exception):
    """The text may become JSON with more of it."""


class _Broken(Exception):
    """The text cannot become JSON."""


class _Cutter:
    def __init__(self, read: Callable[[int], bytes], most: int) -> None:
        self._read = read
        self._most = most
        # Bytes that are not UTF-8 become lone surrogates, which images must not contain.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._ended = False
        self._failed: Exception | None = None

    def run(self) -> Iterator[Piece]:
        start = 0
        while True:
            start = _space_end(self._text, start)
            if start == len(self._text):
                if self._ended:
                    break
                start = self._more(start)
                continue
            try:
                value, end = self._decode(start)
                yield Piece(value, _bytes(self._text[start:end]))
                start = end
                continue
            except _Incomplete:
                if self._may_grow(start):
                    start = self._more(start)
                    continue
            except _Broken:
                pass
            begin, is_certain = self._next_start(start)
            if not is_certain and self._may_grow(start):
                start = self._more(start)
                continue
            yield Piece(None, _bytes(self._text[start:begin]))
            start = begin
        if self._failed is not None:
            raise self._failed

    def _may_grow(self, start: int) -> bool:
        return not self._ended and len(self._text) - start < self._most

    def _more(self, start: int) -> int:
        """Drop the text before `start` and read more; returns the new `start`."""
        left = self._text[start:]
        try:
            chunk = self._read(max(_CHUNK, len(left)))
        except Exception as error:  # noqa: BLE001 - raised after the pieces before it
            self._failed, chunk = error, b""
        self._ended = not chunk
        self._text = left + self._utf8.decode(chunk, final=self._ended)
        return 0

    def _decode(self, start: int) -> tuple[dict[str, Any], int]:
        """Parse the object at `start`; returns it and its end; raises `_Incomplete`, `_Broken`."""
        if self._text[start] != "{":
            raise _Broken
        try:
            return _raw_decode(self._text, start)
        except json.JSONDecodeError as error:
            open_string = error.msg.startswith("Unterminated string")
            if open_string or error.pos > len(self._text) - _TOKEN:
                raise _Incomplete from None
            raise _Broken from None
        except (ValueError, RecursionError):
            raise _Broken from None

    def _next_start(self, start: int) -> tuple[int, bool]:
        """Find the next beginning of a record after a broken one, and whether it is certain.

        If not, it is the beginning of a possible record without its end, or the text's end.
        """
        possible = None
        for match in _START.finditer(self._text, start + 1):
            try:
                value, _ = self._decode(match.start())
            except _Broken:
                continue
            except _Incomplete:
                possible = match.start() if possible is None else possible
                continue
            if is_record(value):
                return match.start(), True
        if possible is None or self._ended:
            return len(self._text), self._ended
        return possible, False


def _space_end(text: str, start: int) -> int:
    match = _SPACE(text, start)
    return match.end() if match else start


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_raw_decode = json.JSONDecoder(parse_constant=_refuse).raw_decode
