"""The coverage ledger: every moment is accounted for once, and by the worst that is true of it."""

import dataclasses
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.log.coverage import CoverageRange, coverage, holes, hour_bars
from cdc_pipeline.core.log.entries import Baseline, Gap, Heal, HealWindow, ShardState, StreamRef
from cdc_pipeline.core.log.state import LogState

_HOUR = 3_600_000_000
_MIDNIGHT = 1_763_683_200_000_000  # 2025-11-21T00:00Z


def _state(read_to: int = 100, **more: object) -> LogState:
    state = LogState(
        n=9,
        stream=StreamRef("t", "arn", "NEW_AND_OLD_IMAGES", 0, 10),
        shards={"s": ShardState("s", None, 0, read_to_us=read_to)},
        discovered_us=read_to,
        began_us=10,
    )
    return dataclasses.replace(state, **more)  # type: ignore[arg-type]


def _gap(entry: int, start: int, end: int) -> Gap:
    return Gap("trimmed", ("s",), start, end, heal_generation=entry, entry=entry)


def _told(stretches: list[CoverageRange]) -> list[tuple[int, int, str]]:
    return [(s.from_us, s.to_us, s.means) for s in stretches]


def test_nothing_was_captured() -> None:
    assert coverage(LogState(), 100) == []
    assert hour_bars([], 7) == []


def test_what_is_read_and_what_is_not_yet() -> None:
    assert _told(coverage(_state(), 120)) == [(10, 100, "stream"), (100, 120, "unread")]
    # A watermark of zero is unknown: nothing is claimed.
    assert _told(coverage(_state(read_to=0), 120)) == [(10, 120, "unread")]


def test_a_gap_is_a_hole_until_it_is_healed() -> None:
    state = _state(gaps={3: _gap(3, 40, 60)})
    lost = coverage(state, 100)
    assert _told(lost) == [(10, 40, "stream"), (40, 60, "lost"), (60, 100, "stream")]
    assert [(h.gap, h.note) for h in holes(lost)] == [(3, "trimmed, 1 shards")]
    state.heals[3] = Heal(3, (HealWindow(40, 60), HealWindow(60, 70)), reread=0)
    assert holes(coverage(state, 100)) == holes(lost)  # landing is not yet healing
    state.heals[3] = dataclasses.replace(state.heals[3], healed=True)
    healed = coverage(state, 100)
    assert _told(healed)[1] == (40, 60, "heal")
    assert "from 2 exports" in healed[1].note
    assert holes(healed) == []


def test_a_later_baseline_fills_a_hole_with_its_state_only() -> None:
    state = _state(gaps={3: _gap(3, 40, 60)})
    state.baselines[7] = Baseline(7, recorded_us=70, export_time_us=75)
    assert holes(coverage(state, 100))  # not verified yet
    state.baselines[7] = dataclasses.replace(state.baselines[7], snapshot_id=1)
    found = coverage(state, 100)
    assert _told(found) == [
        (0, 10, "export"),
        (10, 40, "stream"),
        (40, 60, "export"),
        (60, 100, "stream"),
    ]
    assert found[2].note == "trimmed; in the state of the export at 1970-01-01 00:00:00"


def test_where_gaps_overlap_the_open_one_counts() -> None:
    state = _state(gaps={3: _gap(3, 20, 60), 5: _gap(5, 40, 90)})
    state.heals[3] = Heal(3, (HealWindow(20, 60),), reread=0, healed=True)
    assert _told(coverage(state, 100))[1:3] == [(20, 40, "heal"), (40, 90, "lost")]


def test_days_before_capture_that_a_backfill_landed() -> None:
    past = dataclasses.replace(_gap(3, 2, 5), cause="before capture", heal_generation=0)
    heals = {3: Heal(3, (HealWindow(2, 5),), reread=0, healed=True)}
    state = _state(gaps={3: past}, heals=heals)
    parts = [(2, 5, "heal"), (10, 100, "stream")]
    assert _told(coverage(state, 100)) == parts
    state.baselines[7] = Baseline(7, recorded_us=70, export_time_us=75, snapshot_id=1)
    assert _told(coverage(state, 100)) == [(0, 2, "export"), parts[0], (5, 10, "export"), parts[1]]


_times = st.integers(1, 50)


@given(
    st.lists(st.tuples(_times, _times, st.booleans()), max_size=5),
    st.lists(st.tuples(_times, st.booleans()), max_size=3),
    _times,
    _times,
)
def test_the_ledger_has_no_holes_and_no_overlaps(
    gaps: list[tuple[int, int, bool]],
    baselines: list[tuple[int, bool]],
    read_to: int,
    more: int,
) -> None:
    state = _state(read_to=read_to)
    for n, (a, b, healed) in enumerate(gaps, start=1):
        state.gaps[n] = _gap(n, min(a, b) + 10, max(a, b) + 11)
        if healed:
            state.heals[n] = Heal(n, (HealWindow(a, b),), reread=0, healed=True)
    for n, (at, staged) in enumerate(baselines, start=2):
        state.baselines[n] = Baseline(n, at, at, snapshot_id=1 if staged else None)
    now = 62 + more
    found = coverage(state, now)
    assert found[-1].to_us == now
    assert all(left.to_us == right.from_us for left, right in pairwise(found))
    assert all(s.from_us < s.to_us for s in found)
    newest = state.staged.generation if state.staged else 0
    lost = {
        us
        for n, gap in state.gaps.items()
        if not state.is_healed(n) and gap.heal_generation >= newest
        for us in range(gap.from_us, gap.to_us)
    }
    assert {us for h in holes(found) for us in range(h.from_us, h.to_us)} == lost


def test_hours_are_drawn_by_the_least_good_thing_in_them() -> None:
    stretches = [
        CoverageRange(0, _MIDNIGHT + 2 * _HOUR, "export"),
        CoverageRange(_MIDNIGHT + 2 * _HOUR, _MIDNIGHT + 5 * _HOUR, "stream"),
        CoverageRange(_MIDNIGHT + 5 * _HOUR, _MIDNIGHT + 5 * _HOUR + 1, "lost"),
        CoverageRange(_MIDNIGHT + 5 * _HOUR + 1, _MIDNIGHT + 23 * _HOUR, "heal"),
        CoverageRange(_MIDNIGHT + 23 * _HOUR, _MIDNIGHT + 25 * _HOUR, "stream"),
        CoverageRange(_MIDNIGHT + 25 * _HOUR, _MIDNIGHT + 25 * _HOUR + 9, "unread"),
    ]
    assert hour_bars(stretches, 7) == [
        "2025-11-21 ░░███X" + "▓" * 17 + "█",
        "2025-11-22 █·" + " " * 22,
    ]
    assert hour_bars(stretches, 1) == ["2025-11-22 █·" + " " * 22]
