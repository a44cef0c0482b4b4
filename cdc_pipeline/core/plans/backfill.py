"""Backfill plans: the missing changes of a past day, and the exports that contain them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from math import ceil

from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import CannotHealError, NotCoveredError, NotReadyError
from cdc_pipeline.core.log.entries import Gap, HealWindow, LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.heal import SECOND_US, Backups, plan_windows

DAY_US = 24 * 3600 * SECOND_US
Span = tuple[int, int]
"""Half-open interval [from, to), µs since the epoch."""


@dataclass(frozen=True)
class Fill:
    """A span of a day that one export fills in; `window`: the exported time, 15 minutes or more.

    `lost`: landed objects missing in the lake, which the export replaces; empty for the time before
    capture.
    """

    span: Span
    window: HealWindow
    lost: tuple[LandedObject, ...] = ()


@dataclass(frozen=True)
class BackfillPlan:
    """The plan for a day. `gaps`: open ones; `notes`: times that nothing covers, for people."""

    fills: list[Fill] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def span_of(day: date) -> Span:
    """Return the span of a UTC day."""
    start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND_US
    return start, start + DAY_US


def plan_day(
    state: LogState,
    day: date,
    lost: Sequence[LandedObject],
    backups: Backups | None,
    now_us: int,
    margin_us: int = 0,
) -> BackfillPlan:
    """Plan the backfill of a day; an empty plan for a complete day.

    `lost`: objects in the log but not in the lake; `backups`: None while point-in-time recovery is
    off; `margin_us`: possible error of the log's clock. Raises `NotCoveredError` for a day that
    nothing covers, and `NotReadyError` if capture must read further first.
    """
    span = span_of(day)
    if span[0] > now_us:
        raise NotCoveredError(
            f"{day} has not begun yet; it is {time_text(now_us)} UTC", fix="choose days up to today"
        )
    plan = BackfillPlan(
        gaps=[g for g in state.open_gaps() if g.from_us < span[1] and g.to_us > span[0]]
    )
    if lost:
        plan.fills.append(_replace_lost(day, lost, backups))
    began_us = state.began_us or now_us
    # When capture began, the stream held changes of the last 24 hours, or the newest of them.
    seen_us = began_us - DAY_US if state.began_us else now_us
    before = _until(span, began_us) if span[1] <= now_us else (0, 0)  # a day that is over
    for part in _without(before, _filled(state)):
        reachable = _reachable(part, backups)
        if reachable is None or reachable[0] > part[0]:
            until_us = reachable[0] if reachable else part[1]
            plan.notes.append(
                f"nothing covers {time_text(part[0])} to {time_text(until_us)} UTC: capture began "
                f"at {time_text(began_us)}, recovery {_reach(backups)}"
            )
        if reachable is not None:
            plan.fills.append(_fill(reachable, backups))
    is_covered = plan.fills or span[1] > seen_us or _overlaps(span, _filled(state))
    if not is_covered:
        raise NotCoveredError(
            f"nothing covers {day}: capture began at {time_text(began_us)} UTC and a stream keeps "
            f"24 hours; point-in-time recovery {_reach(backups)}",
            fix="choose later days; the baseline export holds the items as they were when capture "
            "began",
        )
    _require_captured(state, plan, seen_us - margin_us, margin_us)
    return plan


def _require_captured(state: LogState, plan: BackfillPlan, seen_us: int, margin_us: int) -> None:
    """Raise `NotReadyError` until capture has landed the stream's changes of the plan's time."""
    end_us = max((fill.span[1] for fill in plan.fills), default=0)
    if state.began_us and end_us > seen_us and state.watermark_us - margin_us < end_us:
        raise NotReadyError(
            f"capture is at {time_text(state.watermark_us)} and must reach "
            f"{time_text(end_us)} UTC first",
            fix="run the job `capture`, then repeat this",
        )


def _replace_lost(day: date, lost: Sequence[LandedObject], backups: Backups | None) -> Fill:
    start = min(o.min_write_us for o in lost) // SECOND_US * SECOND_US
    # Stream times are rounded down to seconds.
    end = (max(o.max_write_us for o in lost) // SECOND_US + 1) * SECOND_US
    if _reachable((start, end), backups) != (start, end):
        raise NotCoveredError(
            f"{len(lost)} landing objects of {day} are gone from the lake, such as {lost[0].key}; "
            f"they hold changes from {time_text(start)} to {time_text(end)} UTC, the stream no "
            f"longer has them, and point-in-time recovery {_reach(backups)}",
            fix="restore the objects from the bucket's versions or backup",
        )
    return _fill((start, end), backups, tuple(lost))


def _fill(span: Span, backups: Backups | None, lost: tuple[LandedObject, ...] = ()) -> Fill:
    assert backups is not None  # the span is within its reach
    gap = Gap("objects lost", (), *span, heal_generation=0)
    try:
        (window,) = plan_windows([gap], 0, backups)
    except CannotHealError as error:
        raise NotCoveredError(error.message) from None
    return Fill(span, window, lost)


def _filled(state: LogState) -> list[Span]:
    """List the spans before capture that backfills have filled in."""
    return [(g.from_us, g.to_us) for g in state.gaps.values() if g.cause == "before capture"]


def _until(span: Span, end_us: int) -> Span:
    """Return the part of a span before the end of a time's second."""
    end_us = ceil(end_us / SECOND_US) * SECOND_US
    return span[0], max(span[0], min(span[1], end_us))


def _without(span: Span, taken: Iterable[Span]) -> list[Span]:
    """Return the rest of a span without the taken spans, in order."""
    left, start = [], span[0]
    for begin, end in sorted(taken):
        if start < min(begin, span[1]):
            left.append((start, min(begin, span[1])))
        start = max(start, end)
    return [*left, (start, span[1])] if start < span[1] else left


def _overlaps(span: Span, others: Iterable[Span]) -> bool:
    return any(begin < span[1] and end > span[0] for begin, end in others)


def _reachable(span: Span, backups: Backups | None) -> Span | None:
    """Return the part of a span within point-in-time recovery, in whole seconds."""
    if backups is None:
        return None
    start = max(span[0], ceil(backups.earliest_us / SECOND_US) * SECOND_US)
    return (start, span[1]) if start < span[1] else None


def _reach(backups: Backups | None) -> str:
    return f"reaches back to {time_text(backups.earliest_us)}" if backups else "is off"
