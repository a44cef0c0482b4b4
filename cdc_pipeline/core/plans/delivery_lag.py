"""Delivery lag: the time up to which AWS has delivered everything, from its age metrics."""

from collections.abc import Mapping, Sequence

MINUTE_US = 60_000_000
STALE_US = 15 * MINUTE_US
"""A metric without a point for this long is ignored: the stream is idle, or the metric fails."""

Ages = Mapping[int, int]
"""Largest age by start of its minute, both in µs."""


def delivered_before(ages: Sequence[Ages], known_us: int) -> int | None:
    """Return a time before which everything had been delivered at `known_us`; None: unknown.

    `ages`: of each leg of the delivery, such as out of Kinesis and into S3. `known_us`: up to when
    the metrics are complete. At the end of a minute with age A, all records that had entered the
    leg A before the minute began have left it. Legs follow one another, so their ages add up.
    A slow minute of one leg may precede that of another, so the largest age of each leg counts,
    over all given minutes, newer ones included.
    """
    reached: list[int] = []
    for leg in ages:
        whole = [minute for minute in leg if minute + MINUTE_US <= known_us]
        if not whole or max(whole) < known_us - STALE_US:
            return None
        reached.append(max(whole))
    return min(reached) - sum(max(leg.values()) for leg in ages) if reached else None
