"""Write times of changes: their formats, and the range of possible values."""

import math
import time
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.core.errors import UnreadableError

EARLIEST_US = 1_325_376_000_000_000
"""2012-01-01: DynamoDB was released that month."""
_DAY_US = 86_400_000_000

clock = time.time
"""Current time in seconds."""

US_PER_UNIT = {"MICROSECOND": 1, "MILLISECOND": 1000}
"""Precisions of times in Kinesis; without one it is the last."""


def latest_us() -> float:
    """Return the latest possible write time by this clock, in µs."""
    return clock() * 1_000_000 + _DAY_US


def require_possible(time_us: int) -> int:
    """Return a possible write time: since DynamoDB exists, at most a day ahead of this clock.

    Seconds read as milliseconds are in 1970, and milliseconds read as seconds far in the future:
    both are outside of this range. Raises `UnreadableError`.
    """
    if time_us < EARLIEST_US:
        raise UnreadableError("a record of before 2012, when there was no DynamoDB")
    if time_us > latest_us():
        raise UnreadableError("a record of more than a day ahead")
    return time_us


def from_units(value: Any, precision: Any) -> int:
    """Convert the time of a Kinesis record to µs; without a precision it is in ms.

    Raises `UnreadableError`.
    """
    unit = US_PER_UNIT.get("MILLISECOND" if precision is None else str(precision))
    if unit is None:
        raise UnreadableError("a record whose time has an unknown precision")
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnreadableError("a record without its creation time")
    return require_possible(value * unit)


def from_seconds(value: Any) -> int:
    """Convert the time of a stream's record to µs; raises `UnreadableError`.

    AWS gives whole seconds (rounded down). Languages without integers write 1.0, and forwarders of
    records may write the text of their SDK (ISO 8601; UTC without a zone).
    """
    if isinstance(value, str):
        return require_possible(from_text(value, "a record without its creation time"))
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UnreadableError("a record without its creation time")
    # Numbers beyond this range are impossible times, too.
    return require_possible(round(max(-1.0, min(value, 1e15)) * 1_000_000))


def from_text(text: str, reason: str) -> int:
    """Convert ISO 8601 text to µs; raises `UnreadableError` with `reason`."""
    try:
        return from_datetime(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise UnreadableError(reason) from None


def from_datetime(moment: datetime) -> int:
    """Convert a datetime to µs since the epoch; UTC without a zone."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (seconds.days * 86_400 + seconds.seconds) * 1_000_000 + seconds.microseconds
