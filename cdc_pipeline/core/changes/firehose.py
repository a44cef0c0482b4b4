"""Records of delivered files, parsed into changes.

Either format of DynamoDB, wrapped or not; rows of this project's Lambda and of older ones; and
Firehose's error records, which are replayed.
"""

import base64
import binascii
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cdc_pipeline.core.changes.change import OPS, Change
from cdc_pipeline.core.changes.forwarded import from_record, is_flat
from cdc_pipeline.core.changes.json_stream import NOT_JSON, pieces
from cdc_pipeline.core.changes.kinesis import AGGREGATED
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.changes.ownership import Target, table_named_by
from cdc_pipeline.core.changes.write_times import from_datetime, from_text, require_possible
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import TOO_DEEP, canonical_number, spell_item
from cdc_pipeline.core.transports import FIREHOSE

_OPS = {**OPS, "I": "I", "U": "U", "D": "D"}
_US_PER_UNIT = ((100_000_000_000, 1_000_000), (100_000_000_000_000, 1000))
_DEEPEST = 4
"""Most nested wrappers: an event in a Kinesis event in an error record has three."""

_REFUSED = (
    ("a line of a full export", {"Item"}),
    ("an event of Firehose for a transforming function", {"deliveryStreamArn", "records"}),
    ("an event of Debezium", {"payload", "schema"}),
)


@dataclass(frozen=True)
class DeliveredRecord:
    """One delivered record: a change, or none for an unreadable record or another table's.

    `legacy`: written by an older Lambda, so its time is that of its arrival. `unreadable`: reason
    and bytes of the record. `other`: the name of the other table.
    """

    change: Change | None
    legacy: bool = False
    unreadable: tuple[str, bytes] | None = None
    other: str = ""


def delivered_records(value: Any, raw: bytes, target: Target) -> Iterator[DeliveredRecord]:
    """Yield the records of one piece of a file: several of a wrapper, one of anything else.

    `raw`: its bytes. Error records are replayed. Raises nothing.
    """
    yield from _inside(value, raw, target, 0, replayed=False)


def refused_shape(value: Any) -> str | None:
    """Name a known format that contains no change of a table; None for any other."""
    for kind, names in _REFUSED:
        if isinstance(value, Mapping) and names <= value.keys():
            return kind
    return None


def _inside(
    value: Any, raw: bytes, target: Target, depth: int, *, replayed: bool, is_part: bool = False
) -> Iterator[DeliveredRecord]:
    """Yield the records in a value. `raw`: its bytes, or (`is_part`) those of its wrapper."""
    try:
        if depth > _DEEPEST:
            raise UnreadableError("a record wrapped too often")
        wrapped = _wrapped(value)
        if wrapped is None:
            yield _one(value, target)
            return
        if replayed and "rawData" in value:
            raise UnreadableError("an error record inside an error record")
        replayed = replayed or "rawData" in value
        if isinstance(wrapped, bytes):
            records = list(pieces(io.BytesIO(wrapped).read))
            if not records:
                raise UnreadableError("a wrapper around no record")
            for record, inner in records:
                if record is None:
                    yield DeliveredRecord(None, unreadable=(NOT_JSON, inner))
                else:
                    yield from _inside(record, inner, target, depth + 1, replayed=replayed)
        else:
            for record in wrapped:
                yield from _inside(record, raw, target, depth + 1, replayed=replayed, is_part=True)
    except UnreadableError as error:
        yield DeliveredRecord(
            None, unreadable=(error.reason, _bytes(value, raw) if is_part else raw)
        )
    except RecursionError:
        yield DeliveredRecord(None, unreadable=(TOO_DEEP, raw))


def _wrapped(value: Any) -> bytes | list[Any] | None:
    """Unwrap a value: bytes with any number of records, or a list of JSON; None: no wrapper.

    Raises `UnreadableError` for a broken or empty wrapper.
    """
    if not isinstance(value, Mapping) or "dynamodb" in value:
        return None
    if "rawData" in value:  # an error record of Firehose
        return _from_base64(value["rawData"], "an error record whose rawData is no record")
    if isinstance(value.get("kinesis"), Mapping):  # in a Lambda function's event from Kinesis
        data = value["kinesis"].get("data")
        return _from_base64(data, "a record of Kinesis whose data is not base64")
    if isinstance(value.get("Records"), list):  # an event of a Lambda function
        return value["Records"]
    if "detail-type" in value and isinstance(value.get("detail"), Mapping):  # of an event bus
        return [value["detail"]]
    if {"eventSource", "body"} <= value.keys() and isinstance(value["body"], str):  # of SQS
        return value["body"].encode("utf-8", "surrogatepass")
    if value.get("Type") == "Notification" and isinstance(value.get("Message"), str):  # of SNS
        return value["Message"].encode("utf-8", "surrogatepass")
    return None


