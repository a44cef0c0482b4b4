"""What Firehose delivers, as changes: envelopes, rows of our Lambda, rows of older ones, errors."""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.core.attributes import canonical_number, spell_item
from cdc_pipeline.core.changes import OPS, Change, content_identity
from cdc_pipeline.core.envelope import FIREHOSE, from_envelope
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.order import position

_OPS = {**OPS, "I": "I", "U": "U", "D": "D"}
_YEAR_10000_US = 253_402_300_800_000_000
_US_PER_UNIT = ((100_000_000_000, 1_000_000), (100_000_000_000_000, 1000))


@dataclass(frozen=True)
class Target:
    """The table that is captured. `key_types`: S, N or B by key attribute."""

    name: str
    table_id: str
    key_types: Mapping[str, str]


@dataclass(frozen=True)
class Delivered:
    """One delivered record: a change, or none, because it is another table's.

    `legacy`: made by an older Lambda, so its time is that of its arrival.
    """

    change: Change | None
    legacy: bool = False


def delivered(record: Any, target: Target) -> Delivered:
    """What one record says; error records are replayed. Raises `UnreadableError`."""
    if isinstance(record, Mapping):
        if "rawData" in record:
            return delivered(_raw_record(record["rawData"]), target)
        if "dynamodb" in record:
            return _envelope(record, target)
        if "write_time_us" in record and "keys" in record:
            return Delivered(from_landing_row(record, target.table_id))
        if {"uuid", "op", "time_stamp", "data"} <= record.keys():
            return Delivered(from_legacy_row(record, target), legacy=True)
    raise UnreadableError("a record of an unknown kind")


def _envelope(record: Mapping[str, Any], target: Target) -> Delivered:
    if record.get("tableName", target.name) != target.name:
        return Delivered(None)  # a Kinesis stream may carry several tables
    change = from_envelope(record, table_id=target.table_id, transport=FIREHOSE)
    if record["dynamodb"]["Keys"].keys() != target.key_types.keys():
        raise UnreadableError("a record with other key attributes than the table has")
    return Delivered(change)


