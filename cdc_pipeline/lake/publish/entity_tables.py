"""Tables of entities: one Iceberg table per entity, with its items of the published state."""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.items.columns import Column
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, open_duckdb
from cdc_pipeline.lake.engine.live_rows import live_relation
from cdc_pipeline.lake.engine.masking import (
    PUBLISHED,
    expire_earlier_versions,
    masking_of,
    published_rules,
    require_rules,
)
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.iceberg.tables import retry_on_conflict
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.entity_notes import (
    current_notes,
    entities_of,
    split_mark,
    unflattened_attributes,
)
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.entities import is_of, shred_entity
from cdc_pipeline.transform.shred import NARROW_SCHEMA, typed_schema

_MADE_OF = "made_of"
_BATCH_ROWS = 4_000  # items are up to 400 kB


@dataclass(frozen=True)
class EntityTable:
    """A committed table. `unchanged`: it was up to date already and was not written."""

    items: int
    columns: list[Column]
    table: IcebergTable
    unchanged: bool
    seconds: float


def build_entity(table: TableLake, name: str) -> EntityTable:
    """Build `<table>_<entity>` from the published `current_state`, whole, in one commit.

    Raises `NotReadyError` before the first publication, `OtherRulesError` if the state was
    published under other masking rules, `CommitConflictError` after repeated conflicts, and
    `LakeError`.
    """
    return retry_on_conflict(lambda: _build(table, name))


def _build(table: TableLake, name: str) -> EntityTable:
    started, safe = time.monotonic(), table.safe_name
    # Load the table before its input, so that a commit never replaces it with an older state.
    over = table.lake.iceberg.load(f"{safe}_{name}")
    base = published_base(table)
    if base is None:
        raise NotReadyError(
            f"{safe}/{name}: table {table.name} has no published state yet",
            fix=f"materialise {safe}/current_state first",
        )
    masking, rules = (
        masking_of(table.lake.settings, table.settings, writing=False),
        published_rules(base.table),
    )
    require_rules(masking, [rules], f"{safe}.current_state", f"{safe}/current_state")
    note = current_notes(table, base.table).entities[name]
    made_of = _made_of(table.settings, base.table)
    if over is not None and table_property(over, _MADE_OF) == made_of:
        seconds = time.monotonic() - started
        return EntityTable(note.items, note.columns, over, True, seconds)
    # Read before the commit, which refreshes the table objects.
    shows_too_much = over is not None and published_rules(over) != rules
    table.lake.store.write(_mark(table, name), b"{}")
    properties = {
        _MADE_OF: made_of,
        PUBLISHED: rules,
        "items": str(note.items),
        "columns": json.dumps([asdict(column) for column in note.columns]),
    }
    entity = next(entity for entity in entities_of(table.settings) if entity.name == name)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
    ):
        files = live_relation(connection, base.table)
        batches = arrow_batches(
            connection,
            "SELECT _key AS item_key, _order_key AS order_key, _item AS item, "
            f"_write_time_us AS write_time_us FROM {files} ORDER BY _key",
            _BATCH_ROWS,
        )

        def own_rows() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                is_own = is_of(batch.column("item"), entities_of(table.settings), entity)
                yield batch.cast(NARROW_SCHEMA).filter(is_own)

        keep = unflattened_attributes(table.settings)
        typed = shred_entity(own_rows(), entity, note.columns, note.stats, keep)
        rows = pa.RecordBatchReader.from_batches(typed_schema(note.columns), typed)
        committed = table.lake.iceberg.replace(
            f"{safe}_{name}", rows, properties, over=over, key="_key"
        )
    if shows_too_much:
        expire_earlier_versions(table.lake, committed)
    return EntityTable(note.items, note.columns, committed, False, time.monotonic() - started)


def _made_of(table: Table, published: IcebergTable) -> str:
    return f"{published.metadata.current_snapshot_id} {split_mark(table)}"


def stale_entities(table: TableLake, published: IcebergTable) -> Iterator[str]:
    """Yield entities whose tables are made from another version of the state, or do not exist."""
    made_of = _made_of(table.settings, published)
    for rule in table.settings.entities:
        if rule.table:
            built = table.lake.iceberg.load(f"{table.safe_name}_{rule.name}")
            if built is None or table_property(built, _MADE_OF) != made_of:
                yield rule.name


def entity_tables(table: TableLake) -> list[str]:
    """Return every entity that ever had a table, including those no longer in the settings."""
    folder = _mark(table, "")
    return sorted(key.removeprefix(folder) for key in table.lake.store.list(folder))


def _mark(table: TableLake, name: str) -> str:
    return f"{table.paths.state}entities/tables/{name}"


def count_unmatched(table: TableLake) -> tuple[int, dict[str, int]] | None:
    """Return the number of published items without an entity, and those of each entity.

    None: nothing is published yet.
    """
    base = published_base(table)
    if base is None:
        return None
    notes = current_notes(table, base.table)
    return notes.unmatched, {name: note.items for name, note in notes.entities.items()}
