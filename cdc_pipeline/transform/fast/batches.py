"""The compiled loops as functions of Arrow batches; None means: take the exact path."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cdc_pipeline.core.items.attributes import quoted
from cdc_pipeline.core.items.columns import AttributeStats, Column, Stats
from cdc_pipeline.transform.fast.canonical import canonical_lines
from cdc_pipeline.transform.fast.columns import (
    binaries,
    booleans,
    decimals,
    integers,
    split_sets,
    strings,
)
from cdc_pipeline.transform.fast.plain import plain_json
from cdc_pipeline.transform.fast.scan import find_cells, measure, number_of, scan, select_keys
from cdc_pipeline.transform.fast.tokens import TAGS

_ATTRIBUTES = 1 << 12
_NAME_BYTES = 1 << 18
SPARE = 8
_SHORTEST_LINE = len('{"Item":{}}') + 1

_Array = np.ndarray[Any, Any]


class Names:
    """Attribute names by number, spelled as in canonical JSON."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.slots = np.full(2 * _ATTRIBUTES, -1, np.int64)
        self.text = np.empty(_NAME_BYTES + SPARE, np.uint8)
        self.ends = np.zeros(_ATTRIBUTES + 1, np.int64)
        self.follow = np.full(_ATTRIBUTES + 1, -1, np.int64)
        self.count = np.zeros(1, np.int64)
        self.complete = all(self.number(name) == place for place, name in enumerate(known))

    def number(self, name: str) -> int:
        """Return the number of a name, added if new; -1: no more room."""
        spelled = np.frombuffer(quoted(name)[1:].encode() + bytes(SPARE), np.uint8)
        return number_of(
            spelled, len(spelled) - SPARE - 1, self.slots, self.text, self.ends, self.count
        )

    def __iter__(self) -> Iterator[str]:
        """Yield names in the order of their numbers."""
        text, ends = self.text.tobytes(), self.ends.tolist()
        for place in range(int(self.count[0])):
            yield json.loads(b'"' + text[ends[place] : ends[place + 1]] + b'"')


@dataclass(frozen=True)
class Scan:
    """Every top-level value of some canonical items."""

    data: _Array
    rows: int
    row: _Array
    attribute: _Array
    tag: _Array
    name: _Array
    at: _Array
    stop: _Array

    def below(self, attributes: int) -> "Scan":
        """Drop the values of attributes from this number on: those without a column."""
        chosen = self.attribute < attributes
        if chosen.all():
            return self
        arrays = (self.row, self.attribute, self.tag, self.name, self.at, self.stop)
        return Scan(self.data, self.rows, *(array[chosen] for array in arrays))


def text_of(array: pa.Array) -> tuple[_Array, _Array]:
    """Return bytes and offsets of a string array without nulls."""
    _, offsets, data = array.buffers()
    if not len(array) or offsets is None:
        return np.empty(SPARE, np.uint8), np.zeros(1, np.int32)
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    text = np.empty(int(ends[-1] - ends[0]) + SPARE, np.uint8)
    text[:-SPARE] = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    return text, ends - ends[0]


def string_array(data: _Array, offsets: _Array, *, check: bool = False) -> pa.StringArray:
    """Build an array of strings that end at `offsets[1:]`; `check`: refuse invalid Unicode."""
    size = int(offsets[-1])
    buffers = [None, pa.py_buffer(offsets.astype(np.int32, copy=False)), pa.py_buffer(data[:size])]
    array = pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)
    if check:
        array.validate(full=True)
    return array


def scan_items(data: _Array, offsets: _Array, names: Names) -> Scan | None:
    """Find the top-level values of canonical items."""
    room = int(offsets[-1] - offsets[0]) // 11 + 1
    row, attribute, tag, name, at, stop = np.empty((6, room), np.int32)
    count = scan(
        data,
        offsets,
        names.slots,
        names.text,
        names.ends,
        names.follow,
        names.count,
        row,
        attribute,
        tag,
        name,
        at,
        stop,
    )
    if count < 0:
        return None
    found = (a[:count] for a in (row, attribute, tag, name, at, stop))
    return Scan(data, len(offsets) - 1, *found)


