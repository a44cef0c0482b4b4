"""connect(): a DuckDB connection with a schema per table and the views of DESIGN section 3."""

from collections.abc import Iterable
from dataclasses import replace

import duckdb
import pyarrow as pa

from cdc_pipeline.core.capture_log import LogState
from cdc_pipeline.core.columns import Column, columns_of
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.aggregates import aggregate_table, load_aggregates
from cdc_pipeline.lake.cdc import CDC_SCHEMA
from cdc_pipeline.lake.current_state import create_winners, published_base
from cdc_pipeline.lake.duck import (
    arrow_table,
    files_relation,
    identifier,
    landed_relation,
    literal,
    open_duckdb,
)
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.tables import data_files
from cdc_pipeline.lake.typed import prior_columns, prior_stats
from cdc_pipeline.settings import Table
from cdc_pipeline.transform.shred import collect_stats, shred, typed_schema
from cdc_pipeline.transform.sql import load_sql

AGGREGATES = "aggregates"
_BATCH_ROWS = 20_000


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
    state = lake.log(table).load()
    if state.n == 0:
        return
    landed = landed_relation(connection, lake, list(state.objects.values()))
    connection.execute(f"CREATE VIEW {schema}.raw_stream AS SELECT * FROM {landed}")
    _create_cdc(connection, lake, table, schema)
    _create_pitr_export(connection, lake, table, schema, state)
    _create_current_state(connection, lake, table, schema, state)


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
    connection: duckdb.DuckDBPyConnection, lake: Lake, table: Table, schema: str, state: LogState
) -> None:
    """Items of the live baseline; before the first publication those of the staged one."""
    base = published_base(lake, table)
    baseline = state.baselines.get(base.generation) if base else state.staged
    exported = lake.tables.load(f"{table.safe_name}_snapshot")
    if baseline is None or exported is None:
        return
    files = data_files(exported, baseline.snapshot_id)
    relation = files_relation(connection, files, typed_schema(prior_columns(exported)))
    connection.execute(f"CREATE VIEW {schema}.pitr_export AS SELECT * FROM {relation}")


def _create_current_state(
    connection: duckdb.DuckDBPyConnection, lake: Lake, table: Table, schema: str, state: LogState
) -> None:
    """The published base merged with everything landed since, as fresh as the landing zone."""
    base = published_base(lake, table)
    if base is None:
        return
    had = prior_columns(base.table)
    files = files_relation(connection, data_files(base.table), typed_schema(had))
    delta = state.delta(generation=base.generation, after=base.after)
    if not delta:
        connection.execute(f"CREATE VIEW {schema}.current_state AS SELECT * FROM {files}")
        return
    create_winners(connection, lake, table, delta)
    fresh = _fresh_rows(connection)
    stats = prior_stats(base.table)
    for name, seen in collect_stats(fresh.to_batches(_BATCH_ROWS)).items():
        if name in stats:
            stats[name].merge(seen)
        else:
            stats[name] = seen
    columns = columns_of(stats, had, keep_tags=True)
    typed = pa.Table.from_batches(
        shred(fresh.to_batches(_BATCH_ROWS), columns), typed_schema(columns)
    )
    connection.register("fresh_rows", typed)
    rows, keys = (
        identifier(f"{table.safe_name}_{part}") for part in ("fresh_rows", "touched_keys")
    )
    connection.execute(f"CREATE TEMP TABLE {rows} AS SELECT * FROM fresh_rows")
    connection.execute(
        f"CREATE TEMP TABLE {keys} AS SELECT w.item_key, w.order_key FROM winners AS w "
        f"{_NOT_BURIED}"
    )
    connection.unregister("fresh_rows")
    system = ", ".join(f"b.{field.name}" for field in typed_schema([]))
    selected = ", ".join(_widened(c, had) for c in columns)
    ordered = ", ".join(
        [f"f.{field.name}" for field in typed_schema([])]
        + [f"f.{identifier(c.name)}" for c in columns]
    )
    connection.execute(
        f"CREATE VIEW {schema}.current_state AS "
        f"SELECT {system}{', ' if selected else ''}{selected} FROM {files} AS b "
        f"LEFT JOIN {keys} AS k ON k.item_key = b._key "
        "WHERE k.item_key IS NULL OR b._order_key >= k.order_key "
        f"UNION ALL SELECT {ordered} FROM {rows} AS f "
        f"LEFT JOIN (SELECT _key, _order_key FROM {files}) AS b "
        "ON b._key = f._key AND b._order_key >= f._order_key WHERE b._key IS NULL"
    )


_NOT_BURIED = (
    "LEFT JOIN tombstones AS t ON t.item_key = w.item_key "
    "WHERE (t.item_key IS NULL OR w.order_key >= t.order_key)"
)


def _fresh_rows(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Items that the delta leaves, narrow; those an older tombstone rules out are not in it."""
    return arrow_table(
        connection,
        "SELECT w.item_key, w.order_key, w.item, w.write_time_us FROM winners AS w "
        f"{_NOT_BURIED} AND w.op <> 'D'",
    )


_SQL_TYPES = {"string": "VARCHAR", "json": "VARCHAR", "boolean": "BOOLEAN", "binary": "BLOB"}


def _sql_type(kind: str) -> str:
    if kind.startswith("list<"):
        return f"{_sql_type(kind[5:-1])}[]"
    if kind == "int64":
        return "BIGINT"
    return kind.upper() if kind.startswith("decimal(") else _SQL_TYPES[kind]


def _widened(column: Column, had: list[Column]) -> str:
    """A base column in the type that base and delta share; NULL where the base lacks it."""
    name, target = identifier(column.name), _sql_type(column.type)
    before = next((c for c in had if c.name == column.name), None)
    if before is None:
        return f"CAST(NULL AS {target}) AS {name}"
    if before == column:
        return f"b.{name}"
    if column.type in ("string", "list<string>") and "decimal" in before.type:
        return f"{_canonical_text(f'b.{name}', replace(before, name=name))} AS {name}"
    return f"CAST(b.{name} AS {target}) AS {name}"


def _canonical_text(value: str, before: Column) -> str:
    """A decimal as DynamoDB spells it: a stored scale adds zeros that are not its own."""
    trim = "rtrim(rtrim(CAST({0} AS VARCHAR), '0'), '.')"
    if before.type.endswith(",0)"):
        trim = "CAST({0} AS VARCHAR)"
    if before.type.startswith("list<"):
        return f"list_transform({value}, lambda x: {trim.format('x')})"
    return trim.format(value)


def _create_aggregates(connection: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    connection.execute(f"CREATE SCHEMA {AGGREGATES}")
    for aggregate in load_aggregates(lake.settings.aggregates_folder):
        built = lake.tables.load(aggregate_table(aggregate))
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
