"""Forwarded changes: records in either of DynamoDB's two formats, parsed into changes.

A table's stream has one format (received and passed on by Lambda functions and EventBridge Pipes),
a table's Kinesis destination another (docs/aws_facts.md, Kinesis). They differ in the unit of times
(s; ms or µs), the encoding of binary (once; twice) and the sequence number (present; absent). The
same digits mean different things, so fields that only one format has identify it.
"""

import re
from collections.abc import Mapping
from typing import Any

from cdc_pipeline.core.changes.change import Change, by_ttl
from cdc_pipeline.core.changes.kinesis import from_envelope, op_of
from cdc_pipeline.core.changes.write_times import from_seconds
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import spell_item

STREAM = "stream"
KINESIS = "kinesis"

_FLAT = (
    "ApproximateCreationDateTime",
    "ApproximateCreationDateTimePrecision",
    "Keys",
    "NewImage",
    "OldImage",
    "SequenceNumber",
    "SizeBytes",
    "StreamViewType",
)
_SEQUENCE_NUMBER = re.compile("[0-9]{1,40}").fullmatch


def is_flat(record: Mapping[str, Any]) -> bool:
    """Whether a record has the parts of a change beside its event name, not under `dynamodb`."""
    return isinstance(record.get("Keys"), Mapping) and isinstance(record.get("eventName"), str)


def nested(record: Any) -> Mapping[str, Any]:
    """Return a record with its `dynamodb` part, built for a flat one; raises `UnreadableError`."""
    if isinstance(record, Mapping):
        if isinstance(record.get("dynamodb"), Mapping):
            return record
        if "dynamodb" not in record and is_flat(record):
            body = {name: record[name] for name in _FLAT if name in record}
            return {**{k: v for k, v in record.items() if k not in body}, "dynamodb": body}
    raise UnreadableError("a record without its dynamodb part")


def spelling_of(record: Mapping[str, Any]) -> str:
    """Return `STREAM` or `KINESIS`, by fields of one format only; raises `UnreadableError`."""
    body = record["dynamodb"]
    is_stream = any(name in body for name in ("SequenceNumber", "StreamViewType"))
    is_stream = is_stream or any(name in record for name in ("eventSourceARN", "eventVersion"))
    is_kinesis = "recordFormat" in record or "ApproximateCreationDateTimePrecision" in body
    if is_stream and is_kinesis:
        raise UnreadableError("a record with the marks of both spellings of a change")
    if is_stream:
        return STREAM
    if is_kinesis or "tableName" in record:
        return KINESIS
    raise UnreadableError("a record with the marks of neither spelling of a change")


def from_record(
    record: Any,
    *,
    table_id: str,
    transport: str,
    sequence_number: str = "",
    shard_id: str = "",
    encodings: int = 2,
) -> Change:
    """Parse a record of either format; arguments as in `from_envelope`.

    `sequence_number`, `shard_id`: from Kinesis; a stream's record has a number of its own. Raises
    `UnreadableError`.
    """
    record = nested(record)
    if spelling_of(record) == STREAM:
        return from_forwarded(record, table_id=table_id, transport=transport)
    return from_envelope(
        record,
        table_id=table_id,
        transport=transport,
        sequence_number=sequence_number,
        shard_id=shard_id,
        encodings=encodings,
    )


def from_forwarded(record: Mapping[str, Any], *, table_id: str, transport: str) -> Change:
    """Parse a forwarded record of a stream.

    Its shard is unknown, so it is ordered by its second, then by its sequence number. Without a
    number it is identified by its content, like changes from Kinesis. Raises `UnreadableError`.
    """
    op, body = op_of(record), record["dynamodb"]
    number = body.get("SequenceNumber", "")
    if number != "" and not (isinstance(number, str) and _SEQUENCE_NUMBER(number)):
        raise UnreadableError("a record whose sequence number is none")
    time_us = from_seconds(body.get("ApproximateCreationDateTime"))
    images = [body.get(name) for name in ("Keys", "NewImage", "OldImage")]
    keys, new, old = (None if image is None else spell_item(image) for image in images)
    assert keys is not None  # they are there
    event_id = record.get("eventID")
    known = (table_id, op, time_us, keys[0], (new, old))
    more = {
        "event_id": event_id if isinstance(event_id, str) else "",
        "is_ttl_delete": op == "D" and by_ttl(record.get("userIdentity")),
        "transport": transport,
    }
    if number:
        return Change.by_number(*known, sequence_number=number, **more)
    return Change.by_content(*known, **more)
