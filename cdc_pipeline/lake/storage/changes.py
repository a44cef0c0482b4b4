"""Changes before they land, as rows or as Arrow columns, and the Arrow schemas of both."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress, groupby
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS

_ARROW_TYPES = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "bigint": pa.int64(),
    "timestamp": pa.timestamp("ms", "UTC"),
}
LANDING_SCHEMA = pa.schema([(c.name, _ARROW_TYPES[c.type]) for c in LANDING_COLUMNS])
"""The landing columns in Arrow. Timestamps are in ms: Athena reads none finer."""

CHANGE_SCHEMA = pa.schema([LANDING_SCHEMA.field(name) for name in Change._fields])
"""The fields of a `Change` in Arrow."""

_Part = pa.Table | list[Change]


class Changes(Sequence[Change]):
    """A sequence of changes, in parts that are lists of rows or tables of `CHANGE_SCHEMA`.

    Iteration makes rows of the tables, which costs more than all else that is done with a change;
    methods that handle many changes work with columns.
    """

    def __init__(self, parts: Iterable[_Part] = ()) -> None:
        self._parts = [part for part in parts if len(part)]

    @classmethod
    def of(cls, changes: Iterable[Change]) -> "Changes":
        """Return the changes as this type."""
        return changes if isinstance(changes, Changes) else cls([list(changes)])

    def __len__(self) -> int:
        """Return the number of changes."""
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Change]:
        """Yield rows."""
        return chain.from_iterable(map(_rows, self._parts))

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> list[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | list[Change]:
        """Return one row, or a list of rows."""
        if isinstance(index, slice):
            return list(self)[index]
        place = index + len(self) if index < 0 else index
        for part in self._parts:
            if 0 <= place < len(part):
                return _rows(part[place : place + 1])[0]
            place -= len(part)
        raise IndexError(index)

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of rows."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def has_columns(self) -> bool:
        """Whether any of the changes are columns."""
        return not all(isinstance(part, list) for part in self._parts)

    def extend(self, changes: Sequence[Change]) -> "Changes":
        """Append changes to these."""
        self._parts += Changes.of(changes)._parts
        return self

    def table(self, key: Callable[[Change], Any] | None = None) -> pa.Table:
        """Return all changes as columns; `key`: put parts in the order of their first rows."""
        parts = sorted(self._parts, key=lambda p: key(_rows(p[:1])[0])) if key else self._parts
        tables = [CHANGE_SCHEMA.empty_table()]
        for kind, group in groupby(parts, key=type):
            neighbours = list(group)
            is_rows = kind is list
            tables += [_table([*chain.from_iterable(neighbours)])] if is_rows else neighbours
        return pa.concat_tables(tables)

    def column(self, name: str) -> list[Any]:
        """Return one field of all changes."""
        return [value for part in self._parts for value in _values(part, name)]

    def times_us(self) -> pa.ChunkedArray:
        """Return the write times."""
        return pa.chunked_array([_times_us(part) for part in self._parts], pa.int64())

    def where(self, wanted: pa.Array | pa.ChunkedArray) -> "Changes":
        """Return the changes for which `wanted` is true."""
        if pc.all(wanted).as_py() is not False:  # type: ignore[attr-defined]
            return Changes(self._parts)
        parts, start = [], 0
        for part in self._parts:
            chosen = wanted.slice(start, len(part))
            start += len(part)
            if isinstance(part, list):
                parts.append([*compress(part, chosen.to_pylist())])
            else:
                parts.append(part.filter(chosen))
        return Changes(parts)


def _rows(part: _Part) -> list[Change]:
    if isinstance(part, list):
        return part
    columns = (column.to_pylist() for column in part.columns)
    return [Change(*row) for row in zip(*columns, strict=True)]


def _table(rows: list[Change]) -> pa.Table:
    columns = zip(CHANGE_SCHEMA.types, zip(*rows, strict=True), strict=True)
    arrays = [pa.array(values, kind) for kind, values in columns]
    return pa.Table.from_arrays(arrays, schema=CHANGE_SCHEMA)


def _values(part: _Part, name: str) -> list[Any]:
    if isinstance(part, list):
        return [getattr(row, name) for row in part]
    return part[name].to_pylist()


def _times_us(part: _Part) -> pa.Array:
    if isinstance(part, list):
        return pa.array([row.write_time_us for row in part], pa.int64())
    return part["write_time_us"].combine_chunks()