def _from_base64(text: Any, reason: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise UnreadableError(reason) from None
    if content.startswith(AGGREGATED):
        raise UnreadableError("an aggregated record")
    return content


def _bytes(value: Any, outer: bytes) -> bytes:
    """Serialize a part of a wrapper for the quarantine, without the rest of the wrapper."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except RecursionError:
        return outer


def _one(record: Any, target: Target) -> DeliveredRecord:
    """Parse a record that is no wrapper; raises `UnreadableError`."""
    if isinstance(record, Mapping):
        if "dynamodb" in record or is_flat(record):
            if target.is_of_another(record):  # objects in S3 may hold records of several tables
                return DeliveredRecord(None, other=table_named_by(record))
            return DeliveredRecord(_change(record, target))
        if "write_time_us" in record and "keys" in record:
            return DeliveredRecord(from_landing_row(record, target))
        if {"uuid", "op", "time_stamp", "data"} <= record.keys():
            return DeliveredRecord(from_legacy_row(record, target), legacy=True)
    raise UnreadableError(refused_shape(record) or "a record of an unknown kind")


def _change(record: Mapping[str, Any], target: Target) -> Change:
    change = from_record(record, table_id=target.table_id, transport=FIREHOSE)
    target.require_keys(change.keys)
    return change


def from_landing_row(row: Mapping[str, Any], target: Target) -> Change:
    """Parse a row in the landing columns, as written by this project's Lambda.

    Its images are parsed again, so that only valid images get into the lake. Its `uuid` must equal
    that of the raw record, because rows do not name their table. Raises `UnreadableError`.
    """
    op, time_us = _OPS.get(str(row.get("op"))), row.get("write_time_us")
    if op is None:
        raise UnreadableError("a row with an unknown op")
    if isinstance(time_us, bool) or not isinstance(time_us, int):
        raise UnreadableError("a row without its write time")
    require_possible(time_us)
    keys, new, old = (_typed(row.get(n)) for n in ("keys", "new_image", "old_image"))
    if keys is None or keys[0] == "{}":
        raise UnreadableError("a row without keys")
    if (new is None) != (op == "D"):
        raise UnreadableError("a row whose new image does not fit its op")
    number, shard_id = _text(row.get("sequence_number")), _text(row.get("shard_id"))
    by_ttl = row.get("is_ttl_delete")
    # A number with a shard is Kinesis's; without, a stream's, which identifies and orders changes.
    has_number = number.isdecimal() and len(number) <= 40 and not shard_id
    change = (Change.by_number if has_number else Change.by_content)(
        target.table_id,
        op,
        time_us,
        keys[0],
        (new, old),
        sequence_number=number,
        shard_id=shard_id,
        event_id=_text(row.get("event_id")),
        is_ttl_delete=by_ttl if isinstance(by_ttl, bool) else None,
        transport=FIREHOSE,
    )
    if row.get("uuid") != change.uuid:
        raise UnreadableError("a row whose uuid is not that of such a change of this table")
    target.require_keys(keys[0])
    return change


def from_legacy_row(row: Mapping[str, Any], target: Target) -> Change:
    """Parse `uuid`, `op`, `time_stamp`, `data`; the item is typed from plain JSON.

    Key attributes have the types of the key schema. Other strings are S, numbers N, arrays L,
    objects M: plain JSON does not distinguish sets from lists, nor binary from text. The row's
    `uuid` repeats when an image recurs, so `uuid` and time are the identity. Raises
    `UnreadableError`.
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
    identity = "\n".join((target.table_id, "legacy", uuid, str(time_us)))
    return Change(
        uuid=hashlib.sha256(identity.encode()).hexdigest(),
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
    # A number may be a string: Python's JSON encoders refuse decimals by default.
    if not isinstance(value, str) or (isinstance(value, _Number) and kind != "N"):
        raise UnreadableError("a row whose key has another type than the table's")
    return {kind: canonical_number(str(value)) if kind == "N" else str(value)}


def _arrival_us(value: Any) -> int:
    """Parse a `time_stamp`: a timestamp, ISO 8601, or a number of s, ms or µs; UTC by default."""
    if isinstance(value, str):
        return require_possible(from_text(value, "a row without its time_stamp"))
    if isinstance(value, datetime):
        return require_possible(from_datetime(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return require_possible(
            value * next((us for limit, us in _US_PER_UNIT if value < limit), 1)
        )
    raise UnreadableError("a row without its time_stamp")
