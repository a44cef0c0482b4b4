"""Change records: one accepted write of one item, and constructors for its sources."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cdc_pipeline.core.changes.order import numbered_position, position
from cdc_pipeline.core.changes.write_times import from_seconds
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import Spelling, plain_json, spell_item, to_json
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, EXPORT, READ

OPS = {"INSERT": "I", "MODIFY": "U", "REMOVE": "D"}


class Change(NamedTuple):
    """One change, with fields in the order of the landing columns (except `landed_at`).

    `keys`, `new_image`, `old_image`: canonical typed DynamoDB JSON text; `data`: plain JSON of
    the new image, None for a delete. `is_ttl_delete` None: unknown to the transport.
    """

    uuid: str
    op: str
    write_time_us: int
    data: str | None
    keys: str
    new_image: str | None
    old_image: str | None
    position: str
    sequence_number: str
    shard_id: str
    event_id: str
    is_ttl_delete: bool | None
    transport: str

    @classmethod
    def by_content(
        cls,
        table_id: str,
        op: str,
        write_time_us: int,
        keys: str,
        images: "Images",
        **more: Any,
    ) -> "Change":
        """Build a change without a stream's number: identified by its content, ordered by its time.

        `images`: new and old. `more`: `transport`, and other known fields. Hot paths build changes
        without this function (`capture.sources.kinesis_records`,
        `capture.sources.streams_records`).
        """
        new, old = (image and image[0] for image in images)
        uuid = content_identity(table_id, keys, write_time_us, op, new, old)
        placed = {"position": position(0, write_time_us), **more}
        return cls._of(uuid, op, write_time_us, keys, images, **placed)

    @classmethod
    def by_number(
        cls,
        table_id: str,
        op: str,
        write_time_us: int,
        keys: str,
        images: "Images",
        *,
        sequence_number: str,
        **more: Any,
    ) -> "Change":
        """Build a stream's change that came without its stream: identified by number and key.

        It is ordered by its second, then by its number. `images`, `more`: see `by_content`.
        """
        more |= {
            "sequence_number": sequence_number,
            "position": numbered_position(write_time_us, sequence_number),
        }
        uuid = numbered_identity(table_id, sequence_number, keys)
        return cls._of(uuid, op, write_time_us, keys, images, **more)

    @classmethod
    def _of(
        cls, uuid: str, op: str, write_time_us: int, keys: str, images: "Images", **more: Any
    ) -> "Change":
        new, old = images
        unknown = {"sequence_number": "", "shard_id": "", "event_id": "", "is_ttl_delete": None}
        return cls(
            uuid=uuid,
            op=op,
            write_time_us=write_time_us,
            data=new and new[1],
            keys=keys,
            new_image=new and new[0],
            old_image=old and old[0],
            **{**unknown, **more},
        )


Images = tuple[Spelling | None, Spelling | None]
"""New and old image of a change, each as typed and as plain JSON."""


def stream_identity(table_id: str, event_id: str) -> str:
    """Return the `uuid` of a DynamoDB Streams record: SHA-256 of table id and event id, in hex."""
    return hashlib.sha256(f"{table_id}\n{event_id}".encode()).hexdigest()


def stream_identities(table_id: str, event_ids: Iterable[bytes]) -> list[str]:
    """Return the `stream_identity` of each event id."""
    prefix = f"{table_id}\n".encode()
    return [hashlib.sha256(prefix + event_id).hexdigest() for event_id in event_ids]


def numbered_identity(table_id: str, sequence_number: str, keys: str) -> str:
    """Return the `uuid` of a stream's change that came without the stream: a SHA-256, in hex.

    Made from the sequence number, because not every forwarder of changes keeps the event id.
    """
    content = "\n".join((table_id, "sequence", sequence_number, keys))
    return hashlib.sha256(content.encode()).hexdigest()


def from_stream_record(
    record: Any, *, table_id: str, shard_id: str, depth: int, full_images: bool = True
) -> Change:
    """Parse one record of a GetRecords answer, given as JSON (not botocore's objects).

    `full_images`: the stream's view type has new images, so an insert or update without one is
    unreadable. Raises `UnreadableError`.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("dynamodb"), Mapping):
        raise UnreadableError("a record without its dynamodb part")
    body = record["dynamodb"]
    op = OPS.get(str(record.get("eventName")))
    if op is None:
        raise UnreadableError("an unknown event name")
    event_id, sequence_number = record.get("eventID"), body.get("SequenceNumber")
    if not isinstance(event_id, str) or not event_id or not event_id.isascii():
        raise UnreadableError("a record without an event id")
    if not isinstance(sequence_number, str) or not re.fullmatch("[0-9]{1,40}", sequence_number):
        raise UnreadableError("a record without a sequence number")
    if not body.get("Keys"):
        raise UnreadableError("a record without keys")
    keys, new, old = (_image(body, part) for part in ("Keys", "NewImage", "OldImage"))
    assert keys is not None  # they are there
    if full_images and (new is None) != (op == "D"):
        raise UnreadableError("a record whose new image does not fit its event name")
    return Change(
        uuid=stream_identity(table_id, event_id),
        op=op,
        write_time_us=from_seconds(body.get("ApproximateCreationDateTime")),
        data=new[1] if new else None,
        keys=keys[0],
        new_image=new[0] if new else None,
        old_image=old[0] if old else None,
        position=position(depth, sequence_number),
        sequence_number=sequence_number,
        shard_id=shard_id,
        event_id=event_id,
        is_ttl_delete=op == "D" and by_ttl(record.get("userIdentity")),
        transport=DYNAMODB_STREAMS,
    )


