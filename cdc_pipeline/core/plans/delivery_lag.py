"""Up to when AWS has delivered everything, by the ages that its metrics report."""

from collections.abc import Mapping, Sequence

MINUTE_US = 60_000_000
STALE_US = 15 * MINUTE_US
"""A metric without a point for that long says nothing: the stream is idle, or the metric fails."""

Ages = Mapping[int, int]
"""The largest age in a minute, by the minute's start, both in µs."""


def delivered_before(ages: Sequence[Ages], known_us: int) -> int | None:
    """A time before which everything had been delivered at `known_us`; None: they do not tell.

    `ages`: of each leg of the way, such as out of Kinesis and into S3. `known_us`: up to when the
    metrics are complete. In a minute with age A, everything that had entered the leg A before the
    minute began was through it at its end. Legs follow one another, so their ages add up, and as
    a slow minute of one may be a while before that of the other, the largest of each counts, of
    all that was given, newer minutes included.
    """
    reached: list[int] = []
    for leg in ages:
        whole = [minute for minute in leg if minute + MINUTE_US <= known_us]
        if not whole or max(whole) < known_us - STALE_US:
            return None
        reached.append(max(whole))
    return min(reached) - sum(max(leg.values()) for leg in ages) if reached else None
