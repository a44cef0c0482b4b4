"""The lake's views as a SQL script for a plain DuckDB shell, as of now.

The views are those of `connect_lake`, in DuckDB's SQL. Changes since the last fold are typed here
and written as rows: plain SQL cannot type DynamoDB JSON without floats.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.lake.engine.duckdb_session import arrow_table, identifier, literal
from cdc_pipeline.lake.engine.live_rows import live_relation
from cdc_pipeline.lake.engine.masking import (
    OtherRulesError,
    masking_of,
    published_rules,
    require_rules,
)
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.entity_views import entities_in_script
from cdc_pipeline.lake.query.merged_view import delta_tables
from cdc_pipeline.lake.query.named_views import with_view_names
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.aggregates import AGGREGATES

_DELTA_BYTES = 16 << 20
"""Limit of the rows in a script; beyond it, a fold is cheaper."""
_INSERT_ROWS = 500


def view_script(lake: Lake, names: Sequence[str] = ()) -> Iterator[str]:
    """Yield the parts of a script that creates the views of the named tables; no names: all tables.

    `names` may include `aggregates`; all tables include them. Raises the errors of `connect_lake`.
    """
    with _connect(lake, names) as connection:
        yield from _heading(lake)
        for table in _tables(lake, names):
            handle = lake.table(table)
            yield f"\n-- {table.safe_name}: the DynamoDB table {table.name}\n"
            yield f"CREATE SCHEMA IF NOT EXISTS {identifier(table.safe_name)};\n"
            reason = _why_without_delta(connection, handle)
            if reason is not None:
                _show_published(connection, handle)
                yield "-- current_state is as last published, without changes that landed since\n"
                yield f"-- ({reason}).\n"
            elif _has_delta(connection, table):
                for part in delta_tables(table):
                    yield from _rows_as_table(connection, table, part)
            yield from entities_in_script(connection, handle)
            yield from _views(connection, table.safe_name)
        if _with_aggregates(names):
            yield f"\nCREATE SCHEMA IF NOT EXISTS {AGGREGATES};\n"
            yield from _views(connection, AGGREGATES)


def list_views(lake: Lake, names: Sequence[str] = ()) -> list[str]:
    """Return the existing views, as `schema.view`; `names` as for `view_script`."""
    with _connect(lake, names) as connection:
        rows = connection.execute(
            "SELECT schema_name || '.' || view_name FROM duckdb_views() "
            "WHERE NOT internal AND NOT temporary ORDER BY schema_name, view_oid"
        ).fetchall()
    return [name for (name,) in rows]


def _connect(lake: Lake, names: Sequence[str]) -> duckdb.DuckDBPyConnection:
    chosen = [table.safe_name for table in _tables(lake, names)]
    return connect_lake(lake, chosen, aggregates=_with_aggregates(names))


def _tables(lake: Lake, names: Iterable[str]) -> list[Table]:
    chosen = [name for name in names if name != AGGREGATES]
    default = [] if AGGREGATES in names else lake.settings.tables
    return [lake.settings.table(name) for name in chosen] or list(default)


def _with_aggregates(names: Sequence[str]) -> bool:
    return not names or AGGREGATES in names


def _has_delta(connection: duckdb.DuckDBPyConnection, table: Table) -> bool:
    """Whether the view `current_state` still reads a delta that `connect_lake` merged."""
    (view,) = connection.execute(
        "SELECT max(sql) FROM duckdb_views() WHERE schema_name = ? AND view_name = 'current_state'",
        [table.safe_name],
    ).fetchall()
    return any(part in (view[0] or "") for part in delta_tables(table))


def _why_without_delta(connection: duckdb.DuckDBPyConnection, table: TableLake) -> str | None:
    """Return why the script has the published `current_state` only; None: it has the merged one."""
    if masking_of(table.lake.settings, table.settings, writing=False).hashed:
        return "hashed columns: hashes of newer changes need the masking key"
    if not _has_delta(connection, table.settings):
        return None
    size = sum(
        arrow_table(connection, f"FROM {_name(p)}").nbytes for p in delta_tables(table.settings)
    )
    if size <= _DELTA_BYTES:
        return None
    return (
        f"{size >> 20} MB have landed since; materialise {table.safe_name}/current_state and "
        "print this again"
    )


def _show_published(connection: duckdb.DuckDBPyConnection, table: TableLake) -> None:
    base = published_base(table)
    if base is None:
        return
    masking, name = masking_of(table.lake.settings, table.settings, writing=False), table.safe_name
    try:
        published = [published_rules(base.table)]
        require_rules(masking, published, f"{name}.current_state", f"{name}/current_state")
    except (OtherRulesError, SettingsError):
        return  # the existing view raises this error
    files = live_relation(connection, base.table)
    view = f"{identifier(name)}.current_state"
    shown = with_view_names(connection, "current_state", files)
    connection.execute(f"CREATE OR REPLACE VIEW {view} AS {shown}")


def _heading(lake: Lake) -> Iterator[str]:
    yield (
        f"-- Views of the lake {_one_line(lake.settings.lake)} as of "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, for a DuckDB shell:\n"
        "--   cdc-pipeline views --sql > views.sql && duckdb -init views.sql\n"
        "-- Later changes and publications are not in them. If a file is missing, maintenance has\n"
        "-- merged it since: print the views again. They contain rows of the latest changes:\n"
        "-- protect this file like the tables.\n"
    )
    if lake.settings.is_s3:
        yield "--\n-- The files are in S3. Run this first:\n" + _secret(lake)
    yield "SET TimeZone = 'UTC';\n"


def _secret(lake: Lake) -> str:
    access = lake.aws.s3_access(split_s3(lake.settings.lake)[0])
    region = literal(access.region or "us-east-1")
    scheme, _, host = (access.endpoint_url or "").partition("://")
    if access.endpoint_url is None or access.has_bucket_in_host:
        endpoint = f", ENDPOINT {literal(host)}" if host else ""
        return (
            "-- INSTALL httpfs; LOAD httpfs; INSTALL aws; LOAD aws;\n"
            f"-- CREATE SECRET (TYPE s3, PROVIDER credential_chain, REGION {region}{endpoint});\n"
        )
    return (
        "-- INSTALL httpfs; LOAD httpfs;\n"
        "-- CREATE SECRET (TYPE s3, KEY_ID 'your key id', SECRET 'your secret', "
        f"REGION {region},\n"
        f"--   ENDPOINT {literal(host.rstrip('/'))}, URL_STYLE 'path', "
        f"USE_SSL {'true' if scheme == 'https' else 'false'});\n"
    )


def _views(connection: duckdb.DuckDBPyConnection, schema: str) -> Iterator[str]:
    """Yield the views in order of creation, because some read others."""
    rows = connection.execute(
        "SELECT sql FROM duckdb_views() WHERE schema_name = ? AND NOT internal ORDER BY view_oid",
        [schema],
    ).fetchall()
    for (sql,) in rows:
        yield sql.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1) + "\n"


def _rows_as_table(connection: duckdb.DuckDBPyConnection, table: Table, name: str) -> Iterator[str]:
    """Yield SQL for a table in the schema of its view, which DuckDB searches first."""
    rows = arrow_table(connection, f"FROM {_name(name)}")
    described = connection.execute(f"DESCRIBE {_name(name)}").fetchall()
    columns = ", ".join(f"{identifier(column[0])} {column[1]}" for column in described)
    full = f"{identifier(table.safe_name)}.{identifier(name)}"
    yield f"CREATE OR REPLACE TABLE {full} ({columns});\n"
    for batch in rows.to_batches(_INSERT_ROWS):
        values = ",\n".join(_row(row.values(), described) for row in batch.to_pylist())
        yield f"INSERT INTO {full} VALUES\n{values};\n"


def _name(table: str) -> str:
    return f"temp.main.{identifier(table)}"


def _row(values: Iterable[Any], described: Sequence[Sequence[Any]]) -> str:
    return "(" + ", ".join(_cell(v, c[1]) for v, c in zip(values, described, strict=True)) + ")"


def _cell(value: Any, sql_type: str) -> str:
    """Return SQL that DuckDB reads back as the same value in a column of this type."""
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return f"CAST([{', '.join(_cell(v, '') for v in value)}] AS {sql_type})"
    if isinstance(value, bytes):
        return f"from_hex('{value.hex()}')"
    if isinstance(value, Decimal):
        return f"'{value:f}'"
    if not isinstance(value, str):
        return str(value)
    if any(char < " " for char in value):  # a shell may interpret control characters
        return f"decode(from_hex('{value.encode().hex()}'))"
    return literal(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
