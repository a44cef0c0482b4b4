"""Erasure on request: recognise an erased item in new changes and in files.

A salted hash of the key stays in the lake (`core.log.entries.Erasure`), with its salt beside it.
The salt makes hashes differ between lakes, but a reader of the capture log can test guessed keys.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from cdc_pipeline.core.changes.kinesis import decoded
from cdc_pipeline.core.changes.write_times import from_seconds, from_units
from cdc_pipeline.core.errors import EraseRefusedError, UnreadableError
from cdc_pipeline.core.items.attributes import canonical_item, canonical_value, to_json
from cdc_pipeline.core.log.entries import Erasure

_IMAGES = ("Item", "Keys", "NewImage", "OldImage")
_WRAPPED = ("record_base64", "rawData")
"""Fields of this project's and Firehose's quarantine lines with a record's bytes in base64."""


def new_salt() -> str:
    """Return 32 random bytes in hex."""
    return secrets.token_hex(32)


def key_hash(salt: str, keys: str) -> str:
    """Return the HMAC-SHA256 of a canonical typed key, in hex."""
    return hmac.new(bytes.fromhex(salt), keys.encode(), hashlib.sha256).hexdigest()


class _Number(str):
    """A JSON number, as its text."""


def typed_key(text: str, types: Mapping[str, str]) -> str:
    """Convert plain or typed JSON of exactly a table's key attributes to canonical typed JSON.

    `types`: S, N or B by key attribute. Raises `EraseRefusedError`, which contains attribute names
    and types only.
    """
    wanted = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    try:
        key = json.loads(text, parse_int=_Number, parse_float=_Number)
    except (ValueError, RecursionError):
        raise EraseRefusedError("the key is not JSON", fix=f"give {wanted} as JSON") from None
    if not isinstance(key, dict) or key.keys() != types.keys():
        given = ", ".join(sorted(key)) if isinstance(key, dict) else "no object"
        raise EraseRefusedError(
            f"the key has the attributes {given or '(none)'}", fix=f"give exactly {wanted}"
        )
    return to_json({name: _typed(name, key[name], kind) for name, kind in sorted(types.items())})


def _typed(name: str, value: Any, kind: str) -> dict[str, Any]:
    if isinstance(value, str) and isinstance(value, _Number) <= (kind == "N"):
        value = {kind: str(value)}
    try:
        typed = canonical_value(value)
    except UnreadableError as error:
        raise EraseRefusedError(
            f"key attribute {name}: {error.reason}", fix=f"give a value of type {kind}"
        ) from None
    if typed.keys() != {kind}:
        raise EraseRefusedError(
            f"key attribute {name} has type {next(iter(typed))}", fix=f"it is of type {kind}"
        )
    return typed


class Suppressions:
    """Filter of changes that must never land again: written before their item was erased."""

    def __init__(self, erasures: Iterable[Erasure]) -> None:
        self._until = {(e.salt, e.key_hash): e.until_us for e in erasures}
        self._salts = {salt for salt, _ in self._until}
        self._latest = max(self._until.values(), default=0)

    def __bool__(self) -> bool:
        """Whether anything was ever erased."""
        return bool(self._until)

    def is_suppressed(self, keys: str, write_time_us: int) -> bool:
        """Whether to drop a change of this canonical key at this write time."""
        if write_time_us > self._latest:
            return False  # new writes cost no hash
        hashes = ((salt, key_hash(salt, keys)) for salt in self._salts)
        return any(write_time_us <= self._until.get(pair, -1) for pair in hashes)

    def is_suppressed_record(self, record: bytes) -> bool:
        """Whether to drop an unreadable stream record, if its key is readable."""
        try:
            document = json.loads(record)
            # Forwarders of a stream's records may have made them flat.
            body = document.get("dynamodb", document)
            keys = [to_json(canonical_item(body["Keys"]))]
        except (ValueError, LookupError, TypeError, AttributeError, UnreadableError):
            return False
        if "tableName" in document:  # Kinesis's format, with binary encoded twice
            with suppress(UnreadableError):
                keys.append(to_json(canonical_item(decoded(body["Keys"], 1))))
        return any(self.is_suppressed(key, _time_us(body)) for key in keys)