class StatsReader:
    """Statistics of the attributes of canonical items."""

    def __init__(self) -> None:
        self.names = Names()
        self._counts = np.zeros((_ATTRIBUTES, len(TAGS)), np.int64)
        self._digits = np.zeros(_ATTRIBUTES, np.int64)
        self._scales = np.zeros(_ATTRIBUTES, np.int64)

    def read(self, items: pa.Array) -> bool:
        """Count all items; False: none was counted, take the exact path."""
        scan = scan_items(*text_of(items), self.names)
        return scan is not None and self.count(scan)

    def count(self, scan: Scan) -> bool:
        """Count like `read`, for items scanned with these names."""
        state = (self._counts, self._digits, self._scales)
        before = [array.copy() for array in state]
        if measure(scan.data, scan.attribute, scan.tag, scan.at, scan.stop, *state):
            return True
        self._counts, self._digits, self._scales = before
        return False

    def stats(self) -> Stats:
        """Return the statistics so far."""
        found: Stats = {}
        for place, name in enumerate(self.names):
            counts = zip(TAGS, self._counts[place].tolist(), strict=True)
            tags = Counter({tag: count for tag, count in counts if count})
            if tags:
                digits, scale = int(self._digits[place]), int(self._scales[place])
                found[name] = AttributeStats(tags, digits, scale)
        return found


# ------------------------------------------------------------------------------------- canonical


@dataclass(frozen=True)
class CanonicalLines:
    """Lines of an export as canonical keys and items, except `others`.

    `others`: numbers (from 1 on), starts and ends of the unsupported lines.
    """

    keys: pa.Array
    items: pa.Array
    understood: _Array
    others: list[tuple[int, int, int]]

    def weave(self, mine: pa.Array, others: pa.Array) -> pa.Array:
        """Merge both kinds of rows in the order of their lines."""
        places = np.empty(len(self.understood), np.int64)
        places[self.understood] = np.arange(len(mine))
        places[~self.understood] = np.arange(len(mine), len(places))
        return pa.concat_arrays([mine, others]).take(pa.array(places))


def _others(understood: _Array, line_ends: _Array) -> list[tuple[int, int, int]]:
    places = np.flatnonzero(~understood)
    starts = np.where(places > 0, line_ends[places - 1], 0)
    ends = line_ends[places] - 1
    numbers = (places + 1).tolist()
    return list(zip(numbers, starts.tolist(), ends.tolist(), strict=True))


class LineReader:
    """Converter of exports' lines to canonical form; one per thread, because it keeps buffers."""

    def __init__(self, key_names: Sequence[str]) -> None:
        self._key_names = sorted(key_names)
        self._counter = StatsReader()
        self._data = np.empty(0, np.uint8)
        self._out = self._data

    def stats(self) -> Stats:
        """Return the statistics of the supported lines."""
        return self._counter.stats()

    def read(self, lines: bytes) -> CanonicalLines | None:
        """Convert whole lines, each with its newline; None: take the exact path for all of them."""
        size = len(lines)
        if len(self._data) < size + SPARE:
            self._data = np.zeros(size + SPARE, np.uint8)
            self._out = np.empty(2 * size + SPARE, np.uint8)
        self._data[:size] = np.frombuffer(lines, np.uint8)
        room = size // _SHORTEST_LINE + 1
        item_ends, line_ends = np.empty((2, room), np.int64)
        understood = np.empty(room, np.bool_)
        count = canonical_lines(self._data, size, self._out, item_ends, line_ends, understood)
        if count < 0:
            return None
        item_ends, line_ends, understood = item_ends[:count], line_ends[:count], understood[:count]
        offsets = np.concatenate((np.zeros(1, np.int32), item_ends[understood].astype(np.int32)))
        data = self._out[: offsets[-1] + SPARE].copy()
        try:
            items = string_array(data, offsets, check=True)
        except pa.ArrowInvalid:
            return None
        keys = self._select(data, offsets)
        if keys is None:
            return None
        return CanonicalLines(keys, items, understood, _others(understood, line_ends))

    def _select(self, data: _Array, offsets: _Array) -> pa.StringArray | None:
        """Count the items and return their keys."""
        names = self._counter.names
        wanted = np.array([names.number(name) for name in self._key_names], np.int64)
        scan = scan_items(data, offsets, names)
        if scan is None or (wanted < 0).any():
            return None
        keys = np.empty(len(data) + 2 * scan.rows, np.uint8)  # with the spare bytes of `data`
        ends = np.zeros(scan.rows + 1, np.int32)
        found = select_keys(
            data, scan.row, scan.attribute, scan.name, scan.stop, wanted, keys, ends[1:]
        )
        if not found or not self._counter.count(scan):
            return None
        return string_array(keys[: ends[-1]].copy(), ends)


# ------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Cells:
    """Positions of the values of one column; a start of -1 means no value."""

    data: _Array
    starts: _Array
    ends: _Array

    @property
    def bytes(self) -> int:
        """Return the length of all values together."""
        return int(np.sum((self.ends - self.starts)[self.starts >= 0], dtype=np.int64))

    def mask(self) -> tuple[pa.Buffer | None, int]:
        """Return Arrow's validity bitmap and the number of nulls."""
        missing = self.starts < 0
        count = int(np.count_nonzero(missing))
        bits = pa.py_buffer(np.packbits(~missing, bitorder="little")) if count else None
        return bits, count


