"""Rows of landing objects by their time and item, found by reading as little as possible.

The log says which times an object spans, its footer which times each row group spans; of those
that may hold something the write times are read, of rows that have one the keys, and of row groups
with a row that was asked for everything.
"""

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Set
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.lake.storage.store import Store

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_WHOLE_BYTES = 256 << 10  # an object up to this size is read by one request
_MS = 1000


class LandedRows:
    """Looks into landing objects; what their footers say is kept for the next time.

    `bytes_read`: so far.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._footers: dict[str, pq.FileMetaData] = {}
        self.bytes_read = 0

    def find(
        self, objects: Iterable[LandedObject], slots: Set[tuple[int, str]]
    ) -> Iterator[Change]:
        """Rows whose ms and item (`core.changes.ties.slot_of`) are among `slots`.

        Objects that are gone or damaged have none: their rows are lost, which reconciliation finds
        and backfills heal, and capture must go on. Raises `LakeError`.
        """
        times = sorted({time for time, _ in slots})
        overlapping = [o for o in objects if _between(times, o.min_write_us, o.max_write_us)]
        kept = {o.key: self._footers[o.key] for o in overlapping if o.key in self._footers}
        self._footers = kept
        for landed in overlapping:
            try:
                yield from self._rows(landed, times, slots)
            except (OSError, pa.ArrowInvalid):  # what the store cannot do is a LakeError
                continue

    def _rows(
        self, landed: LandedObject, times: list[int], slots: Set[tuple[int, str]]
    ) -> Iterator[Change]:
        with _Object(self._store, landed) as data:
            found = self._matches(landed, data, times, slots)
            yield from found
            self.bytes_read += data.bytes_read

    def _matches(
        self, landed: LandedObject, data: "_Object", times: list[int], slots: Set[tuple[int, str]]
    ) -> list[Change]:
        file = pq.ParquetFile(data, metadata=self._footers.get(landed.key))
        self._footers[landed.key] = file.metadata
        column = file.schema_arrow.get_field_index("write_time_us")
        matches: list[Change] = []
        for group in range(file.num_row_groups):
            span = file.metadata.row_group(group).column(column).statistics
            wanted = _between(times, span.min, span.max)
            rows = _places(file, group, wanted, slots) if wanted else []
            if rows:
                whole = file.read_row_group(group, columns=list(Change._fields))
                matches += [Change(**row) for row in whole.take(rows).to_pylist()]
        return matches


def _between(times: list[int], min_us: int, max_us: int) -> list[int]:
    """Those of some ms, in order, that a span of µs touches."""
    return times[bisect_left(times, min_us // _MS) : bisect_right(times, max_us // _MS)]


def _places(
    file: pq.ParquetFile, group: int, wanted: list[int], slots: Set[tuple[int, str]]
) -> list[int]:
    """Rows of a row group that are in one of the slots, by their numbers."""
    written = file.read_row_group(group, columns=["write_time_us"])["write_time_us"]
    times = written.to_numpy() // _MS
    places = np.flatnonzero(np.isin(times, wanted))
    if not len(places):
        return []
    keys = file.read_row_group(group, columns=["keys"])["keys"].take(pa.array(places)).to_pylist()
    at = zip(times[places].tolist(), keys, strict=True)
    return [place for place, slot in zip(places.tolist(), at, strict=True) if slot in slots]


class _Object(io.RawIOBase):
    """A landing object as a file; its size is in the log. Reads raise `FileNotFoundError`."""

    def __init__(self, store: Store, landed: LandedObject) -> None:
        self._store = store
        self._landed = landed
        self._at = 0
        self._whole: bytes | None = None
        self.bytes_read = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.IOBase`."""
        self._at = offset + {0: 0, 1: self._at, 2: self._landed.bytes}[whence]
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer).cast("B")
        found = self._read(min(len(view), max(self._landed.bytes - self._at, 0)))
        view[: len(found)] = found
        self._at += len(found)
        return len(found)

    def _read(self, size: int) -> bytes:
        if self._landed.bytes > _WHOLE_BYTES:
            return self._fetched(self._store.read_part(self._landed.key, self._at, size))
        if self._whole is None:
            self._whole = self._fetched(self._store.read(self._landed.key))
        return self._whole[self._at : self._at + size]

    def _fetched(self, data: bytes | None) -> bytes:
        if data is None:
            raise FileNotFoundError(self._landed.key)
        self.bytes_read += len(data)
        return data
