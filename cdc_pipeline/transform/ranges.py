"""Spooled items in the order of their keys, sorted in memory range by range.

Only keys are compared, and each row is moved two or three times. DuckDB sorts whole rows, in twice
the CPU time, and its memory grows with the rows even though it spills (2.0.0, measured).
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cdc_pipeline.transform.spool import ITEMS_SCHEMA, Spooled, SpoolWriter, is_compressed

_SORT_PERCENT = 12
"""Percentage of `memory_mb` that the text sorted at once may have; it is there twice."""

_SAMPLES = 200
_MOST_PASSES = 32
_MOST_RANGES = 256
_BATCH_ROWS = 4_000
_BATCH_BYTES = 8 << 20
_SLICE_BYTES = 128 << 10


def sorted_at_once(memory_mb: int) -> int:
    """Return the bytes of text to sort in memory at once."""
    return (memory_mb << 20) * _SORT_PERCENT // 100


def sorted_items(
    items: Spooled, folder: Path, at_once: int, *, remove: bool = False
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in order of key, in batches of some MB.

    `at_once`: bytes of text sorted in memory, which holds them twice. More text is taken in ranges
    of keys: from uncompressed files in a pass for each range, else after a split into files in
    `folder`. `remove`: remove the files once they are read.
    """
    ranges = items.bytes // at_once + 1
    if ranges == 1:
        yield from _sorted(items.read(remove=remove))
        return
    passes = _passes(items, ranges, at_once) if not items.compressed else None
    if passes is not None:
        for rows in passes:
            yield from _sorted(rows)
        if remove:
            items.remove()
        return
    path = folder / f"ranges-{len(list(folder.glob('ranges-*')))}.arrow"
    parts = split_by_key(
        items, path, min(ranges, _MOST_RANGES), buffer_bytes=at_once, remove=remove
    )
    for part in parts:  # one of more text than planned is split again, unless it is of one key
        yield from sorted_items(part, folder, at_once) if len(parts) > 1 else _sorted(part.read())
    path.unlink()


def _sorted(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    table = pa.Table.from_batches(rows, ITEMS_SCHEMA).combine_chunks()
    order = pc.call_function("array_sort_indices", [table.column("item_key")])
    size = min(_BATCH_ROWS, _BATCH_BYTES * len(order) // (table.nbytes or 1) + 1)
    for start in range(0, len(order), size):
        yield from table.take(order.slice(start, size)).to_batches()


def _passes(items: Spooled, ranges: int, at_once: int) -> Iterator[Iterator[pa.RecordBatch]] | None:
    """Return the rows of each range of keys, read for each anew; None: they do not fit in memory.

    That is so where large items have similar keys, or with many ranges. Between the passes, 4 bytes
    an item are kept.
    """
    if ranges > _MOST_PASSES:
        return None
    bounds = _bounds(items, ranges)
    orders: list[tuple[pa.Array, list[int]]] = []
    sizes = [0] * (len(bounds) + 1)
    for batch in items.read(mapped=True):
        order, cuts = _cut(batch.column("item_key"), bounds)
        orders.append((order.cast(pa.uint32()), cuts))
        lengths = pc.call_function("binary_length", [batch.column("item")]).take(order)
        for number, (start, end) in enumerate(pairwise(cuts)):
            part = lengths.slice(start, end - start)
            sizes[number] += pc.call_function("sum", [part]).as_py() or 0
    if max(sizes) > 2 * at_once:
        return None

    def taken(number: int) -> Iterator[pa.RecordBatch]:
        for batch, (order, cuts) in zip(items.read(mapped=True), orders, strict=True):
            yield batch.take(order.slice(cuts[number], cuts[number + 1] - cuts[number]))

    return map(taken, range(len(sizes)))


def _cut(keys: pa.Array, bounds: Sequence[str]) -> tuple[pa.Array, list[int]]:
    """Return the order of keys, and the places in it where each range begins, and the end."""
    order = pc.call_function("array_sort_indices", [keys])
    ordered = keys.take(order).to_pylist()
    return order, [0, *(bisect.bisect_left(ordered, bound) for bound in bounds), len(ordered)]


def split_by_key(
    items: Spooled, path: Path, ranges: int, *, buffer_bytes: int, remove: bool = False
) -> list[Spooled]:
    """Distribute the rows over ranges of keys, in the order of ranges; all are in one new file.

    The ranges have about equal numbers of rows, and none is empty. `remove`: remove the files once
    they are read. Memory: `buffer_bytes`, and a few batches.
    """
    bounds = _bounds(items, ranges)
    with SpoolWriter(path, compressed=is_compressed(items.bytes, path.parent)) as writer:
        limit = min(buffer_bytes // (len(bounds) + 1), _SLICE_BYTES)
        buffers = [_Buffer(writer, limit) for _ in range(len(bounds) + 1)]
        for batch in _gathered(items.read(remove=remove), limit * len(buffers)):
            order, cuts = _cut(batch.column("item_key"), bounds)
            for buffer, (start, end) in zip(buffers, pairwise(cuts), strict=True):
                if end > start:  # copied, because a slice would keep the whole batch in memory
                    buffer.add(batch.take(order.slice(start, end - start)))
        for buffer in buffers:
            buffer.flush()
    return [
        Spooled([(path, buffer.numbers)], buffer.rows, buffer.bytes, compressed=True)
        for buffer in buffers
        if buffer.rows
    ]


def _bounds(items: Spooled, ranges: int) -> list[str]:
    """Return the first key of each range except the first, from a sample of the keys.

    Keys below the first bound and from it on are both there, so a split makes smaller parts.
    """
    step = max(1, items.rows // (_SAMPLES * ranges))
    sample: list[str] = []
    before = 0
    for batch in items.read(only_keys=True):
        chosen = pa.array(range(-before % step, len(batch), step), pa.int64())
        sample += batch.column(0).take(chosen).to_pylist()
        before += len(batch)
    sample.sort()
    bounds = {sample[len(sample) * n // ranges] for n in range(1, ranges) if sample}
    return sorted(bounds - {*sample[:1]})


def _gathered(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of about `size`, at most some MB, or larger ones."""
    parts: list[pa.RecordBatch] = []
    pending = 0
    for batch in batches:
        parts.append(batch)
        pending += batch.nbytes
        if pending >= min(size, _BATCH_BYTES):
            yield _joined(parts)
            parts, pending = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.concat_batches(parts) if len(parts) > 1 else parts[0]


class _Buffer:
    """Rows of one range that are not in the file yet."""

    def __init__(self, writer: SpoolWriter, limit: int) -> None:
        self._writer = writer
        self._limit = limit
        self._pending: list[pa.RecordBatch] = []
        self._size = 0
        self.numbers: list[int] = []
        self.rows = self.bytes = 0

    def add(self, rows: pa.RecordBatch) -> None:
        self._pending.append(rows)
        self._size += rows.nbytes
        self.rows += len(rows)
        if self._size >= self._limit:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self.numbers.append(self._writer.write(_joined(self._pending)))
        self.bytes += self._size
        self._pending, self._size = [], 0
