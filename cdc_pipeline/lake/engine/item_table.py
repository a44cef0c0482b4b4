"""Typed item tables: narrow rows from DuckDB become an Iceberg table, one column per attribute."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import Table

from cdc_pipeline.core.items.attributes import to_json
from cdc_pipeline.core.items.columns import (
    Column,
    Stats,
    TypeConflict,
    columns_of,
    join_names,
    name_attributes,
    type_conflicts,
)
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, literal
from cdc_pipeline.lake.iceberg.properties import description, table_property
from cdc_pipeline.lake.iceberg.tables import Tables
from cdc_pipeline.transform.pinned_types import count_misfits, shred_pinned
from cdc_pipeline.transform.shred import (
    NARROW_SCHEMA,
    collect_stats,
    stats_of,
    stats_to_json,
    typed_schema,
)

_BATCH_ROWS = 4_000  # items are up to 400 kB
_MAX_ORDER_KEY = "max_order_key"


@dataclass(frozen=True)
class TypedResult:
    """A committed typed table."""

    table: Table
    columns: list[Column]
    rows: int


@dataclass(frozen=True)
class NarrowStats:
    """Facts about narrow rows, known before they are read. `max_order_key`: None: unknown."""

    rows: int
    stats: Stats
    max_order_key: str | None = None


def replace_typed(
    tables: Tables,
    name: str,
    connection: duckdb.DuckDBPyConnection,
    narrow_sql: str,
    properties: dict[str, str],
    *,
    over: Table | None,
    scratch: Path,
    plan: Callable[[Stats], tuple[list[Column], dict[str, str]]] | None = None,
    limit: int | None = None,
    names: Mapping[str, str] | None = None,
) -> TypedResult:
    """Make the rows of `narrow_sql` (`NARROW_SCHEMA`) the whole table, typed and sorted by key.

    Columns come from all rows, not from a sample, so rows are spooled to disk between the pass that
    collects statistics and the pass that types. Memory: a few batches, and DuckDB's sort.

    `plan`, `limit` and `names`: as in `commit_typed`.
    """
    spool = scratch / f"{name}.parquet"
    columns = "SELECT item_key, order_key, item, write_time_us FROM"
    seen = spool_narrow(connection, f"{columns} ({narrow_sql}) ORDER BY item_key", spool)
    return commit_typed(
        tables,
        name,
        partial(spooled, spool),
        seen,
        properties,
        over=over,
        plan=plan,
        limit=limit,
        names=names,
    )


def commit_typed(
    tables: Tables,
    name: str,
    read: Callable[[], Iterable[pa.RecordBatch]],
    seen: NarrowStats,
    properties: dict[str, str],
    *,
    over: Table | None,
    plan: Callable[[Stats], tuple[list[Column], dict[str, str]]] | None = None,
    limit: int | None = None,
    names: Mapping[str, str] | None = None,
) -> TypedResult:
    """Make narrow rows, whose statistics are known, the whole table, typed.

    `read`: returns them sorted by key; called twice if `plan` has pinned columns that may not hold
    all values. `plan`: returns columns and more properties from the statistics; default: columns
    that hold all values, of at most `limit` attributes, with the names of `names`. An error of
    either prevents the commit.
    """
    stats = seen.stats
    if plan is None:
        columns, more = columns_of(stats, prior_columns(over), limit=limit, names=names), {}
    else:
        columns, more = plan(stats)
    misfits = count_misfits(read(), columns, stats)
    table = tables.replace(
        name,
        typed_reader(read(), columns, stats, seen.rows),
        {**properties, **more, **size_properties(seen.rows, seen.max_order_key)},
        over=over,
        key="_key",
        described=description_text(stats, columns, misfits),
    )
    return TypedResult(table, columns, seen.rows)


def typed_reader(
    batches: Iterable[pa.RecordBatch], columns: Sequence[Column], stats: Stats, rows: int = 0
) -> pa.RecordBatchReader:
    """Return narrow rows as typed ones. `stats`: of all rows of the table.

    `rows`: number of rows in `batches`, if known.
    """
    typed = shred_pinned(batches, columns, stats, rows)
    return pa.RecordBatchReader.from_batches(typed_schema(columns), typed)


def size_properties(items: int, newest: str | None) -> dict[str, str]:
    """Return the table properties with the number of items and the maximum order key."""
    return {"items": str(items), _MAX_ORDER_KEY: json.dumps(newest)}


def description_text(stats: Stats, columns: Iterable[Column], misfits: Mapping[str, int]) -> str:
    """Return the description of a typed table.

    In a file beside the metadata: any number of attributes, with names of up to 64 kB.
    """
    details = to_json({"columns": [asdict(c) for c in columns], "misfits": {**misfits}})
    return f'{{"statistics":{stats_to_json(stats)},{details[1:]}'


def spool_narrow(connection: duckdb.DuckDBPyConnection, sql: str, spool: Path) -> NarrowStats:
    """Write the rows of `sql` to a local file, which `spooled` reads; return facts about them."""
    connection.execute(
        f"COPY ({sql}) TO {literal(str(spool))} (FORMAT parquet, ROW_GROUP_SIZE 20480)"
    )
    rows = pq.read_metadata(spool).num_rows
    return NarrowStats(rows, collect_stats(spooled(spool), rows), _max_order_key_of(spool))


def sorted_batches(connection: duckdb.DuckDBPyConnection, sql: str) -> Iterator[pa.RecordBatch]:
    """Yield narrow rows sorted by key."""
    columns = "SELECT item_key, order_key, item, write_time_us FROM"
    sort = f"{columns} ({sql}) ORDER BY item_key"
    for batch in arrow_batches(connection, sort, _BATCH_ROWS):
        yield batch.cast(NARROW_SCHEMA)


def spooled(spool: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a spool."""
    with pq.ParquetFile(spool, pre_buffer=False) as narrow:  # pre_buffer keeps the whole file
        for batch in narrow.iter_batches(_BATCH_ROWS):
            yield batch.cast(NARROW_SCHEMA)


