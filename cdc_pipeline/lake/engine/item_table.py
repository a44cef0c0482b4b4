"""Typed item tables: narrow rows from DuckDB into an Iceberg table of one column per attribute."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from cdc_pipeline.lake.iceberg.tables import Tables, description, table_property
from cdc_pipeline.transform.pinned_types import count_misfits, shred_pinned
from cdc_pipeline.transform.shred import (
    NARROW_SCHEMA,
    collect_stats,
    stats_of,
    stats_to_json,
    typed_schema,
)

_BATCH_ROWS = 4_000  # items are up to 400 kB
_GREATEST = "max_order_key"


@dataclass(frozen=True)
class TypedResult:
    """A committed typed table."""

    table: Table
    columns: list[Column]
    rows: int


@dataclass(frozen=True)
class Seen:
    """What is known of narrow rows before they are read. `max_order_key`: None if it is not."""

    rows: int
    stats: Stats
    max_order_key: str | None = None


def replace_typed(
    tables: Tables,
    name: str,
    connection: duckdb.DuckDBPyConnection,
    narrow_sql: str | Sequence[str],
    properties: dict[str, str],
    *,
    over: Table | None,
    scratch: Path,
    plan: Callable[[Stats], tuple[list[Column], dict[str, str]]] | None = None,
    seen: Seen | None = None,
    limit: int | None = None,
    names: Mapping[str, str] | None = None,
) -> TypedResult:
    """Make the rows of `narrow_sql` (`NARROW_SCHEMA`) the whole table, typed and sorted by key.

    Columns come from all rows, not from a sample, so the rows are spooled to disk between the
    pass that looks and the pass that types. Rows that were `seen` go from the sort into the table;
    where settings pin types, `narrow_sql` may run twice. It may be several then, ranges of keys in
    order, each sorted alone. Memory: a few batches, and what DuckDB sorts in. `plan`: columns and
    more properties from the statistics, by default the columns that hold all values, of `limit`
    attributes and named as `names` says; what it raises refuses the commit.
    """
    ranges = [narrow_sql] if isinstance(narrow_sql, str) else narrow_sql
    columns_sql = "SELECT item_key, order_key, item, write_time_us FROM"
    sorts = [f"{columns_sql} ({sql}) ORDER BY item_key" for sql in ranges]
    read = partial(_sorted, connection, sorts)
    if seen is None:
        (sql,) = sorts
        spool = scratch / f"{name}.parquet"
        connection.execute(
            f"COPY ({sql}) TO {literal(str(spool))} (FORMAT parquet, ROW_GROUP_SIZE 20480)"
        )
        read = partial(_spooled, spool)
        seen = Seen(pq.read_metadata(spool).num_rows, collect_stats(read()), _greatest(spool))
    stats = seen.stats
    if plan is None:
        columns, more = columns_of(stats, prior_columns(over), limit=limit, names=names), {}
    else:
        columns, more = plan(stats)
    misfits = count_misfits(read(), columns, stats)
    reader = pa.RecordBatchReader.from_batches(
        typed_schema(columns), shred_pinned(read(), columns, stats)
    )
    described = {
        **properties,
        **more,
        "items": str(seen.rows),
        _GREATEST: json.dumps(seen.max_order_key),
    }
    # Beside the metadata: names of attributes are up to 64 kB, and of any number.
    spelled = to_json({"columns": [asdict(c) for c in columns], "misfits": misfits})
    text = f'{{"statistics":{stats_to_json(stats)},{spelled[1:]}'
    table = tables.replace(name, reader, described, over=over, key="_key", described=text)
    return TypedResult(table, columns, seen.rows)


def _sorted(
    connection: duckdb.DuckDBPyConnection, sorts: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for sql in sorts:
        for batch in arrow_batches(connection, sql, _BATCH_ROWS):
            yield batch.cast(NARROW_SCHEMA)


def _spooled(spool: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(spool, pre_buffer=False) as narrow:  # else all of it is kept
        for batch in narrow.iter_batches(_BATCH_ROWS):
            yield batch.cast(NARROW_SCHEMA)


def _greatest(spool: Path) -> str | None:
    """The greatest order key of spooled rows, "" without rows, None where Parquet lacks it."""
    metadata = pq.read_metadata(spool)
    place = metadata.schema.names.index("order_key")
    groups = [
        metadata.row_group(n).column(place).statistics for n in range(metadata.num_row_groups)
    ]
    if not all(found and found.has_min_max for found in groups):
        return None
    return max((found.max for found in groups), default="")


def max_order_key(table: Table) -> str | None:
    """The greatest order key of a typed table's rows, "" without rows, None if it is unknown."""
    return json.loads(table_property(table, _GREATEST) or "null")


def _described(table: Table, part: str) -> Any:
    """A part of the table's description; older versions have a property of each."""
    text = description(table)
    if text is not None:
        return json.loads(text)[part]
    return json.loads(table_property(table, part) or "null")


def prior_columns(table: Table | None) -> list[Column]:
    """The columns of a typed table as it was committed."""
    found = _described(table, "columns") if table else None
    return [Column(**column) for column in found or ()]


def column_names(tables: Tables, name: str) -> dict[str, str]:
    """Names of columns by attribute in every view of a table (its safe name), now and in the past.

    Those of the published state count first, then those of exports: an attribute is called by one
    of them as long as one of them has it, and no other one is.
    """
    published = prior_columns(tables.load(f"{name}_current_state"))
    exported = prior_columns(tables.load(f"{name}_snapshot"))
    names = join_names({c.attribute: c.name for c in published}, exported)
    return name_attributes((c.attribute for c in exported), names)


def prior_stats(table: Table | None) -> Stats:
    """What was seen in the rows of a typed table when it was committed."""
    found = _described(table, "statistics") if table else None
    return stats_of(found or {})


def published_conflicts(table: Table) -> list[TypeConflict]:
    """The attributes of a typed table of which something is in the rescue column."""
    misfits = _described(table, "misfits") or {}
    return type_conflicts(prior_columns(table), prior_stats(table), misfits)
