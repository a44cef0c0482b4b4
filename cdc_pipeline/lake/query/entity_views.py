"""Views of entities: the items of each entity in `current_state`, with columns of their own.

A view has the rows of `current_state`: the published base with later changes, or a past state.
Functions of the connection split and type rows as a query reads them.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.errors import NotReadyError, SettingsError
from cdc_pipeline.core.items.columns import Column, Stats
from cdc_pipeline.core.items.entities import Entity
from cdc_pipeline.lake.engine.duckdb_session import (
    arrow_batches,
    empty_relation,
    identifier,
    table_relation,
)
from cdc_pipeline.lake.engine.masking import (
    OtherRulesError,
    create_failing_view,
    masking_of,
    published_rules,
    require_rules,
)
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.entity_notes import (
    are_current,
    entities_of,
    entity_columns,
    read_notes,
    unflattened_attributes,
)
from cdc_pipeline.lake.query.merged_view import delta_tables
from cdc_pipeline.lake.query.named_views import with_view_names
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.entities import cell_fields, count_entities, is_of, shred_cells
from cdc_pipeline.transform.shred import merge_stats, typed_schema

_BATCH_ROWS = 4_000  # items are up to 400 kB
_ARROW: Any = "arrow"
_SYSTEM = "_key, _order_key, _write_time_us, _item"


def create_entity_views(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    published: IcebergTable | None = None,
) -> None:
    """Create `<schema>.<entity>` for every entity, over the existing view `current_state`.

    `published`: the base that `current_state` merges with later changes; its notes save a pass over
    all items. None: `current_state` is of another time, and all its items are read now.
    """
    if not table.settings.entities:
        return
    entities, keep = entities_of(table.settings), unflattened_attributes(table.settings)
    notes, base = read_notes(table), published
    if base is None:
        base = table.iceberg("current_state")
    known: dict[str, Stats] = {}
    if (
        notes is not None
        and published is not None
        and are_current(notes, table.settings, published)
    ):
        known = {name: note.stats for name, note in notes.entities.items()}
        relation = _fresh_items(connection, table.settings)
    else:
        relation = f"{identifier(table.safe_name)}.current_state"
    fresh: dict[str, Stats] = {}
    if relation:
        batches = arrow_batches(connection, f"SELECT _item FROM {relation}", _BATCH_ROWS)
        counts, _ = count_entities((batch.column(0) for batch in batches), entities, keep)
        fresh = {name: count.stats for name, count in counts.items()}
    for entity in entities:
        stats, more = known.get(entity.name), fresh.get(entity.name)
        if stats is None:
            stats, more = more or {}, None
        columns = entity_columns(table, entity, stats, base, notes, more=more)
        _create_view(connection, table.settings, entity, columns, merge_stats(stats, more or {}))
    weakref.finalize(connection, _close, weakref.ref(connection))


def refuse_entity_views(
    connection: duckdb.DuckDBPyConnection, table: Table, reason: Exception
) -> None:
    """Create views of entities that fail with the reason when they are read."""
    for entity in entities_of(table):
        no_rows = empty_relation(connection, typed_schema([]))
        create_failing_view(connection, _view(table, entity), no_rows, reason)


def entities_in_script(connection: duckdb.DuckDBPyConnection, table: TableLake) -> Iterator[str]:
    """Replace views of entities by views a plain DuckDB shell can read; yield comments on them.

    Splitting and typing need functions of this package, so only built tables can be shown.
    """
    for rule in table.settings.entities:
        view = _view(table.settings, rule.entity())
        connection.execute(f"DROP VIEW IF EXISTS {view}")
        built = table.lake.iceberg.load(f"{table.safe_name}_{rule.name}") if rule.table else None
        name = f"{table.safe_name}.{rule.name}"
        if built is None:
            yield f"-- {name} is left out: splitting needs cdc-pipeline. To include it, keep it\n"
            yield "-- as a table of its own in the settings (entities: table: true).\n"
            continue
        relation = table_relation(connection, built)
        try:
            masking = masking_of(table.lake.settings, table.settings, writing=False)
            require_rules(masking, [published_rules(built)], name, f"{table.safe_name}/{rule.name}")
        except (OtherRulesError, SettingsError) as error:
            create_failing_view(connection, view, relation, error)
        else:
            connection.execute(f"CREATE VIEW {view} AS SELECT * FROM {relation}")
        yield f"-- {name} is the table as last built, without changes that landed since.\n"


def not_published_error(table: Table) -> NotReadyError:
    """Return the error for entities of a table without a published state."""
    asset = f"{table.safe_name}/current_state"
    return NotReadyError(f"{asset} does not exist yet", fix=f"materialise {asset}")


def _fresh_items(connection: duckdb.DuckDBPyConnection, table: Table) -> str | None:
    """Return the temporary table of items that landed after the base; None: nothing landed."""
    _, items = delta_tables(table)
    ((tables,),) = connection.execute(
        "SELECT count(*) FROM duckdb_tables() WHERE temporary AND table_name = ?", [items]
    ).fetchall()
    return f"temp.main.{identifier(items)}" if tables else None


def _view(table: Table, entity: Entity) -> str:
    return f"{identifier(table.safe_name)}.{identifier(entity.name)}"


def _create_view(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    entity: Entity,
    columns: list[Column],
    stats: Stats,
) -> None:
    entities, keep = entities_of(table), unflattened_attributes(table)
    name = f"{table.safe_name}.{entity.name}"
    fields = cell_fields(columns)
    no_cells = pa.schema([pa.field("cells", pa.struct(fields))]).empty_table()
    (cells_type,) = connection.from_arrow(no_cells).types

    def is_own(items: pa.ChunkedArray) -> pa.Array:
        return is_of(items, entities, entity)

    def typed(items: pa.ChunkedArray) -> pa.Array:
        return shred_cells(items, entity, columns, stats, keep)

    text: Any = ["VARCHAR"]
    # No `partial` here: DuckDB counts its bound parameters, too.
    connection.create_function(f"{name}.is", is_own, text, "BOOLEAN", type=_ARROW)  # type: ignore[arg-type]
    connection.create_function(f"{name}.cells", typed, text, cells_type, type=_ARROW)
    cells = ", ".join(f"cells.{identifier(f.name)} AS {identifier(f.name)}" for f in fields)
    rows = (
        f"(SELECT {_SYSTEM}, {cells} FROM ("
        f"SELECT {_SYSTEM}, {identifier(f'{name}.cells')}(_item) AS cells "
        f"FROM {identifier(table.safe_name)}.current_state "
        f"WHERE {identifier(f'{name}.is')}(_item)))"
    )
    shown = with_view_names(connection, "current_state", rows)
    connection.execute(f"CREATE VIEW {_view(table, entity)} AS {shown}")


def _close(connection: "weakref.ref[duckdb.DuckDBPyConnection]") -> None:
    """Close a connection that is still open when Python exits.

    For one left open, DuckDB 2.0 may report each function as a leak.
    """
    opened = connection()
    if opened is not None:
        opened.close()
