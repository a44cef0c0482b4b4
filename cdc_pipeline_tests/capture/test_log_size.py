"""A capture log of a million entries: what opening it takes must depend on what is live only.

Calls and bytes are asserted; times and memory are printed (`pytest -s`).
"""

import os
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.aws.s3.objects import StoredFile
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.log.entries import LandedObject, ShardState, StreamRef
from cdc_pipeline.core.log.json_format import entry_to_json, state_to_json
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.storage import log as log_module
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.log_memory import MEMORY
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline_tests.capture.shards.test_scale import peak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MILLION = 1_000_000
NEGLECTED = 100_000
TAIL = 60
LIVE = 1000
NO_HEARTBEAT = NO_NEXT_ENTRY = 1
"""Reads of what is not there."""
PATHS = TablePaths("cdc", "orders")
BEGAN_US = 1_767_268_800_000_000
MINUTE_US = 60_000_000
SHARDS = tuple(f"shardId-{BEGAN_US // 1000:020d}-{number:08x}" for number in range(4))
# ext4 gives a file at most 65,000 names.
_NAMES_PER_FILE = 60_000


def landed(n: int) -> LandedObject:
    """What entry n added: one object of a minute's changes of four shards."""
    from_us = BEGAN_US + n * MINUTE_US
    day = day_of(from_us)
    return LandedObject(
        key=PATHS.landed(day, n, f"{n:016x}"),
        day=day.isoformat(),
        rows=500,
        bytes=90_000,
        generation=0,
        min_write_us=from_us,
        max_write_us=from_us + MINUTE_US - 1,
        min_position=f"000003.{n:040d}",
        max_position=f"000003.{n + 500:040d}",
        shards=SHARDS,
    )


def shard_states(n: int) -> tuple[ShardState, ...]:
    us = BEGAN_US + (n + 1) * MINUTE_US
    return tuple(
        ShardState(shard_id, None, 3, "reading", f"{n + 500:040d}", us, n * 125)
        for shard_id in SHARDS
    )


def entry(n: int) -> Entry:
    at_us = BEGAN_US + (n + 1) * MINUTE_US
    return Entry(
        n=n,
        nonce=f"{n:016x}",
        owner="host:1:12345678",
        at_us=at_us,
        shards=shard_states(n),
        objects=(landed(n),),
        discovered_us=at_us,
    )


def state_at(n: int, live: int) -> LogState:
    """The log up to entry n, of whose objects all but the newest have been compacted away."""
    objects = (landed(number) for number in range(n - live + 1, n + 1))
    return LogState(
        n=n,
        at_us=entry(n).at_us,
        stream=StreamRef("id", "arn:aws:dynamodb:...", "NEW_AND_OLD_IMAGES", 0, BEGAN_US),
        shards={shard.shard_id: shard for shard in shard_states(n)},
        objects={o.key: o for o in objects},
        discovered_us=entry(n).at_us,
        began_us=BEGAN_US,
        last_owner="host:1:12345678",
    )


@dataclass
class Calls:
    """What was asked of a store."""

    lists: int = 0
    listed: int = 0
    reads: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass
class BucketOfEntries:
    """A lake in S3's manner, listed from any key on; entries up to `n` are made when read."""

    n: int
    objects: dict[str, bytes] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)

    def uri(self, key: str) -> str:
        return key

    def read(self, key: str) -> bytes | None:
        data = self.objects.get(key)
        if data is None and self._is_made(key):
            data = entry_to_json(entry(int(Path(key).stem))).encode()
        self.calls.reads += 1
        self.calls.bytes_read += len(data or b"")
        return data

    def read_part(self, key: str, start: int, size: int) -> bytes | None:
        data = self.read(key)
        return None if data is None else data[start : start + size]

    def write(self, key: str, data: bytes) -> None:
        self.calls.bytes_written += len(data)
        self.objects[key] = data

    def create(self, key: str, data: bytes) -> bool:
        there = key in self.objects or self._is_made(key)
        if not there:
            self.write(key, data)
        return not there

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        self.calls.lists += 1
        for key in self._keys(prefix, after):
            self.calls.listed += 1
            yield key

    def _keys(self, prefix: str, after: str) -> Iterator[str]:
        if prefix == PATHS.entries:
            first = int(Path(after).stem) + 1 if after else 1
            yield from map(PATHS.entry, range(first, self.n + 1))
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        yield from keys[bisect_right(keys, after) :]

    def files(self, prefix: str) -> Iterator[StoredFile]:
        raise NotImplementedError  # capture does not ask for sizes

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def _is_made(self, key: str) -> bool:
        return key.startswith(PATHS.entries) and int(Path(key).stem) <= self.n


def asked(store: Any, what: str, action: Callable[[], Any]) -> tuple[Any, Calls]:
    store.calls = Calls()
    begun = time.monotonic()
    result = action()
    seconds = time.monotonic() - begun
    print(f"{what}: {seconds:.3f} s, {store.calls}")
    return result, store.calls


def test_opening_takes_the_same_however_many_entries_there_are() -> None:
    """The newest summary and what is behind it, with one listing each, as there is no heartbeat."""
    print()
    opened: dict[int, Calls] = {}
    for n in (LIVE + TAIL, MILLION):
        MEMORY.clear()  # these stores have one address, and equal entries
        store = BucketOfEntries(n)
        store.objects[PATHS.summary(n - TAIL)] = state_to_json(state_at(n - TAIL, LIVE)).encode()
        log = CaptureLog(store, PATHS)
        state, opened[n] = asked(store, f"opening {n:,} entries", log.load)
        assert state.n == n
        assert len(state.objects) == LIVE + TAIL
        assert opened[n].lists == 2
        assert opened[n].listed == 1 + TAIL
        assert opened[n].reads == 1 + TAIL + NO_HEARTBEAT + NO_NEXT_ENTRY
        other = log.load()
        assert log.append(other, entry(n + 1))
        found, calls = asked(store, "catching up by one", lambda log=log, s=state: log.catch_up(s))
        assert [e.n for e in found] == [n + 1]
        assert (calls.lists, calls.listed, calls.reads) == (1, 0, 1 + NO_HEARTBEAT)
        assert calls.bytes_read < 2000
    few, many = opened.values()
    assert many.bytes_read <= few.bytes_read * 1.01


