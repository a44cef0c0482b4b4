"""The capture log's model: JSON round trips, replay, and what a state says."""

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
    LandedObject,
    QuarantinedObject,
    ShardState,
    SourceFile,
    StreamRef,
)
from cdc_pipeline.core.log.state import FORMAT, QUARANTINED_KEPT, Entry, LogState
from cdc_pipeline.core.names import object_name

_times = st.integers(0, 4_000_000_000_000_000)
_text = st.text(max_size=5)
_shards = st.builds(
    ShardState,
    shard_id=st.sampled_from(["s1", "s2", "s3", "shard-日本"]),
    read_to_us=_times,
    adjacent_id=st.none() | st.just("s9"),
)
_objects = st.builds(
    LandedObject,
    key=st.tuples(st.integers(1, 40), st.sampled_from("ab")).map(
        lambda at: f"landing/{object_name(at[0], at[1] * 16)}"
    ),
    day=st.sampled_from(["2026-01-01", "2026-01-02"]),
    generation=st.integers(0, 4),
    max_write_us=_times,
    shards=st.lists(_text, max_size=2).map(tuple),
)
# What is not named here follows from the fields' types, so a new field is tested as well.
_entries = st.builds(
    Entry,
    n=st.integers(1, 10**6),
    at_us=_times,
    stream=st.none() | st.builds(StreamRef, since_us=_times, off=st.booleans()),
    shards=st.lists(_shards, max_size=3).map(tuple),
    forgotten=st.lists(st.sampled_from(["s1", "s2"]), max_size=2).map(tuple),
    objects=st.lists(_objects, max_size=3).map(tuple),
    quarantined=st.lists(st.builds(QuarantinedObject), max_size=2).map(tuple),
    discovered_us=st.none() | _times,
    baseline=st.none() | st.builds(Baseline, generation=st.integers(0, 3)),
    cut=st.none() | st.builds(Cutover),
    replicated_us=st.none() | _times,
)
_logs = st.lists(_entries, max_size=8).map(
    lambda log: [dataclasses.replace(entry, n=n) for n, entry in enumerate(log, start=1)]
)


def _replay(log: list[Entry]) -> LogState:
    state = LogState()
    for entry in log:
        state.apply(entry)
    return state


def _entry(n: int = 1, **parts: Any) -> Entry:
    return Entry(n=n, nonce="f" * 16, owner="me", at_us=1_700_000_000_000_000, **parts)


def _object(n: int, generation: int = 1, **parts: Any) -> LandedObject:
    said = {
        "key": f"landing/{object_name(n, 'a' * 16)}",
        "day": "2026-01-01",
        "rows": 1,
        "bytes": 1,
        "generation": generation,
        "min_write_us": 1,
        "max_write_us": 2,
        "min_position": "0",
        "max_position": "1",
        "shards": ("s",),
    }
    return LandedObject(**{**said, **parts})


@given(_entries)
def test_entries_survive_their_json(entry: Entry) -> None:
    assert Entry.from_json(entry.to_json(), "x") == entry
    assert Entry.from_json(entry.to_json().encode(), "x") == entry


@given(_logs)
def test_states_survive_their_json(log: list[Entry]) -> None:
    state = _replay(log)
    assert LogState.from_json(state.to_json().encode(), "x") == state


@given(_logs, st.integers(0, 8))
def test_a_summary_and_what_follows_is_a_replay_from_the_first_entry(
    log: list[Entry], cut: int
) -> None:
    state = LogState.from_json(_replay(log[:cut]).to_json(), "summary")
    for entry in log[cut:]:
        state.apply(Entry.from_json(entry.to_json(), "entry"))
    assert state == _replay(log)


def test_entries_say_only_what_they_change_and_are_readable() -> None:
    said = json.loads(_entry().to_json())
    assert said == {
        "format": FORMAT,
        "at": "2023-11-14T22:13:20.000Z",
        "n": 1,
        "nonce": "f" * 16,
        "owner": "me",
        "at_us": 1_700_000_000_000_000,
    }


