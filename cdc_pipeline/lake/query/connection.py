"""connect(): a DuckDB connection with a schema per table and its views (docs/views.md)."""

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import duckdb

from cdc_pipeline.core.errors import LakeError, SettingsError
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.lake.engine.duckdb_session import (
    connect_duckdb,
    empty_relation,
    explain,
    files_relation,
    identifier,
    landed_relation,
    literal,
    open_duckdb,
    table_relation,
)
from cdc_pipeline.lake.engine.item_table import column_names, prior_columns
from cdc_pipeline.lake.engine.live_rows import live_relation
from cdc_pipeline.lake.engine.masking import (
    OtherRulesError,
    create_failing_view,
    require_rules_of_aggregate,
)
from cdc_pipeline.lake.iceberg.files import data_files, live_files
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.cdc import require_rules_of_days
from cdc_pipeline.lake.query.entity_views import (
    create_entity_views,
    not_published_error,
    refuse_entity_views,
)
from cdc_pipeline.lake.query.item_lookup import create_item_macro, create_plain_macro
from cdc_pipeline.lake.query.merged_view import merged_relation
from cdc_pipeline.lake.query.named_views import selected_columns, with_view_names
from cdc_pipeline.lake.query.time_travel import find_sources, write_state
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline.transform.aggregates import AGGREGATES, broken_aggregates, load_aggregates
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline.transform.sql import load_sql