def _image(body: Mapping[str, Any], name: str) -> Spelling | None:
    image = body.get(name)
    return None if image is None else spell_item(image)


def by_ttl(identity: Any) -> bool:
    """Whether a `userIdentity` is the service identity of a TTL delete.

    botocore and Lambda spell its fields differently.
    """
    if not isinstance(identity, Mapping):
        return False
    kind = identity.get("Type") or identity.get("type")
    principal = identity.get("PrincipalId") or identity.get("principalId")
    return kind == "Service" and principal == "dynamodb.amazonaws.com"


def export_item(line: Any, key_names: tuple[str, ...]) -> tuple[str, str]:
    """Parse one line of a full export, `{"Item": {...}}`, into canonical keys and item.

    Raises `UnreadableError`.
    """
    if not isinstance(line, Mapping) or "Item" not in line:
        raise UnreadableError("a line without an Item")
    item = line["Item"]
    typed = spell_item(item)[0]
    missing = [name for name in key_names if name not in item]
    if missing:
        raise UnreadableError(f"an item without its key attribute {missing[0]}")
    return spell_item({name: item[name] for name in key_names})[0], typed


def content_identity(
    table_id: str, keys: str, write_time_us: int, op: str, new: str | None, old: str | None
) -> str:
    """Return the `uuid` of a change without a stream's number: a SHA-256 of its content, in hex."""
    parts = (table_id, keys, str(write_time_us), op, new or "", old or "")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def content_identities(table_id: str, changes: Iterable[Sequence[bytes]]) -> list[str]:
    """Return the `content_identity` of each change, given as its other arguments in UTF-8."""
    prefix = f"{table_id}\n".encode()
    return [hashlib.sha256(prefix + b"\n".join(parts)).hexdigest() for parts in changes]


def from_export_line(line: Any, *, table_id: str) -> Change:
    """Parse one line of an incremental export: the last change of its item in a window.

    A line without a new image is a delete; insert and update differ only if there are old images
    (docs/aws_facts.md, exports). Raises `UnreadableError`.
    """
    if not isinstance(line, Mapping) or not isinstance(line.get("Keys"), Mapping):
        raise UnreadableError("a line without Keys")
    keys, new, old = (_image(line, part) for part in ("Keys", "NewImage", "OldImage"))
    assert keys is not None  # they are there
    op = "D" if new is None else ("I" if old is None else "U")
    time_us = _micros(line.get("Metadata"))
    by_ttl = None if op == "D" else False
    return Change.by_content(
        table_id, op, time_us, keys[0], (new, old), is_ttl_delete=by_ttl, transport=EXPORT
    )


def from_read_item(
    table_id: str, keys: str, item: dict[str, Any] | None, time_us: int, position: str
) -> Change:
    """Build a change from an item read by its key (None: no such item), at a time and position."""
    op, image = ("D", None) if item is None else ("U", (to_json(item), plain_json(item)))
    return Change.by_content(
        table_id, op, time_us, keys, (image, None), position=position, transport=READ
    )


def _micros(metadata: Any) -> int:
    """AWS writes {"N": "..."}; some of its documents show a bare number or string."""
    time_us = metadata.get("WriteTimestampMicros") if isinstance(metadata, Mapping) else None
    if isinstance(time_us, Mapping):
        time_us = time_us.get("N")
    if isinstance(time_us, bool) or not re.fullmatch("[0-9]{1,17}", str(time_us)):
        raise UnreadableError("a line without its write time")
    return int(str(time_us))
