"""The coverage ledger: which changes of a table the lake has, in which range of time, from what."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Literal

from cdc_pipeline.core.clock import day_of, time_text
from cdc_pipeline.core.log.entries import Gap
from cdc_pipeline.core.log.state import LogState

Means = Literal["export", "stream", "heal", "lost", "unread"]

HOUR_SIGNS: dict[Means, str] = {
    "export": "░",
    "stream": "█",
    "heal": "▓",
    "lost": "X",
    "unread": "·",
}
"""One sign for an hour, by what is least good in it."""

_WORST_FIRST: tuple[Means, ...] = ("lost", "unread", "export", "heal", "stream")
_HOUR_US = 3_600_000_000
CLOCK_WARN_US = 2_000_000
"""Clocks that are kept by NTP differ by milliseconds; AWS tells whole seconds."""


@dataclass(frozen=True)
class Stretch:
    """What is known of the changes written in [from_us, to_us), µs since the epoch.

    `means`: "stream", every change; "heal", of each item the last change; "export", what they
    led to, as the state of a later baseline; "lost", nothing yet; "unread", still to be captured.
    `from_us` 0: since ever. `gap`: the log entry that opened the gap it lies in.
    """

    from_us: int
    to_us: int
    means: Means
    note: str = ""
    gap: int | None = None


def coverage(state: LogState, now_us: int) -> list[Stretch]:
    """The ledger of one table from the beginning to `now_us`: in order, without overlaps.

    Since capture began it has no holes; it is empty before that. Where gaps overlap, the worst one
    counts. Days that a backfill took from exports count as heals.
    """
    if state.stream is None:
        return []
    began_us = state.began_us
    read_us = min(max(state.watermark_us, began_us), now_us)
    stretches = [Stretch(began_us, read_us, "stream"), Stretch(read_us, now_us, "unread")]
    stretches += [_of_gap(state, gap) for gap in state.gaps.values()]
    staged = [b for b in state.baselines.values() if b.snapshot_id is not None]
    first = min((baseline.export_time_us for baseline in staged), default=None)
    if first is not None:
        note = f"in the state of the export at {time_text(first)}"
        stretches.append(Stretch(0, began_us, "export", note))
    return _flatten(stretches)


def holes(stretches: Sequence[Stretch]) -> list[Stretch]:
    """The stretches of which nothing is known yet although they should have been captured."""
    return [stretch for stretch in stretches if stretch.means == "lost"]


def hour_bars(stretches: Sequence[Stretch], days: int) -> list[str]:
    """One line per day for the last `days` days of the ledger, a sign for each hour (UTC)."""
    if not stretches:
        return []
    last = day_of(stretches[-1].to_us - 1)
    first = max(last - timedelta(days=days - 1), day_of(stretches[0].to_us))
    count = (last - first).days + 1
    return [_bar(stretches, first + timedelta(days=n)) for n in range(count)]


def clock_warning(offset_us: int | None) -> str | None:
    """What to say of a clock that is this far ahead of AWS's; None: it is right, or unknown.

    Everything is right with clocks that are wrong by less than `clock_margin_seconds`; what a quiet
    table is complete to is told by this clock all the same.
    """
    if offset_us is None or abs(offset_us) <= CLOCK_WARN_US:
        return None
    side = "ahead of" if offset_us > 0 else "behind"
    return f"this machine's clock is {abs(offset_us) / 1e6:.1f} s {side} AWS's; set it (NTP)"


def clock_note(offset_us: int) -> str:
    """How far the clock was off AWS's when it was measured last, for people."""
    side = "ahead of" if offset_us > 0 else "behind"
    note = f"clock of the captures: {abs(offset_us) / 1e6:.1f} s {side} AWS's"
    return f"[yellow]{note}; set it (NTP)[/]" if clock_warning(offset_us) else note


def _of_gap(state: LogState, gap: Gap) -> Stretch:
    stretch = Stretch(gap.from_us, gap.to_us, "lost", str(gap), gap.entry)
    heal = state.heal_of(gap.entry)
    if heal is not None and heal.healed:
        note = f"{gap.cause}; of each item the last change, from {len(heal.windows)} exports"
        return replace(stretch, means="heal", note=note)
    staged = state.staged
    if staged is not None and staged.generation > gap.heal_generation:
        note = f"{gap.cause}; in the state of the export at {time_text(staged.export_time_us)}"
        return replace(stretch, means="export", note=note)
    return stretch


def _flatten(stretches: list[Stretch]) -> list[Stretch]:
    """Cut at every boundary, keep the worst of each piece, and join equal neighbours."""
    bounds = sorted({bound for s in stretches for bound in (s.from_us, s.to_us)})
    flat: list[Stretch] = []
    for start, end in pairwise(bounds):
        over = [s for s in stretches if s.from_us <= start and end <= s.to_us]
        if not over:
            continue  # before capture, and no export is there yet
        # A gap says more than the general answer "unread" or "stream".
        worst = min(over, key=lambda s: (s.gap is None, _WORST_FIRST.index(s.means)))
        piece = replace(worst, from_us=start, to_us=end)
        if flat and replace(flat[-1], to_us=end) == replace(piece, from_us=flat[-1].from_us):
            flat[-1] = replace(flat[-1], to_us=end)
        else:
            flat.append(piece)
    return flat


def _bar(stretches: Sequence[Stretch], day: date) -> str:
    midnight = int(datetime.combine(day, time(), UTC).timestamp()) * 1_000_000
    return f"{day} {''.join(_sign(stretches, midnight + hour * _HOUR_US) for hour in range(24))}"


def _sign(stretches: Sequence[Stretch], start_us: int) -> str:
    within = {s.means for s in stretches if s.from_us < start_us + _HOUR_US and s.to_us > start_us}
    # The present is never read to its very end.
    if len(within) > 1:
        within.discard("unread")
    return next((HOUR_SIGNS[means] for means in _WORST_FIRST if means in within), " ")
