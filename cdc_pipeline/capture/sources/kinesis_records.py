"""Fast parsers of Kinesis records into changes: no Python object per attribute unless needed.

Both must return the same as `core.changes.forwarded`, which is the definition and parses every
record not of the usual form.

- With the extra `fast`, many records become columns (`capture.sources.record_columns`). Records
  that the compiled scan does not support go one by one through the other parser.
- The other parser keeps images as text, spelled by their shape (`core.items.spelling`); only images
  with binaries, whose encoding differs, are decoded.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cdc_pipeline.core.changes.change import OPS, Change, by_ttl, content_identity
from cdc_pipeline.core.changes.forwarded import from_record
from cdc_pipeline.core.changes.kinesis import AGGREGATED, decoded, read_envelope
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.changes.write_times import from_units
from cdc_pipeline.core.errors import SourceError, UnreadableError
from cdc_pipeline.core.items.attributes import TOO_DEEP, Spelling, spell_item
from cdc_pipeline.core.items.spelling import Speller
from cdc_pipeline.core.transports import KINESIS
from cdc_pipeline.lake.storage.changes import Changes
from cdc_pipeline.transform.record_scan import scan_records

if TYPE_CHECKING:
    from cdc_pipeline.capture.sources.record_columns import ChangeColumns

# The names of binary types, plain or escaped; other matches only cost time.
_MAYBE_BINARY = re.compile(rb'"BS?"|\\u00(?:42|53)').search


class _Record(msgspec.Struct):
    SequenceNumber: str
    Data: bytes  # msgspec decodes base64


class _Numbered(msgspec.Struct):
    SequenceNumber: str


class _Body(msgspec.Struct):
    Keys: msgspec.Raw
    ApproximateCreationDateTime: Any
    ApproximateCreationDateTimePrecision: Any = None
    NewImage: msgspec.Raw = msgspec.Raw()
    OldImage: msgspec.Raw = msgspec.Raw()
    SequenceNumber: Any = None
    StreamViewType: Any = None


class _Envelope(msgspec.Struct):
    eventName: str
    dynamodb: _Body
    eventID: Any = None
    tableName: Any = None
    userIdentity: Any = None
    recordFormat: Any = None
    eventSourceARN: Any = None
    eventVersion: Any = None

    @property
    def is_usual(self) -> bool:
        """Whether DynamoDB writes records of this form to Kinesis; see `core.changes.forwarded`."""
        body = self.dynamodb
        of_stream = (self.eventSourceARN, self.eventVersion, body.SequenceNumber)
        return (
            self.recordFormat is not None
            and of_stream == (None, None, None)
            and (body.StreamViewType is None)
        )


_decode_record = msgspec.json.Decoder(_Record).decode
_decode_numbered = msgspec.json.Decoder(_Numbered).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def kinesis_sequence_number(raw: msgspec.Raw) -> str | None:
    """Return the sequence number of a Kinesis record, None if it cannot be a checkpoint."""
    try:
        number = _decode_numbered(raw).SequenceNumber
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return number if number.isdecimal() else None


def parse_envelopes(
    records: Sequence[msgspec.Raw], *, target: Target, shard_id: str, encodings: int = 2
) -> tuple[Sequence[Change], list[tuple[str, bytes]], int]:
    """Parse records: changes, unreadable records with reasons, and the number of other tables'.

    `target`: the table whose changes are wanted. `encodings`: how many times binary is
    base64-encoded. Raises `SourceError` for records in the aggregated format of a producer's
    library: they could not be distinguished from DynamoDB's own.
    """
    unreadable: dict[int, tuple[str, bytes]] = {}
    parsers: dict[int, _Parser] = {}
    for number, raw in enumerate(records):
        try:
            record = _decode_record(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            unreadable[number] = ("a Kinesis record without number or data", bytes(raw))
            continue
        if record.Data.startswith(AGGREGATED):
            raise SourceError(
                f"shard {shard_id}: record {record.SequenceNumber} holds aggregated records, which "
                "DynamoDB never writes, so another producer writes to this stream",
                fix="let DynamoDB alone write to it: name a stream of its own with "
                f"aws dynamodb enable-kinesis-streaming-destination --table-name {target.name}",
            )
        parsers[number] = _Parser(target, shard_id, encodings, record)
    numbers, changes, skipped = list(parsers), {}, 0
    read = _read_columns([*parsers.values()])
    left = range(len(numbers)) if read is None else read.others
    for place in left:
        parser = parsers[numbers[place]]
        try:
            change = parser.parse()
        except UnreadableError as error:
            unreadable[numbers[place]] = (error.reason, parser.record.Data)
        except RecursionError:
            unreadable[numbers[place]] = (TOO_DEEP, parser.record.Data)
        else:
            skipped += change is None
            changes |= {place: change} if change else {}
    found = [unreadable[number] for number in sorted(unreadable)]
    if read is None:
        return list(changes.values()), found, skipped
    return Changes([read.woven(changes)]), found, skipped + read.skipped


def _read_columns(parsers: "Sequence[_Parser]") -> "ChangeColumns | None":
    scanned = scan_records([parser.record.Data for parser in parsers])
    if scanned is None:
        return None
    # It needs the extra `fast`, as the scan does.
    from cdc_pipeline.capture.sources.record_columns import envelope_columns

    first = parsers[0]
    numbers = [parser.record.SequenceNumber for parser in parsers]
    return envelope_columns(scanned, numbers, first.target, first.shard_id, first.encodings)


class _Parser:
    """One record; `parse` returns None for a record of another table."""

    def __init__(self, target: Target, shard_id: str, encodings: int, record: _Record) -> None:
        self.target, self.shard_id = target, shard_id
        self.encodings, self.record = encodings, record

    def parse(self) -> Change | None:
        try:
            envelope = _decode_envelope(self.record.Data)
            name = envelope.tableName
            if envelope.is_usual and isinstance(name, str):
                if name != self.target.name:
                    return None
                if (change := self._fast(envelope)) is not None:
                    return change
        except (msgspec.DecodeError, UnicodeDecodeError, UnreadableError):
            pass
        return self._slowly()

    def _fast(self, envelope: _Envelope) -> Change | None:
        """The change of an envelope of the usual form; None for others, left to `_slowly`."""
        body, op = envelope.dynamodb, OPS.get(envelope.eventName)
        if op is None or _absent(body.NewImage) != (op == "D"):
            return None
        time_us = from_units(
            body.ApproximateCreationDateTime, body.ApproximateCreationDateTimePrecision
        )
        keys = self._image(body.Keys)[0]
        if keys == "{}":
            return None
        self.target.require_keys(keys)
        new = None if op == "D" else self._image(body.NewImage)
        new_image = new[0] if new else None
        old_image = None if _absent(body.OldImage) else self._image(body.OldImage)[0]
        return Change(
            uuid=content_identity(self.target.table_id, keys, time_us, op, new_image, old_image),
            op=op,
            write_time_us=time_us,
            data=new[1] if new else None,
            keys=keys,
            new_image=new_image,
            old_image=old_image,
            position=position(0, time_us),
            sequence_number=self.record.SequenceNumber,
            shard_id=self.shard_id,
            event_id=envelope.eventID if isinstance(envelope.eventID, str) else "",
            is_ttl_delete=op == "D" and by_ttl(envelope.userIdentity),
            transport=KINESIS,
        )

    def _image(self, raw: msgspec.Raw) -> Spelling:
        """Canonical typed and plain JSON of an item; raises for an unusual record."""
        if self.encodings > 1 and _MAYBE_BINARY(raw):
            return spell_item(decoded(msgspec.json.decode(raw), self.encodings - 1))
        return _spell_item(str(raw, "utf-8")) or spell_item(msgspec.json.decode(raw))

    def _slowly(self) -> Change | None:
        """Parse by the definition; also forwarded records in the spelling of DynamoDB Streams."""
        record = read_envelope(self.record.Data)
        if isinstance(record, Mapping) and self.target.is_of_another(record):
            return None
        change = from_record(
            record,
            table_id=self.target.table_id,
            transport=KINESIS,
            sequence_number=self.record.SequenceNumber,
            shard_id=self.shard_id,
            encodings=self.encodings,
        )
        self.target.require_keys(change.keys)
        return change


def _absent(raw: msgspec.Raw) -> bool:
    return bytes(raw) in (b"", b"null")


_spell_item = Speller(spell_item).spell