@pytest.mark.parametrize("parse", [Entry.from_json, LogState.from_json])
def test_parts_of_a_newer_version_are_refused(parse: Any) -> None:
    """Left out, the state would be another one than that of the version that wrote them."""
    state = LogState()
    state.apply(_entry(objects=(_object(1),)))
    whole = json.loads(
        (_entry(objects=(_object(1),)) if parse is Entry.from_json else state).to_json()
    )
    parse(json.dumps(whole), "x")
    of_a_part = {**whole, "objects": [{**whole["objects"][0], "merged": True}]}
    for said in ({**whole, "merged": []}, of_a_part):
        with pytest.raises(LakeError, match=r"x .*merged(.|\n)*Fix: use the version"):
            parse(json.dumps(said), "x")


_GARBAGE = [
    "",
    "{",
    "null",
    "[]",
    "5",
    '"x"',
    "{}",
    '{"format": 1}',
    '{"format": 1, "n": 1}',
    "NaN",
]
_GARBAGE_BYTES = [b"\xff\xfe\x00", b"PAR1", '{"format": 1, "shards": [5]}'.encode("utf-16")]


@pytest.mark.parametrize("text", [*_GARBAGE, *_GARBAGE_BYTES])
@pytest.mark.parametrize("parse", [Entry.from_json, LogState.from_json])
def test_garbage_is_a_lake_error_that_names_the_file(parse: Any, text: str | bytes) -> None:
    with pytest.raises(LakeError, match=r"_cdc/log/7\.json"):
        parse(text, "_cdc/log/7.json")


_PARTS = ["stream", "shards", "objects", "quarantined", "baseline", "baselines", "forgotten", "n"]
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_text, inner, max_size=2),
    max_leaves=3,
)


@given(st.sampled_from(_PARTS), _json, st.booleans())
def test_broken_parts_raise_nothing_but_lake_errors(part: str, value: Any, whole: bool) -> None:
    sound = LogState().to_json() if whole else _entry().to_json()
    broken = json.dumps({**json.loads(sound), part: value})
    try:
        (LogState if whole else Entry).from_json(broken, "x.json")
    except LakeError as error:
        assert "x.json" in error.message  # noqa: PT017 - it need not be raised


@pytest.mark.parametrize("parse", [Entry.from_json, LogState.from_json])
def test_a_newer_format_says_so(parse: Any) -> None:
    with pytest.raises(LakeError, match=r"log/7\.json has format 4, this version reads 1"):
        parse('{"format": 4, "unknown": true}', "log/7.json")


def test_a_field_of_a_newer_version_is_not_dropped_silently() -> None:
    shard = {**dataclasses.asdict(ShardState("s", None, 0)), "new": 1}
    text = json.dumps({**json.loads(_entry().to_json()), "shards": [shard]})
    with pytest.raises(LakeError):
        Entry.from_json(text, "x")


@given(st.integers(0, 5), st.integers(-1, 9))
def test_holes_and_repeats_are_refused(length: int, n: int) -> None:
    state = _replay([_entry(i) for i in range(1, length + 1)])
    if n == length + 1:
        state.apply(_entry(n))
        assert state.n == n
        return
    with pytest.raises(LakeError, match=f"entry {n} cannot follow entry {length}"):
        state.apply(_entry(n))
    assert state.n == length


def _shard(name: str, read_to_us: int, status: Any = "reading") -> ShardState:
    return ShardState(name, None, 0, status=status, read_to_us=read_to_us)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["reading", "finished"])), max_size=5),
    st.integers(0, 50),
)
def test_the_watermark_is_the_least_of_discovery_and_unfinished_shards(
    shards: list[tuple[int, Any]], discovered: int
) -> None:
    parts = tuple(_shard(f"s{i}", at, status) for i, (at, status) in enumerate(shards))
    state = _replay([_entry(shards=parts, discovered_us=discovered)])
    unfinished = [at for at, status in shards if status == "reading"]
    assert state.watermark_us == min([discovered, *unfinished])


def test_nothing_is_known_before_shards_were_listed() -> None:
    assert LogState().watermark_us == 0
    assert _replay([_entry(shards=(_shard("s", 9),))]).watermark_us == 0


