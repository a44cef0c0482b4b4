"""Columns with types from the settings: numbers that do not fit go to the rescue column."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa

from cdc_pipeline.core.items.attributes import to_json
from cdc_pipeline.core.items.columns import Column, Stats, number_fits, too_narrow
from cdc_pipeline.transform.shred import shred, typed_schema

_decode = msgspec.json.decode


def shred_pinned(
    batches: Iterable[pa.RecordBatch], columns: Sequence[Column], stats: Stats, rows: int = 0
) -> Iterator[pa.RecordBatch]:
    """Like `shred`, with values that do not fit a pinned column in `_rescued`.

    `stats`: of all rows; `rows`: their number, if known. Columns with possible misfits are typed as
    text first, so that `shred` does not handle misfits.
    """
    narrow = _narrow(columns, stats)
    if not narrow:
        return shred(batches, columns, rows)
    as_text = [
        replace(c, type="list<string>" if c.tag == "NS" else "string") if c in narrow else c
        for c in columns
    ]
    schema = typed_schema(columns)
    return (_fit(batch, narrow, schema) for batch in shred(batches, as_text, rows))


def count_misfits(
    batches: Iterable[pa.RecordBatch], columns: Sequence[Column], stats: Stats
) -> dict[str, int]:
    """Count values of the `item` column that do not fit their pinned column, by attribute.

    Reads no batch if the statistics exclude misfits.
    """
    narrow = _narrow(columns, stats)
    counts: Counter[str] = Counter()
    for batch in batches if narrow else ():
        for item in map(_decode, batch.column("item").to_pylist()):
            for column in narrow:
                content = item.get(column.attribute, {}).get(column.tag)
                if content is not None and not _fits(column, content):
                    counts[column.attribute] += 1
    return dict(counts)


def _narrow(columns: Iterable[Column], stats: Stats) -> list[Column]:
    return [c for c in columns if c.pinned and too_narrow(c, stats[c.attribute])]


def _element(column: Column) -> str:
    return column.type.removeprefix("list<").removesuffix(">")


def _fits(column: Column, content: Any) -> bool:
    numbers = content if column.tag == "NS" else [content]
    return all(number_fits(_element(column), number) for number in numbers)


def _fit(batch: pa.RecordBatch, narrow: list[Column], schema: pa.Schema) -> pa.RecordBatch:
    cells: dict[str, list[Any]] = {c.name: batch.column(c.name).to_pylist() for c in narrow}
    misfits: dict[int, set[str]] = {}
    for column in narrow:
        number = int if _element(column) == "int64" else Decimal
        shown = cells[column.name]
        for row, text in enumerate(shown):
            if text is None:
                continue
            if not _fits(column, text):
                misfits.setdefault(row, set()).add(column.attribute)
                shown[row] = None
            else:
                shown[row] = [number(t) for t in text] if column.tag == "NS" else number(text)
    rescued = batch.column("_rescued").to_pylist()
    items = batch.column("_item")
    for row, attributes in misfits.items():
        item: Mapping[str, Any] = _decode(items[row].as_py())
        attributes |= _decode(rescued[row] or "{}").keys()
        rescued[row] = to_json({name: item[name] for name in sorted(attributes)})
    cells["_rescued"] = rescued
    arrays = [
        pa.array(cells[field.name], field.type) if field.name in cells else batch.column(field.name)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
