"""How far this machine's clock is ahead of AWS's, by the `Date` header of its answers.

A `Date` is a whole second, rounded down, and was written between the sending of a request and the
end of its answer. So each answer gives bounds, and several of them narrow these down, as the whole
seconds fall differently. AWS itself refuses requests that are signed more than five minutes off.
"""

import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any


class ClockOffset:
    """Bounds of `clock` minus AWS's clock, in seconds; safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._sent = threading.local()
        self._lock = threading.Lock()
        self._bounds: tuple[float, float] | None = None

    def watch(self, session: Any) -> None:
        """Measure with every answer to the clients of a botocore session."""
        session.register("before-send.*.*", self._send)
        session.register("response-received.*.*", self._receive)

    def offset_us(self) -> int | None:
        """The middle of the bounds in µs, None before the first answer."""
        bounds = self._bounds
        return None if bounds is None else int(sum(bounds) / 2 * 1_000_000)

    def _send(self, **_: Any) -> None:
        self._sent.at = self._clock()

    def _receive(self, response_dict: Any = None, **_: Any) -> None:
        sent = getattr(self._sent, "at", None)
        named = response_dict and response_dict.get("headers", {}).get("date")
        if sent is None or not named:
            return
        try:
            told = parsedate_to_datetime(named).timestamp()
        except ValueError:
            return
        self.add(sent, told, self._clock())

    def add(self, sent: float, told: float, received: float) -> None:
        """Take an answer of the second `told` to a request sent and answered at these times."""
        low, high = sent - told - 1, received - told
        with self._lock:
            if self._bounds is not None:
                known_low, known_high = self._bounds
                # Bounds that contradict each other: one of the clocks was set, and the new one is.
                if max(low, known_low) <= min(high, known_high):
                    low, high = max(low, known_low), min(high, known_high)
            self._bounds = (low, high)
