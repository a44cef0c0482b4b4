"""What a day lacks: spans and windows within AWS's rules, never twice, never too much."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from cdc_pipeline.core.errors import NotCoveredError, NotReadyError
from cdc_pipeline.core.log.entries import Gap, LandedObject, StreamRef
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.plans.backfill import DAY_US, BackfillPlan, plan_day, span_of
from cdc_pipeline.core.plans.heal import SECOND_US, Backups

BEGAN = date(2026, 6, 15)
BEGAN_US = span_of(BEGAN)[0] + 10 * 3600 * SECOND_US + 123
NOW_US = BEGAN_US + 9 * DAY_US
REACH = Backups(BEGAN_US - 20 * DAY_US + 7)


def _state(*filled: tuple[int, int], read_to_us: int = NOW_US) -> LogState:
    state = LogState()
    stream = StreamRef("id", "arn", "NEW_IMAGE", 1, BEGAN_US)
    state.apply(Entry(1, "", "", 0, stream=stream, discovered_us=read_to_us))
    for n, (from_us, to_us) in enumerate(filled, 2):
        state.apply(Entry(n, "", "", 0, gap=Gap("before capture", (), from_us, to_us, 0)))
    return state


def _plan(
    day: date, state: LogState | None = None, backups: Backups | None = REACH
) -> BackfillPlan:
    return plan_day(state or _state(), day, [], backups, NOW_US)


def test_a_whole_day_before_capture_is_one_window() -> None:
    day = BEGAN - timedelta(days=5)
    (fill,) = _plan(day).fills
    assert fill.span == span_of(day) == (fill.window.from_us, fill.window.to_us)


def test_the_day_on_which_capture_began_ends_there() -> None:
    (fill,) = _plan(BEGAN).fills
    assert fill.span[0] == span_of(BEGAN)[0]
    assert BEGAN_US <= fill.span[1] < BEGAN_US + SECOND_US
    assert _plan(BEGAN + timedelta(days=1)) == BackfillPlan()


def test_what_was_filled_in_is_not_filled_in_again() -> None:
    start, end = span_of(BEGAN - timedelta(days=5))
    assert _plan(BEGAN - timedelta(days=5), _state((start, end))) == BackfillPlan()
    noon = start + DAY_US // 2
    (fill,) = _plan(BEGAN - timedelta(days=5), _state((noon, end))).fills
    assert fill.span == (start, noon)


def test_recovery_reaches_part_of_a_day() -> None:
    day = datetime.fromtimestamp(REACH.earliest_us / 1e6, UTC).date()
    plan = _plan(day)
    (fill,), (note,) = plan.fills, plan.notes
    assert REACH.earliest_us <= fill.span[0] < REACH.earliest_us + SECOND_US
    assert fill.span[1] == span_of(day)[1]
    assert "nothing covers" in note


@pytest.mark.parametrize("backups", [REACH, None])
def test_a_day_that_nothing_covers(backups: Backups | None) -> None:
    day = BEGAN - timedelta(days=40)
    with pytest.raises(NotCoveredError, match=f"nothing covers {day}: capture began at {BEGAN}"):
        _plan(day, backups=backups)
    # What the stream held when capture began needs no backups.
    assert _plan(BEGAN - timedelta(days=1), backups=None).fills == []


def test_a_day_that_has_not_begun() -> None:
    with pytest.raises(NotCoveredError, match="has not begun"):
        _plan(BEGAN + timedelta(days=10))


def test_an_export_is_compared_with_the_stream_only_when_that_has_landed() -> None:
    behind = _state(read_to_us=BEGAN_US - 3600 * SECOND_US)
    with pytest.raises(NotReadyError, match="must reach"):
        _plan(BEGAN, behind)
    assert _plan(BEGAN - timedelta(days=5), behind).fills


def test_lost_objects_make_one_window_over_their_time() -> None:
    day = BEGAN + timedelta(days=2)
    start = span_of(day)[0]
    first = LandedObject("a", day.isoformat(), 1, 1, 1, start + 5, start + 7, "", "", ("s",))
    last = replace(first, key="b", min_write_us=start + 8, max_write_us=start + 9 * SECOND_US)
    (fill,) = plan_day(_state(), day, [first, last], REACH, NOW_US).fills
    assert fill.span == (start, start + 10 * SECOND_US)
    assert fill.lost == (first, last)
    assert fill.window.to_us - fill.window.from_us == REACH.least_us
    with pytest.raises(NotCoveredError, match=r"2 landing objects of .* are gone"):
        plan_day(_state(), day, [first, last], None, NOW_US)
