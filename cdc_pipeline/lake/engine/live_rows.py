"""Rows of a published table that are live, and the places of rows in its files.

A place is one number: the index of the data file in `LiveFiles.data`, and the row number in it. A
publication of few changes does not rewrite the files: it records places of rows that are dead.
"""

from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.lake.engine.duckdb_session import (
    FILE_ROWS,
    arrow_batches,
    files_relation,
    has_first_schema,
    identifier,
    literal,
    row_number_sql,
)
from cdc_pipeline.lake.iceberg.files import LiveFiles, data_files, live_files, path_of
from cdc_pipeline.lake.iceberg.row_delta import DeadRows
from cdc_pipeline.transform.shred import typed_schema

_BATCH_ROWS = 1_000_000


def live_relation(
    connection: duckdb.DuckDBPyConnection, table: IcebergTable, live: LiveFiles | None = None
) -> str:
    """Return SQL for the live rows of a table in its present schema.

    The SQL names files only, so that any DuckDB can run it.
    """
    live = live or live_files(table)
    rows = _stored_rows(connection, table, live.paths)
    columns = ", ".join(identifier(field.name) for field in table.schema().fields)
    if not live.deletes:
        return rows if has_first_schema(table) else f"(SELECT {columns} FROM {rows})"
    place = row_number_sql(live.paths)
    return f"(SELECT {columns} FROM {rows} WHERE {place} NOT IN ({dead_sql(live)}))"


def _stored_rows(
    connection: duckdb.DuckDBPyConnection, table: IcebergTable, paths: Sequence[str]
) -> str:
    """Return SQL for the rows of a published table's files, by the names of columns.

    A row delta adds columns and widens types, and a column with another type comes with a fold, in
    new files: so names are enough, and files that lack a column have NULL in it.
    """
    if not paths or has_first_schema(table):
        return files_relation(connection, paths, table.schema().as_arrow())
    listed = ", ".join(map(literal, paths))
    return f"read_parquet([{listed}], hive_partitioning = false, union_by_name = true)"


def dead_sql(live: LiveFiles) -> str:
    """Return SQL for the places of the dead rows, without those of files that left the table.

    Delete files of racing engines may name a place twice.
    """
    if not live.deletes:
        return "SELECT CAST(NULL AS BIGINT) AS place WHERE false"
    spelled = ", ".join(literal(entry.data_file.file_path) for entry in live.data)
    deletes = ", ".join(literal(path_of(entry.data_file)) for entry in live.deletes)
    return (
        f"SELECT (file - 1) * {FILE_ROWS} + pos AS place "
        f"FROM (SELECT CAST(list_position([{spelled}], file_path) AS BIGINT) AS file, pos "
        f"FROM read_parquet([{deletes}], hive_partitioning = false)) WHERE file > 0"
    )


def placed_relation(
    connection: duckdb.DuckDBPyConnection,
    table: IcebergTable,
    live: LiveFiles,
    only: Sequence[int] | None = None,
) -> str:
    """Return SQL for the system columns of live rows with their `place`.

    `only`: indexes of the data files to read; None: all.
    """
    chosen = range(len(live.data)) if only is None else only
    paths = [live.paths[index] for index in chosen]
    place = row_number_sql(paths)
    if only is not None and paths:
        indexes = ", ".join(map(str, only))
        index = f"list_extract([{indexes}], CAST(file_index AS BIGINT) + 1)"
        place = f"CAST({index} AS BIGINT) * {FILE_ROWS} + file_row_number"
    rows = _stored_rows(connection, table, paths)
    return (
        f"(SELECT _key, _order_key, _item, _write_time_us, {place} AS place FROM {rows}"
        + (f" WHERE {place} NOT IN ({dead_sql(live)})" if live.deletes and paths else "")
        + ")"
    )


def version_relation(
    connection: duckdb.DuckDBPyConnection, table: IcebergTable, snapshot_id: int | None
) -> str:
    """Return `placed_relation` of a version; an earlier one has no dead rows, being a baseline."""
    if snapshot_id is None:
        return placed_relation(connection, table, live_files(table))
    return placed_files(connection, data_files(table, snapshot_id))


def placed_files(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> str:
    """Return `placed_relation` of files without dead rows; without files, of no rows."""
    rows, place = files_relation(connection, paths, typed_schema([])), row_number_sql(paths)
    return f"(SELECT _key, _order_key, _item, _write_time_us, {place} AS place FROM {rows})"


def create_dead_places(connection: duckdb.DuckDBPyConnection, live: LiveFiles) -> int:
    """Create table `dead_places` with the places of the dead rows; return the number of live rows.

    By the manifests: no data file is read.
    """
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE dead_places AS SELECT DISTINCT * FROM ({dead_sql(live)})"
    )
    ((dead,),) = connection.execute("SELECT count(*) FROM dead_places").fetchall()
    return live.rows - dead


def dead_rows(
    connection: duckdb.DuckDBPyConnection, places_sql: str, live: LiveFiles
) -> Iterator[DeadRows]:
    """Yield the rows of `places_sql` (one column, places) by data file, in order."""
    positions: list[pa.Array] = []
    current = -1
    sql = (
        f"SELECT place // {FILE_ROWS} AS file, place % {FILE_ROWS} AS position "
        f"FROM ({places_sql}) AS places ORDER BY place"
    )
    for batch in arrow_batches(connection, sql, _BATCH_ROWS):
        files, rows = batch.columns
        for index in files.unique().to_pylist():
            if index != current and positions:
                yield _dead_rows(live, current, positions)
                positions = []
            current = index
            positions.append(rows.filter(pc.call_function("equal", [files, pa.scalar(index)])))
    if positions:
        yield _dead_rows(live, current, positions)


def _dead_rows(live: LiveFiles, index: int, positions: list[pa.Array]) -> DeadRows:
    return DeadRows(live.data[index].data_file.file_path, pa.concat_arrays(positions))
