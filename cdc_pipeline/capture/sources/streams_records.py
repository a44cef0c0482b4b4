"""Fast parsers of stream records into changes: no Python object per attribute unless needed.

Both must return the same as `core.changes.change.from_stream_record`, which is the definition and
parses every record not of the usual form.

- With the extra `fast`, many records become columns (`capture.sources.record_columns`). Records
  that the compiled scan does not support go one by one through the other parser.
- The other parser keeps images as text, spelled by their shape (`core.items.spelling`). Fields that
  a change does not use are not decoded.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cdc_pipeline.core.changes.change import (
    OPS,
    Change,
    by_ttl,
    from_stream_record,
    stream_identity,
)
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.changes.write_times import from_seconds
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import TOO_DEEP, Spelling, spell_item
from cdc_pipeline.core.items.spelling import Speller
from cdc_pipeline.core.log.entries import ShardState, StreamRef
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.lake.storage.changes import Changes
from cdc_pipeline.transform.record_scan import scan_records

if TYPE_CHECKING:
    from cdc_pipeline.capture.sources.record_columns import ChangeColumns

_SEQUENCE_NUMBER = re.compile("[0-9]{1,40}").fullmatch


class _Body(msgspec.Struct):
    Keys: msgspec.Raw
    SequenceNumber: str
    ApproximateCreationDateTime: int | float
    NewImage: msgspec.Raw = msgspec.Raw()
    OldImage: msgspec.Raw = msgspec.Raw()


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
    """Return the sequence number of a record, None if it cannot be a checkpoint."""
    try:
        number = _decode_number(raw).dynamodb.SequenceNumber
    except msgspec.DecodeError:
        return None
    return number if number.isdecimal() else None


Unreadable = list[tuple[str, bytes]]
"""Reasons and records."""


def parse_records(
    records: Sequence[msgspec.Raw],
    stream: StreamRef,
    shard: ShardState,
    target: Target | None = None,
) -> tuple[Sequence[Change], Unreadable]:
    """Parse records: changes, and unreadable records with reasons, also without `target`'s keys."""
    read = _read_columns(records, stream, shard, target)
    if read is None:
        changes, unreadable = _parse_each(enumerate(records), stream, shard, target)
        return list(changes.values()), unreadable
    others = ((place, records[place]) for place in read.others)
    changes, unreadable = _parse_each(others, stream, shard, target)
    return Changes([read.woven(changes)]), unreadable


def _read_columns(
    records: Sequence[msgspec.Raw], stream: StreamRef, shard: ShardState, target: Target | None
) -> "ChangeColumns | None":
    found = scan_records(records)
    if found is None:
        return None
    # It needs the extra `fast`, as the scan does.
    from cdc_pipeline.capture.sources.record_columns import stream_columns

    return stream_columns(found, stream, shard, target)


def _parse_each(
    records: Iterable[tuple[int, msgspec.Raw]],
    stream: StreamRef,
    shard: ShardState,
    target: Target | None,
) -> tuple[dict[int, Change], Unreadable]:
    """Parse numbered records one by one; changes by number."""
    changes: dict[int, Change] = {}
    unreadable: Unreadable = []
    for number, raw in records:
        try:
            change = _parse(raw, stream, shard)
            if target is not None:
                target.require_keys(change.keys)
            changes[number] = change
        except UnreadableError as error:
            unreadable.append((error.reason, bytes(raw)))
        except RecursionError:
            unreadable.append((TOO_DEEP, bytes(raw)))
    return changes, unreadable


def _parse(raw: msgspec.Raw, stream: StreamRef, shard: ShardState) -> Change:
    try:
        change = _fast(raw, stream, shard)
    except (msgspec.DecodeError, UnicodeDecodeError, UnreadableError):
        change = None
    return change or _slowly(raw, stream, shard)


def _fast(raw: msgspec.Raw, stream: StreamRef, shard: ShardState) -> Change | None:
    """The change of a record of the usual form; None for others, left to `_slowly`."""
    record = _decode_record(raw)
    body, op, event_id = record.dynamodb, OPS.get(record.eventName), record.eventID
    usual = event_id and event_id.isascii() and _SEQUENCE_NUMBER(body.SequenceNumber)
    if op is None or not usual or _absent(body.NewImage) != (op == "D"):
        return None
    keys = _image(body.Keys)[0]
    if keys == "{}":
        return None
    new = None if op == "D" else _image(body.NewImage)
    return Change(
        uuid=stream_identity(stream.table_id, event_id),
        op=op,
        write_time_us=from_seconds(body.ApproximateCreationDateTime),
        data=new[1] if new else None,
        keys=keys,
        new_image=new[0] if new else None,
        old_image=None if _absent(body.OldImage) else _image(body.OldImage)[0],
        position=position(shard.depth, body.SequenceNumber),
        sequence_number=body.SequenceNumber,
        shard_id=shard.shard_id,
        event_id=event_id,
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


def _absent(raw: msgspec.Raw) -> bool:
    return not bytes(raw)


_spell_item = Speller(spell_item).spell


def _image(raw: msgspec.Raw) -> Spelling:
    """Canonical typed JSON and plain JSON of an item; raises for an unusual record."""
    return _spell_item(str(raw, "utf-8")) or spell_item(msgspec.json.decode(raw))
