"""Back-off and liveness: what failed is left alone ever longer, and no silence means life."""

import itertools

from cdc_pipeline.core.plans.backoff import KILLS_FORGIVEN, LONGEST_SECONDS, Failures, fail
from cdc_pipeline.core.plans.liveness import is_alive, is_by_person, is_by_run

SECOND = 1_000_000
DAY = 86_400


def runs_of_a_day(tick_seconds: int, run_seconds: int, cause: str | None) -> list[int]:
    """When runs start that always fail, if a sensor looks each `tick_seconds`."""
    failures: Failures | None = None
    started, free = [], 0
    for now in range(0, DAY, tick_seconds):
        if now < free or (failures and failures.wait_seconds(now * SECOND)):
            continue
        started.append(now)
        free = now + run_seconds
        failures = fail(failures, free * SECOND, cause, by_hand=False)
    return started


def test_a_day_of_failures_is_some_thirty_runs() -> None:
    started = runs_of_a_day(30, 5, "broken")
    pauses = [later - earlier for earlier, later in itertools.pairwise(started)]
    assert len(started) < 7 + DAY / LONGEST_SECONDS  # it was 2,880
    assert pauses == sorted(pauses)
    assert pauses[0] < 120
    assert pauses[-1] < LONGEST_SECONDS + 60


def test_killed_runs_are_tried_again_at_once_but_not_for_ever() -> None:
    started = runs_of_a_day(30, 5, None)
    assert started[: KILLS_FORGIVEN + 1] == list(range(0, 30 * (KILLS_FORGIVEN + 1), 30))
    assert len(started) < 7 + KILLS_FORGIVEN + DAY / LONGEST_SECONDS


def test_kills_are_told_from_failures_however_many_there_are() -> None:
    failures: Failures | None = None
    for number in range(KILLS_FORGIVEN + 3):
        failures = fail(failures, number * SECOND, None, by_hand=False)
        assert failures.are_kills
    assert failures is not None
    assert (failures.count, failures.pause_seconds) == (3, 240)
    broken = fail(failures, 100 * SECOND, "broken", by_hand=False)
    assert not broken.are_kills
    for number in range(KILLS_FORGIVEN + 3):
        broken = fail(broken, (101 + number) * SECOND, None, by_hand=False)
        assert not broken.are_kills


def test_a_person_begins_anew() -> None:
    failures: Failures | None = None
    for number in range(10):
        failures = fail(failures, number * SECOND, "broken", by_hand=False)
    assert failures is not None
    assert failures.pause_seconds == LONGEST_SECONDS
    again = fail(failures, 11 * SECOND, "broken still", by_hand=True)
    assert (again.count, again.pause_seconds) == (1, 60)
    assert again.describe(31 * SECOND) == "failed once, again in 40 s (pause 60 s): broken still"


def test_a_clock_that_is_set_back_makes_no_pause_longer() -> None:
    failures = fail(None, 10 * DAY * SECOND, "broken", by_hand=False)
    assert failures.wait_seconds(0) == 60
    assert failures.wait_seconds(11 * DAY * SECOND) == 0


def test_a_run_lives_by_its_newest_sign() -> None:
    now = 1_000 * SECOND
    assert is_alive(signs_us=[0, 950 * SECOND], now_us=now, silence_seconds=60)
    assert not is_alive(signs_us=[0, 930 * SECOND], now_us=now, silence_seconds=60)
    assert not is_alive(signs_us=[], now_us=now, silence_seconds=60)
    # By a clock that is fast, or very wrong.
    assert is_alive(signs_us=[1_030 * SECOND], now_us=now, silence_seconds=60)
    assert not is_alive(signs_us=[9_000 * SECOND], now_us=now, silence_seconds=60)


def test_who_wrote_an_entry() -> None:
    assert is_by_run("host:12:3f2a9c01", "3f2a9c01-1111-2222")
    assert not is_by_run("host:12:3f2a9c01", "00000000-1111")
    assert not is_by_run("host:12", "12")
    assert not is_by_run("", "")
    assert is_by_person("host:12")
    assert not is_by_person("host:12:3f2a9c01")
    assert not is_by_person("")
