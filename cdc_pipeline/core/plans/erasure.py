"""Erasure on request: how an erased item is recognised, when it comes again and where it lies.

What stays in the lake is a salted hash of the key (`log_parts.Erasure`). The salt lies beside
it: it keeps hashes of different lakes apart, but whoever reads the capture log can try keys out.
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
"""Fields of quarantine lines, ours and Firehose's, that hold a record's bytes in base64."""


def new_salt() -> str:
    """32 random bytes in hex."""
    return secrets.token_hex(32)


def key_hash(salt: str, keys: str) -> str:
    """HMAC-SHA256 of a canonical typed key, in hex."""
    return hmac.new(bytes.fromhex(salt), keys.encode(), hashlib.sha256).hexdigest()


class _Number(str):
    """A JSON number's own digits."""


def typed_key(text: str, types: Mapping[str, str]) -> str:
    """A table's key in canonical typed JSON, from plain or typed JSON of just its attributes.

    `types`: S, N or B by key attribute. Raises `EraseRefusedError`, which names attributes and
    types only.
    """
    wanted = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    try:
        said = json.loads(text, parse_int=_Number, parse_float=_Number)
    except (ValueError, RecursionError):
        raise EraseRefusedError("the key is not JSON", fix=f"give {wanted} as JSON") from None
    if not isinstance(said, dict) or said.keys() != types.keys():
        found = ", ".join(sorted(said)) if isinstance(said, dict) else "no object"
        raise EraseRefusedError(
            f"the key has the attributes {found or '(none)'}", fix=f"give exactly {wanted}"
        )
    return to_json({name: _typed(name, said[name], kind) for name, kind in sorted(types.items())})


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
    """Which changes may never land again, because their item was erased after they were written."""

    def __init__(self, erasures: Iterable[Erasure]) -> None:
        self._until = {(e.salt, e.key_hash): e.until_us for e in erasures}
        self._salts = {salt for salt, _ in self._until}
        self._latest = max(self._until.values(), default=0)

    def __bool__(self) -> bool:
        """Whether anything was ever erased."""
        return bool(self._until)

    def drops(self, keys: str, write_time_us: int) -> bool:
        """Whether the change of this canonical key at that time is to be dropped."""
        if write_time_us > self._latest:
            return False  # what is written from now on costs no hash
        hashes = ((salt, key_hash(salt, keys)) for salt in self._salts)
        return any(write_time_us <= self._until.get(found, -1) for found in hashes)

    def drops_record(self, record: bytes) -> bool:
        """The same for a stream record that could not be read, as far as its key can be."""
        try:
            told = json.loads(record)
            # Who hands a stream's records on may have made them flat.
            body = told.get("dynamodb", told)
            keys = [to_json(canonical_item(body["Keys"]))]
        except (ValueError, LookupError, TypeError, AttributeError, UnreadableError):
            return False
        if "tableName" in told:  # as Kinesis has it, where binary is encoded again
            with suppress(UnreadableError):
                keys.append(to_json(canonical_item(decoded(body["Keys"], 1))))
        return any(self.drops(key, _time_us(body)) for key in keys)


def _time_us(body: Mapping[str, Any]) -> int:
    """The write time of a stream record or an envelope in µs, 0 if it has none."""
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
    """Recognises one item in what files hold.

    `keys`: its canonical typed key and, where columns are masked, the masked one.
    """

    def __init__(self, *keys: str) -> None:
        self.keys = tuple(dict.fromkeys(keys))
        self._typed = [json.loads(key) for key in self.keys]
        self._plain = [{n: _content(v) for n, v in typed.items()} for typed in self._typed]
        self._marks = [[_spellings(content) for content in plain.values()] for plain in self._plain]

    @property
    def rarest(self) -> list[str]:
        """For each form of the key a text that every JSON text of ours with the item contains."""
        return [max((mark[0] for mark in marks), key=len) for marks in self._marks]

    def may_be_in(self, data: bytes) -> bool:
        """Whether JSON could hold the item: all parts of its key are somewhere in it."""
        return any(
            all(any(text.encode() in data for text in spellings) for spellings in marks)
            for marks in self._marks
        )

    def is_in_text(self, text: str) -> bool:
        """Whether a cell is the item's key, or an image of it in typed or plain JSON."""
        if text in self.keys:
            return True
        if not text.startswith("{"):
            return False
        try:
            found = json.loads(text, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return False
        return self._has_key(found)

    def is_in_document(self, document: Any, text: bytes) -> bool:
        """Whether a parsed line (`text`: as it stands) is of the item.

        A stream record, a line of an export, an item, or a quarantined record. One that says
        nothing of its key is the item's if all parts of the key are in it.
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
        """A record is in quarantine because it is not as it should be: read what can be read."""
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
    """A key attribute's text: that of a string, a number's digits, or base64."""
    ((_, content),) = value.items()
    return content


def _spellings(content: str) -> list[str]:
    """How JSON may spell a text between its quotes, our own way first."""
    ways = (json.dumps(content, ensure_ascii=False), json.dumps(content))
    return list(dict.fromkeys(way[1:-1] for way in ways))


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
