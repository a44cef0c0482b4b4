"""The stored capture log: races, lost answers, summaries, orphans."""

import multiprocessing
import re
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import cdc_pipeline
from cdc_pipeline.core.errors import CaptureConflictError, LakeError
from cdc_pipeline.core.log.entries import LandedObject, QuarantinedObject
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.names import TablePaths, object_name
from cdc_pipeline.lake.storage.log import CaptureLog, new_nonce, remove_orphans, this_owner
from cdc_pipeline.lake.storage.log_memory import MEMORY
from cdc_pipeline.lake.storage.store import LocalStore

_PATHS = TablePaths("cdc", "orders")


def _entry(**parts: Any) -> Entry:
    return Entry(0, parts.pop("nonce", new_nonce()), "test", 0, **parts)


def _landed(key: str) -> LandedObject:
    return LandedObject(key, "2026-01-01", 1, 1, 1, 1, 1, "0", "0", ("s",))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.fixture
def log(store: LocalStore) -> CaptureLog:
    return CaptureLog(store, _PATHS, clock=lambda: 1_700_000_000.5)


def test_entries_are_numbered_and_dated_by_their_writer(log: CaptureLog) -> None:
    state = log.load()
    assert log.append(state, _entry(discovered_us=3))
    assert log.append(state, _entry(discovered_us=5))
    assert (state.n, state.at_us, state.discovered_us) == (2, 1_700_000_000_500_000, 5)
    assert log.load() == state


def test_the_loser_of_a_race_sees_it_and_can_catch_up(log: CaptureLog) -> None:
    one, other = log.load(), log.load()
    assert log.append(one, _entry(discovered_us=1))
    assert not log.append(other, _entry(discovered_us=2))
    assert other == LogState()
    assert [entry.discovered_us for entry in log.catch_up(other)] == [1]
    assert other == one
    assert log.append(other, _entry(discovered_us=2))
    assert log.catch_up(other) == []


def test_exactly_one_of_racing_threads_wins_every_entry(log: CaptureLog) -> None:
    start = threading.Barrier(4)
    won: list[int] = []

    def write(me: int) -> None:
        start.wait()
        state = log.load()
        for _ in range(10):
            if log.append(state, _entry(discovered_us=me)):
                won.append(state.n)
            else:
                log.catch_up(state)

    threads = [threading.Thread(target=write, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(1, log.load().n + 1))


def _append_ten(folder: Path, start: Any, won: Any) -> None:
    log = CaptureLog(LocalStore(folder), _PATHS)
    state = log.load()
    start.wait()
    for _ in range(10):
        if log.append(state, _entry()):
            won.put(state.n)
        else:
            log.catch_up(state)
    won.put(None)


def test_exactly_one_of_racing_processes_wins_every_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, won = context.Barrier(2), context.Queue()
    writers = [
        context.Process(target=_append_ten, args=(tmp_path, start, won), daemon=True)
        for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    numbers, ended = [], 0
    while ended < len(writers):
        n = won.get(timeout=60)
        ended += n is None
        numbers += [] if n is None else [n]
    for writer in writers:
        writer.join()
    assert sorted(numbers) == list(range(1, CaptureLog(LocalStore(tmp_path), _PATHS).load().n + 1))


class _LostAnswers(LocalStore):
    """Stores the object, then says that there was one already, as a retried request does."""

    def create(self, key: str, data: bytes) -> bool:
        super().create(key, data)
        return False


def test_a_lost_answer_counts_as_won(tmp_path: Path) -> None:
    log = CaptureLog(_LostAnswers(tmp_path), _PATHS)
    state = log.load()
    assert log.append(state, _entry(discovered_us=7))
    assert (state.n, state.discovered_us) == (1, 7)
    assert log.load() == state


def test_a_lost_answer_does_not_win_for_another_writer(tmp_path: Path) -> None:
    log = CaptureLog(_LostAnswers(tmp_path), _PATHS)
    late = log.load()
    assert log.append(log.load(), _entry())
    assert not log.append(late, _entry())


class _CountingStore(LocalStore):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads = 0

    def read(self, key: str) -> bytes | None:
        self.reads += 1
        return super().read(key)


def test_summaries_make_a_long_log_quick_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)
    store = _CountingStore(tmp_path)
    log = CaptureLog(store, _PATHS)
    state = log.load()
    for n in range(1, 156):
        key = f"landing/{object_name(n, 'a' * 16)}"
        assert log.append(state, _entry(objects=(_landed(key),), discovered_us=n))
    kept = list(store.list(_PATHS.summaries))
    assert kept == [_PATHS.summary(n) for n in (130, 140, 150)]
    assert len(list(store.list(_PATHS.entries))) == 155
    for summaries, entries in ((1, 5), (0, 155)):
        MEMORY.clear()
        store.reads = 0
        assert log.load() == state
        assert store.reads == summaries + entries + 2, "no heartbeat, no entry 156"
        store.delete(kept)


def test_the_larger_a_summary_the_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)
    monkeypatch.setattr("cdc_pipeline.lake.storage.log._PARTS_PER_ENTRY", 1)
    store = _CountingStore(tmp_path)
    log = CaptureLog(store, _PATHS)
    state = log.load()
    written = []
    for n in range(1, 200):
        key = f"landing/{object_name(n, 'a' * 16)}"
        assert log.append(state, _entry(objects=(_landed(key),)))
        if store.read(_PATHS.summary(n)):
            written.append(n)
    assert written == [10, 20, 40, 80, 160]
    # Compaction leaves few objects; then summaries are frequent again.
    state.objects.clear()
    for _ in range(15):
        assert log.append(state, _entry())
    assert list(store.list(_PATHS.summaries))[-1] == _PATHS.summary(210)