def connect_lake(
    lake: Lake,
    tables: Iterable[str] | None = None,
    *,
    aggregates: bool = True,
    as_of: datetime | None = None,
) -> duckdb.DuckDBPyConnection:
    """See `cdc_pipeline.lake.connect`."""
    settings = lake.settings
    chosen = settings.tables if tables is None else [settings.table(name) for name in tables]
    connection = connect_duckdb(lake)
    try:
        for table in chosen:
            if as_of is None:
                _create_schema(connection, lake.table(table))
            else:
                _create_past_schema(connection, lake.table(table), as_of)
        if aggregates and as_of is None:
            _create_aggregates(connection, lake)
    except duckdb.Error as error:
        connection.close()
        raise LakeError(
            f"lake {settings.lake}: {explain(error)}",
            fix="if a file is missing or damaged, run `cdc-pipeline reconcile TABLE` for the fix",
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _create_schema(connection: duckdb.DuckDBPyConnection, table: TableLake) -> None:
    schema = identifier(table.safe_name)
    connection.execute(f"CREATE SCHEMA {schema}")
    # Load the base before the log, so that the log covers the base despite a publication between.
    base = published_base(table)
    state = table.log.load()
    if state.n == 0:
        return
    landed = landed_relation(connection, table.lake, list(state.objects.values()))
    raw_stream = with_view_names(connection, "raw_stream", landed)
    connection.execute(f"CREATE VIEW {schema}.raw_stream AS {raw_stream}")
    _create_cdc(connection, table, schema)
    _create_ttl_archive(connection, table, schema)
    # The live baseline; before the first publication the staged one.
    baseline = state.baselines.get(base.generation) if base else state.staged
    if baseline is not None:
        _create_pitr_export(connection, table, schema, baseline)
    if base is None:
        refuse_entity_views(connection, table.settings, not_published_error(table.settings))
    else:
        delta = state.delta(generation=base.generation, after=base.after)
        view = f"{schema}.current_state"
        try:
            merge = merged_relation(connection, table, base, delta)
        except (OtherRulesError, SettingsError) as error:
            files = live_relation(connection, base.table)
            shown = with_view_names(connection, "current_state", files)
            create_failing_view(connection, view, f"({shown})", error)
            refuse_entity_views(connection, table.settings, error)
        else:
            live = live_files(base.table)
            rows = f"({merge(live_relation(connection, base.table, live))})"
            columns = selected_columns(connection, "current_state", rows)
            connection.execute(f"CREATE VIEW {view} AS SELECT {columns} FROM {rows}")
            create_item_macro(
                connection,
                table.safe_name,
                base.table,
                live,
                lambda rows: f"SELECT {columns} FROM ({merge(rows)})",
            )
            create_entity_views(connection, table, base.table)


def _create_past_schema(
    connection: duckdb.DuckDBPyConnection, table: TableLake, as_of: datetime
) -> None:
    schema = identifier(table.safe_name)
    connection.execute(f"CREATE SCHEMA {schema}")
    state = table.log.load()
    past = find_sources(table, state, as_of)
    for warning in past.warnings:
        warnings.warn(warning, stacklevel=4)
    landed = landed_relation(connection, table.lake, list(state.objects.values()))
    until = f"WHERE write_time_us <= {past.until_us}"
    raw_stream = with_view_names(connection, "raw_stream", landed)
    connection.execute(f"CREATE VIEW {schema}.raw_stream AS {raw_stream} {until}")
    _create_cdc(connection, table, schema, until)
    _create_pitr_export(connection, table, schema, past.baseline)
    folder = Path(tempfile.mkdtemp(prefix="cdc_pipeline-"))
    weakref.finalize(connection, shutil.rmtree, folder, ignore_errors=True)
    items = folder / f"{table.safe_name}.parquet"
    with open_duckdb(table.lake, folder) as scratch:
        write_state(scratch, table, state, past, items)
    shown = with_view_names(connection, "current_state", f"read_parquet({literal(str(items))})")
    connection.execute(f"CREATE VIEW {schema}.current_state AS {shown}")
    create_plain_macro(connection, table.safe_name)
    create_entity_views(connection, table)


def _create_cdc(
    connection: duckdb.DuckDBPyConnection, table: TableLake, schema: str, where: str = ""
) -> None:
    built = table.iceberg("cdc")
    if built is None:
        return
    files = table_relation(connection, built)
    shown = with_view_names(connection, "cdc", files)
    try:
        require_rules_of_days(table, built)
    except (OtherRulesError, SettingsError) as error:
        create_failing_view(connection, f"{schema}.cdc", f"({shown})", error)
    else:
        connection.execute(f"CREATE VIEW {schema}.cdc AS {shown} {where}")
    # The portable statement's input is named `cdc`: replace it by this schema's view.
    history = load_sql("history").replace("FROM cdc", f"FROM {schema}.cdc")
    connection.execute(f"CREATE VIEW {schema}.history AS {history}")


def _create_ttl_archive(
    connection: duckdb.DuckDBPyConnection, table: TableLake, schema: str
) -> None:
    built = table.iceberg("ttl_archive") if table.settings.ttl_archive else None
    if built is None:
        return
    files, view = table_relation(connection, built), "ttl_archive"
    shown = with_view_names(connection, view, files)
    try:
        require_rules_of_days(table, built, view)
    except (OtherRulesError, SettingsError) as error:
        create_failing_view(connection, f"{schema}.{view}", f"({shown})", error)
    else:
        connection.execute(f"CREATE VIEW {schema}.{view} AS {shown}")


def _create_pitr_export(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    schema: str,
    baseline: Baseline,
) -> None:
    exported = table.iceberg("snapshot")
    if exported is None:
        return
    view, columns = f"{schema}.pitr_export", prior_columns(exported)
    try:
        files = data_files(exported, baseline.snapshot_id)
    except LakeError as error:  # current_state can be read without it
        no_rows = with_view_names(
            connection, "pitr_export", empty_relation(connection, typed_schema(columns))
        )
        create_failing_view(connection, view, f"({no_rows})", error)
        return
    relation = files_relation(connection, files, typed_schema(columns))
    names = column_names(table.lake.iceberg, table.safe_name)
    columns_sql = _renamed(connection, relation, {c.name: names[c.attribute] for c in columns})
    shown = with_view_names(connection, "pitr_export", f"(SELECT {columns_sql} FROM {relation})")
    connection.execute(f"CREATE VIEW {view} AS {shown}")


def _renamed(connection: duckdb.DuckDBPyConnection, relation: str, names: dict[str, str]) -> str:
    """Return SQL for the columns of a relation, with the names of the table's other views.

    An older version named the columns of exports independently of those of the published state.
    """
    columns: list[str] = [
        row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    ]
    new_names = {names[name] for name in columns if name in names}
    kept = [name for name in columns if name in names or name not in new_names]
    return ", ".join(f"{identifier(n)} AS {identifier(names.get(n) or n)}" for n in kept)


def _create_aggregates(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    connection.execute(f"CREATE SCHEMA {AGGREGATES}")
    every = load_aggregates(lake.settings.aggregates_folder)
    for aggregate in every:
        built = lake.iceberg.load(aggregate.table)
        if built is None:
            continue
        view, rows = f"{AGGREGATES}.{identifier(aggregate.name)}", table_relation(connection, built)
        try:
            require_rules_of_aggregate(lake, aggregate, every, built)
        except (OtherRulesError, SettingsError) as error:
            create_failing_view(connection, view, rows, error)
        else:
            connection.execute(f"CREATE VIEW {view} AS SELECT * FROM {rows}")
    for broken in broken_aggregates(lake.settings.aggregates_folder):
        built = lake.iceberg.load(broken.table)
        if built is not None:
            # Its inputs are unknown, and so are the masking rules it has to follow.
            view, rows = (
                f"{AGGREGATES}.{identifier(broken.name)}",
                table_relation(connection, built),
            )
            create_failing_view(connection, view, rows, SettingsError(broken.error))
