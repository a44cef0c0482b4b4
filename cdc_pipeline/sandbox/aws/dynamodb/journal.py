"""Journal of changes, the basis of the sandbox's exports: each item before each write.

Independent of the emulator: keys are opaque, items are DynamoDB JSON dictionaries, never changed in
place after they were added.
"""

import time
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Item = dict[str, Any]


class Clock:
    """Wall clock in µs since the epoch, strictly increasing.

    Two writes in one microsecond would have no defined order; DynamoDB orders its writes.
    """

    def __init__(self) -> None:
        self._last = 0
        self._standing: int | None = None

    def tick(self) -> int:
        """Return a time later than all earlier ticks."""
        self._last = max(self._last + 1, self._present())
        return self._last

    def now(self) -> int:
        """Return the current time, not before the last tick."""
        return max(self._last, self._present())

    def stand_at(self, micros: int) -> None:
        """Stop at a later time, for tests: the next tick is `micros` exactly, then 1 µs each.

        Raises ValueError for a time that is not later: times of a journal only increase.
        """
        if micros <= self.now():
            raise ValueError(f"the clock shows {self.now()} and cannot be set to {micros}")
        self._standing = micros

    def _present(self) -> int:
        return time.time_ns() // 1000 if self._standing is None else self._standing


@dataclass(frozen=True, slots=True)
class Change:
    """One write to one item; `old` is None for an insert, `new` is None for a delete."""

    micros: int
    key: Hashable
    old: Item | None
    new: Item | None


@dataclass(slots=True)
class TableJournal:
    """All changes of one table since point-in-time recovery was enabled, oldest first."""

    enabled_micros: int
    changes: list[Change] = field(default_factory=list)

    def since(self, micros: int) -> list[Change]:
        """Return the changes written at `micros` or later, oldest first."""
        return self.changes[self._index(micros) :]

    def between(self, start: int, end: int) -> list[Change]:
        """Return the changes written at `start` or later and before `end`, oldest first."""
        return self.changes[self._index(start) : self._index(end)]

    def _index(self, micros: int) -> int:
        return bisect_left(self.changes, micros, key=lambda change: change.micros)


def same(one: Item, other: Item) -> bool:
    """Return whether two items with canonical numbers are equal to DynamoDB: sets have no order."""
    if one == other:
        return True
    return one.keys() == other.keys() and all(
        _same_value(value, other[name]) for name, value in one.items()
    )


def _same_value(one: Item, other: Item) -> bool:
    if one == other:
        return True
    if one.keys() != other.keys():
        return False
    ((kind, content),) = one.items()
    if kind in ("SS", "NS", "BS"):
        return set(content) == set(other[kind])
    if kind == "M":
        return same(content, other[kind])
    if kind == "L":
        return len(content) == len(other[kind]) and all(map(_same_value, content, other[kind]))
    return False


def compact(changes: Iterable[Change]) -> list[Change]:
    """Return one change per item: image before its first change, image after and time of its last.

    An item that exists neither before nor after has none; an item changed and changed back has
    one. `changes`: oldest first.
    """
    net: dict[Hashable, Change] = {}
    for change in changes:
        first = net.get(change.key, change)
        net[change.key] = Change(change.micros, change.key, first.old, change.new)
    return [change for change in net.values() if change.old is not None or change.new is not None]


def roll_back(items: Mapping[Hashable, Item], later: list[Change]) -> dict[Hashable, Item]:
    """Return the table as it was before `later`: the newest changes of `items`, oldest first.

    Undoing changes by their old images needs no copy of the table at any earlier time.
    """
    state = dict(items)
    for change in reversed(later):
        if change.old is None:
            state.pop(change.key, None)
        else:
            state[change.key] = change.old
    return state