def test_shards_are_updated_and_forgotten() -> None:
    first = _entry(1, shards=(_shard("a", 1), _shard("b", 1)), discovered_us=9)
    state = _replay([first, _entry(2, shards=(_shard("a", 5),), forgotten=("b",))])
    assert list(state.shards) == ["a"]
    assert state.watermark_us == 5
    # Those of a new stream may be called like those of the one before.
    state.apply(_entry(3, shards=(_shard("a", 7),), forgotten=("a",)))
    assert state.shards == {"a": _shard("a", 7)}


def _stream(transport: str) -> StreamRef:
    return StreamRef("t", "arn", "NEW_IMAGE", 1, 1, transport)


def test_while_a_switch_is_on_its_way_nothing_behind_its_cut_is_complete() -> None:
    cut = Cutover("kinesis", 5)
    first = _entry(1, stream=_stream("dynamodb_streams"), shards=(_shard("a", 9),), discovered_us=9)
    state = _replay([first, _entry(2, cut=cut)])
    assert (state.cut, state.watermark_us) == (cut, 5)
    state.apply(_entry(3, stream=_stream("dynamodb_streams")))  # a gap, or a new baseline
    assert (state.cut, state.watermark_us) == (cut, 5)
    state.apply(_entry(4, stream=_stream("kinesis")))
    assert (state.cut, state.watermark_us) == (None, 9)


def test_logs_without_what_came_later_are_read() -> None:
    state = _replay([_entry(1, stream=_stream("dynamodb_streams"), shards=(_shard("a", 9),))])
    told = json.loads(state.to_json())
    for name in ("transport", "since_us", "retention_hours", "created_us", "off"):
        del told["stream"][name]
    for name in ("cut", "replicated_us"):
        del told[name]
    del told["shards"][0]["adjacent_id"]
    assert LogState.from_json(json.dumps(told), "x") == state


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
        state.apply(_entry(n, objects=(_object(n, landed_in),), gap=opened))
    expected = [
        n
        for n, landed_in in enumerate(generations, start=1)
        if after < n <= until and landed_in >= generation
    ]
    assert [o.entry for o in state.delta(generation=generation, after=after)] == expected


def test_the_delta_of_an_entry_begins_with_the_next_one() -> None:
    log = [_entry(n, objects=(_object(n, generation=n),)) for n in (1, 2, 3)]
    state = _replay(log)
    assert [o.entry for o in state.delta(generation=0, after=1)] == [2, 3]
    assert [o.entry for o in state.delta(generation=3, after=0)] == [3]


def test_objects_of_a_day() -> None:
    other = _object(2, day="2026-01-02", max_write_us=9)
    state = _replay([_entry(objects=(_object(1), other))])
    assert state.objects_of_day("2026-01-02") == [other]
    assert state.last_change_us == 9


def test_the_newest_verified_baseline_is_staged() -> None:
    done = Baseline(2, 1, 2, snapshot_id=7)
    running = Baseline(3, 1, 2)
    state = _replay([_entry(1, baseline=done), _entry(2, baseline=running)])
    assert state.staged == done
    assert LogState().staged is None


def test_the_generation_is_the_streams() -> None:
    stream = StreamRef("t", "arn", "NEW_IMAGE", 4, 1)
    assert LogState().generation == 0
    assert _replay([_entry(1, stream=stream), _entry(2)]).generation == 4


def test_a_shadow_is_no_baseline_until_it_is_released() -> None:
    live = Baseline(1, 10, 20, snapshot_id=7)
    shadow = Baseline(2, 30, 40, snapshot_id=8, shadow=True)
    state = _replay([_entry(1, baseline=live), _entry(2, baseline=shadow)])
    assert (state.staged, state.shadow) == (live, shadow)
    for changes, staged in (({"shadow": False}, 2), ({"discarded": True}, 1)):
        decided = dataclasses.replace(shadow, **changes)  # type: ignore[arg-type]
        later = _replay(
            [_entry(1, baseline=live), _entry(2, baseline=shadow), _entry(3, baseline=decided)]
        )
        assert later.staged is not None
        assert (later.staged.generation, later.shadow) == (staged, None)


def test_a_newer_baseline_takes_the_place_of_a_shadow() -> None:
    shadow = Baseline(2, 30, 40, snapshot_id=8, shadow=True)
    newer = Baseline(3, 50, 60, snapshot_id=9)
    state = _replay([_entry(1, baseline=shadow), _entry(2, baseline=newer)])
    assert (state.staged, state.shadow) == (newer, None)


