"""Concatenated JSON, as Firehose writes it, cut into its records, with or without delimiters.

What users' functions put between records is none of them and goes unmentioned: white space, commas,
the brackets of arrays, byte-order marks, and the record separators of RFC 7464.
Whatever is broken in it costs what is broken and no more: behind it, reading goes on at the next
place where a whole record begins. Memory is bounded by the largest record.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cdc_pipeline.core.changes.change import OPS
from cdc_pipeline.core.changes.forwarded import is_flat

MOST_BYTES = 16 << 20
"""More than the largest record: Kinesis takes 10 MiB, rawData in base64 a third more."""

_CHUNK = 1 << 20
_START = re.compile(r'\{\s*(?:"|\Z)')
_SPACE = re.compile(r"[\s,\[\]\ufeff\x1e]*").match
NOT_JSON = "a stretch that is not JSON"
_TOKEN = 16  # longer than any token that an error at its start could be a cut one of


class Piece(NamedTuple):
    """A record as its JSON, or (`value` None) a stretch that is none. `raw`: its bytes."""

    value: dict[str, Any] | None
    raw: bytes


def pieces(read: Callable[[int], bytes], most: int = MOST_BYTES) -> Iterator[Piece]:
    """Cut what `read` gives (bytes, at most so many; none at the end); nothing is left out.

    What `read` raises is raised when all before it has been given.
    """
    return _Cutter(read, most).run()


def is_record(value: Any) -> bool:
    """Whether JSON is something that Firehose delivers for us, and no part of such a thing.

    Attributes of items are tagged, `{"S": "..."}`, so a part of an image never looks like it.
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
    """The text may go on to be JSON."""


class _Broken(Exception):
    """The text is no JSON, whatever comes."""


class _Cutter:
    def __init__(self, read: Callable[[int], bytes], most: int) -> None:
        self._read = read
        self._most = most
        # Bytes that are no UTF-8 become lone surrogates, which no image may hold.
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
            begin, sure = self._next_start(start)
            if not sure and self._may_grow(start):
                start = self._more(start)
                continue
            yield Piece(None, _bytes(self._text[start:begin]))
            start = begin
        if self._failed is not None:
            raise self._failed

    def _may_grow(self, start: int) -> bool:
        return not self._ended and len(self._text) - start < self._most

    def _more(self, start: int) -> int:
        """Forget what is before `start` and read on; returns where `start` is then."""
        left = self._text[start:]
        try:
            chunk = self._read(max(_CHUNK, len(left)))
        except Exception as error:  # noqa: BLE001 - raised when what came before it is cut
            self._failed, chunk = error, b""
        self._ended = not chunk
        self._text = left + self._utf8.decode(chunk, final=self._ended)
        return 0

    def _decode(self, start: int) -> tuple[dict[str, Any], int]:
        """The object that begins at `start`, and its end; raises `_Incomplete`, `_Broken`."""
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
        """Where the next record begins behind a broken one, and whether that is sure.

        If it is not, it is where one might begin whose end is not there yet, or the text's end.
        """
        perhaps = None
        for match in _START.finditer(self._text, start + 1):
            try:
                value, _ = self._decode(match.start())
            except _Broken:
                continue
            except _Incomplete:
                perhaps = match.start() if perhaps is None else perhaps
                continue
            if is_record(value):
                return match.start(), True
        if perhaps is None or self._ended:
            return len(self._text), self._ended
        return perhaps, False


def _space_end(text: str, start: int) -> int:
    match = _SPACE(text, start)
    return match.end() if match else start


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_raw_decode = json.JSONDecoder(parse_constant=_refuse).raw_decode
