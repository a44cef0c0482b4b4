"""Any story of a table, its stream and its exports ends in a lake that is the table.

Writes, runs that fail or are killed, wrong clocks, outages, exports that fail or are damaged,
tables recreated, recovery and stream off and on, long pauses: whatever was published meanwhile was
true, and in the end a few plain reruns make `current_state`, `history` and `cdc` what they must be.
"""

from collections.abc import Iterator

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline_tests.capture.shards.test_stories import Behaviour, behaviours
from cdc_pipeline_tests.e2e.exports_scenario import ExportsWorld, ReusedExports
from cdc_pipeline_tests.simulators.clients import session
from cdc_pipeline_tests.story_frame import (
    CLOCK,
    DAY,
    HOUR,
    MARKS,
    NEARLY_A_DAY,
    Step,
    shared_simulator,
    steps_of,
    story_settings,
    tell_story,
)

pytestmark = MARKS

# ----------------------------------------------------------------------------------- stories

_writes = st.tuples(st.just("write"), st.lists(st.integers(0, 29), min_size=1, max_size=6))
_time = st.tuples(
    st.just("advance"),
    st.sampled_from([1, 30, 6 * 60, 16 * 60, HOUR, 4 * HOUR, 13 * HOUR, 25 * HOUR, 49 * HOUR])
    | NEARLY_A_DAY,
)
_pause = st.just(("pause", 40 * DAY))
_recovery = st.tuples(st.just("recovery"), st.booleans())
_stream = st.sampled_from([("off",), ("on",), ("off",), ("on",), ("recreate",)])
_SPOILT = ["fail", "flip", "cut", "gone", "filter"]
_spoil = st.tuples(
    st.just("spoil"), st.lists(st.sampled_from(_SPOILT), min_size=1, max_size=2).map(tuple)
)
_CHANGES = {"capture": 3, "publish": 1, "heal": 10, "snapshot": 12, "cdc": 1}
"""About the last change to the lake that each run makes."""


def _runs(*names: str) -> st.SearchStrategy[Step]:
    """One of the runs, killed now and then."""

    def one(name: str) -> st.SearchStrategy[Step]:
        return st.one_of(*[st.just(("run", name, None))] * 2, _killed(name))

    return st.sampled_from(names).flatmap(one)


def _killed(name: str) -> st.SearchStrategy[Step]:
    kill = st.tuples(st.integers(0, _CHANGES[name]), st.booleans())
    return st.tuples(st.just("run"), st.just(name), kill)


_run = _runs("capture", "capture", "publish", "publish", "heal", "heal", "snapshot", "cdc")
_capture, _export = _runs("capture"), _runs("snapshot", "heal")
_rotate = st.tuples(st.just("rotate"), st.integers(0, 3))
_during = st.tuples(
    st.just("during"), st.one_of(_writes, _writes, _capture, CLOCK, _stream, _recovery, _time)
)
_change_of_world = st.one_of(
    _recovery, st.just(("recreate",)), st.just(("off",)), st.just(("vanish",)), _pause
)
_steps = st.one_of(
    _writes, _writes, _time, CLOCK, _stream, _recovery, _spoil, _rotate, _run, _run, _run
)
_done = [("run", name, None) for name in ("capture", "publish")]
_captured = st.just(("run", "capture", None))
_outage = st.tuples(
    st.just("advance"), st.sampled_from([25 * HOUR, 49 * HOUR]) | NEARLY_A_DAY | NEARLY_A_DAY
)
_fast = st.tuples(st.just("clock"), st.sampled_from([5, 60, 300]))
_slow = st.tuples(st.just("clock"), st.sampled_from([-5, -60, -300]))
_just_a_day = st.tuples(st.just("advance"), st.integers(DAY, DAY + 300))
_chapters = st.one_of(
    *[st.tuples(_steps)] * 4,
    *[st.tuples(CLOCK, _writes, _captured, _writes, _outage, _writes, _capture, _export)] * 2,
    st.tuples(_fast, _writes, _captured, _writes, _just_a_day, _slow, _writes, _capture, _export),
    st.tuples(CLOCK, _writes, _captured, CLOCK, _writes, _outage, CLOCK, _writes, _capture),
    st.tuples(_writes, _outage, _writes, _captured, _killed("heal"), _change_of_world, _capture),
    st.tuples(st.just(("off",)), _writes, _time, st.just(("on",)), _writes, _capture, _export),
    st.tuples(CLOCK, _during, _during, _export, CLOCK, _capture),
    st.tuples(_spoil, _export, _export),
    st.tuples(_writes, _killed("snapshot"), _change_of_world, _writes, _capture, _export),
    st.tuples(_writes, _pause, _writes, _capture, _export),
    st.tuples(_recovery, _writes, _time, _recovery, _capture, _export),
)
"""The longer ones seldom come about by chance."""
_bootstrap: tuple[Step, ...] = (
    ("write", [0, 6, 12]),
    ("run", "capture", None),
    ("run", "snapshot", None),
    ("advance", 16 * 60),
    *_done,
)
stories = st.tuples(
    st.sampled_from([(), _bootstrap, _bootstrap, _bootstrap]),
    st.lists(_chapters, min_size=2, max_size=7),
).map(lambda parts: [*parts[0], *steps_of(parts[1])])

