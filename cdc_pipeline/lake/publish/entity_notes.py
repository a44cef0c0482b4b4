"""Notes on entities: what the items of each hold, counted whenever a state is published.

They lie beside the capture log and spare readers a pass over all items. Notes of another published
version, or of other rules, count for nothing but the names of columns.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.columns import Column, Stats, carry_widths, columns_of
from cdc_pipeline.core.items.entities import Entity, escaped, rules_mark
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, connect_duckdb, files_relation
from cdc_pipeline.lake.engine.item_table import prior_columns
from cdc_pipeline.lake.iceberg.tables import data_files
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.schema_contract import pinned_types
from cdc_pipeline.settings.model import Settings, Table
from cdc_pipeline.transform.entities import count_entities
from cdc_pipeline.transform.shred import merge_stats, stats_from_json, stats_to_json, typed_schema

_BATCH_ROWS = 4_000  # items are up to 400 kB


@dataclass(frozen=True)
class EntityNote:
    """Items of one entity: how many, what they hold, and the columns that hold it."""

    items: int
    stats: Stats
    columns: list[Column]


@dataclass(frozen=True)
class Notes:
    """What a published state holds by entity. `unmatched`: items that are of none."""

    snapshot_id: int
    rules: str
    unmatched: int
    entities: Mapping[str, EntityNote]


def entities_of(table: Table) -> list[Entity]:
    """The entities of a table, in the order in which they are tried."""
    return [rule.entity() for rule in table.entities]


def kept_whole(table: Table) -> set[str]:
    """Attributes that are not flattened: the settings say their type."""
    return set(pinned_types(table))


def split_mark(table: Table) -> str:
    """Changes with the settings that decide what an entity's rows are; '' without entities."""
    if not table.entities:
        return ""
    pins = [f"{name}: {kind}" for name, kind in pinned_types(table).items()]
    return rules_mark(entities_of(table), pins)


def entity_mark(settings: Settings, schema: str, view: str) -> str:
    """The `split_mark` of a view that is an entity's, '' for any other."""
    for table in settings.tables:
        if table.safe_name == schema and any(rule.name == view for rule in table.entities):
            return split_mark(table)
    return ""


def pins_of(table: Table, entity: Entity) -> dict[str, str]:
    """Types that the settings say, by attribute as the entity's rows have it."""
    pins = pinned_types(table)
    return {escaped(name): kind for name, kind in pins.items()} if entity.depth else pins


def read_notes(table: TableLake) -> Notes | None:
    """The notes of whichever version was noted last."""
    data = table.lake.store.read(_key(table))
    if data is None:
        return None
    said = json.loads(data)
    return Notes(
        snapshot_id=said["snapshot_id"],
        rules=said["rules"],
        unmatched=said["unmatched"],
        entities={
            name: EntityNote(
                note["items"],
                stats_from_json(json.dumps(note["stats"])),
                [Column(**column) for column in note["columns"]],
            )
            for name, note in said["entities"].items()
        },
    )


def are_current(notes: Notes | None, table: Table, published: IcebergTable) -> bool:
    """Whether the notes are of this published version, by the present rules."""
    return (
        notes is not None
        and notes.snapshot_id == published.metadata.current_snapshot_id
        and notes.rules == split_mark(table)
    )


def current_notes(table: TableLake, published: IcebergTable) -> Notes:
    """Notes of this published version: those that are there, or made now and kept."""
    notes = read_notes(table)
    if notes is not None and are_current(notes, table.settings, published):
        return notes
    made = _make_notes(table, published, notes)
    said = {
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
    table.lake.store.write(_key(table), json.dumps(said).encode())
    return made


def note_entities(table: TableLake, published: IcebergTable) -> None:
    """After a publication: note what it holds by entity. Nothing for a table without entities."""
    if table.settings.entities:
        current_notes(table, published)


def _key(table: TableLake) -> str:
    return f"{table.paths.state}entities/notes.json"


def _make_notes(table: TableLake, published: IcebergTable, before: Notes | None) -> Notes:
    with connect_duckdb(table.lake) as connection:
        files = files_relation(connection, data_files(published), typed_schema([]))
        batches = arrow_batches(connection, f"SELECT _item FROM {files}", _BATCH_ROWS)
        items = (batch.column(0) for batch in batches)
        counts, unmatched = count_entities(
            items, entities_of(table.settings), kept_whole(table.settings)
        )
    snapshot_id = published.metadata.current_snapshot_id
    assert snapshot_id is not None  # it is published
    noted = {}
    for entity in entities_of(table.settings):
        stats = counts[entity.name].stats
        if before is not None and before.rules == split_mark(table.settings):
            carry_widths(stats, before.entities[entity.name].stats)
        columns = entity_columns(table, entity, stats, published, before)
        noted[entity.name] = EntityNote(counts[entity.name].items, stats, columns)
    return Notes(snapshot_id, split_mark(table.settings), unmatched, noted)


def entity_columns(
    table: TableLake,
    entity: Entity,
    stats: Stats,
    published: IcebergTable | None,
    notes: Notes | None,
    *,
    more: Stats | None = None,
) -> list[Column]:
    """Columns for these items of an entity, called as they ever were.

    Names are those of the entity before; else, for top-level attributes, those of `current_state`.
    `more`: what newer items hold: the types are of all, of which kind a column is, stays.
    """
    before = notes.entities.get(entity.name) if notes else None
    own = before.columns if before else _built_columns(table, entity)
    pins = pins_of(table.settings, entity)
    names = [*own, *_named_alike(prior_columns(published), entity, own)]
    columns = columns_of(stats, names, pins=pins)
    if not more:
        return columns
    stats = merge_stats(stats, more)
    fresh = columns_of(stats, [*names, *_new(columns, names)], pins=pins)
    return columns_of(stats, [*columns, *_new(fresh, columns)], keep_tags=True, pins=pins)


def _built_columns(table: TableLake, entity: Entity) -> list[Column]:
    """Of the entity's own table, where notes are lost."""
    if not any(rule.table for rule in table.settings.entities if rule.name == entity.name):
        return []
    return prior_columns(table.lake.iceberg.load(f"{table.safe_name}_{entity.name}"))


def _named_alike(
    columns: Iterable[Column], entity: Entity, own: Iterable[Column]
) -> Iterator[Column]:
    """Columns of `current_state` for attributes that have none here, unless the name is taken."""
    attributes = {column.attribute for column in own}
    taken = {column.name for column in own}
    for column in columns:
        path = escaped(column.attribute) if entity.depth else column.attribute
        if path not in attributes and column.name not in taken:
            yield Column(column.name, path, column.tag, column.type, column.pinned)


def _new(columns: Iterable[Column], known: Iterable[Column]) -> list[Column]:
    attributes = {column.attribute for column in known}
    return [column for column in columns if column.attribute not in attributes]
