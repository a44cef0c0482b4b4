"""Items of one entity out of a table's: telling them apart, counting their values, typing them."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import pyarrow as pa

from cdc_pipeline.core.items.attributes import to_json
from cdc_pipeline.core.items.columns import Column, Stats, observe
from cdc_pipeline.core.items.entities import Entity, classifier, flatten
from cdc_pipeline.transform.pinned_types import shred_pinned
from cdc_pipeline.transform.shred import NARROW_SCHEMA, typed_schema

_decode = msgspec.json.decode


@dataclass
class EntityCount:
    """Items of one entity and what their attributes hold, flattened as the entity says."""

    items: int = 0
    stats: Stats = field(default_factory=dict)


def count_entities(
    items: Iterable[pa.Array | pa.ChunkedArray],
    entities: Sequence[Entity],
    keep: Collection[str] = (),
) -> tuple[dict[str, EntityCount], int]:
    """What every entity's items hold, and how many items are of no entity.

    `items`: canonical typed JSON. `keep`: attributes that are not flattened.
    """
    classify = classifier(entities)
    depths = {entity.name: entity.depth for entity in entities}
    counts = {entity.name: EntityCount() for entity in entities}
    unmatched = 0
    for batch in items:
        for text in batch.to_pylist():
            item = _decode(text)
            name = classify(item)
            if name is None:
                unmatched += 1
                continue
            counts[name].items += 1
            observe(counts[name].stats, flatten(item, depths[name], keep))
    return counts, unmatched


def is_of(
    items: pa.Array | pa.ChunkedArray, entities: Sequence[Entity], entity: Entity
) -> pa.Array:
    """Which of these items (canonical typed JSON) are of the entity."""
    classify = classifier(entities)
    found = [classify(_decode(text)) == entity.name for text in items.to_pylist()]
    return pa.array(found, pa.bool_())


def shred_entity(
    batches: Iterable[pa.RecordBatch],
    entity: Entity,
    columns: Sequence[Column],
    stats: Stats,
    keep: Collection[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Batches of `NARROW_SCHEMA`, all of one entity, as batches of `typed_schema(columns)`.

    `_item` is the item as it was; columns and `_rescued` are of the flattened one.
    """
    if not entity.depth:
        yield from shred_pinned(batches, columns, stats)
        return
    place = typed_schema(columns).get_field_index("_item")
    for batch in batches:
        items = batch.column("item")
        flat = [to_json(flatten(_decode(text), entity.depth, keep)) for text in items.to_pylist()]
        narrow = batch.set_column(
            NARROW_SCHEMA.get_field_index("item"), NARROW_SCHEMA.field("item"), pa.array(flat)
        )
        for typed in shred_pinned([narrow], columns, stats):
            yield typed.set_column(place, typed.schema.field(place), items)


def shred_cells(
    items: pa.Array | pa.ChunkedArray,
    entity: Entity,
    columns: Sequence[Column],
    stats: Stats,
    keep: Collection[str] = (),
) -> pa.Array:
    """`_rescued` and the columns of an entity's items, as one struct for each item."""
    texts = items.combine_chunks() if isinstance(items, pa.ChunkedArray) else items
    nothing = pa.array([""] * len(texts), pa.string())
    times = pa.array([0] * len(texts), pa.int64())
    narrow = pa.RecordBatch.from_arrays([nothing, nothing, texts, times], schema=NARROW_SCHEMA)
    fields = cell_fields(columns)
    (typed,) = shred_entity([narrow], entity, columns, stats, keep)
    return pa.StructArray.from_arrays([typed.column(f.name) for f in fields], fields=fields)


def cell_fields(columns: Sequence[Column]) -> list[pa.Field]:
    """The fields of what `shred_cells` returns."""
    schema = typed_schema(columns)
    return list(schema)[schema.get_field_index("_rescued") :]
