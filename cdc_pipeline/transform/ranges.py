"""Narrow Parquet files split into ranges of keys, so that each can be sorted in bounded memory.

DuckDB's sort spills to disk, but its memory still grows with the rows: one thread with 320 MB sorts
4 GB of items, and with 400 MB it fails at 15 GB (DuckDB 2.0.0, measured).
"""

import bisect
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cdc_pipeline.transform.shred import NARROW_SCHEMA

_SAMPLES = 200
_BATCH_ROWS = 4_000
_BUFFER_BYTES = 128 << 20


def write_narrow(path: Path) -> pq.ParquetWriter:
    """Open a writer of `NARROW_SCHEMA` for temporary files, read once or twice."""
    return pq.ParquetWriter(
        path,
        NARROW_SCHEMA,
        compression="lz4",
        use_dictionary=["order_key", "write_time_us"],  # type: ignore[arg-type]
        write_statistics=False,
    )


def split_by_key(paths: Sequence[Path], folder: Path, ranges: int) -> list[Path]:
    """Move the rows of files into one file per range of keys, in the order of ranges.

    The ranges have about equal numbers of rows. Files are removed after reading. Memory: a batch,
    and buffers of 128 MB in total.
    """
    bounds = _bounds(paths, ranges)
    split = [folder / f"range-{number:05d}.parquet" for number in range(len(bounds) + 1)]
    with ExitStack() as stack:
        writers = [_Buffered(stack.enter_context(write_narrow(path)), len(split)) for path in split]
        for path in paths:
            with pq.ParquetFile(path, pre_buffer=False) as file:  # True keeps whole files
                for batch in file.iter_batches(_BATCH_ROWS):
                    _distribute(batch.cast(NARROW_SCHEMA), bounds, writers)
            path.unlink()
        for writer in writers:
            writer.flush()
    return split


def _bounds(paths: Sequence[Path], ranges: int) -> list[str]:
    """Return the first key of each range except the first, from a sample of the keys."""
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    step = max(1, rows // (_SAMPLES * ranges))
    sample: list[str] = []
    for path in paths:
        keys = pq.read_table(path, columns=["item_key"]).column("item_key")
        sample += keys.take(pa.array(range(0, len(keys), step), pa.int64())).to_pylist()
    sample.sort()
    return sorted({sample[len(sample) * n // ranges] for n in range(1, ranges)}) if sample else []


class _Buffered:
    def __init__(self, writer: pq.ParquetWriter, of: int) -> None:
        self._writer = writer
        self._limit = _BUFFER_BYTES // of
        self._rows: list[pa.RecordBatch] = []
        self._size = 0

    def add(self, rows: pa.RecordBatch) -> None:
        self._rows.append(rows)
        self._size += rows.nbytes
        if self._size >= self._limit:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._rows))
        self._rows, self._size = [], 0


def _distribute(batch: pa.RecordBatch, bounds: list[str], writers: list[_Buffered]) -> None:
    """Distribute a batch over ranges; after a sort by key each range is one slice."""
    ordered = batch.sort_by("item_key")
    keys, start = ordered.column("item_key").to_pylist(), 0
    for number, writer in enumerate(writers):
        end = bisect.bisect_left(keys, bounds[number]) if number < len(bounds) else len(keys)
        if end > start:
            writer.add(ordered.slice(start, end - start))
            start = end
