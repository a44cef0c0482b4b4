"""Conversion of typed DynamoDB JSON to typed Arrow columns, batch by batch.

This module is the exact path, for any item and attribute name. Compiled code (`transform.fast`) has
the same results, returns input that it does not support, and is used where it pays
(`transform.compilation`).
"""

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any

import msgspec
import pyarrow as pa

from cdc_pipeline.core.items.attributes import plain_value, to_json
from cdc_pipeline.core.items.columns import AttributeStats, Column, Stats, observe
from cdc_pipeline.transform import compilation
from cdc_pipeline.transform.fast import shredder, stats_reader

NARROW_SCHEMA = pa.schema(
    [
        pa.field("item_key", pa.string(), nullable=False),
        pa.field("order_key", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("write_time_us", pa.int64(), nullable=False),
    ]
)
"""Items before typing: canonical keys, order key, canonical typed JSON, write time."""

_SYSTEM_FIELDS = [
    pa.field("_key", pa.string(), nullable=False),
    pa.field("_order_key", pa.string(), nullable=False),
    pa.field("_write_time_us", pa.int64(), nullable=False),
    pa.field("_item", pa.string(), nullable=False),
    pa.field("_rescued", pa.string()),
]

_decode = msgspec.json.decode


def collect_stats(batches: Iterable[pa.RecordBatch], rows: int = 0) -> Stats:
    """Collect statistics of all attributes of the `item` column, over all batches.

    `rows`: those of all batches, if known.
    """
    batches, size = _sized(batches, rows)
    reader = None
    stats: Stats = {}
    for batch in batches:
        items = batch.column("item")
        if reader is None and compilation.pays(compilation.STATS, size):
            reader = stats_reader()
        if reader is None or not reader.read(items):
            for text in items.to_pylist():
                observe(stats, _decode(text))
            compilation.note_exact(compilation.STATS, items.nbytes)
    return merge_stats(stats, reader.stats() if reader else {})


def _sized(batches: Iterable[pa.RecordBatch], rows: int) -> tuple[Iterable[pa.RecordBatch], int]:
    """Return the same batches, and the bytes of their items.

    Estimated from the first batch if `rows` are known; else those of batches kept in memory until
    they are large enough for compiled code that only has to be loaded.
    """
    rest = iter(batches)
    seen, size = [], 0
    for batch in rest:
        seen.append(batch)
        size += batch.column("item").nbytes
        if rows and len(batch):
            size = size * max(rows, len(batch)) // len(batch)
        if rows or size >= compilation.CACHED_BYTES:
            break
    return chain(seen, rest), size


def merge_stats(*parts: Stats) -> Stats:
    """Merge statistics."""
    merged: Stats = {}
    for part in parts:
        for name, seen in part.items():
            merged.setdefault(name, AttributeStats()).merge(seen)
    return merged


def stats_to_json(stats: Stats) -> str:
    """Serialize statistics to text, which is stored with the table."""
    return to_json({name: vars(seen) for name, seen in sorted(stats.items())})


def stats_from_json(text: str) -> Stats:
    """Parse the text of `stats_to_json`."""
    return stats_of(json.loads(text))


def stats_of(raw: Mapping[str, Any]) -> Stats:
    """Build statistics from their parsed JSON."""
    return {
        name: AttributeStats(Counter(seen["tags"]), seen["integer_digits"], seen["scale"])
        for name, seen in raw.items()
    }


def arrow_type(kind: str) -> pa.DataType:
    """Return the Arrow type of a `core.items.columns.Column` type."""
    if kind.startswith("list<"):
        return pa.list_(arrow_type(kind[5:-1]))
    if kind.startswith("decimal("):
        precision, scale = kind[8:-1].split(",")
        return pa.decimal128(int(precision), int(scale))
    return _ARROW_TYPES[kind]


_ARROW_TYPES = {
    "string": pa.string(),
    "json": pa.string(),
    "boolean": pa.bool_(),
    "binary": pa.binary(),
    "int64": pa.int64(),
}


def typed_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the schema: system columns, then one field per column."""
    return pa.schema([*_SYSTEM_FIELDS, *(pa.field(c.name, arrow_type(c.type)) for c in columns)])


def shred(
    batches: Iterable[pa.RecordBatch], columns: Sequence[Column], rows: int = 0
) -> Iterator[pa.RecordBatch]:
    """Convert batches of `NARROW_SCHEMA` to `typed_schema(columns)`, rows in the same order.

    A value with another tag than its column's goes to `_rescued`, a JSON object of typed values by
    attribute name. NULL is null in the column and visible in `_item`, as are all values of an
    attribute without a column. `rows`: those of all batches, if known.
    """
    schema = typed_schema(columns)
    places = {c.attribute: (i, c.tag, _converter(c)) for i, c in enumerate(columns)}
    batches, size = _sized(batches, rows)
    fast = None
    for batch in batches:
        items = batch.column("item")
        if fast is None and compilation.pays(compilation.CELLS, size):
            fast = shredder(columns, schema.types[len(_SYSTEM_FIELDS) :])
        converted = fast.shred(items) if fast else None
        if converted is None:
            converted = _shred_items(items, schema, places)
            compilation.note_exact(compilation.CELLS, items.nbytes)
        rescued, cells = converted
        system = (batch.column(name) for name in ("item_key", "order_key", "write_time_us", "item"))
        yield pa.RecordBatch.from_arrays([*system, rescued, *cells], schema=schema)


def _shred_items(
    items: pa.Array,
    schema: pa.Schema,
    places: dict[str, tuple[int, str, Callable[[Any], Any]]],
) -> tuple[pa.Array, list[pa.Array]]:
    """Return the rescue column and the typed columns."""
    kinds = schema.types[len(_SYSTEM_FIELDS) :]
    cells: list[list[Any]] = [[None] * len(items) for _ in kinds]
    rescued: list[str | None] = [None] * len(items)
    for row, text in enumerate(items.to_pylist()):
        misfits: dict[str, Any] = {}
        for name, value in _decode(text).items():
            ((tag, content),) = value.items()
            place = places.get(name)
            if place is None:
                continue  # without a column; the value is in `_item`
            column, expected, convert = place
            if tag == expected:
                cells[column][row] = convert(content)
            elif tag != "NULL":
                misfits[name] = value
        if misfits:
            rescued[row] = to_json(misfits)
    arrays = [pa.array(values, kind) for values, kind in zip(cells, kinds, strict=True)]
    return pa.array(rescued, pa.string()), arrays


def _converter(column: Column) -> Callable[[Any], Any]:
    kind = column.type
    if kind == "json":
        return lambda content: plain_value({column.tag: content})
    if kind.startswith("list<"):
        element = _scalar(kind[5:-1])
        return lambda content: [element(member) for member in content]
    return _scalar(kind)


def _scalar(kind: str) -> Callable[[Any], Any]:
    if kind == "int64":
        return int
    if kind == "binary":
        return base64.b64decode
    return Decimal if kind.startswith("decimal(") else lambda content: content
