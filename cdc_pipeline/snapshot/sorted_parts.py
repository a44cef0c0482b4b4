"""Converted data files of an export in the lake, each sorted by key, read in ranges of keys.

A data file becomes objects of some MB: batches of `ITEMS_SCHEMA` as Arrow messages, each compressed
by itself, one after the other. A JSON object, written last, marks the file as complete and names
the first key of each batch, so that a range of keys is one read of each object.
"""

import bisect
import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from cdc_pipeline.aws.export import DataFile
from cdc_pipeline.core.errors import CaptureConflictError
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline.transform.spool import ITEMS_SCHEMA

_FORMAT = 1
_OBJECT_BYTES = 64 << 20
_CODEC = "lz4"
_BATCHES = 256
"""Of a data file: its index stays small, and a range reads little more than its rows."""

_LEAST_ROWS = 64
_SAMPLES = 64


class Batch(msgspec.Struct, array_like=True):
    """A batch in an object: its first key, place and sizes in bytes (stored and as it is)."""

    first: str
    number: int
    offset: int
    size: int
    raw: int


class SortedFile(msgspec.Struct):
    """A data file that is complete in the lake. `stats`: statistics of its attributes, as JSON."""

    items: int
    bytes: int
    stats: str
    batches: list[Batch]

    def sample(self) -> list[str]:
        """Return some of its keys, evenly distributed."""
        step = max(1, len(self.batches) // _SAMPLES)
        return [batch.first for batch in self.batches[::step]]


class SortedParts:
    """The sorted data files of one export under one prefix."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def kept(self, file: DataFile) -> SortedFile | None:
        """Return a data file that is complete; None: it must be converted."""
        text = self._store.read(f"{self._name(file)}.json")
        return None if text is None else msgspec.json.decode(text, type=SortedFile)

    def keep(
        self, file: DataFile, items: int, size: int, stats: str, rows: Iterable[pa.RecordBatch]
    ) -> SortedFile:
        """Store a data file's rows, sorted by key. Memory: an object."""
        batches: list[Batch] = []
        pending: list[bytes] = []
        number = offset = 0
        for batch in _sliced(rows, max(items // _BATCHES, _LEAST_ROWS)):
            message = batch.serialize()
            data = pa.compress(message, _CODEC, asbytes=True)
            first = batch.column("item_key")[0].as_py()
            batches.append(Batch(first, number, offset, len(data), message.size))
            pending.append(data)
            offset += len(data)
            if offset >= _OBJECT_BYTES:
                self._store.write(f"{self._name(file)}-{number:04d}.bin", b"".join(pending))
                pending, offset, number = [], 0, number + 1
        if pending:
            self._store.write(f"{self._name(file)}-{number:04d}.bin", b"".join(pending))
        done = SortedFile(items, size, stats, batches)
        self._store.write(f"{self._name(file)}.json", msgspec.json.encode(done))
        return done

    def read(self, file: DataFile, least: str | None, end: str | None) -> list[pa.RecordBatch]:
        """Return a file's rows with keys from `least` on and before `end`, in order of key.

        Raises `CaptureConflictError` if the file was removed meanwhile.
        """
        kept = self.kept(file)
        if kept is None:
            raise self._removed()
        firsts = [batch.first.encode() for batch in kept.batches]
        start = 0 if least is None else max(bisect.bisect_right(firsts, least.encode()) - 1, 0)
        stop = len(firsts) if end is None else bisect.bisect_left(firsts, end.encode())
        return [
            rows
            for batch in self._loaded(file, kept.batches[start:stop])
            if len(rows := _within(batch, least, end))
        ]

    def _loaded(self, file: DataFile, batches: list[Batch]) -> Iterator[pa.RecordBatch]:
        for number, group in groupby(batches, key=lambda batch: batch.number):
            wanted = list(group)
            start = wanted[0].offset
            size = wanted[-1].offset + wanted[-1].size - start
            data = self._store.read_part(f"{self._name(file)}-{number:04d}.bin", start, size)
            if data is None:
                raise self._removed()
            for batch in wanted:
                part = data[batch.offset - start :][: batch.size]
                message = pa.decompress(part, batch.raw, _CODEC)
                yield pa.ipc.read_record_batch(message, ITEMS_SCHEMA)

    def _removed(self) -> CaptureConflictError:
        return CaptureConflictError(
            "converted files of the export were removed meanwhile, such as by an erasure",
            fix="materialise pitr_export again",
        )

    def _name(self, file: DataFile) -> str:
        inputs = (_FORMAT, file.key, file.md5)
        return f"{self._prefix}{hashlib.sha256(repr(inputs).encode()).hexdigest()[:32]}"


def _sliced(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, len(batch), rows):
            yield batch.slice(start, rows)


def _within(batch: pa.RecordBatch, least: str | None, end: str | None) -> pa.RecordBatch:
    """Return the rows of a sorted batch in a range of keys."""
    keys = batch.column("item_key")
    start, stop = 0, len(keys)
    if least is not None and keys[0].as_py().encode() < least.encode():
        start = pc.call_function("less", [keys, pa.scalar(least)]).true_count
    if end is not None and keys[-1].as_py().encode() >= end.encode():
        stop = pc.call_function("less", [keys, pa.scalar(end)]).true_count
    return batch.slice(start, max(stop - start, 0))
