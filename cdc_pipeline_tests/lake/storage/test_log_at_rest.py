"""A capture log at rest: its heartbeat, what this process remembers of it, and requests for it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import LandedObject, ShardState, StreamRef
from cdc_pipeline.core.log.heartbeat import Heartbeat
from cdc_pipeline.core.log.json_format import entry_from_json, state_from_json
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import TablePaths, object_name
from cdc_pipeline.lake.storage.log import CaptureLog, Parts
from cdc_pipeline.lake.storage.log_memory import MEMORY, LogMemory
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline_tests.lake.counting_store import CountingStore

_PATHS = TablePaths("cdc", "orders")
_MINUTE = 60
_US = 1_000_000
_STREAM = StreamRef("id", "arn", "NEW_AND_OLD_IMAGES", 1, 0)
_SHARD = ShardState("shard", None, 1000, sequence_number="7", read_to_us=1)


@dataclass
class _Bench:
    """A log whose clock stands still unless it is set."""

    folder: Path
    now: float = 1_700_000_000.0
    store: CountingStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = CountingStore(self.folder)

    @property
    def log(self) -> CaptureLog:
        """As each user of the lake opens it."""
        return CaptureLog(self.store, _PATHS, lambda: self.now)

    def begin(self, entries: int = 1) -> LogState:
        state = self.log.load()
        assert self.log.commit(state, lambda _: {"stream": _STREAM, "shards": (_SHARD,)})
        for n in range(2, entries + 1):
            self.land(state, n)
        return state

    def land(self, state: LogState, n: int) -> None:
        assert self.log.commit(state, lambda _: {"objects": (_landed(n),)})

    def idle(self, state: LogState, read_to_us: int = 0, *, clean: bool = True) -> None:
        """What a capture does that finds nothing."""
        self.now += _MINUTE
        shard = replace(state.shards["shard"], read_to_us=read_to_us or int(self.now * _US))
        parts: Parts = {"shards": (shard,), "discovered_us": shard.read_to_us - 5}
        assert self.log.commit(state, lambda _: parts, may_rest=True)
        self.log.rest(state, clean=clean)

    def entries(self) -> int:
        return len(list(LocalStore(self.folder).list(_PATHS.entries)))

    def replayed(self) -> LogState:
        """The sum of the entries alone, as a version without heartbeats reads it."""
        state = LogState()
        for path in sorted((self.folder / _PATHS.entries).iterdir()):
            state.apply(entry_from_json(path.read_bytes(), path.name))
        return state

    def asked(self, action: Any) -> tuple[Any, dict[str, int]]:
        self.store.calls.clear()
        return action(), dict(self.store.calls)


def _landed(n: int) -> LandedObject:
    key = f"landing/{object_name(n, 'a' * 16)}"
    return LandedObject(key, "2026-01-01", 1, 1, 1, 1, 1, "0", "0", ("s",))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[_Bench]:
    MEMORY.clear()
    yield _Bench(tmp_path / "lake")
    MEMORY.clear()


def test_captures_that_find_nothing_write_no_entry_and_move_the_watermark(bench: _Bench) -> None:
    state = bench.begin()
    for _ in range(3):
        bench.idle(state)
    now_us = int(bench.now * _US)
    assert bench.entries() == 1
    for fresh in (state, bench.log.load()):
        assert (fresh.n, fresh.at_us, fresh.watermark_us) == (1, now_us, now_us - 5)
        assert fresh.shards["shard"].read_to_us == now_us
    MEMORY.clear()
    assert bench.log.load() == state
    assert bench.replayed().watermark_us == 0


def test_the_requests_for_a_log_at_rest(bench: _Bench) -> None:
    state = bench.begin(entries=23)
    bench.idle(state)
    assert bench.asked(bench.log.load)[1] == {"read": 3}, "heartbeat, entry 23, no entry 24"
    assert bench.asked(bench.log.look)[1] == {}
    assert bench.asked(lambda: bench.idle(state))[1] == {"write": 1}
    MEMORY.clear()
    fresh, calls = bench.asked(bench.log.load)
    assert fresh == state
    assert calls == {"read": 6}, "heartbeat, summary 20, entries 21 to 23, no entry 24"
    for _ in range(4):
        bench.idle(state)
    MEMORY.clear()
    fresh, calls = bench.asked(bench.log.load)
    assert fresh == state
    assert calls == {"read": 4}, "heartbeat, summary 23, entry 23, no entry 24"


def test_a_process_finds_the_summaries_of_another_one(bench: _Bench) -> None:
    state = bench.begin()
    other = bench.log.load()
    for n in range(2, 24):
        bench.land(other, n)
    bench.log.catch_up(state)
    bench.idle(state)
    MEMORY.clear()
    assert bench.asked(bench.log.load) == (state, {"read": 6}), "summary 20 and the rest"
    LocalStore(bench.folder).delete([_PATHS.summary(20)])
    MEMORY.clear()
    fresh, calls = bench.asked(bench.log.load)
    assert (fresh, calls["list"]) == (state, 2)
    bench.idle(fresh)
    MEMORY.clear()
    assert bench.asked(bench.log.load)[1] == {"read": 16}, "summary 10 and the rest"


def test_what_others_have_written_is_listed_once_it_exists(bench: _Bench) -> None:
    state = bench.begin(entries=5)
    bench.idle(state)
    other = bench.log.load()
    bench.land(other, 6)
    bench.land(other, 7)
    fresh, calls = bench.asked(bench.log.load)
    assert fresh == other
    assert calls == {"read": 4, "list": 1}, "heartbeat, entries 5, 6, the listed 7"
    assert [entry.n for entry in bench.log.catch_up(state)] == [6, 7]
    assert state == other


def test_the_next_entry_of_any_writer_has_the_progress(bench: _Bench) -> None:
    state = bench.begin()
    bench.idle(state)
    other = bench.log.load()
    read_to_us, watermark_us = state.shards["shard"].read_to_us, state.watermark_us
    bench.land(other, 2)
    assert other.heartbeat is None
    for found in (other, bench.log.load(), bench.replayed()):
        assert found.shards["shard"] == replace(_SHARD, read_to_us=read_to_us)
        assert found.watermark_us == watermark_us


def test_an_entry_that_moves_a_shard_or_forgets_it_counts_more(bench: _Bench) -> None:
    state = bench.begin()
    bench.idle(state)
    moved = replace(_SHARD, sequence_number="9", read_to_us=5)
    assert bench.log.commit(state, lambda _: {"shards": (moved,), "discovered_us": 3})
    assert (state.shards["shard"], state.discovered_us) == (moved, 3)
    bench.idle(state)
    assert bench.log.commit(state, lambda _: {"forgotten": ("shard",)})
    assert state.shards == bench.log.load().shards == {}


def test_a_heartbeat_of_another_log_is_ignored(bench: _Bench) -> None:
    state = bench.begin()
    bench.idle(state)
    key = bench.folder / _PATHS.heartbeat
    early = key.read_bytes()
    other = bench.log.load()
    bench.land(other, 2)
    assert bench.log.load().heartbeat is None
    beat = Heartbeat.from_json(early)
    assert beat is not None
    forged = replace(beat, n=2, shards={"shard": 1 << 60})
    key.write_text(forged.to_json())
    for _ in ("remembered", "fresh"):
        assert bench.log.load().heartbeat is None
        assert bench.log.load() == other
        MEMORY.clear()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "at": ""}'])
def test_a_heartbeat_that_cannot_be_read_is_none(bench: _Bench, text: str) -> None:
    state = bench.begin()
    bench.idle(state)
    (bench.folder / _PATHS.heartbeat).write_text(text)
    MEMORY.clear()
    assert bench.log.load() == bench.replayed()
    bench.idle(state)
    assert bench.log.load() == state


def test_progress_becomes_an_entry_every_three_hours(bench: _Bench) -> None:
    """So a version that knows no heartbeat misses so much of it at most."""
    state = bench.begin()
    for _ in range(9 * 60 + 5):
        bench.idle(state)
    assert bench.entries() == 1 + 3
    behind_us = state.watermark_us - bench.replayed().watermark_us
    assert 0 < behind_us <= 3 * 3600 * _US


@pytest.mark.parametrize(
    "parts",
    [
        {"shards": (replace(_SHARD, sequence_number="8"),)},
        {"shards": (replace(_SHARD, status="finished"),)},
        {"shards": (replace(_SHARD, rows=1),)},
        {"shards": (replace(_SHARD, read_to_us=0),)},
        {"shards": (ShardState("another", None, 1000),)},
        {"forgotten": ("shard",)},
        {"resumed_us": 1},
        {"files_from": "2026-01-01"},
        {"objects": (_landed(2),)},
        {"completes": (1,)},
    ],
)
def test_everything_else_is_an_entry(bench: _Bench, parts: dict[str, Any]) -> None:
    state = bench.begin()
    assert bench.log.commit(state, lambda _: parts, may_rest=True)
    assert (state.n, bench.entries()) == (2, 2)


def test_a_summary_has_the_entries_alone(bench: _Bench) -> None:
    state = bench.begin(entries=3)
    for _ in range(5):
        bench.idle(state)
    text = (bench.folder / _PATHS.summary(3)).read_bytes()
    assert state_from_json(text, "summary") == bench.replayed()
    assert state.watermark_us > 0


def test_a_log_made_again_under_its_name_is_read_anew(bench: _Bench) -> None:
    state = bench.begin(entries=4)
    bench.idle(state)
    assert bench.log.load() == state
    shutil.rmtree(bench.folder)
    assert bench.log.load() == LogState()
    again = bench.begin(entries=4)
    assert bench.log.load() == again
    assert bench.log.load().heartbeat is None


def test_a_log_restored_from_a_copy_is_read_anew(bench: _Bench, tmp_path: Path) -> None:
    state = bench.begin(entries=2)
    bench.idle(state)
    copied = bench.log.load()
    shutil.copytree(bench.folder, tmp_path / "copy")
    for n in range(3, 6):
        bench.land(state, n)
    bench.idle(state)
    assert bench.log.load() == state
    shutil.rmtree(bench.folder)
    shutil.copytree(tmp_path / "copy", bench.folder)
    assert bench.log.load() == copied
    other = bench.log.load()
    for n in range(13, 16):
        bench.land(other, n)
    assert bench.log.load() == other != state


def test_only_the_log_is_restored_and_the_heartbeat_is_of_later(bench: _Bench) -> None:
    state = bench.begin(entries=4)
    bench.idle(state)
    LocalStore(bench.folder).delete([_PATHS.entry(4), _PATHS.entry(3)])
    assert bench.log.load().n == 2
    assert bench.log.load() == bench.replayed()


def test_a_missing_entry_is_not_written_over(bench: _Bench) -> None:
    state = bench.begin(entries=2)
    bench.idle(state)
    other = bench.log.load()
    bench.land(other, 3)
    bench.land(other, 4)
    LocalStore(bench.folder).delete([_PATHS.entry(3)])
    with pytest.raises(LakeError, match=r"entry 4 cannot follow entry 2.*000000000003\.json"):
        bench.log.commit(bench.log.load(), lambda _: {"objects": (_landed(5),)})
    assert not (bench.folder / _PATHS.entry(3)).exists()


def test_a_state_given_out_is_the_callers_own(bench: _Bench) -> None:
    bench.begin(entries=2)
    bench.idle(bench.log.load())
    one = bench.log.load()
    kept = one.copy()
    one.objects.clear()
    one.shards.clear()
    assert bench.log.look() == bench.log.load() == kept


def test_a_look_has_what_this_process_wrote(bench: _Bench) -> None:
    state = bench.begin(entries=2)
    assert bench.log.look() == state
    bench.land(state, 3)
    assert bench.log.look() == state
    bench.idle(state)
    assert bench.log.look() == state


def test_a_memory_is_bounded() -> None:
    moment = [0.0]
    memory = LogMemory(most_parts=25, clock=lambda: moment[0])
    ten = LogState(n=1, digest="1", objects={str(n): _landed(n) for n in range(9)})
    for address in ("a", "b"):
        memory.remember(address, ten)
    assert memory.recall("a") == ten
    memory.remember("c", ten)
    assert memory.recall("b") is None, "the one not used for longest"
    assert memory.recall("a") == memory.recall("c") == ten
    large = LogState(n=1, digest="1", objects={str(n): _landed(n) for n in range(30)})
    memory.remember("a", large)
    assert memory.recall("c") is None
    assert memory.recall("a") == large, "for the rest of the run that loaded it"
    memory.remember("c", ten)
    assert memory.recall("a") is None
    moment[0] += 2
    assert memory.recall("c", seconds=1) is None
    assert memory.recall("c", seconds=3) == ten
    memory.outdate("c")
    assert memory.recall("c", seconds=3) is None
    memory.remember("d", LogState())
    assert memory.recall("d") is None, "nobody could tell whether it is still true"
