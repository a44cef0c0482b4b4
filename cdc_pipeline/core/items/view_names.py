"""Column names of all views for key, order key, item and write time, and their older names."""

from types import MappingProxyType

VIEW_COLUMNS = ("item_key", "order_key", "item", "write_time")
"""Canonical typed JSON of the key; the order of an item's changes, as text; canonical typed JSON of
the item (after the change; NULL: deleted); time of the write, in UTC and ms."""

_ITEMS = MappingProxyType(
    {
        "item_key": "_key",
        "order_key": "_order_key",
        "item": "_item",
        "write_time": "_write_time_us",
    }
)
_CHANGES = MappingProxyType(
    {
        "item_key": "keys",
        "order_key": "order_key",
        "item": "new_image",
        "write_time": "time_stamp",
    }
)
STORED_NAMES = MappingProxyType(
    {
        "current_state": _ITEMS,
        "pitr_export": _ITEMS,
        "raw_stream": _CHANGES,
        "cdc": _CHANGES,
        "history": MappingProxyType(
            {**{name: name for name in VIEW_COLUMNS}, "write_time": "valid_from"}
        ),
        "ttl_archive": MappingProxyType(
            {
                "item_key": "keys",
                "order_key": "order_key",
                "item": "_item",
                "write_time": "expired_at",
            }
        ),
    }
)
"""By view: the column names of its table. The view has them, too, until version 2.0.

`_write_time_us` is in µs."""
