"""Typed item tables: narrow rows from DuckDB into an Iceberg table of one column per attribute."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import Table

from cdc_pipeline.core.columns import Column, Stats, columns_of
from cdc_pipeline.lake.duck import literal
from cdc_pipeline.lake.tables import Tables, table_property
from cdc_pipeline.transform.shred import (
    NARROW_SCHEMA,
    collect_stats,
    shred,
    stats_from_json,
    stats_to_json,
    typed_schema,
)

_BATCH_ROWS = 4_000  # items are up to 400 kB


@dataclass(frozen=True)
class TypedResult:
    """A committed typed table."""

    table: Table
    columns: list[Column]
    rows: int


def replace_typed(
    tables: Tables,
    name: str,
    connection: duckdb.DuckDBPyConnection,
    narrow_sql: str,
    properties: dict[str, str],
    *,
    over: Table | None,
    scratch: Path,
) -> TypedResult:
    """Make the rows of `narrow_sql` (`NARROW_SCHEMA`) the whole table, typed and sorted by key.

    Columns come from all rows, not from a sample, so the rows are spooled to disk between the
    pass that looks and the pass that types. Memory: a few batches, and what DuckDB sorts in.
    """
    spool = scratch / f"{name}.parquet"
    connection.execute(
        f"COPY (SELECT item_key, order_key, item, write_time_us FROM ({narrow_sql}) "
        f"ORDER BY item_key) TO {literal(str(spool))} (FORMAT parquet, ROW_GROUP_SIZE 20480)"
    )
    with pq.ParquetFile(spool) as narrow:
        stats = collect_stats(narrow.iter_batches(_BATCH_ROWS, columns=["item"]))
        columns = columns_of(stats, prior_columns(over))
        batches = (b.cast(NARROW_SCHEMA) for b in narrow.iter_batches(_BATCH_ROWS))
        reader = pa.RecordBatchReader.from_batches(typed_schema(columns), shred(batches, columns))
        described = {
            **properties,
            "items": str(narrow.metadata.num_rows),
            "columns": json.dumps([asdict(column) for column in columns]),
            "statistics": stats_to_json(stats),
        }
        table = tables.replace(name, reader, described, over=over)
        return TypedResult(table, columns, narrow.metadata.num_rows)


def prior_columns(table: Table | None) -> list[Column]:
    """The columns of a typed table as it was committed."""
    text = table_property(table, "columns") if table else None
    return [Column(**column) for column in json.loads(text)] if text else []


def prior_stats(table: Table | None) -> Stats:
    """What was seen in the rows of a typed table when it was committed."""
    text = table_property(table, "statistics") if table else None
    return stats_from_json(text) if text else {}
