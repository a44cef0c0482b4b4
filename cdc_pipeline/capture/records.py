"""Stream records into changes, fast: no Python object per attribute where none is needed.

Must give what `core.changes.from_stream_record` gives, which is the definition and takes over for
every record that is not of the usual form. An attribute's value is kept as the bytes it came in;
most are canonical already, and values repeat: between the two images of a change and between items.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cdc_pipeline.core.attributes import TOO_DEEP, Spelling, spell_value, to_json
from cdc_pipeline.core.capture_log import ShardState, StreamRef
from cdc_pipeline.core.changes import (
    DYNAMODB_STREAMS,
    OPS,
    Change,
    by_ttl,
    from_stream_record,
    seconds_to_us,
    stream_identity,
)
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.order import position

_CACHED_BYTES = 1024
_CACHED_VALUES = 20_000
_CACHED_SHAPES = 1_000
_NUMBER_BYTES = len('{"N":""}') + 38
_CANONICAL_NUMBER = re.compile(
    rb'\{"N":"(?:0|-?(?:0\.[0-9]*[1-9]|[1-9][0-9]*(?:\.[0-9]*[1-9])?))"\}'
).fullmatch

_RawImage = dict[str, msgspec.Raw]


class _Body(msgspec.Struct):
    Keys: _RawImage
    SequenceNumber: str
    ApproximateCreationDateTime: int | float
    NewImage: _RawImage | None = None
    OldImage: _RawImage | None = None


class _Record(msgspec.Struct):
    eventID: str
    eventName: str
    dynamodb: _Body
    userIdentity: Any = None


_decode_record = msgspec.json.Decoder(_Record).decode


class _NumberOnlyBody(msgspec.Struct):
    SequenceNumber: str


class _NumberOnly(msgspec.Struct):
    dynamodb: _NumberOnlyBody


_decode_number = msgspec.json.Decoder(_NumberOnly).decode


def sequence_number(raw: msgspec.Raw) -> str | None:
    """The sequence number of a record, None if it has none that could be a checkpoint."""
    try:
        number = _decode_number(raw).dynamodb.SequenceNumber
    except msgspec.DecodeError:
        return None
    return number if number.isdecimal() else None


def parse_records(
    records: Sequence[msgspec.Raw], stream: StreamRef, shard: ShardState
) -> tuple[list[Change], list[tuple[str, bytes]]]:
    """Changes, and records that are none with the reason why."""
    changes: list[Change] = []
    unreadable: list[tuple[str, bytes]] = []
    for raw in records:
        try:
            changes.append(_parse(raw, stream, shard))
        except UnreadableError as error:
            unreadable.append((error.reason, bytes(raw)))
        except RecursionError:
            unreadable.append((TOO_DEEP, bytes(raw)))
    return changes, unreadable


def _parse(raw: msgspec.Raw, stream: StreamRef, shard: ShardState) -> Change:
    try:
        record = _decode_record(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _slowly(raw, stream, shard)
    body, op = record.dynamodb, OPS.get(record.eventName)
    number = body.SequenceNumber
    usual = record.eventID and number.isdecimal() and body.Keys
    if op is None or not usual or (body.NewImage is None) != (op == "D"):
        return _slowly(raw, stream, shard)
    new = None if body.NewImage is None else _image(body.NewImage)
    return Change(
        uuid=stream_identity(stream.table_id, record.eventID),
        op=op,
        write_time_us=seconds_to_us(body.ApproximateCreationDateTime),
        data=new[1] if new else None,
        keys=_image(body.Keys)[0],
        new_image=new[0] if new else None,
        old_image=None if body.OldImage is None else _image(body.OldImage)[0],
        position=position(shard.depth, number),
        sequence_number=number,
        shard_id=shard.shard_id,
        event_id=record.eventID,
        is_ttl_delete=op == "D" and by_ttl(record.userIdentity),
        transport=DYNAMODB_STREAMS,
    )


def _slowly(raw: msgspec.Raw, stream: StreamRef, shard: ShardState) -> Change:
    try:
        record = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnreadableError("a record that is not JSON") from None
    return from_stream_record(
        record,
        table_id=stream.table_id,
        shard_id=shard.shard_id,
        depth=shard.depth,
        full_images=stream.full_images,
    )


_shapes: dict[tuple[str, ...], list[tuple[str, str]]] = {}
_values: dict[bytes, Spelling] = {}


def _image(image: _RawImage) -> Spelling:
    """Canonical typed JSON and plain JSON of an item."""
    names = tuple(image)
    shape = _shapes.get(names)
    if shape is None:
        if len(_shapes) >= _CACHED_SHAPES:
            _shapes.clear()
        shape = _shapes[names] = [(name, f"{to_json(name)}:") for name in sorted(names)]
    typed: list[str] = []
    plain: list[str] = []
    for name, prefix in shape:
        spelling = _value(bytes(image[name]))
        typed.append(prefix + spelling[0])
        plain.append(prefix + spelling[1])
    return f"{{{','.join(typed)}}}", f"{{{','.join(plain)}}}"


def _value(raw: bytes) -> Spelling:
    """Canonical typed JSON and plain JSON of one attribute value."""
    known = _values.get(raw)
    if known is not None:
        return known
    spelling = _spell(raw)
    if len(raw) <= _CACHED_BYTES:
        if len(_values) >= _CACHED_VALUES:
            _values.clear()
        _values[raw] = spelling
    return spelling


def _spell(raw: bytes) -> Spelling:
    if raw.startswith(b'{"S":"') and raw.find(b'"', 6) == len(raw) - 2 and b"\\" not in raw:
        text = raw.decode()
        return text, text[5:-1]
    if len(raw) <= _NUMBER_BYTES and _CANONICAL_NUMBER(raw):
        text = raw.decode()
        return text, text[6:-2]
    try:
        return spell_value(msgspec.json.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UnreadableError("text that is not Unicode") from None
