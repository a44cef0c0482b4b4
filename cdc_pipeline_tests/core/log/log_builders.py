"""Entries of the capture log: random ones, and ones with given parts."""

import dataclasses
from typing import Any

from hypothesis import strategies as st

from cdc_pipeline.core.log.entries import (
    Baseline,
    Cutover,
    LandedObject,
    QuarantinedObject,
    ShardState,
    StreamRef,
)
from cdc_pipeline.core.log.state import Entry, LogState
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
ENTRIES = st.builds(
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
LOGS = st.lists(ENTRIES, max_size=8).map(
    lambda log: [dataclasses.replace(entry, n=n) for n, entry in enumerate(log, start=1)]
)


def replay(log: list[Entry]) -> LogState:
    state = LogState()
    for entry in log:
        state.apply(entry)
    return state


def build_entry(n: int = 1, **parts: Any) -> Entry:
    return Entry(n=n, nonce="f" * 16, owner="me", at_us=1_700_000_000_000_000, **parts)


def build_object(n: int, generation: int = 1, **parts: Any) -> LandedObject:
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


def build_shard(name: str, read_to_us: int, status: Any = "reading") -> ShardState:
    return ShardState(name, None, 0, status=status, read_to_us=read_to_us)


def build_stream(transport: str) -> StreamRef:
    return StreamRef("t", "arn", "NEW_IMAGE", 1, 1, transport)


def build_quarantined(n: int, reason: str = "odd", **parts: Any) -> QuarantinedObject:
    return QuarantinedObject(f"error/{object_name(n, 'a' * 16, 'jsonl')}", 2, {reason: 2}, **parts)
