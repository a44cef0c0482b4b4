"""What of a published state can be kept in the next version: columns, cells, statistics."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from cdc_pipeline.core.items.columns import Column, Stats
from cdc_pipeline.lake.engine.item_table import prior_columns, prior_stats, typed_reader
from cdc_pipeline.lake.engine.sorted_files import SortedFiles
from cdc_pipeline.lake.state.base import Base, generation_of
from cdc_pipeline.transform.shred import NARROW_SCHEMA, merge_stats, typed_schema

_STORED = ("_key", "_order_key", "_item", "_write_time_us")
_NARROW_ROWS = pa.schema([f.with_name(n) for f, n in zip(NARROW_SCHEMA, _STORED, strict=True)])


Plan = Callable[[Stats], tuple[list[Column], dict[str, str]]]


@dataclass(frozen=True)
class Choice:
    """Columns and properties of the next version. `kept`: statistics of the base's rows that stay.

    `stats`: of all rows; unless `is_exact`, they count rows that are gone.
    """

    kept: Stats
    stats: Stats
    columns: list[Column]
    properties: dict[str, str]
    is_exact: bool


def guess_choice(base: Base, changed: Stats, plan: Plan) -> Choice | None:
    """Choose with the statistics of the base, which count rows that are gone; None: not possible.

    The cells tell the exact numbers when the rows pass, if all values of an attribute have one
    type, none is NULL, and its column shows each of them: a pinned one lacks what does not fit it.
    """
    prior = prior_stats(base.table) if base.table is base.over else {}
    stats = merge_stats(prior, changed)
    if not prior or any(len(seen.tags) > 1 or "NULL" in seen.tags for seen in stats.values()):
        return None
    columns, properties = plan(stats)
    are_shown = len(columns) == len(stats) and not any(column.pinned for column in columns)
    if not are_shown or not stays(base, columns, stats):
        return None
    return Choice(prior, stats, columns, properties, is_exact=False)


class ColumnGoneError(Exception):
    """No row has the attribute of a column any more."""


def with_cells(
    rows: Iterable[pa.RecordBatch], columns: Sequence[Column], cells: Counter[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows; count the cells with a value, by attribute."""
    for batch in rows:
        for column in columns:
            cells[column.attribute] += len(batch) - batch.column(column.name).null_count
        yield batch


def exact_stats(stats: Stats, columns: Sequence[Column], cells: Counter[str] | None) -> Stats:
    """Return the statistics of rows by the number of their cells; None: they are exact.

    Raises `ColumnGoneError` for an attribute without values, whose column goes.
    """
    if cells is None:
        return stats
    if not all(cells[column.attribute] for column in columns):
        raise ColumnGoneError
    return {
        column.attribute: replace(
            stats[column.attribute], tags=Counter({column.tag: cells[column.attribute]})
        )
        for column in columns
    }


def merged_rows(
    files: SortedFiles,
    columns: Sequence[Column],
    stats: Stats,
    changes: Iterable[pa.RecordBatch],
    *,
    stays: bool,
    items: int = 0,
) -> Iterator[pa.RecordBatch]:
    """Yield typed rows of the next version: those of the files and the changes, sorted by key.

    `stays`: the rows of the files keep their cells. `items`: their number with the changes, if
    known.
    """
    if stays:
        return files.merged(typed_schema(columns), typed_reader(iter(changes), columns, stats))
    beside = (pa.RecordBatch.from_arrays(b.columns, schema=_NARROW_ROWS) for b in changes)
    narrow = (
        pa.RecordBatch.from_arrays(batch.columns, schema=NARROW_SCHEMA)
        for batch in files.merged(_NARROW_ROWS, beside)
    )
    return iter(typed_reader(narrow, columns, stats, items))


def stays(base: Base, columns: Sequence[Column], kept: Stats) -> bool:
    """Whether the rows of a base keep their cells in `columns`; `kept`: their statistics."""
    is_described = base.snapshot_id in (None, base.table.metadata.current_snapshot_id)
    return is_described and stay_as_they_are(prior_columns(base.table), columns, kept)


def stay_as_they_are(before: Iterable[Column], columns: Sequence[Column], kept: Stats) -> bool:
    """Whether rows with columns `before` have the cells of `columns`, but for wider numbers.

    `kept`: statistics of these rows. A column that they gain or lose must be one of an attribute
    that they lack.
    """
    known = {column.name: column for column in before}
    shown = {column.attribute for column in columns}
    return all(
        column.attribute in shown or column.attribute not in kept for column in known.values()
    ) and all(
        _is_same_or_wider(known[column.name], column)
        if column.name in known
        else column.attribute not in kept
        for column in columns
    )


def _is_same_or_wider(old: Column, new: Column) -> bool:
    if (old.attribute, old.tag) != (new.attribute, new.tag):
        return False
    if old.type == new.type:
        return True
    # A pinned type may be narrower than some numbers, which are rescued.
    is_pinned = old.pinned or new.pinned
    return not is_pinned and new.type.startswith("decimal(") and old.type != "string"


def oldest_generation(base: Base) -> int:
    """Return the oldest generation with tombstones: until the commit, readers use `over`'s."""
    return generation_of(base.over) if base.over else base.generation
