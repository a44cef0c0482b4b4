"""Time that stands still until a test moves it."""

import threading
from collections.abc import Callable


class SimulatedClock:
    """Seconds since the epoch, to be passed as `clock=`; its `sleep` is to be passed as `sleep=`.

    Starts at half a second past a whole one, because stream times are rounded down.
    """

    def __init__(self, start: float = 1_767_268_800.5) -> None:
        self._now = start
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s")
        with self._lock:
            self._now += seconds

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)


class WrongClock:
    """Another machine's idea of `clock`, off by `error` seconds, which may jump at any moment."""

    def __init__(self, clock: Callable[[], float], error: float = 0) -> None:
        self._clock = clock
        self.error = error

    def __call__(self) -> float:
        return self._clock() + self.error
