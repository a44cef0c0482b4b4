"""The reference fold: a table's state after a set of changes, in plain Python.

Slow and obvious on purpose: tests compare the SQL with it.
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
    """Input of the fold: a change's item key, order key and new image (None: deleted)."""

    key: str
    order_key: str
    item: str | None


def fold(base: Mapping[str, Row], changes: Iterable[KeyedChange]) -> dict[str, Row]:
    """Fold changes, in any order and with duplicates, over items and tombstones by key.

    The change with the greatest order key wins, if it is later than the row in `base`. Folding the
    same changes again changes nothing. Deleted items stay as tombstones.
    """
    state = dict(base)
    for change in changes:
        known = state.get(change.key)
        if known is None or change.order_key > known.order_key:
            state[change.key] = Row(change.order_key, change.item)
    return state


def items(state: Mapping[str, Row]) -> dict[str, str]:
    """Return the items of a folded state, without tombstones."""
    return {key: row.item for key, row in state.items() if row.item is not None}
