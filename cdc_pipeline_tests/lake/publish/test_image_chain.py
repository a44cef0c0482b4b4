"""The chain of images: a missed change is found, what a gap explains is not, and nothing else."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta

import pytest

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.items.attributes import to_json
from cdc_pipeline.core.log.entries import Gap, Heal
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.image_chain import ChainCheck, check_chain
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change, key_of, temporary_lake


@pytest.fixture
def built() -> Iterator[LakeBuilder]:
    with temporary_lake() as lake:
        lake.start()
        yield lake


def _history(name: str, first: int, values: list[int | None]) -> list[Change]:
    """Changes of one item in a row, each with the image of the one before."""
    changes: list[Change] = []
    before: str | None = None
    for number, value in enumerate(values, start=first):
        made = change(name, number, None if value is None else {"n": {"N": str(value)}})
        op = "D" if value is None else ("I" if before is None else "U")
        changes.append(made._replace(op=op, old_image=before))
        before = made.new_image
    return changes


def _check(built: LakeBuilder, since: date | None = None) -> ChainCheck:
    for day in {landed.day for landed in built.state.objects.values()}:
        build_cdc_day(built.table_lake, date.fromisoformat(day))
    return check_chain(built.table_lake, since or day_of(START_US))


VALUES = [1, 2, 3, None, 4, 5, None, 6]


def test_nothing_is_missing(built: LakeBuilder) -> None:
    built.land(_history("a", 1, VALUES) + _history("b", 101, VALUES))
    assert _check(built) == ChainCheck(14, 0, 0, [])


def test_without_a_table_there_is_nothing_to_compare(built: LakeBuilder) -> None:
    assert check_chain(built.table_lake, date(2026, 1, 1)) == ChainCheck(0, 0, 0, [])


@pytest.mark.parametrize("missing", range(len(VALUES)))
def test_any_missed_change_is_found(built: LakeBuilder, missing: int) -> None:
    history = _history("a", 1, VALUES)
    seen = history[:missing] + history[missing + 1 :]
    built.land(seen + _history("b", 101, VALUES))
    found = _check(built)
    # Without its first or last change an item's chain is shorter, and whole.
    assert found.breaks == (0 if missing in (0, len(VALUES) - 1) else 1)
    if found.breaks:
        (example,) = found.examples
        assert example.from_us == history[missing - 1].write_time_us
        assert example.to_us == history[missing + 1].write_time_us
        assert to_json(key_of("a")) not in repr(example)


def test_two_events_that_come_twice_are_one_each(built: LakeBuilder) -> None:
    history = _history("a", 1, VALUES)
    built.land(history)
    built.land(history[2:5])
    assert _check(built).breaks == 0


def test_a_break_across_a_recorded_gap_is_explained(built: LakeBuilder) -> None:
    history = _history("a", 1, VALUES)
    built.land(history[:2])
    gap = Gap("trimmed", ("shard-1",), START_US, START_US, heal_generation=2)
    stream = built.state.stream
    assert stream is not None
    built.append(gap=gap, stream=replace(stream, generation=3))
    built.land(history[3:], generation=3)
    assert _check(built) == ChainCheck(6, 0, 1, [])


def test_a_new_baseline_explains_no_break(built: LakeBuilder) -> None:
    history = _history("a", 1, VALUES)
    built.land(history[:2])
    stream = built.state.stream
    assert stream is not None
    built.append(stream=replace(stream, generation=2))
    built.land(history[3:], generation=2)
    assert _check(built).breaks == 1


def test_streams_without_old_images_show_only_what_an_operation_gives_away(
    built: LakeBuilder,
) -> None:
    bare = [c._replace(old_image=None) for c in _history("a", 1, VALUES)]
    built.land(bare)
    assert _check(built).breaks == 0
    built.land(
        [c._replace(old_image=None) for c in _history("b", 101, [1, None, 2]) if c.op == "I"]
    )
    assert _check(built).breaks == 1  # inserted twice: the delete between is missing


def test_only_the_days_asked_for_are_compared(built: LakeBuilder) -> None:
    history = _history("a", 1, VALUES)
    built.land(history[:2] + history[3:])
    assert _check(built, day_of(START_US) + timedelta(days=1)) == ChainCheck(0, 0, 0, [])


@pytest.mark.parametrize("covered", [True, False])
def test_a_break_in_a_time_that_a_backfill_filled_in_is_explained(
    built: LakeBuilder, covered: bool
) -> None:
    history = _history("a", 1, VALUES)
    built.land(history[:2] + history[3:])
    start = history[2].write_time_us if covered else history[-1].write_time_us + 1_000_000
    gap = Gap("objects lost", (), start, start + 1_000_000, heal_generation=1)
    built.append(gap=gap, heal=Heal(built.state.n + 1, (), 0, healed=True))
    found = _check(built)
    assert (found.breaks, found.in_gaps) == ((0, 1) if covered else (1, 0))
