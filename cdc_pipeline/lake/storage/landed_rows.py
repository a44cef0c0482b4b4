"""Look-up of rows in landing objects by time and item, with as few reads as possible.

The log has the time span of each object, the footer that of each row group. Reads in order: write
times of row groups that overlap, keys of rows whose time matches, all columns of row groups with a
matching row.
"""

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Set
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.lake.storage.store import Store

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_WHOLE_BYTES = 256 << 10  # an object up to this size is read by one request
_MS = 1000


class LandedRows:
    """Reader of single rows in landing objects, with a cache of their Parquet footers.

    `bytes_read`: total so far.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._footers: dict[str, pq.FileMetaData] = {}
        self.bytes_read = 0

    def find(
        self, objects: Iterable[LandedObject], slots: Set[tuple[int, str]]
    ) -> Iterator[Change]:
        """Yield rows whose ms and item (`core.changes.ties.slot_of`) are in `slots`.

        Missing and damaged objects are skipped: reconciliation reports lost rows and backfills heal
        them, and capture must continue. Raises `LakeError`.
        """
        times_ms = sorted({time_ms for time_ms, _ in slots})
        overlapping = [o for o in objects if _within(times_ms, o.min_write_us, o.max_write_us)]
        kept = {o.key: self._footers[o.key] for o in overlapping if o.key in self._footers}
        self._footers = kept
        for landed in overlapping:
            try:
                yield from self._rows(landed, times_ms, slots)
            except (OSError, pa.ArrowInvalid):  # errors of the store are LakeErrors
                continue

    def _rows(
        self, landed: LandedObject, times_ms: list[int], slots: Set[tuple[int, str]]
    ) -> Iterator[Change]:
        with _ObjectFile(self._store, landed) as data:
            matches = self._matches(landed, data, times_ms, slots)
            yield from matches
            self.bytes_read += data.bytes_read

    def _matches(
        self,
        landed: LandedObject,
        data: "_ObjectFile",
        times_ms: list[int],
        slots: Set[tuple[int, str]],
    ) -> list[Change]:
        file = pq.ParquetFile(data, metadata=self._footers.get(landed.key))
        self._footers[landed.key] = file.metadata
        column = file.schema_arrow.get_field_index("write_time_us")
        matches: list[Change] = []
        for group in range(file.num_row_groups):
            span = file.metadata.row_group(group).column(column).statistics
            wanted_ms = _within(times_ms, span.min, span.max)
            rows = _row_numbers(file, group, wanted_ms, slots) if wanted_ms else []
            if rows:
                whole = file.read_row_group(group, columns=list(Change._fields))
                matches += [Change(**row) for row in whole.take(rows).to_pylist()]
        return matches


def _within(times_ms: list[int], min_us: int, max_us: int) -> list[int]:
    """Return the times, sorted and in ms, within a span in µs (both ends included)."""
    start, end = bisect_left(times_ms, min_us // _MS), bisect_right(times_ms, max_us // _MS)
    return times_ms[start:end]


def _row_numbers(
    file: pq.ParquetFile, group: int, wanted_ms: list[int], slots: Set[tuple[int, str]]
) -> list[int]:
    """Return the numbers of a row group's rows that are in one of the slots."""
    written_us = file.read_row_group(group, columns=["write_time_us"])["write_time_us"]
    times_ms = pc.divide(written_us, _MS)  # type: ignore[attr-defined]
    wanted = pc.is_in(times_ms, pa.array(wanted_ms, pa.int64()))  # type: ignore[attr-defined]
    numbers = pc.indices_nonzero(wanted)  # type: ignore[attr-defined]
    if not len(numbers):
        return []
    keys = file.read_row_group(group, columns=["keys"])["keys"].take(numbers).to_pylist()
    row_slots = zip(times_ms.take(numbers).to_pylist(), keys, strict=True)
    return [n for n, slot in zip(numbers.to_pylist(), row_slots, strict=True) if slot in slots]


class _ObjectFile(io.RawIOBase):
    """A landing object as a file of the size in the log; reads raise `FileNotFoundError`."""

    def __init__(self, store: Store, landed: LandedObject) -> None:
        self._store = store
        self._landed = landed
        self._offset = 0
        self._whole: bytes | None = None
        self.bytes_read = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next read, in bytes."""
        return self._offset

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.IOBase`."""
        self._offset = offset + {0: 0, 1: self._offset, 2: self._landed.bytes}[whence]
        return self._offset

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer).cast("B")
        data = self._read(min(len(view), max(self._landed.bytes - self._offset, 0)))
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        if self._landed.bytes > _WHOLE_BYTES:
            return self._counted(self._store.read_part(self._landed.key, self._offset, size))
        if self._whole is None:
            self._whole = self._counted(self._store.read(self._landed.key))
        return self._whole[self._offset : self._offset + size]

    def _counted(self, data: bytes | None) -> bytes:
        if data is None:
            raise FileNotFoundError(self._landed.key)
        self.bytes_read += len(data)
        return data
