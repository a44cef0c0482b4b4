"""The capture log's model: replay, and what a state says."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import (
    Baseline,
    Cutover,
    Gap,
    SourceFile,
    StreamRef,
)
from cdc_pipeline.core.log.json_format import (
    entry_from_json,
    entry_to_json,
    state_from_json,
    state_to_json,
)
from cdc_pipeline.core.log.state import QUARANTINED_KEPT, LogState
from cdc_pipeline_tests.core.log.log_builders import (
    build_entry,
    build_object,
    build_quarantined,
    build_shard,
    build_stream,
    replay,
)


@given(st.integers(0, 5), st.integers(-1, 9))
def test_holes_and_repeats_are_refused(length: int, n: int) -> None:
    state = replay([build_entry(i) for i in range(1, length + 1)])
    if n == length + 1:
        state.apply(build_entry(n))
        assert state.n == n
        return
    with pytest.raises(LakeError, match=f"entry {n} cannot follow entry {length}"):
        state.apply(build_entry(n))
    assert state.n == length


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["reading", "finished"])), max_size=5),
    st.integers(0, 50),
)
def test_the_watermark_is_the_least_of_discovery_and_unfinished_shards(
    shards: list[tuple[int, Any]], discovered: int
) -> None:
    parts = tuple(build_shard(f"s{i}", at, status) for i, (at, status) in enumerate(shards))
    state = replay([build_entry(shards=parts, discovered_us=discovered)])
    unfinished = [at for at, status in shards if status == "reading"]
    assert state.watermark_us == min([discovered, *unfinished])


def test_nothing_is_known_before_shards_were_listed() -> None:
    assert LogState().watermark_us == 0
    assert replay([build_entry(shards=(build_shard("s", 9),))]).watermark_us == 0


def test_shards_are_updated_and_forgotten() -> None:
    first = build_entry(1, shards=(build_shard("a", 1), build_shard("b", 1)), discovered_us=9)
    state = replay([first, build_entry(2, shards=(build_shard("a", 5),), forgotten=("b",))])
    assert list(state.shards) == ["a"]
    assert state.watermark_us == 5
    # Those of a new stream may be called like those of the one before.
    state.apply(build_entry(3, shards=(build_shard("a", 7),), forgotten=("a",)))
    assert state.shards == {"a": build_shard("a", 7)}


def test_while_a_switch_is_on_its_way_nothing_behind_its_cut_is_complete() -> None:
    cut = Cutover("kinesis", 5)
    first = build_entry(
        1, stream=build_stream("dynamodb_streams"), shards=(build_shard("a", 9),), discovered_us=9
    )
    state = replay([first, build_entry(2, cut=cut)])
    assert (state.cut, state.watermark_us) == (cut, 5)
    state.apply(build_entry(3, stream=build_stream("dynamodb_streams")))  # a gap, or a new baseline
    assert (state.cut, state.watermark_us) == (cut, 5)
    state.apply(build_entry(4, stream=build_stream("kinesis")))
    assert (state.cut, state.watermark_us) == (None, 9)


@given(
    st.lists(st.integers(1, 4), max_size=8),
    st.none() | st.tuples(st.integers(1, 8), st.integers(1, 5)),
    st.integers(0, 5),
    st.integers(0, 9),
)
def test_a_delta_is_what_was_logged_after_an_entry_in_a_generation_before_any_gap(
    generations: list[int], gap: tuple[int, int] | None, generation: int, after: int
) -> None:
    state = LogState()
    until = len(generations)
    for n, landed_in in enumerate(generations, start=1):
        opened = None
        if gap is not None and gap[0] == n:
            opened = Gap("trimmed", ("s",), 1, 2, heal_generation=gap[1])
            until = n if gap[1] >= generation else until
        state.apply(build_entry(n, objects=(build_object(n, landed_in),), gap=opened))
    expected = [
        n
        for n, landed_in in enumerate(generations, start=1)
        if after < n <= until and landed_in >= generation
    ]
    assert [o.entry for o in state.delta(generation=generation, after=after)] == expected


def test_the_delta_of_an_entry_begins_with_the_next_one() -> None:
    log = [build_entry(n, objects=(build_object(n, generation=n),)) for n in (1, 2, 3)]
    state = replay(log)
    assert [o.entry for o in state.delta(generation=0, after=1)] == [2, 3]
    assert [o.entry for o in state.delta(generation=3, after=0)] == [3]


def test_objects_of_a_day() -> None:
    other = build_object(2, day="2026-01-02", max_write_us=9)
    state = replay([build_entry(objects=(build_object(1), other))])
    assert state.objects_of_day("2026-01-02") == [other]
    assert state.last_change_us == 9


def test_the_newest_verified_baseline_is_staged() -> None:
    done = Baseline(2, 1, 2, snapshot_id=7)
    running = Baseline(3, 1, 2)
    state = replay([build_entry(1, baseline=done), build_entry(2, baseline=running)])
    assert state.staged == done
    assert LogState().staged is None


def test_the_generation_is_the_streams() -> None:
    stream = StreamRef("t", "arn", "NEW_IMAGE", 4, 1)
    assert LogState().generation == 0
    assert replay([build_entry(1, stream=stream), build_entry(2)]).generation == 4


def test_a_shadow_is_no_baseline_until_it_is_released() -> None:
    live = Baseline(1, 10, 20, snapshot_id=7)
    shadow = Baseline(2, 30, 40, snapshot_id=8, shadow=True)
    state = replay([build_entry(1, baseline=live), build_entry(2, baseline=shadow)])
    assert (state.staged, state.shadow) == (live, shadow)
    for changes, staged in (({"shadow": False}, 2), ({"discarded": True}, 1)):
        decided = dataclasses.replace(shadow, **changes)  # type: ignore[arg-type]
        later = replay(
            [
                build_entry(1, baseline=live),
                build_entry(2, baseline=shadow),
                build_entry(3, baseline=decided),
            ]
        )
        assert later.staged is not None
        assert (later.staged.generation, later.shadow) == (staged, None)


def test_a_newer_baseline_takes_the_place_of_a_shadow() -> None:
    shadow = Baseline(2, 30, 40, snapshot_id=8, shadow=True)
    newer = Baseline(3, 50, 60, snapshot_id=9)
    state = replay([build_entry(1, baseline=shadow), build_entry(2, baseline=newer)])
    assert (state.staged, state.shadow) == (newer, None)


def test_a_lost_object_is_read_no_more_and_not_forgotten() -> None:
    landed = build_object(1)
    state = replay([build_entry(1, objects=(landed,)), build_entry(2, lost=(landed.key,))])
    assert state.objects == {}
    assert set(state.replaced) == {landed.key}
    assert state.lost == {landed.key: landed}
    assert state_from_json(state_to_json(state), "summary") == state


def test_a_month_of_poisoned_records_is_bounded_and_counted() -> None:
    months = 43_200
    poisoned = (build_entry(n, quarantined=(build_quarantined(n),)) for n in range(1, months + 1))
    state = LogState()
    for entry in poisoned:
        state.apply(entry)
    assert state.quarantined_reasons == {"odd": 2 * months}
    assert len(state.quarantined) == QUARANTINED_KEPT
    text = state_to_json(state)
    assert len(text) < 200_000
    assert json.loads(text)["format"] == 3, "an older version would remove what is not listed"
    same = state_from_json(text, "x")
    for key in (build_quarantined(1).key, build_quarantined(months).key):
        assert same.may_be_quarantined(key)
    assert not same.may_be_quarantined(build_quarantined(months + 1).key)


def test_an_erasure_counts_a_summed_object_again() -> None:
    state = LogState()
    for n in range(1, QUARANTINED_KEPT + 3):
        state.apply(build_entry(n, quarantined=(build_quarantined(n, "old" if n == 1 else "odd"),)))
    assert state.quarantined_reasons == {"old": 2, "odd": 2 * (QUARANTINED_KEPT + 1)}
    again = dataclasses.replace(
        build_quarantined(1, "old", was={"old": 2}), rows=1, reasons={"old": 1}
    )
    text = entry_to_json(build_entry(state.n + 1, quarantined=(again,)))
    assert json.loads(text)["format"] == 3
    state.apply(entry_from_json(text, "x"))
    assert state.quarantined_reasons == {"old": 1, "odd": 2 * (QUARANTINED_KEPT + 1)}
    assert len(state.quarantined) == QUARANTINED_KEPT


def test_a_file_that_cannot_be_read_is_kept_by_name_until_it_is() -> None:
    file = SourceFile("s3://b/bad", "etag", 1, "2026-01-01", unread=True)
    other = SourceFile("s3://b/good", "etag", 1, "2026-01-01", whole=True)
    entry = build_entry(files=(file, other), files_from="2026-01-03")
    assert json.loads(entry_to_json(entry))["format"] == 3
    state = state_from_json(
        state_to_json(replay([entry_from_json(entry_to_json(entry), "x")])), "x"
    )
    assert state.files == {file.uri: file}
    state.apply(build_entry(2, files=(dataclasses.replace(file, whole=True, unread=False),)))
    assert state.files == {}
