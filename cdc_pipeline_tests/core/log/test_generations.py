"""Which generation a late change belongs to."""

from dataclasses import replace
from typing import Any

import pytest

from cdc_pipeline.core.log.entries import Baseline, Gap, StreamRef
from cdc_pipeline.core.log.generations import Generations
from cdc_pipeline.core.log.state import Entry, LogState

BEGAN = 1_000_000
STREAM = StreamRef("table", "arn", "NEW_AND_OLD_IMAGES", 1, BEGAN, "kinesis")


def state_after(*entries: dict[str, Any]) -> LogState:
    state = LogState()
    first: dict[str, Any] = {"stream": STREAM}
    for parts in (first, *entries):
        state.apply(Entry(state.n + 1, "nonce", "test", 0, **parts))
    return state


def begun(generation: int, **parts: Any) -> dict[str, Any]:
    return {"stream": replace(STREAM, generation=generation), **parts}


def gap(heal_generation: int, to_us: int, cause: Any = "trimmed") -> Gap:
    return Gap(cause, (), 0, to_us, heal_generation)


def generations(state: LogState, *times_us: int) -> list[int]:
    known = Generations(state)
    return [known.at(time_us) for time_us in times_us]


def test_what_was_written_before_capture_began_is_older_than_everything() -> None:
    state = state_after()
    assert generations(state, 0, BEGAN - 1000, BEGAN, 9 * BEGAN) == [0, 0, 1, 1]


def test_gaps_and_baselines_part_changes_by_their_times() -> None:
    state = state_after(
        begun(3, gap=gap(2, 2 * BEGAN)),
        begun(4, baseline=Baseline(4, 3 * BEGAN, 4 * BEGAN)),
        begun(6, gap=gap(5, 5 * BEGAN)),
    )
    times = (BEGAN - 1000, BEGAN, 2 * BEGAN, 3 * BEGAN, 5 * BEGAN - 1000, 5 * BEGAN)
    assert generations(state, *times) == [0, 1, 3, 4, 4, 6]


@pytest.mark.parametrize("time_us", [2 * BEGAN, 2 * BEGAN + 1, 2 * BEGAN + 999])
def test_a_generation_begins_with_a_whole_ms(time_us: int) -> None:
    """A time in ms, of a change in the same ms but behind the gap, must not be before it."""
    state = state_after(begun(3, gap=gap(2, 2 * BEGAN + 500)))
    assert generations(state, 2 * BEGAN - 1, time_us) == [1, 3]


def test_nothing_is_older_than_a_switch_of_transports() -> None:
    state = state_after(begun(3, gap=gap(2, 2 * BEGAN)), begun(4), begun(6, gap=gap(5, 5 * BEGAN)))
    assert generations(state, 0, BEGAN, 2 * BEGAN, 5 * BEGAN) == [4, 4, 4, 6]


def test_backfills_begin_no_generation() -> None:
    state = state_after(
        begun(3, gap=gap(2, 2 * BEGAN)),
        {"gap": gap(2, 9 * BEGAN, "objects lost")},
        {"gap": gap(0, 9 * BEGAN, "before capture")},
    )
    assert generations(state, BEGAN, 2 * BEGAN, 8 * BEGAN) == [1, 3, 3]