def _raw_record(text: Any) -> Any:
    """The record inside an error record; what is itself an error record is none of ours."""
    try:
        record = json.loads(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise UnreadableError("an error record whose rawData is no record") from None
    if isinstance(record, Mapping) and "rawData" in record:
        raise UnreadableError("an error record inside an error record")
    return record


def from_landing_row(row: Mapping[str, Any], table_id: str) -> Change:
    """A change from a row in the landing columns, as our Lambda makes it.

    Its images are read again, so nothing that is no image gets into the lake, and its identity must
    be the one that the raw record has: rows do not name their table. Raises `UnreadableError`.
    """
    op, time_us = _OPS.get(str(row.get("op"))), row.get("write_time_us")
    if op is None:
        raise UnreadableError("a row with an unknown op")
    if isinstance(time_us, bool) or not isinstance(time_us, int):
        raise UnreadableError("a row without its write time")
    _require_possible(time_us)
    keys, new, old = (_typed(row.get(n)) for n in ("keys", "new_image", "old_image"))
    if keys is None or keys[0] == "{}":
        raise UnreadableError("a row without keys")
    if (new is None) != (op == "D"):
        raise UnreadableError("a row whose new image does not fit its op")
    images = (new[0] if new else None, old[0] if old else None)
    uuid = content_identity(table_id, keys[0], time_us, op, *images)
    if row.get("uuid") != uuid:
        raise UnreadableError("a row whose uuid is not that of such a change of this table")
    by_ttl = row.get("is_ttl_delete")
    return Change(
        uuid=uuid,
        op=op,
        write_time_us=time_us,
        data=new[1] if new else None,
        keys=keys[0],
        new_image=images[0],
        old_image=images[1],
        position=position(0, time_us),
        sequence_number=_text(row.get("sequence_number")),
        shard_id=_text(row.get("shard_id")),
        event_id=_text(row.get("event_id")),
        is_ttl_delete=by_ttl if isinstance(by_ttl, bool) else None,
        transport=FIREHOSE,
    )


def from_legacy_row(row: Mapping[str, Any], target: Target) -> Change:
    """A change from `uuid`, `op`, `time_stamp`, `data`: the item is typed from plain JSON.

    Key attributes have the types of the key schema. Other strings are S, numbers N, arrays L,
    objects M: plain JSON does not tell sets and binary from lists and text. Their `uuid` repeats
    when an image comes back, so it and the time are the identity. Raises `UnreadableError`.
    """
    op, uuid = _OPS.get(str(row["op"])), row["uuid"]
    if op is None:
        raise UnreadableError("a row with an unknown op")
    if not isinstance(uuid, str) or not uuid:
        raise UnreadableError("a row without its uuid")
    time_us = _arrival_us(row["time_stamp"])
    item = _typed_item(row["data"], target.key_types, op)
    keys = spell_item({name: item[name] for name in target.key_types})[0]
    new = None if op == "D" else spell_item(item)
    said = "\n".join((target.table_id, "legacy", uuid, str(time_us)))
    return Change(
        uuid=hashlib.sha256(said.encode()).hexdigest(),
        op=op,
        write_time_us=time_us,
        data=new[1] if new else None,
        keys=keys,
        new_image=new[0] if new else None,
        old_image=None,
        position=position(0, time_us),
        sequence_number="",
        shard_id="",
        event_id="",
        is_ttl_delete=None,
        transport=FIREHOSE,
    )


def _typed(image: Any) -> tuple[str, str] | None:
    if image is None:
        return None
    try:
        return spell_item(json.loads(image))
    except (ValueError, TypeError, RecursionError):
        raise UnreadableError("a row whose image is not JSON") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class _Number(str):
    """A number as it is spelled."""

    __slots__ = ()


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decode_plain = json.JSONDecoder(
    parse_int=_Number, parse_float=_Number, parse_constant=_refuse
).decode


def _typed_item(data: Any, key_types: Mapping[str, str], op: str) -> dict[str, Any]:
    if op == "D" and data in (None, ""):
        raise UnreadableError("a delete without its keys")
    try:
        plain = _decode_plain(data)
    except (ValueError, TypeError, RecursionError):
        raise UnreadableError("a row whose data is not JSON") from None
    if not isinstance(plain, dict):
        raise UnreadableError("a row whose data is no item")
    if not key_types.keys() <= plain.keys():
        missing = "a delete without its keys" if op == "D" else "a row without its key attributes"
        raise UnreadableError(missing)
    item = {name: _typed_value(value) for name, value in plain.items()}
    return item | {name: _typed_key(plain[name], kind) for name, kind in key_types.items()}


def _typed_value(value: Any) -> dict[str, Any]:
    if isinstance(value, _Number):
        return {"N": str(value)}
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, bool):
        return {"BOOL": value}
    if isinstance(value, list):
        return {"L": [_typed_value(element) for element in value]}
    if isinstance(value, dict):
        return {"M": {name: _typed_value(content) for name, content in value.items()}}
    return {"NULL": True}


def _typed_key(value: Any, kind: str) -> dict[str, str]:
    # A number may be a string: JSON encoders of Python refuse decimals unless told to.
    if not isinstance(value, str) or (isinstance(value, _Number) and kind != "N"):
        raise UnreadableError("a row whose key has another type than the table's")
    return {kind: canonical_number(str(value)) if kind == "N" else str(value)}


def _arrival_us(value: Any) -> int:
    """A `time_stamp`: a timestamp, ISO 8601 text, or a number of s, ms or µs; UTC if it is open."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise UnreadableError("a row without its time_stamp") from None
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        time_us = round(moment.timestamp() * 1_000_000)
    elif isinstance(value, int) and not isinstance(value, bool):
        time_us = value * next((us for limit, us in _US_PER_UNIT if value < limit), 1)
    else:
        raise UnreadableError("a row without its time_stamp")
    _require_possible(time_us)
    return time_us


def _require_possible(time_us: int) -> None:
    if not 0 < time_us < _YEAR_10000_US:
        raise UnreadableError("a row with an impossible time")
