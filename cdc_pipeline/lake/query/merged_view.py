"""The merged view: a published base and the changes that landed since, with the same types."""

from collections.abc import Callable
from dataclasses import replace

import duckdb
import pyarrow as pa

from cdc_pipeline.core.items.columns import AttributeStats, Column, columns_of
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.lake.engine.duckdb_session import arrow_table, identifier, literal
from cdc_pipeline.lake.engine.folding import create_winners
from cdc_pipeline.lake.engine.item_table import (
    column_names,
    max_order_key,
    prior_columns,
    prior_stats,
)
from cdc_pipeline.lake.engine.masking import masking_of, published_rules, require_rules
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.base import Base
from cdc_pipeline.lake.state.schema_contract import breaches, pinned_types
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.pinned_types import shred_pinned
from cdc_pipeline.transform.shred import collect_stats, typed_schema

_BATCH_ROWS = 20_000
_TOUCHED, _FRESH = "touched_keys", "fresh_items"


def merged_relation(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    base: Base,
    delta: list[LandedObject],
) -> Callable[[str], str]:
    """Return SQL for the items of `base` after `delta`, for views and macros of this connection.

    The function that is returned takes a relation of the base's live rows, or of those of one item.
    The delta is folded and typed now; the query joins it with the base and reads only the columns
    it needs. Columns are those of the base, widened where the delta needs it. A delta that breaks
    the table's schema contract is left out, because it cannot be published. Raises
    `OtherRulesError`, `SettingsError` if base and delta cannot be masked by the same rules.
    """
    before = prior_columns(base.table)
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    tombstones = create_winners(connection, table, delta, touched_only=True) if delta else None
    published = [published_rules(t) for t in (base.table, tombstones) if t]
    name = table.safe_name
    require_rules(masking, published, f"{name}.current_state", f"{name}/current_state")
    if not delta:
        return "SELECT * FROM {}".format
    names = column_names(table.lake.iceberg, name)
    columns = _delta_tables(connection, table.settings, base, before, names)
    if breaches(table.settings, before, columns):
        return "SELECT * FROM {}".format  # the last published version
    system = [field.name for field in typed_schema([])]
    old = ", ".join([*(f"b.{name}" for name in system), *(_widened(c, before) for c in columns)])
    new = ", ".join(f"d.{identifier(name)}" for name in [*system, *(c.name for c in columns)])
    keys, items = _temporary(table.settings, _TOUCHED), _temporary(table.settings, _FRESH)
    fresh = f"SELECT {new} FROM {items} AS d"
    ((min_key,),) = connection.execute(f"SELECT min(order_key) FROM {keys}").fetchall()
    late = None if _is_older(base, min_key) else min_key
    return lambda files: _merged(files, f"SELECT {old}", keys, fresh, late)


def _merged(files: str, selected: str, keys: str, fresh: str, late: str | None) -> str:
    """Return the merged items; `late`: the least order key, if it may be older than rows of it."""
    kept = "k.item_key IS NULL"
    if late is not None:
        # A row that landed late may be older than the base's: the later order key wins.
        # With the minimum as a literal, DuckDB skips most of the base by Parquet's statistics.
        kept += " OR b._order_key >= k.order_key"
        fresh += (
            f" LEFT JOIN (SELECT _key, _order_key FROM {files} "
            f"WHERE _order_key >= {literal(late)}) AS b "
            "ON b._key = d._key AND b._order_key >= d._order_key WHERE b._key IS NULL"
        )
    return (
        f"{selected} FROM {files} AS b LEFT JOIN {keys} AS k ON k.item_key = b._key "
        f"WHERE {kept} UNION ALL {fresh}"
    )


def _is_older(base: Base, min_key: str | None) -> bool:
    """Whether every row of the base is known to be older than order key `min_key`."""
    max_key = max_order_key(base.table)
    return min_key is None or (max_key is not None and max_key < min_key)


def _delta_tables(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    base: Base,
    before: list[Column],
    names: dict[str, str],
) -> list[Column]:
    """Create temporary tables of the delta's keys and of its remaining items, typed.

    A change that a tombstone excludes is in neither. Returns the merged columns.
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
    for name, seen in collect_stats(fresh.to_batches(_BATCH_ROWS), fresh.num_rows).items():
        stats.setdefault(name, AttributeStats()).merge(seen)
    columns = columns_of(
        stats,
        before,
        keep_tags=True,
        pins=_pins(table, before),
        limit=table.max_columns,
        names=names,
    )
    batches = shred_pinned(fresh.to_batches(_BATCH_ROWS), columns, stats, fresh.num_rows)
    typed = pa.Table.from_batches(batches, typed_schema(columns))
    connection.register("typed_delta", typed)
    connection.execute(f"CREATE TEMP TABLE {items} AS SELECT * FROM typed_delta")
    connection.unregister("typed_delta")
    return columns


def _pins(table: Table, before: list[Column]) -> dict[str, str]:
    """Return pinned types: of the published base, for new attributes those of the settings."""
    published = {column.attribute: column.type for column in before if column.pinned}
    known = {column.attribute for column in before}
    return published | {a: kind for a, kind in pinned_types(table).items() if a not in known}


def delta_tables(table: Table) -> list[str]:
    """Return the names of the temporary tables that a merged view reads."""
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


def _widened(column: Column, before: list[Column]) -> str:
    """Return SQL for a base column in the merged type; NULL if the base lacks it."""
    name, target = identifier(column.name), _sql_type(column.type)
    own = next((c for c in before if c.name == column.name), None)
    if own is None:
        return f"CAST(NULL AS {target}) AS {name}"
    if own == column:
        return f"b.{name}"
    if column.type in ("string", "list<string>") and "decimal" in own.type:
        return f"{_canonical_text(f'b.{name}', replace(own, name=name))} AS {name}"
    return f"CAST(b.{name} AS {target}) AS {name}"


def _canonical_text(value: str, before: Column) -> str:
    """Return SQL for a decimal in DynamoDB's spelling, without the zeros added by the scale."""
    # DuckDB omits the zero before the point if all digits are after it.
    trim = "rtrim(rtrim(regexp_replace(CAST({0} AS VARCHAR), '^(-?)[.]', '\\10.'), '0'), '.')"
    trim = rf"regexp_replace({trim}, '^(-?)(\.|$)', '\10\2')"
    if before.type.endswith(",0)"):
        trim = "CAST({0} AS VARCHAR)"
    if before.type.startswith("list<"):
        return f"list_transform({value}, lambda x: {trim.format('x')})"
    return trim.format(value)
