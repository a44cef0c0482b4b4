"""Temporary files of items, and their order by key in bounded memory."""

import json
import random
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.transform import ranges, spool
from cdc_pipeline.transform.ranges import sorted_items
from cdc_pipeline.transform.spool import ITEMS_SCHEMA, Spooled, SpoolWriter, is_compressed

Pair = tuple[str, str]


def _batch(pairs: Iterable[Pair]) -> pa.RecordBatch:
    keys, items = zip(*pairs, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(keys, pa.string()), pa.array(items, pa.string())], schema=ITEMS_SCHEMA
    )


def _spooled(folder: Path, pairs: list[Pair], *, compressed: bool, rows: int = 97) -> Spooled:
    """Two files with batches of some rows."""
    places = []
    for number in range(2):
        mine = pairs[number::2]
        with SpoolWriter(folder / f"{number}.arrow", compressed=compressed) as writer:
            for start in range(0, len(mine), rows):
                writer.write(_batch(mine[start : start + rows]))
        places.append((writer.path, None))
    size = sum(len(item.encode()) for _, item in pairs)
    return Spooled(places, len(pairs), size, compressed)


def _pairs(batches: Iterable[pa.RecordBatch]) -> list[Pair]:
    return [pair for b in batches for pair in zip(*(c.to_pylist() for c in b.columns), strict=True)]


def _random(count: int, seed: int = 1) -> list[Pair]:
    """Keys with characters that sort differently as UTF-16, UTF-8 and by locale."""
    rng = random.Random(seed)
    letters = 'aAzZ09 "\\\x00\x7fäß\ud7ff\ue000\uffff\U0001f600'
    keys = {"".join(rng.choices(letters, k=rng.randint(0, 9))) for _ in range(2 * count)}
    pairs = [(key, json.dumps({"n": rng.random()})) for key in sorted(keys)][:count]
    rng.shuffle(pairs)
    return pairs


class _Large(NamedTuple):
    """Small items, and large ones with similar keys in their middle."""

    pairs: list[Pair]
    item_bytes: int


def _large(item_bytes: int) -> _Large:
    pairs = [(f"k{n:05}", "{}") for n in range(3_000)]
    pairs += [(f"k01500-{n:03}", "x" * item_bytes) for n in range(40)]
    random.Random(2).shuffle(pairs)
    return _Large(pairs, item_bytes)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("at_once", [1, 500, 5_000, 1 << 30])
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_items_come_in_the_order_of_their_keys(
    tmp_path: Path, count: int, at_once: int, compressed: bool
) -> None:
    pairs = _random(count)
    items = _spooled(tmp_path, pairs, compressed=compressed)
    assert _pairs(items.read()) == pairs[::2] + pairs[1::2]
    assert _pairs(sorted_items(items, tmp_path, at_once)) == sorted(pairs)
    assert sorted(tmp_path.iterdir()) == [path for path, _ in items.places]
    assert _pairs(sorted_items(items, tmp_path, at_once, remove=True)) == sorted(pairs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("at_once", [1, 2_000])
def test_keys_that_repeat_are_all_there(tmp_path: Path, at_once: int, compressed: bool) -> None:
    pairs = [(key, str(n)) for n, (key, _) in enumerate(_random(60) * 3)] + [
        ("same", "x" * 99)
    ] * 50
    items = _spooled(tmp_path, pairs, compressed=compressed)
    found = _pairs(sorted_items(items, tmp_path, at_once))
    assert [key for key, _ in found] == sorted(key for key, _ in pairs)
    assert sorted(found) == sorted(pairs)


@pytest.mark.parametrize("compressed", [True, False])
def test_memory_is_bounded_though_large_items_have_similar_keys(
    tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 MB of text, nearly all in one planned range; a tenth of it may be sorted at once."""
    pairs, item_bytes = _large(400_000)
    items = _spooled(tmp_path, pairs, compressed=compressed, rows=20)
    at_once, most, in_memory = 1_600_000, 0, ranges._sorted

    def watched(rows: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        nonlocal most
        held = [*rows]
        most = max(most, sum(batch.nbytes for batch in held))
        return in_memory(held)

    monkeypatch.setattr(ranges, "_sorted", watched)
    before, peak, found = pa.total_allocated_bytes(), 0, []
    for batch in sorted_items(items, tmp_path, at_once):
        peak = max(peak, pa.total_allocated_bytes() - before)
        found += [(key, len(item)) for key, item in _pairs([batch])]
    assert found == sorted((key, len(item)) for key, item in pairs)
    assert most <= 2 * at_once + item_bytes
    assert peak <= 8 * at_once


def test_uncompressed_files_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = _random(700)
    items = _spooled(tmp_path, pairs, compressed=False)
    with monkeypatch.context() as patch:
        patch.delattr(ranges, "split_by_key")
        assert _pairs(sorted_items(items, tmp_path, items.bytes // 20)) == sorted(pairs)
    # Many passes cost more than a split.
    assert _pairs(sorted_items(items, tmp_path, items.bytes // 100)) == sorted(pairs)
    monkeypatch.delattr(ranges, "split_by_key")
    with pytest.raises(NameError):
        _pairs(sorted_items(items, tmp_path, items.bytes // 100))


def test_batches_are_small_whatever_the_items(tmp_path: Path) -> None:
    items = _spooled(tmp_path, _large(400_000).pairs, compressed=False)
    sizes = [len(batch) for batch in sorted_items(items, tmp_path, 1 << 30)]
    assert sum(sizes) == 3_040
    assert max(sizes) < 2_000
    many = _spooled(tmp_path, _random(700) * 12, compressed=False)
    assert max(map(len, sorted_items(many, tmp_path, 1 << 30))) == 4_000


# ------------------------------------------------------------------------------------- files


def test_keys_can_be_read_alone(tmp_path: Path) -> None:
    pairs = _random(300)
    items = _spooled(tmp_path, pairs, compressed=True)
    keys = [key for b in items.read(only_keys=True) for key in b.column(0).to_pylist()]
    assert keys == [key for key, _ in _pairs(items.read())]


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_is_whole_or_unreadable(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.arrow"
    with suppress(InterruptedError), SpoolWriter(path, compressed=compressed) as writer:
        writer.write(_batch(_random(100)))
        raise InterruptedError
    items = Spooled([(path, None)], 100, 0, compressed)
    for mapped in (False, True):
        with pytest.raises(pa.ArrowInvalid):
            list(items.read(mapped=mapped))


def test_a_full_disk_is_named_with_its_folder() -> None:
    writer = SpoolWriter(Path("/dev/full"), compressed=False)
    with pytest.raises(LakeError) as failed, writer:
        writer.write(_batch(_random(100)))
    assert "disk" in failed.value.message
    assert failed.value.fix == "free disk space below /, or point TMPDIR to another disk"


def test_what_is_large_or_leaves_little_disk_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(spool.shutil, "disk_usage", lambda folder: Usage(3_000))
    assert not is_compressed(1_000, tmp_path)
    assert is_compressed(1_001, tmp_path)
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda folder: Usage(1 << 50))
    assert not is_compressed(spool.PLAIN_BYTES, tmp_path)
    assert is_compressed(spool.PLAIN_BYTES + 1, tmp_path)