def test_a_damaged_log_is_an_error_that_names_the_file(log: CaptureLog, store: LocalStore) -> None:
    state = log.load()
    for _ in range(3):
        log.append(state, _entry())
    store.write(_PATHS.entry(2), b"{")
    with pytest.raises(LakeError, match=r"000000000002\.json"):
        log.load()
    store.delete([_PATHS.entry(2)])
    with pytest.raises(LakeError, match="entry 3 cannot follow entry 1"):
        log.load()


def test_orphans_are_exactly_the_unlogged_objects_of_standing_entries(store: LocalStore) -> None:
    folder = "dynamo-cdc/cdc/orders/year=2026/month=01/day=01/"

    def name(n: int, nonce: str, suffix: str = "parquet") -> str:
        return folder + object_name(n, nonce * 16, suffix)

    logged, quarantined = name(1, "a"), name(2, "a", "jsonl")
    orphans = [name(1, "b"), name(2, "b"), name(2, "c", "jsonl")]
    foreign = [folder + "part-00000.parquet", folder + "1-firehose.parquet"]
    kept = [logged, quarantined, *foreign, name(3, "a"), name(30, "a")]
    elsewhere = "other/" + object_name(1, "d" * 16)
    for key in (*orphans, *kept, elsewhere):
        store.write(key, b"")
    state = LogState(n=2)
    state.objects[logged] = _landed(logged)
    state.quarantined[quarantined] = QuarantinedObject(quarantined, 1, {})
    assert sorted(remove_orphans(store, state, [folder])) == sorted(orphans)
    assert list(store.list(folder)) == sorted(kept)
    assert store.read(elsewhere) == b""
    assert remove_orphans(store, state, [folder]) == []


def test_quarantined_objects_that_are_only_summed_are_no_orphans(store: LocalStore) -> None:
    folder = "dynamo-cdc/cdc/error/orders/unreadable-record/year=2026/month=01/day=01/"
    summed, orphan = (folder + object_name(n, "a" * 16, "jsonl") for n in (5, 6))
    landed = folder + object_name(5, "b" * 16)
    for key in (summed, orphan, landed):
        store.write(key, b"")
    state = LogState(n=6, summed_to=5)
    assert sorted(remove_orphans(store, state, [folder])) == sorted([orphan, landed])


def test_an_owner_says_host_process_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_RUN_ID", "12345678-aaaa")
    assert this_owner().endswith(":12345678")
    monkeypatch.delenv("DAGSTER_RUN_ID")
    assert this_owner().count(":") == 1


def test_the_entry_says_whether_a_summed_object_was_quarantined(log: CaptureLog) -> None:
    state = log.load()
    named = _PATHS.quarantined("unreadable-record", date(2026, 1, 1), 1, "a" * 16)
    entry = replace(_entry(), quarantined=(QuarantinedObject(named, 1, {"odd": 1}),))
    assert log.append(state, entry)
    assert log.names_quarantined(state, named)
    state.quarantined, state.summed_to = {}, 1
    assert log.names_quarantined(state, named)
    for n in (1, 2):
        other = _PATHS.quarantined("unreadable-record", date(2026, 1, 1), n, "b" * 16)
        assert not log.names_quarantined(state, other)


def test_a_commit_that_is_overtaken_decides_again(log: CaptureLog) -> None:
    state = log.load()
    seen: list[Entry] = []
    assert log.append(log.load(), _entry(discovered_us=1))

    def step(now: LogState) -> dict[str, int] | None:
        return {"discovered_us": now.discovered_us + 5} if now.discovered_us < 9 else None

    assert log.commit(state, step, overtaken=seen.extend)
    assert [entry.discovered_us for entry in seen] == [1]
    assert (state.n, state.discovered_us) == (2, 6)
    assert log.commit(state, step)
    assert not log.commit(state, step)
    assert log.load().discovered_us == 11


def test_what_a_commit_raises_when_it_is_overtaken_ends_it(log: CaptureLog) -> None:
    state = log.load()
    assert log.append(log.load(), _entry(discovered_us=1))

    def refuse(entries: list[Entry]) -> None:
        raise CaptureConflictError(f"{len(entries)} came first")

    with pytest.raises(CaptureConflictError, match="1 came first"):
        log.commit(state, lambda _: {"discovered_us": 7}, overtaken=refuse)
    assert log.load().discovered_us == 1


def test_nobody_appends_to_a_log_but_by_a_commit() -> None:
    package = Path(cdc_pipeline.__file__).parent
    appending = re.compile(r"\blog\.append\(|\bEntry\(")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if appending.search(path.read_text())
    }
    assert found == {"lake/storage/log.py", "core/log/json_format.py"}