def test_a_lost_object_is_read_no_more_and_not_forgotten() -> None:
    landed = _object(1)
    state = _replay([_entry(1, objects=(landed,)), _entry(2, lost=(landed.key,))])
    assert state.objects == {}
    assert set(state.replaced) == {landed.key}
    assert state.lost == {landed.key: landed}
    assert LogState.from_json(state.to_json(), "summary") == state


def test_logs_of_older_versions_are_read() -> None:
    """Without checksums, shadows and lost objects."""
    landed = _object(1)
    entry = _entry(1, objects=(landed,), baseline=Baseline(1, 10, 20, snapshot_id=7))
    raw = json.loads(entry.to_json())
    for name in ("crc32", "through", "bare"):
        del raw["objects"][0][name]
    for name in ("shadow", "discarded"):
        del raw["baseline"][name]
    assert Entry.from_json(json.dumps(raw), "entry") == entry
    state = _replay([entry])
    summary = json.loads(state.to_json())
    del summary["lost"]
    assert LogState.from_json(json.dumps(summary), "summary") == state


def _quarantined(n: int, reason: str = "odd", **parts: Any) -> QuarantinedObject:
    return QuarantinedObject(f"error/{object_name(n, 'a' * 16, 'jsonl')}", 2, {reason: 2}, **parts)


def test_a_month_of_poisoned_records_is_bounded_and_counted() -> None:
    months = 43_200
    poisoned = (_entry(n, quarantined=(_quarantined(n),)) for n in range(1, months + 1))
    state = LogState()
    for entry in poisoned:
        state.apply(entry)
    assert state.quarantined_reasons == {"odd": 2 * months}
    assert len(state.quarantined) == QUARANTINED_KEPT
    text = state.to_json()
    assert len(text) < 200_000
    assert json.loads(text)["format"] == 3, "an older version would remove what is not listed"
    same = LogState.from_json(text, "x")
    for key in (_quarantined(1).key, _quarantined(months).key):
        assert same.may_be_quarantined(key)
    assert not same.may_be_quarantined(_quarantined(months + 1).key)


def test_an_erasure_counts_a_summed_object_again() -> None:
    state = LogState()
    for n in range(1, QUARANTINED_KEPT + 3):
        state.apply(_entry(n, quarantined=(_quarantined(n, "old" if n == 1 else "odd"),)))
    assert state.quarantined_reasons == {"old": 2, "odd": 2 * (QUARANTINED_KEPT + 1)}
    again = dataclasses.replace(_quarantined(1, "old", was={"old": 2}), rows=1, reasons={"old": 1})
    told = _entry(state.n + 1, quarantined=(again,)).to_json()
    assert json.loads(told)["format"] == 3
    state.apply(Entry.from_json(told, "x"))
    assert state.quarantined_reasons == {"old": 1, "odd": 2 * (QUARANTINED_KEPT + 1)}
    assert len(state.quarantined) == QUARANTINED_KEPT


def test_logs_that_need_no_sums_are_read_by_older_versions() -> None:
    file = SourceFile("s3://b/k", "etag", 1, "2026-01-01", whole=True)
    entry = _entry(files=(file,), quarantined=(_quarantined(1),))
    state = _replay([entry])
    for text in (entry.to_json(), state.to_json()):
        raw = json.loads(text)
        assert raw["format"] == FORMAT
        assert "unread" not in raw["files"][0]
        assert "was" not in raw["quarantined"][0]


def test_a_file_that_cannot_be_read_is_kept_by_name_until_it_is() -> None:
    file = SourceFile("s3://b/bad", "etag", 1, "2026-01-01", unread=True)
    other = SourceFile("s3://b/good", "etag", 1, "2026-01-01", whole=True)
    entry = _entry(files=(file, other), files_from="2026-01-03")
    assert json.loads(entry.to_json())["format"] == 3
    state = LogState.from_json(_replay([Entry.from_json(entry.to_json(), "x")]).to_json(), "x")
    assert state.files == {file.uri: file}
    state.apply(_entry(2, files=(dataclasses.replace(file, whole=True, unread=False),)))
    assert state.files == {}
