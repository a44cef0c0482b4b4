"""The merged view: a published base and everything that has landed since, typed alike."""

from dataclasses import replace

import duckdb
import pyarrow as pa

from cdc_pipeline.core.items.columns import AttributeStats, Column, columns_of
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.lake.engine.duckdb_session import arrow_table, files_relation, identifier, literal
from cdc_pipeline.lake.engine.folding import create_winners
from cdc_pipeline.lake.engine.item_table import (
    column_names,
    max_order_key,
    prior_columns,
    prior_stats,
)
from cdc_pipeline.lake.engine.masking import masking_of, published_rules, require_rules
from cdc_pipeline.lake.iceberg.tables import data_files
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.current_state import Base
from cdc_pipeline.lake.publish.schema_contract import breaches, pinned_types
from cdc_pipeline.settings.model import Table
from cdc_pipeline.transform.pinned_types import shred_pinned
from cdc_pipeline.transform.shred import collect_stats, typed_schema

_BATCH_ROWS = 20_000
_TOUCHED, _FRESH = "touched_keys", "fresh_items"


def merged_relation(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    base: Base,
    delta: list[LandedObject],
) -> str:
    """SQL for the items of `base` after `delta`, for views of this connection.

    The delta is folded and typed now, the join with the base is left to the query: only the
    columns it asks for are read. Columns are the base's, widened where the delta needs it. A delta
    that breaks the table's schema contract is left out, as it cannot be published. Raises
    `OtherRulesError`, `SettingsError` where base and delta cannot be masked alike.
    """
    had = prior_columns(base.table)
    files = files_relation(connection, data_files(base.table), typed_schema(had))
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    stones = create_winners(connection, table, delta) if delta else None
    published = [published_rules(t) for t in (base.table, stones) if t]
    name = table.safe_name
    require_rules(masking, published, f"{name}.current_state", f"{name}/current_state")
    if not delta:
        return f"SELECT * FROM {files}"
    names = column_names(table.lake.iceberg, name)
    columns = _delta_tables(connection, table.settings, base, had, names)
    if breaches(table.settings, had, columns):
        return f"SELECT * FROM {files}"  # as the last publication left it
    system = [field.name for field in typed_schema([])]
    old = ", ".join([*(f"b.{name}" for name in system), *(_widened(c, had) for c in columns)])
    new = ", ".join(f"d.{identifier(name)}" for name in [*system, *(c.name for c in columns)])
    keys, items = _temporary(table.settings, _TOUCHED), _temporary(table.settings, _FRESH)
    kept, fresh = "k.item_key IS NULL", f"SELECT {new} FROM {items} AS d"
    ((least,),) = connection.execute(f"SELECT min(order_key) FROM {keys}").fetchall()
    if not _is_older(base, least):
        # A row that landed late may be older than the base's: the later order key wins either way.
        # The least one as a literal spares reading most of the base: Parquet knows its bounds.
        kept += " OR b._order_key >= k.order_key"
        fresh += (
            f" LEFT JOIN (SELECT _key, _order_key FROM {files} "
            f"WHERE _order_key >= {literal(least)}) AS b "
            "ON b._key = d._key AND b._order_key >= d._order_key WHERE b._key IS NULL"
        )
    return (
        f"SELECT {old} FROM {files} AS b LEFT JOIN {keys} AS k ON k.item_key = b._key "
        f"WHERE {kept} UNION ALL {fresh}"
    )


def _is_older(base: Base, least: str | None) -> bool:
    """Whether every row of the base is known to be older than all changes, from `least` on."""
    greatest = max_order_key(base.table)
    return least is None or (greatest is not None and greatest < least)


def _delta_tables(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    base: Base,
    had: list[Column],
    names: dict[str, str],
) -> list[Column]:
    """Temporary tables of the keys that the delta touches and of the items it leaves, typed.

    A change that an older tombstone rules out is in neither. Returns the merged columns.
    """
    keys, items = _temporary(table, _TOUCHED), _temporary(table, _FRESH)
    connection.execute(
        f"CREATE TEMP TABLE {keys} AS SELECT c.item_key, c.order_key, c.op, c.place "
        "FROM changes AS c JOIN winners AS w ON w.place = c.place "
        "LEFT JOIN tombstones AS t ON t.item_key = c.item_key "
        "WHERE (t.item_key IS NULL OR c.order_key >= t.order_key)"
    )
    fresh = arrow_table(
        connection,
        "SELECT c.item_key, c.order_key, c.item, c.write_time_us "
        f"FROM changes AS c JOIN {keys} AS k ON k.place = c.place WHERE k.op <> 'D'",
    )
    stats = prior_stats(base.table)
    for name, seen in collect_stats(fresh.to_batches(_BATCH_ROWS)).items():
        stats.setdefault(name, AttributeStats()).merge(seen)
    columns = columns_of(
        stats, had, keep_tags=True, pins=_pins(table, had), limit=table.max_columns, names=names
    )
    batches = shred_pinned(fresh.to_batches(_BATCH_ROWS), columns, stats)
    typed = pa.Table.from_batches(batches, typed_schema(columns))
    connection.register("typed_delta", typed)
    connection.execute(f"CREATE TEMP TABLE {items} AS SELECT * FROM typed_delta")
    connection.unregister("typed_delta")
    return columns


def _pins(table: Table, had: list[Column]) -> dict[str, str]:
    """Types as the base was published with, those of the settings for new attributes."""
    published = {column.attribute: column.type for column in had if column.pinned}
    known = {column.attribute for column in had}
    return published | {a: kind for a, kind in pinned_types(table).items() if a not in known}


def delta_tables(table: Table) -> list[str]:
    """The temporary tables that a merged view reads, by their names."""
    return [f"{table.safe_name}_{part}" for part in (_TOUCHED, _FRESH)]


def _temporary(table: Table, part: str) -> str:
    return identifier(f"{table.safe_name}_{part}")


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
    """A decimal as DynamoDB spells it: a stored scale adds zeros that are not its own.

    Where all digits are scale, DuckDB leaves out the zero before the point.
    """
    # DuckDB leaves the zero before the point out when all digits are behind it.
    trim = "rtrim(rtrim(regexp_replace(CAST({0} AS VARCHAR), '^(-?)[.]', '\\10.'), '0'), '.')"
    trim = rf"regexp_replace({trim}, '^(-?)(\.|$)', '\10\2')"
    if before.type.endswith(",0)"):
        trim = "CAST({0} AS VARCHAR)"
    if before.type.startswith("list<"):
        return f"list_transform({value}, lambda x: {trim.format('x')})"
    return trim.format(value)
