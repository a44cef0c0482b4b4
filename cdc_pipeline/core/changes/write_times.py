"""Write times of changes: how they are spelled, and which ones no change can have."""

import math
import time
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.core.errors import UnreadableError

EARLIEST_US = 1_325_376_000_000_000
"""2012-01-01: DynamoDB was released that month."""
_DAY_US = 86_400_000_000

clock = time.time
"""What the time is, in s."""

_US_PER_UNIT = {"MICROSECOND": 1, "MILLISECOND": 1000}


def require_possible(time_us: int) -> int:
    """The time, if a change can have it: since DynamoDB exists, at most a day ahead of our clock.

    Seconds that were taken for milliseconds are in 1970, and milliseconds that were taken for
    seconds far in the future: neither is ever in this range. Raises `UnreadableError`.
    """
    if time_us < EARLIEST_US:
        raise UnreadableError("a record of before 2012, when there was no DynamoDB")
    if time_us > clock() * 1_000_000 + _DAY_US:
        raise UnreadableError("a record of more than a day ahead")
    return time_us


def from_units(value: Any, precision: Any) -> int:
    """The time in an envelope of Kinesis, in µs; without a precision it is in ms.

    Raises `UnreadableError`.
    """
    unit = _US_PER_UNIT.get("MILLISECOND" if precision is None else str(precision))
    if unit is None:
        raise UnreadableError("a record whose time has an unknown precision")
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnreadableError("a record without its creation time")
    return require_possible(value * unit)


def from_seconds(value: Any) -> int:
    """The time in a record of a stream, in µs; raises `UnreadableError`.

    AWS says it in whole seconds (rounded down). Languages without integers write 1.0, and who
    hands records on may write the text that SDKs make of it (ISO 8601; UTC if it names no zone).
    """
    if isinstance(value, str):
        return require_possible(from_text(value, "a record without its creation time"))
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UnreadableError("a record without its creation time")
    # What is beyond the range of integers is beyond that of times.
    return require_possible(round(max(-1.0, min(value, 1e15)) * 1_000_000))


def from_text(text: str, reason: str) -> int:
    """ISO 8601 text in µs; raises `UnreadableError` with the reason."""
    try:
        return from_datetime(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise UnreadableError(reason) from None


def from_datetime(moment: datetime) -> int:
    """In µs; UTC if it names no zone."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (seconds.days * 86_400 + seconds.seconds) * 1_000_000 + seconds.microseconds