class Shredder:
    """Converter of canonical items to the typed columns `columns`."""

    def __init__(self, columns: Sequence[Column], kinds: Sequence[pa.DataType]) -> None:
        self._columns = list(zip(columns, kinds, strict=True))
        self._names = Names([column.attribute for column in columns])
        self._expected = np.array([TAGS.index(c.tag) for c in columns], np.int64)

    def shred(self, items: pa.StringArray) -> tuple[pa.Array, list[pa.Array]] | None:
        """Return the rescue column and the typed columns; None: take the exact path."""
        if not self._names.complete:
            return None
        data, offsets = text_of(items)
        scan = scan_items(data, offsets, self._names)
        if scan is None:
            return None
        scan = scan.below(len(self._columns))
        starts, ends = np.empty((2, len(self._columns), scan.rows), np.int32)
        rescued = np.empty(len(data) + 2 * scan.rows, np.uint8)
        rescued_ends = np.zeros(scan.rows + 1, np.int32)
        if not find_cells(
            data,
            scan.row,
            scan.attribute,
            scan.tag,
            scan.name,
            scan.at,
            scan.stop,
            self._expected,
            starts,
            ends,
            rescued,
            rescued_ends[1:],
        ):
            return None
        arrays = []
        for (column, kind), first, end in zip(self._columns, starts, ends, strict=True):
            array = _array(column.type, kind, Cells(data, first, end))
            if array is None:
                return None
            arrays.append(array)
        return _rescue_column(rescued, rescued_ends), arrays


def _rescue_column(rescued: _Array, ends: _Array) -> pa.Array:
    missing = ends[1:] == ends[:-1]
    bits = pa.py_buffer(np.packbits(~missing, bitorder="little"))
    data = pa.py_buffer(rescued[: ends[-1]].copy())
    return pa.Array.from_buffers(pa.string(), len(missing), [bits, pa.py_buffer(ends), data])


def _array(kind: str, arrow: pa.DataType, cells: Cells) -> pa.Array | None:
    """Convert one column's cells to Arrow."""
    if kind.startswith("list<"):
        return _lists(kind[5:-1], arrow, cells)
    if kind == "int64":
        return _fixed(arrow, cells, np.empty(len(cells.starts), np.int64), integers)
    if kind.startswith("decimal("):
        out = np.empty(2 * len(cells.starts), np.int64)
        return _fixed(arrow, cells, out, decimals, arrow.precision, arrow.scale)
    if kind == "boolean":
        return _booleans(cells)
    convert = {"binary": binaries, "json": plain_json}.get(kind, strings)
    return variable_array(arrow, cells, convert)


def _fixed(arrow: pa.DataType, cells: Cells, out: _Array, convert: Any, *more: Any) -> Any:
    if not convert(cells.data, cells.starts, cells.ends, *more, out):
        return None
    bits, nulls = cells.mask()
    return pa.Array.from_buffers(arrow, len(cells.starts), [bits, pa.py_buffer(out)], nulls)


def _booleans(cells: Cells) -> pa.Array:
    out = np.empty(len(cells.starts), np.bool_)
    booleans(cells.data, cells.starts, out)
    bits, nulls = cells.mask()
    values = pa.py_buffer(np.packbits(out, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(cells.starts), [bits, values], nulls)


def variable_array(arrow: pa.DataType, cells: Cells, convert: Any) -> pa.Array | None:
    """Convert cells to text or bytes, at most as long; None: take the exact path."""
    offsets = np.zeros(len(cells.starts) + 1, np.int32)
    out = np.empty(cells.bytes + SPARE, np.uint8)
    if not convert(cells.data, cells.starts, cells.ends, offsets, out):
        return None
    bits, nulls = cells.mask()
    buffers = [bits, pa.py_buffer(offsets), pa.py_buffer(out[: offsets[-1]])]
    return pa.Array.from_buffers(arrow, len(cells.starts), buffers, nulls)


def _lists(kind: str, arrow: pa.DataType, cells: Cells) -> pa.Array | None:
    offsets = np.zeros(len(cells.starts) + 1, np.int32)
    starts, ends = np.empty((2, cells.bytes // 2), np.int32)
    count = split_sets(cells.data, cells.starts, cells.ends, offsets, starts, ends)
    if count < 0:
        return None
    members = _array(kind, arrow.value_type, Cells(cells.data, starts[:count], ends[:count]))
    if members is None:
        return None
    bits, nulls = cells.mask()
    buffers = [bits, pa.py_buffer(offsets)]
    return pa.Array.from_buffers(arrow, len(cells.starts), buffers, nulls, children=[members])
