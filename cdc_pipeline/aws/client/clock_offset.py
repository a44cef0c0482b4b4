"""Offset of this machine's clock from AWS's, measured by the `Date` header of answers.

A `Date` is a whole second, rounded down, written between the sending of a request and the end of
its answer. So each answer gives bounds, and several answers narrow them, as their whole seconds
differ. AWS refuses requests with a signature time more than five minutes off.
"""

import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any


class ClockOffset:
    """Bounds of `clock` minus AWS's clock, in seconds; thread-safe."""

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
        """Return the middle of the bounds in µs; None: before the first answer."""
        bounds = self._bounds
        return None if bounds is None else int(sum(bounds) / 2 * 1_000_000)

    def _send(self, **_: Any) -> None:
        self._sent.at = self._clock()

    def _receive(self, response_dict: Any = None, **_: Any) -> None:
        sent = getattr(self._sent, "at", None)
        header = response_dict and response_dict.get("headers", {}).get("date")
        if sent is None or not header:
            return
        try:
            aws_time = parsedate_to_datetime(header).timestamp()
        except ValueError:
            return
        self.add(sent, aws_time, self._clock())

    def add(self, sent: float, aws_time: float, received: float) -> None:
        """Add one answer: times of sending and receiving, and AWS's whole second, all in s."""
        low, high = sent - aws_time - 1, received - aws_time
        with self._lock:
            if self._bounds is not None:
                known_low, known_high = self._bounds
                # Contradicting bounds: one of the clocks was set, so the new bounds count.
                if max(low, known_low) <= min(high, known_high):
                    low, high = max(low, known_low), min(high, known_high)
            self._bounds = (low, high)
