"""Completion by read: streams without new images, completed by reading the items of their events.

For view types KEYS_ONLY and OLD_IMAGE of tables with `complete_by_read`. The bare event lands
first. Then its item is read, consistently, and lands as a row of its own directly after the event:
the read item is at least as new as the event, and an absent item was deleted. Versions between two
reads are unknown, so history has fewer versions than with new images; the last state is exact.
"""

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cdc_pipeline.aws.client.session import AwsSession, aws_errors
from cdc_pipeline.aws.table import wire_form
from cdc_pipeline.core.changes.change import Change, stream_identity
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.items.attributes import canonical_item, plain_json, to_json
from cdc_pipeline.core.transports import READ

_BATCH = 100  # BatchGetItem takes 100 keys (botocore model)
_ATTEMPTS = 8


class ItemReader:
    """Consistent reads of one table's items at a bounded pace."""

    def __init__(
        self,
        aws: AwsSession,
        table: str,
        key_names: tuple[str, ...],
        items_per_second: float,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = aws.client("dynamodb")
        self._table = table
        self._key_names = key_names
        self._pause = 1 / items_per_second
        self._sleep = sleep

    def read(self, keys: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        """Return canonical items by their keys (canonical JSON), None for absent items.

        Raises `SourceError`, also if DynamoDB leaves keys unprocessed repeatedly.
        """
        wanted = list(keys)
        items: dict[str, dict[str, Any] | None] = dict.fromkeys(wanted)
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            for item in self._read_batch([native_key(key) for key in batch]):
                canonical = canonical_item(wire_form(item))
                item_keys = {name: canonical[name] for name in sorted(self._key_names)}
                items[to_json(item_keys)] = canonical
            self._sleep(self._pause * len(batch))
        return items

    def _read_batch(self, keys: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        request = {self._table: {"Keys": keys, "ConsistentRead": True}}
        for attempt in range(_ATTEMPTS):
            with aws_errors(f"reading items of table {self._table}"):
                answer = self._client.batch_get_item(RequestItems=request)
            yield from answer["Responses"].get(self._table, ())
            request = answer.get("UnprocessedKeys") or {}
            if not request:
                return
            self._sleep(self._pause * _BATCH * (attempt + 1))
        raise SourceError(f"table {self._table}: BatchGetItem left keys unread {_ATTEMPTS} times")


def completing_rows(bare: Iterable[Change], reader: ItemReader, table_id: str) -> list[Change]:
    """Read the items of bare events: one row after the last event of each item."""
    last: dict[str, Change] = {}
    for change in bare:
        if change.op != "D" and (
            change.keys not in last or change.position > last[change.keys].position
        ):
            last[change.keys] = change
    items = reader.read(last)
    return [_complete(change, items[keys], table_id) for keys, change in last.items()]


def _complete(event: Change, item: dict[str, Any] | None, table_id: str) -> Change:
    return event._replace(
        uuid=stream_identity(table_id, f"{event.event_id}/{READ}"),
        op="D" if item is None else "U",
        data=None if item is None else plain_json(item),
        new_image=None if item is None else to_json(item),
        old_image=None,
        # Longer than the event's position and otherwise equal: directly after it.
        position=f"{event.position}.{READ}",
        is_ttl_delete=None,
        transport=READ,
    )


def native_key(keys: str) -> dict[str, Any]:
    """Convert a canonical key to botocore's form: binary as bytes."""
    return {
        name: {tag: base64.b64decode(text) if tag == "B" else text}
        for name, value in json.loads(keys).items()
        for tag, text in value.items()
    }