# ------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def sim() -> Iterator[ReusedExports]:
    simulator = ReusedExports()
    with shared_simulator(simulator) as patch:
        # A story with many pauses of 40 days ends after today.
        patch.setattr("cdc_pipeline.core.changes.write_times.clock", lambda: 4e9)
        yield simulator


@pytest.fixture(scope="module")
def aws(sim: ReusedExports) -> AwsSession:
    return session(sim)


def tell(sim: ReusedExports, aws: AwsSession, how: Behaviour, story: list[Step]) -> dict[str, int]:
    """Tell a story to its end and check it; how its runs ended."""
    return tell_story(ExportsWorld(sim, aws, how), story)


FOUND: dict[str, list[Step]] = {
    "filtered exports": [
        ("write", [0, 6, 12]),
        ("run", "capture", None),
        ("spoil", ("filter",)),
        ("run", "snapshot", None),
        ("run", "snapshot", None),
        ("advance", 16 * 60),
        *_done,
        ("write", [1]),
        ("advance", 25 * HOUR),
        ("write", [2]),
        ("run", "capture", None),
        ("spoil", ("filter",)),
        ("run", "heal", None),
    ],
    "written behind the tip that a fast clock told": [
        ("clock", 60),
        *_bootstrap,
        ("write", [1]),
        ("advance", 25 * HOUR),
        ("write", [2]),
        ("run", "capture", None),
    ],
    "trimmed, and by two wrong clocks not old enough for it": [
        *_bootstrap,
        ("clock", 300),
        ("write", [1]),
        ("run", "capture", None),
        ("write", [7]),
        ("advance", DAY + 60),
        ("clock", -300),
        ("write", [2]),
        ("run", "capture", None),
    ],
    "a gap before the first baseline": [
        ("advance", 1000),
        ("write", [1]),
        ("run", "capture", None),
        ("write", [2]),
        ("advance", 25 * HOUR),
        ("run", "capture", None),
        ("run", "snapshot", None),
    ],
}
"""Stories that failed once, or that a careless change would fail."""


@story_settings(tenths=1, usual=8, shrinks=False)
@given(how=behaviours, story=stories)
def test_any_story_ends_in_a_lake_that_is_the_table(
    sim: ReusedExports, aws: AwsSession, how: Behaviour, story: list[Step]
) -> None:
    for outcome in tell(sim, aws, how, story):
        event(outcome)


@pytest.mark.parametrize("name", FOUND)
def test_stories_that_failed_once(sim: ReusedExports, aws: AwsSession, name: str) -> None:
    for shards in (1, 2):
        tell(sim, aws, Behaviour(shards=shards, strict_trim=False), FOUND[name])
