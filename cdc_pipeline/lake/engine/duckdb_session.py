"""DuckDB over the lake: connections and file relations."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import duckdb
import pyarrow as pa
from pyiceberg.schema import Schema
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.aws.s3.filesystem import s3_filesystem
from cdc_pipeline.core.changes.order import generation_prefix
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.lake.engine.duckdb_s3 import DuckS3
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA, read_object

_FETCH_BYTES = 8 << 20  # of Parquet; up to ten times as much in memory
FILE_ROWS = 1 << 32
"""More rows than any file has."""

_MEMORY_PERCENT = 95
"""Share of `memory_mb` for DuckDB; the rest is for memory that it does not count."""


@contextmanager
def open_duckdb(lake: Lake, scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a `connect_duckdb` connection with bounded memory that spills to the folder `scratch`.

    Raises `LakeError` from the block if memory or the folder's disk is not enough.
    """
    memory_mb = lake.settings.memory_mb
    with connect_duckdb(lake) as connection:
        limit_mb = memory_mb * _MEMORY_PERCENT // 100
        connection.execute(f"SET memory_limit = '{limit_mb}MB'")
        connection.execute(f"SET temp_directory = {literal(str(scratch))}")
        try:
            yield connection
        except duckdb.OutOfMemoryException as error:
            message = explain(error)
            fix = f"raise `memory_mb` in the settings, now {memory_mb}"
            if "max_temp_directory_size" in message:
                fix = f"free disk space below {scratch.parent}, or point TMPDIR to another disk"
            # Only the first line: DuckDB's advice names settings that users cannot set here.
            raise LakeError(f"DuckDB: {message.splitlines()[0]}", fix=fix) from error


def connect_duckdb(lake: Lake) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB in UTC that reads the lake's files; default limit of memory."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET preserve_insertion_order = false")
    # DuckDB would draw it on standard output when it assumes a prompt.
    connection.execute("SET enable_progress_bar = false")
    if lake.settings.is_s3:
        connection.register_filesystem(DuckS3(s3_filesystem(lake.aws)))
    return connection


def arrow_table(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: object = None
) -> pa.Table:
    """Return the whole result of a query."""
    return cast(pa.Table, connection.sql(sql, params=parameters).to_arrow_table())


