"""The macro `item` of a table: the row of one item, read from the files whose bounds have its key.

A view over many files reads the footer of each before it can leave a file out, because DuckDB's
`read_parquet` has no bounds. The macro chooses among the bounds in the table's manifests while
DuckDB binds the query, and only the chosen files are opened.
"""

from collections.abc import Callable

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.lake.engine.duckdb_session import (
    empty_relation,
    identifier,
    literal,
    schema_sql,
)
from cdc_pipeline.lake.iceberg.files import LiveFiles, path_of

ITEM = "item"
"""Name of the macro, in the schema of a table."""

_PARAMETER = '"item key"'
"""Macros replace columns of this name, too; none has a space."""

_KEY = f"CAST({_PARAMETER} AS VARCHAR)"


def create_item_macro(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    table: IcebergTable,
    live: LiveFiles,
    shown: Callable[[str], str],
) -> None:
    """Create the macro `item` in the schema `name`.

    `shown`: returns the SQL of `current_state` over a relation of the live rows of `table`.
    """
    variable = f"{name}_files"
    _set_bounds(connection, variable, table, live)
    rows = _rows(connection, variable, table, live)
    _create(connection, name, shown(rows))


def create_plain_macro(connection: duckdb.DuckDBPyConnection, name: str) -> None:
    """Create the macro `item` over the view `current_state`, for one of a single file."""
    _create(connection, name, f"SELECT * FROM {identifier(name)}.current_state")


def _create(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> None:
    connection.execute(
        f"CREATE MACRO {identifier(name)}.{ITEM}({_PARAMETER}) AS TABLE "
        f"SELECT * FROM ({sql}) WHERE _key = {_KEY}"
    )


def _set_bounds(
    connection: duckdb.DuckDBPyConnection, variable: str, table: IcebergTable, live: LiveFiles
) -> None:
    """Set a variable of the connection to the files and their bounds; NULL: there is no bound."""
    key = table.schema().find_field("_key").field_id
    files = [entry.data_file for entry in live.data]
    bounds = {
        "path": live.paths,
        "least": [_bound(file.lower_bounds, key) for file in files],
        "most": [_bound(file.upper_bounds, key) for file in files],
    }
    kinds = pa.schema([(column, pa.string()) for column in bounds])
    connection.register("item_bounds", pa.Table.from_pydict(bounds, schema=kinds))
    connection.execute(
        f"SET VARIABLE {identifier(variable)} = "
        "(SELECT list({path: path, least: least, most: most}) FROM item_bounds)"
    )
    connection.unregister("item_bounds")


def _bound(bounds: dict[int, bytes] | None, field_id: int) -> str | None:
    value = (bounds or {}).get(field_id)
    return None if value is None else value.decode()


def _rows(
    connection: duckdb.DuckDBPyConnection, variable: str, table: IcebergTable, live: LiveFiles
) -> str:
    """Return SQL for the live rows of the key, in the table's present schema.

    Columns are matched by field id, so that the schema is known without opening a file.
    """
    schema = table.schema()
    if not live.data:
        return empty_relation(connection, schema.as_arrow())
    files = f"getvariable({literal(variable)})"
    # Fields in brackets: after a point, DuckDB takes them for names of files.
    has_key = (
        f"lambda f: (f['least'] IS NULL OR f['least'] <= {_KEY}) "
        f"AND (f['most'] IS NULL OR {_KEY} <= f['most'])"
    )
    chosen = f"list_transform(list_filter({files}, {has_key}), lambda f: f['path'])"
    # Without a file there is an error, and another connection of the same database has no variable.
    unset = "error('item() works on the connection that connect() returned')"
    chosen = (
        f"CASE WHEN {files} IS NULL THEN {unset} WHEN len({chosen}) = 0 "
        f"THEN [{literal(live.paths[0])}] ELSE {chosen} END"
    )
    columns = ", ".join(identifier(field.name) for field in schema.fields)
    rows = (
        f"SELECT {columns} FROM read_parquet({chosen}, hive_partitioning = false, "
        f"schema = {schema_sql(connection, schema)}) WHERE _key = {_KEY}"
    )
    if live.deletes:
        deletes = ", ".join(literal(path_of(entry.data_file)) for entry in live.deletes)
        rows += (
            " AND (filename, file_row_number) NOT IN "
            "(SELECT (regexp_replace(file_path, '^file://', ''), pos) "
            f"FROM read_parquet([{deletes}], hive_partitioning = false))"
        )
    return f"({rows})"
