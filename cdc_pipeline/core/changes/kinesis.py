"""The envelope of DynamoDB's changes in Kinesis, which Firehose and Lambda forward.

Formats: docs/aws_facts.md, Kinesis. It has no sequence number: a change is identified by its
content and ordered by its write time.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from cdc_pipeline.core.changes.change import OPS, Change, by_ttl
from cdc_pipeline.core.changes.write_times import from_units
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import TOO_DEEP, spell_item
from cdc_pipeline.core.transports import KINESIS

AGGREGATED = b"\xf3\x89\x9a\xc2"
"""First bytes of a record aggregated by a producer library; DynamoDB writes none."""

NOT_JSON = "a record that is not JSON"


def read_envelope(blob: bytes) -> Any:
    """Parse the JSON of one record; raises `UnreadableError`."""
    if blob.startswith(AGGREGATED):
        raise UnreadableError("an aggregated record")
    try:
        return json.loads(blob.decode("utf-8"), parse_constant=_refuse_constant)
    except ValueError:
        raise UnreadableError(NOT_JSON) from None
    except RecursionError:
        raise UnreadableError(TOO_DEEP) from None


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and Infinity, which Python parses and JSON does not have."""
    raise ValueError(name)


def from_envelope(
    record: Any,
    *,
    table_id: str,
    transport: str = KINESIS,
    sequence_number: str = "",
    shard_id: str = "",
    encodings: int = 2,
) -> Change:
    """Parse one envelope, given as JSON.

    `sequence_number`, `shard_id`: its place in Kinesis, for people, not for order. `encodings`: how
    often binary is base64-encoded (Kinesis: twice). The position is that of the write time; changes
    of one item with one time are ordered when they land. Raises `UnreadableError`.
    """
    if not isinstance(record, Mapping) or not isinstance(record.get("dynamodb"), Mapping):
        raise UnreadableError("a record without its dynamodb part")
    op, body = op_of(record), record["dynamodb"]
    time_us = from_units(
        body.get("ApproximateCreationDateTime"), body.get("ApproximateCreationDateTimePrecision")
    )
    images = [body.get(name) for name in ("Keys", "NewImage", "OldImage")]
    keys, new, old = (
        None if image is None else spell_item(decoded(image, encodings - 1)) for image in images
    )
    assert keys is not None  # they are there
    event_id = record.get("eventID")
    return Change.by_content(
        table_id,
        op,
        time_us,
        keys[0],
        (new, old),
        sequence_number=sequence_number,
        shard_id=shard_id,
        event_id=event_id if isinstance(event_id, str) else "",
        is_ttl_delete=op == "D" and by_ttl(record.get("userIdentity")),
        transport=transport,
    )


def op_of(record: Mapping[str, Any]) -> str:
    """Return I, U or D after checking keys and images; raises `UnreadableError`."""
    body, op = record["dynamodb"], OPS.get(str(record.get("eventName")))
    if op is None:
        raise UnreadableError("an unknown event name")
    if not body.get("Keys"):
        raise UnreadableError("a record without keys")
    if (body.get("NewImage") is None) != (op == "D"):
        raise UnreadableError("a record whose new image does not fit its event name")
    return op


def decoded(value: Any, times: int) -> Any:
    """Remove `times` layers of base64 from the binaries of an item or value.

    Invalid attribute values pass; `spell_item` refuses them. Raises `UnreadableError`.
    """
    if not isinstance(value, Mapping) or times == 0:
        return value
    return {name: _decoded_value(content, times) for name, content in value.items()}


def _decoded_value(value: Any, times: int) -> Any:
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    ((tag, content),) = value.items()
    if tag == "B":
        return {tag: _text_inside(content, times)}
    if tag == "BS" and isinstance(content, list):
        return {tag: [_text_inside(member, times) for member in content]}
    if tag == "M":
        return {tag: decoded(content, times)}
    if tag == "L" and isinstance(content, list):
        return {tag: [_decoded_value(element, times) for element in content]}
    return value


def _text_inside(text: Any, times: int) -> str:
    try:
        for _ in range(times):
            text = base64.b64decode(text, validate=True).decode("ascii")
    except (binascii.Error, ValueError, TypeError):
        raise UnreadableError("a binary that is not encoded twice") from None
    return text
