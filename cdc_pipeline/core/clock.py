"""Times: µs since the epoch as datetimes, and as text for people."""

import time
from datetime import UTC, date, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_us() -> int:
    """Read this machine's clock. For comparisons with AWS's times, use `CaptureLog`'s clock."""
    return int(time.time() * 1_000_000)


def utc(time_us: int) -> datetime:
    """Convert µs since the epoch to an aware datetime in UTC, exact to the µs."""
    return _EPOCH + timedelta(microseconds=time_us)


def time_text(time_us: int) -> str:
    """Format a time for people, in UTC, rounded down to the second: `2026-11-29 14:05:06`."""
    return f"{utc(time_us):%Y-%m-%d %H:%M:%S}"


def day_of(time_us: int) -> date:
    """Return the UTC day of a time in µs since the epoch."""
    return utc(time_us).date()
