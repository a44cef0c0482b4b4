"""A folder as an object store."""

import threading
from pathlib import Path

import pytest

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.storage.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "lake")


def test_objects_come_back_as_they_were_written(store: LocalStore) -> None:
    assert store.read("a/b.bin") is None
    store.write("a/b.bin", b"one")
    assert store.read("a/b.bin") == b"one"
    store.write("a/b.bin", b"two")
    assert store.read("a/b.bin") == b"two"
    assert Path(store.uri("a/b.bin")).read_bytes() == b"two"


def test_a_part_ends_where_the_object_does(store: LocalStore) -> None:
    store.write("a", b"0123456789")
    assert store.read_part("a", 2, 3) == b"234"
    assert store.read_part("a", 8, 5) == b"89"
    assert store.read_part("a", 10, 1) == b""
    assert store.read_part("b", 0, 1) is None


def test_create_never_replaces(store: LocalStore) -> None:
    assert store.create("a/1", b"first") is True
    assert store.create("a/1", b"second") is False
    assert store.read("a/1") == b"first"


def test_one_of_many_racing_creators_wins(store: LocalStore) -> None:
    for number in range(10):
        start = threading.Barrier(8)
        won: list[int] = []

        def create(me: int, start: threading.Barrier, won: list[int], number: int) -> None:
            start.wait()
            if store.create(f"log/{number}", str(me).encode()):
                won.append(me)

        threads = [
            threading.Thread(target=create, args=(me, start, won, number)) for me in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read(f"log/{number}") == str(won[0]).encode()


def test_list_is_ordered_behind_a_key_under_a_prefix(store: LocalStore) -> None:
    for key in ("log/2", "log/10", "log/1", "log/3/x", "logs/1", "log/日本", "other/log/1"):
        store.write(key, b"")
    # As S3 orders them: by the bytes of the keys.
    found = list(store.list("log/"))
    assert found == sorted(found, key=str.encode)
    assert "logs/1" not in found
    assert list(store.list("log/", after="log/10")) == [k for k in found if k > "log/10"]
    assert list(store.list("log")) == sorted([*found, "logs/1"])
    assert list(store.list("nowhere/")) == []
    assert list(store.list("log/1")) == [key for key in found if key.startswith("log/1")]


def test_delete_removes_and_forgives(store: LocalStore) -> None:
    store.write("a/1", b"")
    store.write("a/2", b"")
    store.delete(["a/1", "a/missing", "nowhere/at/all"])
    assert list(store.list("a/")) == ["a/2"]


def test_no_temporary_files_where_readers_list(store: LocalStore) -> None:
    store.write("data/day/1", b"x")
    store.create("data/day/2", b"x")
    store.create("data/day/2", b"y")
    assert sorted(p.name for p in (store.root / "data" / "day").iterdir()) == ["1", "2"]
    assert [p for p in store.root.rglob("*") if p.is_file() and p.parent.name == "tmp"] == []


def test_a_failed_write_leaves_the_old_object_and_nothing_else(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("data/1", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", full)
    for write in (store.write, store.create):
        with pytest.raises(LakeError, match="No space left"):
            write("data/1", b"new")
    assert store.read("data/1") == b"old"
    assert list(store.list("data/")) == ["data/1"]


@pytest.mark.parametrize("blocked", ["lake", "lake/a"])
def test_a_folder_that_cannot_be_written_is_a_lake_error(blocked: str, tmp_path: Path) -> None:
    file = tmp_path / blocked
    file.parent.mkdir(exist_ok=True)
    file.write_text("a file where a folder should be")
    store = LocalStore(tmp_path / "lake")
    for write in (store.write, store.create):
        with pytest.raises(LakeError, match=r"writing a/1") as refused:
            write("a/1", b"x")
        assert str(store.root) in refused.value.message
        assert refused.value.fix
    with pytest.raises(LakeError, match="reading a/1"):
        store.read("a/1")
