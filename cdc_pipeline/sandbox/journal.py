"""The journal of changes behind the sandbox's exports: what an item was before each write.

Knows nothing of the emulator: keys are opaque, items are DynamoDB JSON dictionaries that nobody
changes after they were handed over.
"""

import time
from bisect import bisect_right
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

Item = dict[str, Any]


class Clock:
    """Wall clock in microseconds since the epoch that never repeats and never runs backwards.

    Two writes in one microsecond would leave their order to chance; DynamoDB itself orders them.
    """

    def __init__(self) -> None:
        self._last = 0

    def tick(self) -> int:
        """Return a time later than every earlier tick."""
        self._last = max(self._last + 1, time.time_ns() // 1000)
        return self._last

    def now(self) -> int:
        """Return the present time, not before the last tick."""
        return max(self._last, time.time_ns() // 1000)


@dataclass(frozen=True, slots=True)
class Change:
    """One write to one item; `old` is None for an insert, `new` is None for a delete."""

    micros: int
    key: Hashable
    old: Item | None
    new: Item | None


@dataclass(slots=True)
class TableJournal:
    """Every change of one table since point-in-time recovery was turned on, oldest first."""

    enabled_micros: int
    changes: list[Change] = field(default_factory=list)

    def after(self, micros: int) -> list[Change]:
        """Return the changes written later than `micros`, oldest first."""
        start = bisect_right(self.changes, micros, key=lambda change: change.micros)
        return self.changes[start:]


def roll_back(items: Mapping[Hashable, Item], later: list[Change]) -> dict[Hashable, Item]:
    """Return the table as it was before `later`, the newest changes of `items`, oldest first.

    Walking backwards through old images needs no copy of the table at any earlier time.
    """
    state = dict(items)
    for change in reversed(later):
        if change.old is None:
            state.pop(change.key, None)
        else:
            state[change.key] = change.old
    return state
