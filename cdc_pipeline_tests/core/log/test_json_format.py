"""The JSON of the capture log: round trips, and what is refused."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import Baseline, ShardState, SourceFile
from cdc_pipeline.core.log.json_format import (
    FORMAT,
    entry_from_json,
    entry_to_json,
    state_from_json,
    state_to_json,
)
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline_tests.core.log.log_builders import (
    ENTRIES,
    LOGS,
    build_entry,
    build_object,
    build_quarantined,
    build_shard,
    build_stream,
    replay,
)


@given(ENTRIES)
def test_entries_survive_their_json(entry: Entry) -> None:
    assert entry_from_json(entry_to_json(entry), "x") == entry
    assert entry_from_json(entry_to_json(entry).encode(), "x") == entry


@given(LOGS)
def test_states_survive_their_json(log: list[Entry]) -> None:
    state = replay(log)
    assert state_from_json(state_to_json(state).encode(), "x") == state


@given(LOGS, st.integers(0, 8))
def test_a_summary_and_what_follows_is_a_replay_from_the_first_entry(
    log: list[Entry], cut: int
) -> None:
    state = state_from_json(state_to_json(replay(log[:cut])), "summary")
    for entry in log[cut:]:
        state.apply(entry_from_json(entry_to_json(entry), "entry"))
    assert state == replay(log)


def test_entries_say_only_what_they_change_and_are_readable() -> None:
    said = json.loads(entry_to_json(build_entry()))
    assert said == {
        "format": FORMAT,
        "at": "2023-11-14T22:13:20.000Z",
        "n": 1,
        "nonce": "f" * 16,
        "owner": "me",
        "at_us": 1_700_000_000_000_000,
    }


@pytest.mark.parametrize("parse", [entry_from_json, state_from_json])
def test_parts_of_a_newer_version_are_refused(parse: Any) -> None:
    """Left out, the state would be another one than that of the version that wrote them."""
    state = LogState()
    state.apply(build_entry(objects=(build_object(1),)))
    whole = json.loads(
        entry_to_json(build_entry(objects=(build_object(1),)))
        if parse is entry_from_json
        else state_to_json(state)
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
@pytest.mark.parametrize("parse", [entry_from_json, state_from_json])
def test_garbage_is_a_lake_error_that_names_the_file(parse: Any, text: str | bytes) -> None:
    with pytest.raises(LakeError, match=r"_cdc/log/7\.json"):
        parse(text, "_cdc/log/7.json")


_PARTS = ["stream", "shards", "objects", "quarantined", "baseline", "baselines", "forgotten", "n"]
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=3,
)


@given(st.sampled_from(_PARTS), _json, st.booleans())
def test_broken_parts_raise_nothing_but_lake_errors(part: str, value: Any, whole: bool) -> None:
    sound = state_to_json(LogState()) if whole else entry_to_json(build_entry())
    broken = json.dumps({**json.loads(sound), part: value})
    try:
        (state_from_json if whole else entry_from_json)(broken, "x.json")
    except LakeError as error:
        assert "x.json" in error.message  # noqa: PT017 - it need not be raised


@pytest.mark.parametrize("parse", [entry_from_json, state_from_json])
def test_a_newer_format_says_so(parse: Any) -> None:
    with pytest.raises(LakeError, match=r"log/7\.json has format 4, this version reads 1"):
        parse('{"format": 4, "unknown": true}', "log/7.json")


def test_a_field_of_a_newer_version_is_not_dropped_silently() -> None:
    shard = {**dataclasses.asdict(ShardState("s", None, 0)), "new": 1}
    text = json.dumps({**json.loads(entry_to_json(build_entry())), "shards": [shard]})
    with pytest.raises(LakeError):
        entry_from_json(text, "x")


def test_logs_without_what_came_later_are_read() -> None:
    state = replay(
        [build_entry(1, stream=build_stream("dynamodb_streams"), shards=(build_shard("a", 9),))]
    )
    summary = json.loads(state_to_json(state))
    for name in ("transport", "since_us", "retention_hours", "created_us", "off"):
        del summary["stream"][name]
    for name in ("cut", "replicated_us"):
        del summary[name]
    del summary["shards"][0]["adjacent_id"]
    assert state_from_json(json.dumps(summary), "x") == state


def test_logs_of_older_versions_are_read() -> None:
    """Without checksums, shadows and lost objects."""
    landed = build_object(1)
    entry = build_entry(1, objects=(landed,), baseline=Baseline(1, 10, 20, snapshot_id=7))
    raw = json.loads(entry_to_json(entry))
    for name in ("crc32", "through", "bare"):
        del raw["objects"][0][name]
    for name in ("shadow", "discarded"):
        del raw["baseline"][name]
    assert entry_from_json(json.dumps(raw), "entry") == entry
    state = replay([entry])
    summary = json.loads(state_to_json(state))
    del summary["lost"]
    assert state_from_json(json.dumps(summary), "summary") == state


def test_logs_that_need_no_sums_are_read_by_older_versions() -> None:
    file = SourceFile("s3://b/k", "etag", 1, "2026-01-01", whole=True)
    entry = build_entry(files=(file,), quarantined=(build_quarantined(1),))
    state = replay([entry])
    for text in (entry_to_json(entry), state_to_json(state)):
        raw = json.loads(text)
        assert raw["format"] == FORMAT
        assert "unread" not in raw["files"][0]
        assert "was" not in raw["quarantined"][0]
