"""Notes on entities: item count, attribute statistics and columns of each, per published state.

Stored beside the capture log, they save readers a pass over all items. Of notes for another
published version, or under other rules, only the column names are used.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.columns import Column, Stats, carry_widths, columns_of
from cdc_pipeline.core.items.entities import Entity, escaped, rules_mark
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, connect_duckdb
from cdc_pipeline.lake.engine.item_table import prior_columns
from cdc_pipeline.lake.engine.live_rows import live_relation
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.schema_contract import pinned_types
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.entities import count_entities
from cdc_pipeline.transform.shred import merge_stats, stats_from_json, stats_to_json

_BATCH_ROWS = 4_000  # items are up to 400 kB


@dataclass(frozen=True)
class EntityNote:
    """Items of one entity: their number, attribute statistics and columns."""

    items: int
    stats: Stats
    columns: list[Column]


@dataclass(frozen=True)
class Notes:
    """Notes on a published state, by entity. `unmatched`: number of items without an entity."""

    snapshot_id: int
    rules: str
    unmatched: int
    entities: Mapping[str, EntityNote]


def entities_of(table: Table) -> list[Entity]:
    """Return the entities of a table, in matching order."""
    return [rule.entity() for rule in table.entities]


def unflattened_attributes(table: Table) -> set[str]:
    """Return the attributes that are not flattened because the settings give their type."""
    return set(pinned_types(table))


def split_mark(table: Table) -> str:
    """Return a digest of the settings that decide an entity's rows; '' without entities."""
    if not table.entities:
        return ""
    pins = [f"{name}: {kind}" for name, kind in pinned_types(table).items()]
    return rules_mark(entities_of(table), pins)


def entity_mark(settings: Settings, schema: str, view: str) -> str:
    """Return the `split_mark` of an entity's view; '' for any other view."""
    for table in settings.tables:
        if table.safe_name == schema and any(rule.name == view for rule in table.entities):
            return split_mark(table)
    return ""


def pins_of(table: Table, entity: Entity) -> dict[str, str]:
    """Return the types of the settings, by attribute name as in the entity's rows."""
    pins = pinned_types(table)
    return {escaped(name): kind for name, kind in pins.items()} if entity.depth else pins


def read_notes(table: TableLake) -> Notes | None:
    """Read the last notes, of whichever version; None: there are none."""
    data = table.lake.store.read(_key(table))
    if data is None:
        return None
    document = json.loads(data)
    return Notes(
        snapshot_id=document["snapshot_id"],
        rules=document["rules"],
        unmatched=document["unmatched"],
        entities={
            name: EntityNote(
                note["items"],
                stats_from_json(json.dumps(note["stats"])),
                [Column(**column) for column in note["columns"]],
            )
            for name, note in document["entities"].items()
        },
    )


def are_current(notes: Notes | None, table: Table, published: IcebergTable) -> bool:
    """Whether the notes are of this published version, under the present rules."""
    return (
        notes is not None
        and notes.snapshot_id == published.metadata.current_snapshot_id
        and notes.rules == split_mark(table)
    )


def current_notes(table: TableLake, published: IcebergTable) -> Notes:
    """Return the notes of this published version; make and store them if there are none."""
    notes = read_notes(table)
    if notes is not None and are_current(notes, table.settings, published):
        return notes
    made = _make_notes(table, published, notes)
    document = {
        "snapshot_id": made.snapshot_id,
        "rules": made.rules,
        "unmatched": made.unmatched,
        "entities": {
            name: {
                "items": note.items,
                "stats": json.loads(stats_to_json(note.stats)),
                "columns": [asdict(column) for column in note.columns],
            }
            for name, note in made.entities.items()
        },
    }
    table.lake.store.write(_key(table), json.dumps(document).encode())
    return made


def note_entities(table: TableLake, published: IcebergTable) -> None:
    """Make the notes after a publication. Does nothing for a table without entities."""
    if table.settings.entities:
        current_notes(table, published)


def _key(table: TableLake) -> str:
    return f"{table.paths.state}entities/notes.json"


def _make_notes(table: TableLake, published: IcebergTable, before: Notes | None) -> Notes:
    with connect_duckdb(table.lake) as connection:
        files = live_relation(connection, published)
        batches = arrow_batches(connection, f"SELECT _item FROM {files}", _BATCH_ROWS)
        items = (batch.column(0) for batch in batches)
        counts, unmatched = count_entities(
            items, entities_of(table.settings), unflattened_attributes(table.settings)
        )
    snapshot_id = published.metadata.current_snapshot_id
    assert snapshot_id is not None  # a published table has one
    entities = {}
    for entity in entities_of(table.settings):
        stats = counts[entity.name].stats
        if before is not None and before.rules == split_mark(table.settings):
            carry_widths(stats, before.entities[entity.name].stats)
        columns = entity_columns(table, entity, stats, published, before)
        entities[entity.name] = EntityNote(counts[entity.name].items, stats, columns)
    return Notes(snapshot_id, split_mark(table.settings), unmatched, entities)


def entity_columns(
    table: TableLake,
    entity: Entity,
    stats: Stats,
    published: IcebergTable | None,
    notes: Notes | None,
    *,
    more: Stats | None = None,
) -> list[Column]:
    """Return the columns of an entity's items, with stable names.

    Names are the entity's earlier ones; else, for top-level attributes, those of `current_state`.
    `more`: statistics of newer items: types fit all items, the kind of a column does not change.
    """
    before = notes.entities.get(entity.name) if notes else None
    own = before.columns if before else _built_columns(table, entity)
    pins = pins_of(table.settings, entity)
    names = [*own, *_inherited_names(prior_columns(published), entity, own)]
    columns = columns_of(stats, names, pins=pins)
    if not more:
        return columns
    stats = merge_stats(stats, more)
    fresh = columns_of(stats, [*names, *_new(columns, names)], pins=pins)
    return columns_of(stats, [*columns, *_new(fresh, columns)], keep_tags=True, pins=pins)


def _built_columns(table: TableLake, entity: Entity) -> list[Column]:
    """Return the columns of the entity's own table, for use if its notes are lost."""
    if not any(rule.table for rule in table.settings.entities if rule.name == entity.name):
        return []
    return prior_columns(table.lake.iceberg.load(f"{table.safe_name}_{entity.name}"))


def _inherited_names(
    columns: Iterable[Column], entity: Entity, own: Iterable[Column]
) -> Iterator[Column]:
    """Yield columns of `current_state` for attributes without one here, if the name is free."""
    attributes = {column.attribute for column in own}
    taken = {column.name for column in own}
    for column in columns:
        path = escaped(column.attribute) if entity.depth else column.attribute
        if path not in attributes and column.name not in taken:
            yield Column(column.name, path, column.tag, column.type, column.pinned)


def _new(columns: Iterable[Column], known: Iterable[Column]) -> list[Column]:
    attributes = {column.attribute for column in known}
    return [column for column in columns if column.attribute not in attributes]