def arrow_batches(
    connection: duckdb.DuckDBPyConnection, sql: str, rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the result of a query in batches of about `rows` rows."""
    try:
        yield from cast(pa.RecordBatchReader, connection.sql(sql).to_arrow_reader(rows))
    except OSError as error:
        # After the first batch Arrow raises DuckDB's errors as OSError.
        if "Out of Memory Error" in str(error):
            raise duckdb.OutOfMemoryException(str(error)) from None
        raise


def literal(value: str) -> str:
    """Return a SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def files_relation(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[str], schema: pa.Schema
) -> str:
    """Return SQL for the rows of Parquet files; without files, an empty relation of `schema`."""
    if paths:
        listed = ", ".join(literal(path) for path in paths)
        return f"read_parquet([{listed}], hive_partitioning = false)"
    return empty_relation(connection, schema)


def table_relation(connection: duckdb.DuckDBPyConnection, table: IcebergTable) -> str:
    """Return SQL for the rows of an Iceberg table in its present schema, also from older files.

    Columns are matched by field id: one that a file lacks is NULL in its rows, and a dropped one
    does not return under a new column of the same name. Not where it makes no difference: with a
    `schema`, DuckDB 2.0 expects one row, so that joins hold the whole table in memory.
    """
    schema, paths = table.schema(), data_files(table)
    if not paths or has_first_schema(table):
        return files_relation(connection, paths, schema.as_arrow())
    listed = ", ".join(map(literal, paths))
    columns = schema_sql(connection, schema)
    return f"read_parquet([{listed}], hive_partitioning = false, schema = {columns})"


def schema_sql(connection: duckdb.DuckDBPyConnection, schema: Schema) -> str:
    """Return the `schema` of a `read_parquet` that matches columns by field id."""
    no_rows = connection.from_arrow(schema.as_arrow().empty_table())
    columns = ", ".join(
        f"{field.field_id}: {{name: {literal(field.name)}, type: {literal(str(kind))}, "
        "default_value: NULL}"
        for field, kind in zip(schema.fields, no_rows.types, strict=True)
    )
    return f"MAP {{{columns}}}"


def has_first_schema(table: IcebergTable) -> bool:
    """Whether the table's columns never changed, so that all files have the same ones."""
    return table.metadata.current_schema_id == 0


def empty_relation(connection: duckdb.DuckDBPyConnection, schema: pa.Schema) -> str:
    """Return SQL for a relation of `schema` without rows."""
    no_rows = connection.from_arrow(schema.empty_table())
    pairs = zip(no_rows.columns, no_rows.types, strict=True)
    columns = ", ".join(f"CAST(NULL AS {kind}) AS {identifier(name)}" for name, kind in pairs)
    return f"(SELECT {columns} WHERE false)"


def row_number_sql(paths: Sequence[str], files_before: int = 0) -> str:
    """Return SQL for a unique number of each row in a `files_relation`, the same in every read.

    `files_before`: number of files in other relations, so that numbers are unique across them.
    """
    if not paths:
        return "CAST(NULL AS BIGINT)"
    return f"(CAST(file_index AS BIGINT) + {files_before}) * {FILE_ROWS} + file_row_number"


def landed_relation(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    objects: Sequence[LandedObject],
    *,
    fold: bool = False,
) -> str:
    """Return SQL for landed rows with their `generation` and `order_key`.

    A row's generation is that of its object, recorded in the log and not in the file. `fold`: rows
    also have a row number, `place`. A fold reads every row, so a few small objects in S3 are
    fetched in parallel, which is faster than opening them one by one in each statement.
    """
    by_generation: dict[int, list[LandedObject]] = {}
    for landed in objects:
        by_generation.setdefault(landed.generation, []).append(landed)
    if not by_generation:
        by_generation = {0: []}
    fetch = fold and lake.settings.is_s3 and sum(o.bytes for o in objects) <= _FETCH_BYTES
    parts, files_before = [], 0
    for generation, members in sorted(by_generation.items()):
        if fetch and members:
            rows = _fetched(connection, lake, members, files_before)
        else:
            paths = [lake.store.uri(landed.key) for landed in members]
            rows = files_relation(connection, paths, LANDING_SCHEMA)
            if fold:
                rows = f"(SELECT *, {row_number_sql(paths, files_before)} AS place FROM {rows})"
        files_before += len(members)
        prefix = literal(generation_prefix(generation))
        parts.append(
            f"SELECT *, {generation} AS generation, {prefix} || position AS order_key FROM {rows}"
        )
    return "(" + " UNION ALL ".join(parts) + ")"


def _fetched(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    objects: Sequence[LandedObject],
    files_before: int,
) -> str:
    with ThreadPoolExecutor(10) as pool:  # the size of botocore's connection pool
        tables = list(pool.map(lambda landed: read_object(lake.store, landed), objects))
    rows, first = pa.concat_tables(tables), files_before * FILE_ROWS
    places = pa.array(range(first, first + rows.num_rows), pa.int64())
    name = f"fetched_{objects[0].generation}_{objects[-1].key}"
    connection.register(name, rows.append_column("place", places))
    return identifier(name)


def statement(sql: str) -> str:
    """Return SQL without its last semicolon and what follows, for use as a subquery.

    DuckDB 2.0 removes the semicolon itself unless a comment follows it.
    """
    text, tokens = sql.encode(), duckdb.tokenize(sql)  # token positions are in bytes
    starts = [start for start, kind in tokens if kind != duckdb.token_type.comment]
    end = len(text)
    while starts and text[starts[-1] : starts[-1] + 1] == b";":
        end = starts.pop()
    return text[:end].decode()


def explain(error: Exception) -> str:
    """Return DuckDB's message without its JSON wrapping."""
    text = str(error)
    if text.startswith("{"):
        return cast(str, json.loads(text).get("exception_message", text))
    return text