def _time_us(body: Mapping[str, Any]) -> int:
    """Return the write time of a stream's or Kinesis's record in µs, 0 without one."""
    time = body.get("ApproximateCreationDateTime")
    try:
        return from_seconds(time)
    except UnreadableError:
        pass
    try:
        return from_units(time, body.get("ApproximateCreationDateTimePrecision"))
    except UnreadableError:
        return 0


class ItemTrace:
    """Recogniser of one item in the contents of files.

    `keys`: its canonical typed key and, if columns are masked, the masked key.
    """

    def __init__(self, *keys: str) -> None:
        self.keys = tuple(dict.fromkeys(keys))
        self._typed = [json.loads(key) for key in self.keys]
        self._plain = [{n: _content(v) for n, v in typed.items()} for typed in self._typed]
        self._marks = [[_spellings(content) for content in plain.values()] for plain in self._plain]

    @property
    def rarest(self) -> list[str]:
        """For each form of the key, a text that occurs in all JSON of the item in the lake."""
        return [max((mark[0] for mark in marks), key=len) for marks in self._marks]

    def may_be_in(self, data: bytes) -> bool:
        """Whether JSON may contain the item: all parts of its key occur in it."""
        return any(
            all(any(text.encode() in data for text in spellings) for spellings in marks)
            for marks in self._marks
        )

    def is_in_text(self, text: str) -> bool:
        """Whether a cell is the item's key, or its image in typed or plain JSON."""
        if text in self.keys:
            return True
        if not text.startswith("{"):
            return False
        try:
            image = json.loads(text, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return False
        return self._has_key(image)

    def is_in_document(self, document: Any, text: bytes) -> bool:
        """Whether a parsed line is of the item; `text`: the unparsed line.

        Lines are stream records, lines of an export, items, or quarantined records. A line without
        a key counts as the item's if all parts of the key occur in it.
        """
        if not isinstance(document, Mapping):
            return self.may_be_in(text)
        for name in _WRAPPED:
            if isinstance(document.get(name), str):
                return self._is_in_record(_decoded(document[name]))
        inner = document.get("dynamodb")
        images = [
            part[name]
            for part in (document, inner)
            if isinstance(part, Mapping)
            for name in _IMAGES
            if isinstance(part.get(name), Mapping)
        ]
        return any(map(self._has_key, [document, *images]))

    def _is_in_record(self, record: bytes) -> bool:
        """Whether a quarantined (so malformed) record is of the item, if that is readable."""
        try:
            parsed = json.loads(record)
            keys = parsed["dynamodb"]["Keys"]
            readable = any(all(_canonical(keys.get(n)) for n in typed) for typed in self._typed)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return self.may_be_in(record)
        return self.is_in_document(parsed, record) if readable else self.may_be_in(record)

    def _has_key(self, image: Any) -> bool:
        if not isinstance(image, Mapping):
            return False
        return any(
            all(_canonical(image.get(name)) == value for name, value in typed.items())
            for typed in self._typed
        ) or any(
            all(image.get(name) == content for name, content in plain.items())
            for plain in self._plain
        )


def _content(value: Mapping[str, str]) -> str:
    """Return a key attribute's text: a string, the digits of a number, or base64."""
    ((_, content),) = value.items()
    return content


def _spellings(content: str) -> list[str]:
    """List the JSON spellings of a text without quotes, this project's own first."""
    spellings = (json.dumps(content, ensure_ascii=False), json.dumps(content))
    return list(dict.fromkeys(spelling[1:-1] for spelling in spellings))


def _canonical(value: Any) -> Any:
    try:
        return canonical_value(value)
    except (UnreadableError, RecursionError):
        return None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return text.encode()
