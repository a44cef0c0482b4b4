"""Times: µs since the epoch as datetimes, and as text for people."""

import time
from datetime import UTC, date, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """This machine's clock. What is compared with AWS's times uses the log's (`CaptureLog`)."""
    return int(time.time() * 1_000_000)


def utc(time_us: int) -> datetime:
    """The same time as an aware datetime in UTC, exact to the µs."""
    return _EPOCH + timedelta(microseconds=time_us)


def time_text(time_us: int) -> str:
    """A time for people, in UTC, rounded down to the second: `2026-11-29 14:05:06`."""
    return f"{utc(time_us):%Y-%m-%d %H:%M:%S}"


def day_of(time_us: int) -> date:
    """The UTC day of a time."""
    return utc(time_us).date()
