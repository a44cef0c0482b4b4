"""Queries from people: load only the tables in the SQL, name missing views, format results."""

import csv
import io
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from typing import Any

import duckdb
import msgspec

from cdc_pipeline.core.errors import QueryError, SettingsError
from cdc_pipeline.lake.engine.duckdb_session import explain, statement
from cdc_pipeline.lake.engine.duckdb_types import shown_rows
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.item_lookup import ITEM
from cdc_pipeline.transform.aggregates import AGGREGATES, tables_named

_BATCH_ROWS = 10_000
VIEWS = ("pitr_export", "raw_stream", "cdc", "current_state", "history", "ttl_archive")
"""The views of every table; `ttl_archive` only if the settings enable it."""


def connect_for(lake: Lake, sql: str, as_of: datetime | None = None) -> duckdb.DuckDBPyConnection:
    """Open a connection with the tables of the statement only.

    `as_of`: show them as of that time; aggregates have no past. Raises `QueryError` for SQL that
    cannot be parsed or names an unknown table.
    """
    try:
        names = tables_named(sql)
    except SettingsError as error:
        raise QueryError(error.message) from None
    known = {table.safe_name for table in lake.settings.tables}
    schemas = {schema for schema, _ in names if schema}
    for schema in sorted(schemas - known - {AGGREGATES, "information_schema"}):
        raise QueryError(
            f"there is no table {schema!r} in the settings",
            fix=f"use one of: {', '.join(sorted(known))}, {AGGREGATES}",
        )
    if as_of and AGGREGATES in schemas:
        raise QueryError(
            "aggregates are kept as they are now, not as of a time",
            fix="run the aggregate's SQL on the tables it reads, with --as-of",
        )
    return connect_lake(
        lake, sorted(schemas & known), aggregates=AGGREGATES in schemas, as_of=as_of
    )


def _missing(schema: str, view: str, views: list[str]) -> QueryError:
    existing = f"views that exist now: {', '.join(views) or 'none'}"
    if schema != AGGREGATES and view not in (*VIEWS, ITEM):
        return QueryError(
            f"there is no view {schema}.{view}", fix=f"use one of: {', '.join(VIEWS)}; {existing}"
        )
    asset = {"history": "cdc", ITEM: "current_state"}.get(view, view)
    return QueryError(
        f"{schema}.{view} does not exist yet", fix=f"materialise {schema}/{asset}; {existing}"
    )


def run_query(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation | None:
    """Run the statement; return its result, None if it has none. Raises `QueryError`."""
    try:
        return connection.sql(statement(sql))
    except duckdb.CatalogException as error:
        views = _views(connection)
        for schema, view in tables_named(sql):
            if schema and f"{schema}.{view}" not in (*views, *_macros(connection)):
                raise _missing(schema, view, views) from None
        raise QueryError(explain(error)) from None
    except duckdb.Error as error:
        raise QueryError(explain(error)) from None


def _views(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute(
        "SELECT schema_name || '.' || view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1"
    ).fetchall()
    return [name for (name,) in rows if not name.startswith(("main.", "temp."))]


def _macros(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute(
        "SELECT schema_name || '.' || function_name FROM duckdb_functions() "
        "WHERE function_type = 'table_macro' AND NOT internal"
    ).fetchall()
    return [name for (name,) in rows]


def show(result: duckdb.DuckDBPyRelation, width: int, rows: int = 200) -> None:
    """Print the result as a table; raises `QueryError`."""
    try:
        result.show(max_width=width, max_rows=rows)
    except duckdb.Error as error:
        raise QueryError(explain(error)) from None


def as_json(result: duckdb.DuckDBPyRelation) -> Iterator[str]:
    """Yield a JSON array, one row per line. Decimals are number tokens with all their digits."""
    encode = msgspec.json.Encoder(decimal_format="number").encode
    opening = "["
    names = _unique(result.columns)
    for row in _rows(result):
        cells = dict(zip(names, row, strict=True))
        yield f"{opening}\n{encode(cells).decode()}"
        opening = ","
    yield "[]\n" if opening == "[" else "\n]\n"


def as_csv(result: duckdb.DuckDBPyRelation) -> Iterator[str]:
    """Yield CSV with a header line; NULL is an empty field."""
    yield _csv_line(result.columns)
    for row in _rows(result):
        yield _csv_line([_csv_cell(value) for value in row])


def _rows(result: duckdb.DuckDBPyRelation) -> Iterator[list[Any]]:
    try:
        yield from shown_rows(result, _BATCH_ROWS)
    except (duckdb.Error, OSError) as error:
        # After the first batch Arrow raises DuckDB's errors as OSError.
        raise QueryError(explain(error)) from None


def _unique(columns: list[str]) -> list[str]:
    """Return unique column names for a JSON object: duplicates get a number."""
    names: list[str] = []
    for name in columns:
        others = (f"{name}_{number}" for number in count(1))
        names.append(name if name not in names else next(n for n in others if n not in names))
    return names


def _csv_line(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, bytes | list | dict | msgspec.Raw):
        return msgspec.json.encode(value).decode().strip('"')
    return value
