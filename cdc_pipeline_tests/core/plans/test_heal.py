"""Windows of a heal: without holes, within AWS's rules, over all that the gap may have lost."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.errors import CannotHealError
from cdc_pipeline.core.log.entries import Gap
from cdc_pipeline.core.plans.heal import SECOND_US, Backups, overlapping, plan_windows

MINUTE_US, HOUR_US = 60 * SECOND_US, 3600 * SECOND_US
NOW_US = 1_764_000_000_123_456


def _gap(from_us: int, to_us: int, cause: str = "trimmed") -> Gap:
    return Gap(cause, ("shard-1",), from_us, to_us, heal_generation=1, entry=7)  # type: ignore[arg-type]


@given(
    st.integers(0, 40 * 24 * HOUR_US),
    st.integers(0, HOUR_US),
    st.integers(SECOND_US, 35 * 24 * HOUR_US),
)
def test_windows_cover_the_gap_within_the_rules(length: int, margin: int, reach: int) -> None:
    gap = _gap(NOW_US - length, NOW_US)
    backups = Backups(earliest_us=NOW_US - length - reach)
    windows = plan_windows([gap], margin, backups)
    assert windows[0].from_us <= gap.from_us
    assert windows[-1].to_us >= gap.to_us + margin
    assert windows[0].from_us >= backups.earliest_us - SECOND_US
    for window in windows:
        assert backups.least_us <= window.to_us - window.from_us <= backups.most_us
        assert window.from_us % SECOND_US == window.to_us % SECOND_US == 0
        assert not window.done
    for window, following in pairwise(windows):
        assert window.to_us == following.from_us


def test_a_short_gap_begins_earlier_or_else_ends_later() -> None:
    gap = _gap(NOW_US - MINUTE_US, NOW_US)
    (early,) = plan_windows([gap], 0, Backups(NOW_US - HOUR_US))
    assert NOW_US <= early.to_us < NOW_US + SECOND_US
    (late,) = plan_windows([gap], 0, Backups(NOW_US - 2 * MINUTE_US))
    assert late.from_us >= NOW_US - 2 * MINUTE_US
    assert late.to_us - late.from_us == 15 * MINUTE_US


@given(st.integers(SECOND_US, 40 * 24 * HOUR_US))
def test_what_recovery_does_not_reach_cannot_be_healed(late: int) -> None:
    gap = _gap(NOW_US, NOW_US + HOUR_US)
    with pytest.raises(CannotHealError, match="does not reach back"):
        plan_windows([gap], 0, Backups(NOW_US + late))


def test_a_table_made_again_has_no_past() -> None:
    with pytest.raises(CannotHealError, match="made again"):
        plan_windows([_gap(NOW_US, NOW_US, "table recreated")], 0, Backups(0))


def _gaps(*ranges: tuple[int, int], cause: str = "trimmed") -> list[Gap]:
    return [
        replace(_gap(start, end, cause), entry=n, heal_generation=2 * n)
        for n, (start, end) in enumerate(ranges, start=1)
    ]


def test_gaps_that_overlap_are_healed_together() -> None:
    gaps = _gaps((0, 10), (5, 20), (30, 40), (8, 41), (50, 60))
    groups = [[g.entry for g in overlapping(gap, gaps)] for gap in gaps]
    # The fourth began while the first two were open, so the exports of its time know them, too.
    assert groups == [[1, 2, 3, 4]] * 4 + [[5]]


def test_a_table_made_again_is_a_matter_of_its_own() -> None:
    (before,), (again,) = _gaps((0, 10)), _gaps((5, 20), cause="table recreated")
    again = replace(again, entry=2)
    assert overlapping(before, [before, again]) == [before]
    assert overlapping(again, [before, again]) == [again]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=6))
def test_a_group_covers_its_gaps_and_leaves_no_later_change_behind(
    spans: list[tuple[int, int]],
) -> None:
    ends = sorted(end for _, end in spans)
    gaps = _gaps(
        *(
            (NOW_US - (100 + start) * SECOND_US, NOW_US + 20 * n * end * SECOND_US)
            if start % 2
            else (NOW_US + 20 * n * end * SECOND_US - SECOND_US, NOW_US + 20 * n * end * SECOND_US)
            for n, ((start, _), end) in enumerate(zip(spans, ends, strict=True), start=1)
        )
    )
    for gap in gaps:
        group = overlapping(gap, gaps)
        windows = plan_windows(group, 0, Backups(0))
        assert windows[0].from_us <= min(g.from_us for g in group)
        # Whatever landed before the group's last gap opened lies before the windows' end.
        assert windows[-1].to_us >= group[-1].to_us == max(g.to_us for g in group)
        for other in gaps:
            apart = other.to_us < min(g.from_us for g in group) or other.from_us > group[-1].to_us
            assert (other in group) != apart
