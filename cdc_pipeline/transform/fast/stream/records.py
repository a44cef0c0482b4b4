"""Records of changes as Arrow arrays: the interface of the compiled scan."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cdc_pipeline.core.items.attributes import quoted
from cdc_pipeline.transform.fast.batches import SPARE, Cells, variable_array
from cdc_pipeline.transform.fast.plain import plain_json
from cdc_pipeline.transform.fast.stream.envelopes import (
    FIELDS,
    OLD,
    PLACED,
    WHOLE,
    copy_texts,
    have_binaries,
    match_keys,
    read_records,
)

_MOST_BYTES = 1 << 29  # positions are 32 bits

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Envelopes:
    """Fields of records, by names in `envelopes.FIELDS`.

    `found`: 0 if the scan does not support a record, which then has no fields. `ops`: the place of
    the operation in `core.changes.change.OPS`. `times`: of the write, as written.
    """

    found: _Array
    ops: _Array
    times: _Array
    _data: _Array
    _images: _Array
    _starts: _Array
    _ends: _Array

    def choose(self, wanted: _Array) -> "Envelopes":
        """Return the wanted records, all of them supported."""
        if wanted.all():
            return self
        return replace(
            self,
            found=self.found[wanted],
            ops=self.ops[wanted],
            times=self.times[wanted],
            _starts=np.ascontiguousarray(self._starts[:, wanted]),
            _ends=np.ascontiguousarray(self._ends[:, wanted]),
        )

    @property
    def understood(self) -> _Array:
        """Whether the scan supports each record."""
        return self.found != 0

    @property
    def have_whole_times(self) -> _Array:
        """Whether each record's time is written as an integer."""
        return self._have(WHOLE)

    def have(self, field: str) -> _Array:
        """Whether each record has a field; images and identities that are null count as absent."""
        if field in PLACED:
            return self._starts[PLACED.index(field)] >= 0
        return self._have(FIELDS.index(field))

    def _have(self, bit: int) -> _Array:
        return (self.found >> bit & 1).astype(np.bool_)

    def is_filled(self, image: str) -> _Array:
        """Whether each record has an image with attributes."""
        place = PLACED.index(image)
        return self._ends[place] - self._starts[place] > len("{}")

    def text(self, field: str) -> pa.Array:
        """Return a field as text, null if absent; raises `pa.ArrowInvalid` for invalid Unicode."""
        array = variable_array(pa.string(), self._cells(field), copy_texts)
        assert array is not None  # it copies whatever there is
        array.validate(full=True)
        return array

    def plain(self, image: str) -> pa.Array | None:
        """Return an image as plain JSON, null if absent; None: take the exact path."""
        return variable_array(pa.string(), self._cells(image), plain_json)

    def pieces(self, field: str) -> Iterator[bytes]:
        """Yield a field as bytes, empty if absent."""
        cells = self._cells(field)
        text = cells.data.tobytes()
        for start, end in zip(cells.starts.tolist(), cells.ends.tolist(), strict=True):
            yield text[start:end]

    def piece(self, field: str, record: int) -> bytes:
        """Return a field of one record."""
        cells = self._cells(field)
        return cells.data[cells.starts[record] : cells.ends[record]].tobytes()

    def have_keys(self, key_types: Mapping[str, str]) -> _Array:
        """Whether each record has exactly these key attributes, of these types."""
        parts, before = [], "{"
        for name, kind in sorted(key_types.items()):
            parts.append(f'{before}{quoted(name)}:{{"{kind}":"'.encode())
            before = '"},'
        parts.append(b'"}}')
        pieces = np.frombuffer(bytearray(b"".join(parts)), np.uint8)
        matched = np.empty(len(self.ops), np.bool_)
        ends = np.cumsum([len(part) for part in parts])
        keys = self._cells("Keys")
        match_keys(keys.data, keys.starts, keys.ends, pieces, ends, matched)
        return matched

    def have_binaries(self) -> _Array:
        """Whether each record has a binary in its keys or images."""
        found = np.zeros(len(self.ops), np.bool_)
        for image in PLACED[: OLD + 1]:
            cells = self._cells(image)
            have_binaries(cells.data, cells.starts, cells.ends, found)
        return found

    def _cells(self, field: str) -> Cells:
        place = PLACED.index(field)
        source = self._images if place <= OLD else self._data
        return Cells(source, self._starts[place], self._ends[place])


def read(records: Sequence[Any]) -> Envelopes | None:
    """Scan records, given as objects with the buffer interface; None: too much at once."""
    ends = np.cumsum([memoryview(record).nbytes + 1 for record in records]) - 1
    if int(ends[-1]) > _MOST_BYTES:
        return None
    data = np.frombuffer(bytearray(b"\n").join([*records, bytes(SPARE)]), np.uint8)
    images = np.empty(2 * len(data), np.uint8)
    starts, ends_of = np.empty((2, len(PLACED), len(records)), np.int32)
    ops = np.empty(len(records), np.int8)
    times, found = np.empty((2, len(records)), np.int64)
    read_records(data, ends, images, starts, ends_of, ops, times, found)
    return Envelopes(found, ops, times, data, images, starts, ends_of)
