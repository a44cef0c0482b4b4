"""connect(): a DuckDB connection with a schema per table and the views of DESIGN section 3."""

from collections.abc import Iterable

import duckdb

from cdc_pipeline.core.capture_log import Baseline
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.cdc import CDC_SCHEMA
from cdc_pipeline.lake.current_state import published_base
from cdc_pipeline.lake.duck import (
    files_relation,
    identifier,
    landed_relation,
    literal,
    open_duckdb,
)
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.merge import merged_relation
from cdc_pipeline.lake.tables import data_files
from cdc_pipeline.lake.typed import prior_columns
from cdc_pipeline.settings import Table
from cdc_pipeline.transform.aggregates import AGGREGATES, load_aggregates
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline.transform.sql import load_sql


def connect_lake(
    lake: Lake, tables: Iterable[str] | None = None, *, aggregates: bool = True
) -> duckdb.DuckDBPyConnection:
    """See `cdc_pipeline.lake.connect`."""
    settings = lake.settings
    chosen = settings.tables if tables is None else [settings.table(name) for name in tables]
    connection = open_duckdb(lake)
    try:
        for table in chosen:
            _create_schema(connection, lake, table)
        if aggregates:
            _create_aggregates(connection, lake)
    except duckdb.Error as error:
        connection.close()
        raise LakeError(f"lake {settings.lake}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _create_schema(connection: duckdb.DuckDBPyConnection, lake: Lake, table: Table) -> None:
    schema = identifier(table.safe_name)
    connection.execute(f"CREATE SCHEMA {schema}")
    # The base before the log: whatever is published in between, the log covers the base.
    base = published_base(lake, table)
    state = lake.log(table).load()
    if state.n == 0:
        return
    landed = landed_relation(connection, lake, list(state.objects.values()))
    connection.execute(f"CREATE VIEW {schema}.raw_stream AS SELECT * FROM {landed}")
    _create_cdc(connection, lake, table, schema)
    # The live baseline; before the first publication the staged one.
    baseline = state.baselines.get(base.generation) if base else state.staged
    if baseline is not None:
        _create_pitr_export(connection, lake, table, schema, baseline)
    if base is not None:
        delta = state.delta(generation=base.generation, after=base.after)
        merged = merged_relation(connection, lake, table, base, delta)
        connection.execute(f"CREATE VIEW {schema}.current_state AS {merged}")


def _create_cdc(
    connection: duckdb.DuckDBPyConnection, lake: Lake, table: Table, schema: str
) -> None:
    built = lake.tables.load(f"{table.safe_name}_cdc")
    if built is None:
        return
    files = files_relation(connection, data_files(built), CDC_SCHEMA)
    connection.execute(f"CREATE VIEW {schema}.cdc AS SELECT * FROM {files}")
    # The portable statement names its input `cdc`; here that is this schema's view.
    history = load_sql("history").replace("FROM cdc", f"FROM {schema}.cdc")
    connection.execute(f"CREATE VIEW {schema}.history AS {history}")


def _create_pitr_export(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    table: Table,
    schema: str,
    baseline: Baseline,
) -> None:
    exported = lake.tables.load(f"{table.safe_name}_snapshot")
    if exported is None:
        return
    files = data_files(exported, baseline.snapshot_id)
    relation = files_relation(connection, files, typed_schema(prior_columns(exported)))
    connection.execute(f"CREATE VIEW {schema}.pitr_export AS SELECT * FROM {relation}")


def _create_aggregates(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    connection.execute(f"CREATE SCHEMA {AGGREGATES}")
    for aggregate in load_aggregates(lake.settings.aggregates_folder):
        built = lake.tables.load(aggregate.table)
        if built is None:
            continue
        files = data_files(built)
        if not files:
            continue
        listed = ", ".join(map(literal, files))
        connection.execute(
            f"CREATE VIEW {AGGREGATES}.{identifier(aggregate.name)} AS "
            f"SELECT * FROM read_parquet([{listed}], hive_partitioning = false)"
        )
