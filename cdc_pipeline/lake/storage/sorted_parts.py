"""Rows in the lake that workers hand on: sorted by key, in parts, read in ranges of keys.

A part becomes objects of some MB: batches as Arrow messages, each compressed by itself, one after
the other. A JSON object, written last, marks the part as complete and names the first key of each
batch, so that a range of keys is one read of each object.
"""

import bisect
from collections.abc import Iterable, Iterator
from itertools import groupby

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from cdc_pipeline.core.errors import CaptureConflictError
from cdc_pipeline.lake.storage.store import Store

_OBJECT_BYTES = 64 << 20
_CODEC = "lz4"
_BATCHES = 256
"""Of a part: its index stays small, and a range reads little more than its rows."""

_LEAST_ROWS = 64
_SAMPLES = 64


class Batch(msgspec.Struct, array_like=True):
    """A batch in an object: its first key, place and sizes in bytes (stored and as it is)."""

    first: str
    number: int
    offset: int
    size: int
    raw: int


class SortedPart(msgspec.Struct):
    """A part that is complete. `note`: a text of the one who wrote it."""

    rows: int
    note: str
    batches: list[Batch]

    def sample(self) -> list[str]:
        """Return some of its keys, evenly distributed."""
        step = max(1, len(self.batches) // _SAMPLES)
        return [batch.first for batch in self.batches[::step]]


class KeyRange(msgspec.Struct):
    """Keys from `least` on and before `end`; None: from the first or to the last."""

    least: str | None = None
    end: str | None = None

    def overlaps(self, first: bytes, last: bytes) -> bool:
        """Whether a key between `first` and `last`, both included, may be in the range."""
        return (self.least is None or last >= self.least.encode()) and (
            self.end is None or first < self.end.encode()
        )

    def within(self, keys: pa.Array) -> tuple[int, int]:
        """Return where the range begins in sorted keys, and where it ends."""
        start, stop = 0, len(keys)
        if stop and self.least is not None and keys[0].as_py().encode() < self.least.encode():
            start = pc.call_function("less", [keys, pa.scalar(self.least)]).true_count
        if stop and self.end is not None and keys[-1].as_py().encode() >= self.end.encode():
            stop = pc.call_function("less", [keys, pa.scalar(self.end)]).true_count
        return start, max(start, stop)


class SortedParts:
    """Parts of rows under one prefix, by name. The first column of `schema` is the key."""

    def __init__(self, store: Store, prefix: str, schema: pa.Schema) -> None:
        self._store = store
        self._prefix = prefix
        self._schema = schema

    def kept(self, name: str) -> SortedPart | None:
        """Return a part that is complete; None: there is none."""
        text = self._store.read(f"{self._prefix}{name}.json")
        return None if text is None else msgspec.json.decode(text, type=SortedPart)

    def keep(self, name: str, rows: Iterable[pa.RecordBatch], count: int, note: str) -> SortedPart:
        """Store rows that are sorted by key. `count`: their number. Memory: an object."""
        batches: list[Batch] = []
        pending: list[bytes] = []
        number = offset = 0
        for batch in _sliced(rows, max(count // _BATCHES, _LEAST_ROWS)):
            message = batch.serialize()
            data = pa.compress(message, _CODEC, asbytes=True)
            first = batch.column(0)[0].as_py()
            batches.append(Batch(first, number, offset, len(data), message.size))
            pending.append(data)
            offset += len(data)
            if offset >= _OBJECT_BYTES:
                self._store.write(self._object(name, number), b"".join(pending))
                pending, offset, number = [], 0, number + 1
        if pending:
            self._store.write(self._object(name, number), b"".join(pending))
        done = SortedPart(count, note, batches)
        self._store.write(f"{self._prefix}{name}.json", msgspec.json.encode(done))
        return done

    def read(self, name: str, keys: KeyRange) -> list[pa.RecordBatch]:
        """Return a part's rows in a range of keys, in order of key.

        Raises `CaptureConflictError` if the part was removed meanwhile.
        """
        kept = self.kept(name)
        if kept is None:
            raise _removed()
        firsts = [batch.first.encode() for batch in kept.batches]
        start, stop = 0, len(firsts)
        if keys.least is not None:
            start = max(bisect.bisect_left(firsts, keys.least.encode()) - 1, 0)
        if keys.end is not None:
            stop = bisect.bisect_left(firsts, keys.end.encode())
        found = []
        for batch in self._loaded(name, kept.batches[start:stop]):
            first, end = keys.within(batch.column(0))
            if end > first:
                found.append(batch.slice(first, end - first))
        return found

    def _loaded(self, name: str, batches: list[Batch]) -> Iterator[pa.RecordBatch]:
        for number, group in groupby(batches, key=lambda batch: batch.number):
            wanted = list(group)
            start = wanted[0].offset
            size = wanted[-1].offset + wanted[-1].size - start
            data = self._store.read_part(self._object(name, number), start, size)
            if data is None:
                raise _removed()
            for batch in wanted:
                part = data[batch.offset - start :][: batch.size]
                message = pa.decompress(part, batch.raw, _CODEC)
                yield pa.ipc.read_record_batch(message, self._schema)

    def _object(self, name: str, number: int) -> str:
        return f"{self._prefix}{name}-{number:04d}.bin"


def key_ranges(sample: Iterable[str], count: int) -> list[KeyRange]:
    """Return about `count` ranges of about equal size that have all keys, by a sample of them."""
    keys = sorted(sample, key=str.encode)
    return ranges_between({keys[len(keys) * n // count] for n in range(1, count)} if keys else ())


def ranges_between(bounds: Iterable[str]) -> list[KeyRange]:
    """Return the ranges that have all keys and begin at these keys, but for the first."""
    starts = sorted(set(bounds), key=str.encode)
    return [KeyRange(*pair) for pair in zip([None, *starts], [*starts, None], strict=True)]


def _removed() -> CaptureConflictError:
    return CaptureConflictError(
        "what workers had prepared was removed meanwhile, such as by an erasure",
        fix="materialise the asset again",
    )


def _sliced(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, len(batch), rows):
            yield batch.slice(start, rows)
