"""Which incremental exports heal a gap: windows within AWS's rules (DYNAMODB_CDC sections 1, 8)."""

from dataclasses import dataclass
from math import ceil

from cdc_pipeline.core.capture_log import Gap, HealWindow
from cdc_pipeline.core.errors import CannotHealError

SECOND_US = 1_000_000


@dataclass(frozen=True)
class Backups:
    """What point-in-time recovery can export, and how long a window of it may be.

    `earliest_us`: its beginning. AWS takes incremental windows of 15 minutes to 24 hours.
    """

    earliest_us: int
    least_us: int = 15 * 60 * SECOND_US
    most_us: int = 24 * 3600 * SECOND_US


def plan_windows(gap: Gap, margin_us: int, backups: Backups) -> tuple[HealWindow, ...]:
    """Windows in a row, in whole seconds, over everything that the gap may have lost.

    They end the margin behind the gap: stream times are rounded down, and clocks differ. A gap
    shorter than a window is healed by one that begins earlier, or if recovery does not reach back
    so far, by one that ends later. Raises `CannotHealError`.
    """
    if gap.cause == "table recreated":
        raise CannotHealError("the table was deleted and made again, its backups begin anew")
    start = gap.from_us // SECOND_US * SECOND_US
    end = ceil((gap.to_us + margin_us) / SECOND_US) * SECOND_US
    if start < backups.earliest_us:
        raise CannotHealError("point-in-time recovery does not reach back to its beginning")
    if end - start < backups.least_us:
        earliest = ceil(backups.earliest_us / SECOND_US) * SECOND_US
        start = max(end - backups.least_us, earliest)
        end = max(end, start + backups.least_us)
    count = ceil((end - start) / backups.most_us)
    seconds = (end - start) // SECOND_US
    bounds = [start + seconds * i // count * SECOND_US for i in range(count + 1)]
    return tuple(map(HealWindow, bounds, bounds[1:]))
