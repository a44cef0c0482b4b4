"""Tombstones of a published state: deletes that later rows of the same item must not undo."""

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable
from pyiceberg.table.metadata import TableMetadata

from cdc_pipeline.core.changes.order import generation_prefix
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, literal
from cdc_pipeline.lake.engine.folding import TOMBSTONE_SCHEMA
from cdc_pipeline.lake.engine.masking import PUBLISHED, expire_earlier_versions, published_rules
from cdc_pipeline.lake.iceberg.files import live_files
from cdc_pipeline.lake.iceberg.row_delta import RowDelta
from cdc_pipeline.lake.iceberg.writer import WrittenFiles
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.transform.sql import load_sql

_BATCH_ROWS = 100_000
_MOST_FILES = 16
"""Data files above which the tombstones are rewritten as one instead of appended to."""


def forget_tombstones(table: TableLake) -> None:
    """Replace unreadable tombstones by none; valid only with a new baseline, which needs none.

    Tombstones of older generations exclude only changes that the new baseline ignores.
    """
    name = _name(table)
    no_rows = TOMBSTONE_SCHEMA.empty_table().to_reader()
    table.lake.iceberg.replace(
        name, no_rows, {}, over=table.lake.iceberg.load(name), key="item_key"
    )


def replace_tombstones(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    tombstones: IcebergTable | None,
    masking: Masking,
    oldest: int,
) -> None:
    """Commit the tombstones after a fold, without those of generations before `oldest`.

    Tombstones do not expire by time: one is needed as long as a change of its generation can land,
    and backlogs, repeats and late files have no time limit. Changes of generations before a
    published baseline are ignored, so the tombstones that exclude them are not needed.
    """
    commit_tombstones(table, tombstones_after(connection, oldest), tombstones, masking)


def tombstones_after(connection: duckdb.DuckDBPyConnection, oldest: int) -> pa.RecordBatchReader:
    """Read the tombstones after a fold, without those of generations before `oldest`."""
    return _reader(
        connection,
        f"SELECT {', '.join(TOMBSTONE_SCHEMA.names)} FROM ({load_sql('tombstones')}) "
        f"WHERE order_key >= {literal(generation_prefix(oldest))}",
    )


def planned_tombstones(table: TableLake, tombstones: IcebergTable | None) -> TableMetadata:
    """Return the metadata by which workers write files of tombstones."""
    return table.lake.iceberg.planned(
        _name(table), TOMBSTONE_SCHEMA, over=tombstones, key="item_key"
    )


def commit_tombstones(
    table: TableLake,
    rows: pa.RecordBatchReader | WrittenFiles,
    tombstones: IcebergTable | None,
    masking: Masking,
) -> None:
    """Make `rows` the tombstones. `tombstones`: as they were loaded."""
    shows_too_much = tombstones is not None and not masking.made(published_rules(tombstones))
    committed = table.lake.iceberg.replace(
        _name(table),
        rows,
        {PUBLISHED: masking.fingerprint},
        over=tombstones,
        key="item_key",
    )
    if shows_too_much:
        expire_earlier_versions(table.lake, committed)


def can_append(tombstones: IcebergTable | None) -> bool:
    """Whether the tombstones have room for another file."""
    return tombstones is not None and len(live_files(tombstones).data) < _MOST_FILES


def append_tombstones(
    connection: duckdb.DuckDBPyConnection, table: TableLake, tombstones: IcebergTable
) -> None:
    """Commit the deletes of `effective` beside the tombstones, older ones of an item included."""
    sql = f"SELECT {', '.join(TOMBSTONE_SCHEMA.names)} FROM effective WHERE op = 'D'"
    delta = RowDelta(_reader(connection, sql), (), live_files(tombstones))
    table.lake.iceberg.change_rows(tombstones, delta, TOMBSTONE_SCHEMA, {})


def _reader(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.RecordBatchReader:
    batches = (
        batch.cast(TOMBSTONE_SCHEMA) for batch in arrow_batches(connection, sql, _BATCH_ROWS)
    )
    return pa.RecordBatchReader.from_batches(TOMBSTONE_SCHEMA, batches)


def _name(table: TableLake) -> str:
    return f"{table.safe_name}_tombstones"
