"""What a process that stays does less often than one of a single run, by the address of the log.

Nothing depends on it but cost: an old look is overtaken when it writes, and a heartbeat that was
not written proves less (`core.log.heartbeat`).
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Residence:
    """Times of one process. Seconds are of `clock`, of any origin.

    `owner`: the writer, instead of the usual text. `look_seconds`: how long a loaded state serves
    for looks. `rest_seconds`: least pause between two heartbeats of a log.
    """

    owner: str
    look_seconds: float
    rest_seconds: float
    clock: Callable[[], float] = time.monotonic
    _loaded: dict[str, float] = field(default_factory=dict)
    _rested: dict[str, float] = field(default_factory=dict)
    _tidied: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def loaded(self, address: str) -> None:
        """Note that the log was loaded now."""
        with self._lock:
            self._loaded[address] = self.clock()

    def knows(self, address: str) -> bool:
        """Whether the log was loaded lately."""
        return self._is_recent(self._loaded, address, self.look_seconds)

    def rested(self, address: str) -> None:
        """Note that the heartbeat was written now."""
        with self._lock:
            self._rested[address] = self.clock()

    def may_pass_over(self, address: str) -> bool:
        """Whether the heartbeat was written lately."""
        return self._is_recent(self._rested, address, self.rest_seconds)

    def is_tidy(self, address: str) -> bool:
        """Whether this process has removed what others left before it landed something."""
        with self._lock:
            if address in self._tidied:
                return True
            self._tidied.add(address)
            return False

    def forget(self, address: str) -> None:
        """Begin anew with this log, as a new process would."""
        with self._lock:
            self._loaded.pop(address, None)
            self._rested.pop(address, None)
            self._tidied.discard(address)

    def _is_recent(self, times: dict[str, float], address: str, seconds: float) -> bool:
        with self._lock:
            at = times.get(address)
            return at is not None and self.clock() - at < seconds
