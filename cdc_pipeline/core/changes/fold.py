"""The reference fold: what a table's state must be after a set of changes, in plain Python.

Slow and obvious on purpose. It is the oracle that the SQL is tested against.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """An item (`item` is its canonical typed JSON) or, with `item` None, its tombstone."""

    order_key: str
    item: str | None


@dataclass(frozen=True)
class KeyedChange:
    """What the fold needs of a change: which item, when, and its new image (None: deleted)."""

    key: str
    order_key: str
    item: str | None


def fold(base: Mapping[str, Row], changes: Iterable[KeyedChange]) -> dict[str, Row]:
    """Fold changes, in any order and with duplicates, over items and tombstones by key.

    The change with the greatest order key wins; it must also be later than what `base` holds.
    Folding the same changes again changes nothing. Deleted items stay as tombstones.
    """
    state = dict(base)
    for change in changes:
        known = state.get(change.key)
        if known is None or change.order_key > known.order_key:
            state[change.key] = Row(change.order_key, change.item)
    return state


def items(state: Mapping[str, Row]) -> dict[str, str]:
    """The items of a folded state, without its tombstones."""
    return {key: row.item for key, row in state.items() if row.item is not None}
