"""Rows in sorted parts: any ranges of keys together are the rows, each once and in order."""

import random
from pathlib import Path

import pyarrow as pa
import pytest

from cdc_pipeline.core.errors import CaptureConflictError
from cdc_pipeline.lake.storage import sorted_parts
from cdc_pipeline.lake.storage.sorted_parts import (
    KeyRange,
    SortedParts,
    key_ranges,
    ranges_between,
)
from cdc_pipeline.lake.storage.store import LocalStore

_SCHEMA = pa.schema([("key", pa.string()), ("value", pa.int64())])


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


def _rows(keys: list[str]) -> list[pa.RecordBatch]:
    ordered = sorted(keys, key=str.encode)
    table = pa.table({"key": ordered, "value": range(len(ordered))}, _SCHEMA)
    return table.to_batches(max_chunksize=7)


@pytest.mark.parametrize("seed", range(8))
def test_ranges_of_parts_are_all_rows(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    monkeypatch.setattr(sorted_parts, "_OBJECT_BYTES", chance.choice([1, 500, 1 << 20]))
    monkeypatch.setattr(sorted_parts, "_LEAST_ROWS", chance.choice([1, 3, 64]))
    # Bytes order these otherwise than code units of UTF-16.
    letters = ["", "a", "é", "\ud7ff", "\uffff", "\U0001f600"]
    parts = SortedParts(LocalStore(tmp_path), "work/", _SCHEMA)
    expected: list[tuple[str, str, int]] = []
    sample: list[str] = []
    for name in ("one", "two", "none"):
        count = 0 if name == "none" else chance.randrange(1, 200)
        keys = [chance.choice(letters) + str(chance.randrange(40)) for _ in range(count)]
        done = parts.keep(name, _rows(keys), len(keys), "note")
        assert (done.rows, done.note, parts.kept(name)) == (len(keys), "note", done)
        sample += done.sample()
        ordered = sorted(keys, key=str.encode)
        expected += [(name, key, value) for value, key in enumerate(ordered)]
    for ranges in (
        [KeyRange()],
        key_ranges(sample, chance.randrange(1, 9)),
        ranges_between(chance.choice(letters) + str(n) for n in range(chance.randrange(5))),
    ):
        found = []
        for keys in ranges:
            for name in ("one", "two", "none"):
                for batch in parts.read(name, keys):
                    assert len(batch)
                    found += [(name, *row) for row in zip(*batch.to_pydict().values(), strict=True)]
        by_name = [[row for row in found if row[0] == name] for name in ("one", "two")]
        assert [row for rows in by_name for row in rows] == expected


def test_a_range_reads_its_own_bytes_of_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorted_parts, "_LEAST_ROWS", 10)
    read: list[int] = []

    class _Counting(LocalStore):
        def read_part(self, key: str, start: int, size: int) -> bytes | None:
            read.append(size)
            return super().read_part(key, start, size)

    parts = SortedParts(_Counting(tmp_path), "work/", _SCHEMA)
    parts.keep("one", _rows([f"{n:05}" for n in range(10_000)]), 10_000, "")
    assert sum(map(len, parts.read("one", KeyRange("00500", "00510")))) == 10
    assert sum(map(len, parts.read("one", KeyRange()))) == 10_000
    assert read[0] * 50 < read[1]


def test_a_removed_part_is_a_conflict(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    parts = SortedParts(store, "work/", _SCHEMA)
    with pytest.raises(CaptureConflictError, match="was removed meanwhile"):
        parts.read("one", KeyRange())
    parts.keep("one", _rows(["a"]), 1, "")
    store.delete(["work/one-0000.bin"])
    with pytest.raises(CaptureConflictError, match="was removed meanwhile"):
        parts.read("one", KeyRange())


def test_without_a_sample_there_is_one_range() -> None:
    assert key_ranges([], 5) == [KeyRange()]
    assert key_ranges(["a"], 5) == [KeyRange(None, "a"), KeyRange("a", None)]
