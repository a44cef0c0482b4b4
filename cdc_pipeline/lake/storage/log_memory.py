"""States of capture logs that this process remembers, so that an unchanged log is not read again.

A remembered state is a proposal: whoever uses it first compares the newest entry that it contains
with the stored one (`CaptureLog.load`). Equal texts mean equal logs up to there, because a text has
the random nonce of its writer. So a log that was deleted, restored or replaced is read anew.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from cdc_pipeline.core.log.state import LogState

_MOST_PARTS = 100_000
"""Objects, shards and files of all remembered states together, about a kilobyte each."""


@dataclass(frozen=True)
class _Remembered:
    state: LogState
    parts: int
    seen: float


class LogMemory:
    """States by the address of their log, those used last; safe for threads.

    `clock`: seconds of any origin.
    """

    def __init__(
        self, most_parts: int = _MOST_PARTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_parts = most_parts
        self._clock = clock
        self._known: OrderedDict[str, _Remembered] = OrderedDict()
        self._parts = 0
        self._lock = threading.Lock()
        self._looks: dict[str, threading.Lock] = {}

    def recall(self, address: str, *, seconds: float | None = None) -> LogState | None:
        """Return a copy of the state that was remembered, at most `seconds` ago; None: none."""
        with self._lock:
            known = self._known.get(address)
            if known is None or (seconds is not None and self._clock() - known.seen > seconds):
                return None
            self._known.move_to_end(address)
        return known.state.copy()

    def remember(self, address: str, state: LogState) -> None:
        """Remember a copy of the state; the ones not used for longest go when there are too many.

        This one stays, however large it is: the rest of a run needs it. A state whose newest entry
        is not known is not remembered.
        """
        parts = 1 + len(state.objects) + len(state.shards) + len(state.files)
        self.forget(address)
        if not state.digest:
            return
        known = _Remembered(state.copy(), parts, self._clock())
        with self._lock:
            self._drop(address)
            self._known[address] = known
            self._parts += parts
            while self._parts > self._most_parts and len(self._known) > 1:
                self._drop(next(iter(self._known)))

    def looking(self, address: str) -> threading.Lock:
        """Return the lock under which one look at a log serves all who want one now."""
        with self._lock:
            return self._looks.setdefault(address, threading.Lock())

    def outdate(self, address: str) -> None:
        """Note that the log went on: `recall` with `seconds` does not return its state."""
        with self._lock:
            if known := self._known.get(address):
                self._known[address] = replace(known, seen=-math.inf)

    def forget(self, address: str) -> None:
        """Drop the state of a log."""
        with self._lock:
            self._drop(address)

    def _drop(self, address: str) -> None:
        if known := self._known.pop(address, None):
            self._parts -= known.parts

    def clear(self) -> None:
        """Drop all states, as in a new process."""
        with self._lock:
            self._known.clear()
            self._parts = 0


MEMORY = LogMemory()
"""That of this process."""
