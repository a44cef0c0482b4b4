"""The coverage ledger: changes of a table in the lake, by time range and source."""

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
"""Sign of an hour, by the worst means in it."""

_WORST_FIRST: tuple[Means, ...] = ("lost", "unread", "export", "heal", "stream")
_HOUR_US = 3_600_000_000
CLOCK_WARN_US = 2_000_000
"""Clocks with NTP differ by milliseconds; AWS reports whole seconds."""


@dataclass(frozen=True)
class CoverageRange:
    """Coverage of the changes written in [from_us, to_us), µs since the epoch.

    `means`: "stream", every change; "heal", the last change of each item; "export", only their
    result, in the state of a later baseline; "lost", nothing yet; "unread", still to be captured.
    `from_us` 0: from the beginning. `gap`: the log entry that opened the surrounding gap.
    """

    from_us: int
    to_us: int
    means: Means
    note: str = ""
    gap: int | None = None


def coverage(state: LogState, now_us: int) -> list[CoverageRange]:
    """Return the ledger of one table from the beginning to `now_us`: in order, without overlaps.

    It has no holes since capture began, and is empty before that. Where gaps overlap, the worst one
    counts. Days backfilled from exports count as heals.
    """
    if state.stream is None:
        return []
    began_us = state.began_us
    read_us = min(max(state.watermark_us, began_us), now_us)
    stretches = [
        CoverageRange(began_us, read_us, "stream"),
        CoverageRange(read_us, now_us, "unread"),
    ]
    stretches += [_of_gap(state, gap) for gap in state.gaps.values()]
    staged = [b for b in state.baselines.values() if b.snapshot_id is not None]
    first = min((baseline.export_time_us for baseline in staged), default=None)
    if first is not None:
        note = f"in the state of the export at {time_text(first)}"
        stretches.append(CoverageRange(0, began_us, "export", note))
    return _flatten(stretches)


def holes(stretches: Sequence[CoverageRange]) -> list[CoverageRange]:
    """List the stretches of lost changes that no export covers yet."""
    return [stretch for stretch in stretches if stretch.means == "lost"]


def hour_bars(stretches: Sequence[CoverageRange], days: int) -> list[str]:
    """Format the last `days` days of the ledger: one line per day, one sign per hour (UTC)."""
    if not stretches:
        return []
    last = day_of(stretches[-1].to_us - 1)
    first = max(last - timedelta(days=days - 1), day_of(stretches[0].to_us))
    count = (last - first).days + 1
    return [_bar(stretches, first + timedelta(days=n)) for n in range(count)]


def clock_warning(offset_us: int | None) -> str | None:
    """Warn of a clock that is `offset_us` ahead of AWS's; None: the clock is right, or unknown.

    Results stay correct while the offset is below `clock_margin_seconds`; but this clock still
    decides up to when a quiet table is reported complete.
    """
    if offset_us is None or abs(offset_us) <= CLOCK_WARN_US:
        return None
    side = "ahead of" if offset_us > 0 else "behind"
    return f"this machine's clock is {abs(offset_us) / 1e6:.1f} s {side} AWS's; set it (NTP)"


def clock_note(offset_us: int) -> str:
    """Format the last measured offset from AWS's clock, for people."""
    side = "ahead of" if offset_us > 0 else "behind"
    note = f"clock of the captures: {abs(offset_us) / 1e6:.1f} s {side} AWS's"
    return f"[yellow]{note}; set it (NTP)[/]" if clock_warning(offset_us) else note


def _of_gap(state: LogState, gap: Gap) -> CoverageRange:
    stretch = CoverageRange(gap.from_us, gap.to_us, "lost", str(gap), gap.entry)
    heal = state.heal_of(gap.entry)
    if heal is not None and heal.healed:
        note = f"{gap.cause}; the last change of each item, from {len(heal.windows)} exports"
        return replace(stretch, means="heal", note=note)
    staged = state.staged
    if staged is not None and staged.generation > gap.heal_generation:
        note = f"{gap.cause}; in the state of the export at {time_text(staged.export_time_us)}"
        return replace(stretch, means="export", note=note)
    return stretch


def _flatten(stretches: list[CoverageRange]) -> list[CoverageRange]:
    """Cut at every boundary, keep the worst of each piece, and join equal neighbours."""
    bounds = sorted({bound for s in stretches for bound in (s.from_us, s.to_us)})
    flat: list[CoverageRange] = []
    for start, end in pairwise(bounds):
        over = [s for s in stretches if s.from_us <= start and end <= s.to_us]
        if not over:
            continue  # before capture, without an export
        # A gap is more specific than "unread" or "stream".
        worst = min(over, key=lambda s: (s.gap is None, _WORST_FIRST.index(s.means)))
        piece = replace(worst, from_us=start, to_us=end)
        if flat and replace(flat[-1], to_us=end) == replace(piece, from_us=flat[-1].from_us):
            flat[-1] = replace(flat[-1], to_us=end)
        else:
            flat.append(piece)
    return flat


def _bar(stretches: Sequence[CoverageRange], day: date) -> str:
    midnight = int(datetime.combine(day, time(), UTC).timestamp()) * 1_000_000
    return f"{day} {''.join(_sign(stretches, midnight + hour * _HOUR_US) for hour in range(24))}"


def _sign(stretches: Sequence[CoverageRange], start_us: int) -> str:
    within = {s.means for s in stretches if s.from_us < start_us + _HOUR_US and s.to_us > start_us}
    # The present hour is never read to its end.
    if len(within) > 1:
        within.discard("unread")
    return next((HOUR_SIGNS[means] for means in _WORST_FIRST if means in within), " ")