def test_summaries_cost_each_entry_little_however_many_objects_are_live() -> None:
    """One that holds everything, written every ten entries, costs a log its length squared."""
    for live in (0, 1000, 10_000, 10_001, 100_000, MILLION):
        interval = log_module._summary_interval(live)
        print(f"{live:>9,} live objects: a summary every {interval:,} entries")
        assert live / interval <= 100
        # And what a reader finds behind it stays little against the summary itself.
        assert interval <= max(100, live // 50)


def test_summaries_cost_little_however_many_shards_there_are() -> None:
    assert log_module._summary_interval(10_000 + 200_000) == 2560
    store = BucketOfEntries(MILLION)
    log = CaptureLog(store, PATHS)
    state = state_at(MILLION, 0)
    shards = (ShardState(f"shardId-{n}", None, 3, read_to_us=BEGAN_US) for n in range(10_000))
    state.shards = {shard.shard_id: shard for shard in shards}
    for _ in range(100):
        add(log, state)
    assert list(store.list(PATHS.summaries)) == []


def test_twenty_entries_write_one_summary_and_three_are_kept() -> None:
    store = BucketOfEntries(MILLION)
    log = CaptureLog(store, PATHS)
    state = state_at(MILLION, LIVE)
    _, calls = asked(store, "500 entries", lambda: [add(log, state) for _ in range(500)])
    kept = list(store.list(PATHS.summaries))
    assert kept == [PATHS.summary(MILLION + n) for n in (460, 480, 500)]
    summary = len(store.objects[kept[-1]])
    entries = sum(len(d) for key, d in store.objects.items() if key.startswith(PATHS.entries))
    assert calls.bytes_written <= entries + 25 * summary
    assert log.load() == state


def add(log: CaptureLog, state: LogState) -> None:
    assert log.append(state, entry(state.n + 1))


class CountingFolder(LocalStore):
    """A folder as a lake; see `Calls`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls = Calls()

    def read(self, key: str) -> bytes | None:
        data = super().read(key)
        self.calls.reads += 1
        self.calls.bytes_read += len(data or b"")
        return data

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        self.calls.lists += 1
        for key in super().list(prefix, after):
            self.calls.listed += 1
            yield key


def test_a_million_entries_in_one_folder(tmp_path: Path) -> None:
    """A folder has no index to list from: that is the one part that takes longer, see the times."""
    folder = tmp_path / PATHS.entries
    folder.mkdir(parents=True)
    begun = time.monotonic()
    source = folder
    for n in range(MILLION - TAIL):
        # Old entries are never read, so one file with many names will do.
        if n % _NAMES_PER_FILE == 0:
            source = folder / f"{n + 1:012d}.json"
            source.write_text(entry_to_json(entry(n + 1)))
        else:
            os.link(source, f"{folder}/{n + 1:012d}.json")
    for n in range(MILLION - TAIL + 1, MILLION + 1):
        (tmp_path / PATHS.entry(n)).write_text(entry_to_json(entry(n)))
    print(f"\nmaking them: {time.monotonic() - begun:.1f} s")
    store = CountingFolder(tmp_path)
    store.write(
        PATHS.summary(MILLION - TAIL), state_to_json(state_at(MILLION - TAIL, LIVE)).encode()
    )
    log = CaptureLog(store, PATHS)
    state, calls = asked(store, "opening a million files", log.load)
    assert state.n == MILLION
    assert (calls.lists, calls.listed) == (2, 1 + TAIL)
    assert calls.reads == 1 + TAIL + NO_HEARTBEAT + NO_NEXT_ENTRY
    assert store.create(PATHS.entry(MILLION + 1), entry_to_json(entry(MILLION + 1)).encode())
    _, calls = asked(store, "catching up by one", lambda: log.catch_up(state))
    assert (state.n, calls.reads) == (MILLION + 1, 1 + NO_HEARTBEAT)


def test_a_hundred_thousand_objects_that_nobody_compacted(tmp_path: Path) -> None:
    """The worst log there can be; in a process of its own, for its memory."""
    code = f"from {__name__} import child; child()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(f"\n{done.stdout}")


def child() -> None:
    """Write a summary of so many objects, forget everything, open it."""
    store = CountingFolder(Path(sys.argv[1]))
    log = CaptureLog(store, PATHS)
    if os.fork():
        _, status = os.wait()
        assert status == 0
    else:
        write_and_exit(log)
    state, calls = asked(store, "opening", log.load)
    assert (state.n, len(state.objects)) == (MILLION, NEGLECTED)
    newest_entry = 1
    assert (calls.lists, calls.reads) == (2, 1 + newest_entry + NO_HEARTBEAT + NO_NEXT_ENTRY)
    print(f"{calls.bytes_read / 1e6:.0f} MB read, {peak():.0f} MB of memory at most")


def write_and_exit(log: CaptureLog) -> None:
    state = state_at(MILLION, NEGLECTED)
    begun = time.monotonic()
    log._summarise(state)
    print(f"writing it: {time.monotonic() - begun:.1f} s, {peak():.0f} MB", flush=True)
    os._exit(0)
