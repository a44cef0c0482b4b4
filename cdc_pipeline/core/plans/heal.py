"""Incremental exports that heal a gap: windows within AWS's limits (docs/aws_facts.md, exports)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from cdc_pipeline.core.errors import CannotHealError
from cdc_pipeline.core.log.entries import Gap, HealWindow

SECOND_US = 1_000_000
RECREATED = "table recreated"


@dataclass(frozen=True)
class Backups:
    """The range of point-in-time recovery, and the limits of an incremental window, in µs.

    `earliest_us`: its beginning. AWS accepts incremental windows of 15 minutes to 24 hours.
    """

    earliest_us: int
    least_us: int = 15 * 60 * SECOND_US
    most_us: int = 24 * 3600 * SECOND_US


def overlapping(gap: Gap, gaps: Sequence[Gap]) -> list[Gap]:
    """Return the group of open gaps that one heal covers together with `gap`, oldest first.

    Shards lost together open a gap each, over nearly the same time; an export of that time has the
    lost changes of all. The group is healed in the generation of its last gap, over the time of all
    gaps: everything landed before that gap opened was written before its end, so the exports' last
    images are as new or newer.
    """
    ordered = sorted(gaps, key=lambda g: g.entry)
    groups: list[list[Gap]] = []
    for later in reversed(ordered):
        first = groups[-1][0] if groups else None
        alike = first is not None and (later.cause == RECREATED) == (first.cause == RECREATED)
        if first is not None and alike and later.to_us >= min(g.from_us for g in groups[-1]):
            groups[-1].insert(0, later)
        else:
            groups.append([later])
    return next(group for group in groups if gap in group)


def plan_windows(
    gaps: Sequence[Gap], margin_us: int, backups: Backups, clock_margin_us: int = 0
) -> tuple[HealWindow, ...]:
    """Plan consecutive windows, in whole seconds, over the time of a group of gaps.

    They end `margin_us` after the last gap: stream times are rounded down, and exports are exact to
    about a minute. For a gap of an older version, which used its own clock in place of AWS's, they
    extend by the possible error of that clock, `clock_margin_us`, on both sides. A gap shorter than
    a window gets one that begins earlier, or, if recovery does not reach back so far, one that ends
    later. Raises `CannotHealError`.
    """
    if gaps[0].cause == RECREATED:
        raise CannotHealError("the table was deleted and made again; its backups begin after that")
    extra_us = {gap.entry: max(clock_margin_us - gap.margin_us, 0) for gap in gaps}
    first_us = min(gap.from_us - extra_us[gap.entry] for gap in gaps)
    last_us = max(gap.to_us + extra_us[gap.entry] for gap in gaps)
    start = first_us // SECOND_US * SECOND_US
    end = ceil((last_us + margin_us) / SECOND_US) * SECOND_US
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