def _max_order_key_of(spool: Path) -> str | None:
    """Return the maximum order key of spooled rows; "" without rows, None without statistics."""
    metadata = pq.read_metadata(spool)
    column = metadata.schema.names.index("order_key")
    statistics = [
        metadata.row_group(n).column(column).statistics for n in range(metadata.num_row_groups)
    ]
    if not all(group and group.has_min_max for group in statistics):
        return None
    return max((group.max for group in statistics), default="")


def max_order_key(table: Table) -> str | None:
    """Return the maximum order key of a typed table's rows; "" without rows, None: unknown."""
    return json.loads(table_property(table, _MAX_ORDER_KEY) or "null")


def _described(table: Table, part: str) -> Any:
    """Return a part of the table's description; older versions have a property per part."""
    text = description(table)
    if text is not None:
        return json.loads(text)[part]
    return json.loads(table_property(table, part) or "null")


def prior_columns(table: Table | None) -> list[Column]:
    """Return the columns of a typed table as committed; [] without a table."""
    columns = _described(table, "columns") if table else None
    return [Column(**column) for column in columns or ()]


def column_names(tables: Tables, name: str) -> dict[str, str]:
    """Return column names by attribute, for all present and past views of a table (safe name).

    Names of the published state come first, then those of exports. An attribute keeps its name as
    long as one of the two has it, and no other attribute gets that name.
    """
    published = prior_columns(tables.load(f"{name}_current_state"))
    exported = prior_columns(tables.load(f"{name}_snapshot"))
    names = join_names({c.attribute: c.name for c in published}, exported)
    return name_attributes((c.attribute for c in exported), names)


def prior_stats(table: Table | None) -> Stats:
    """Return the attribute statistics of a typed table as committed; {} without a table."""
    statistics = _described(table, "statistics") if table else None
    return stats_of(statistics or {})


def prior_misfits(table: Table | None) -> dict[str, int]:
    """Return the numbers of values in the rescue column by attribute, as committed."""
    return (_described(table, "misfits") if table else None) or {}


def published_conflicts(table: Table) -> list[TypeConflict]:
    """Return the attributes of a typed table with values in the rescue column."""
    return type_conflicts(prior_columns(table), prior_stats(table), prior_misfits(table))
