"""Items of single entities: classify them, count their values, type their columns."""

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
    """Number of items of one entity, and statistics of their flattened attributes."""

    items: int = 0
    stats: Stats = field(default_factory=dict)


def count_entities(
    items: Iterable[pa.Array | pa.ChunkedArray],
    entities: Sequence[Entity],
    keep: Collection[str] = (),
) -> tuple[dict[str, EntityCount], int]:
    """Collect statistics by entity, and count the items without an entity.

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
    """Return a mask of the items (canonical typed JSON) that belong to the entity."""
    classify = classifier(entities)
    mask = [classify(_decode(text)) == entity.name for text in items.to_pylist()]
    return pa.array(mask, pa.bool_())


def shred_entity(
    batches: Iterable[pa.RecordBatch],
    entity: Entity,
    columns: Sequence[Column],
    stats: Stats,
    keep: Collection[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Convert batches of `NARROW_SCHEMA`, all of one entity, to `typed_schema(columns)`.

    `_item` is the unchanged item; columns and `_rescued` are from the flattened one.
    """
    if not entity.depth:
        yield from shred_pinned(batches, columns, stats)
        return
    index = typed_schema(columns).get_field_index("_item")
    for batch in batches:
        items = batch.column("item")
        flat = [to_json(flatten(_decode(text), entity.depth, keep)) for text in items.to_pylist()]
        narrow = batch.set_column(
            NARROW_SCHEMA.get_field_index("item"), NARROW_SCHEMA.field("item"), pa.array(flat)
        )
        for typed in shred_pinned([narrow], columns, stats):
            yield typed.set_column(index, typed.schema.field(index), items)


def shred_cells(
    items: pa.Array | pa.ChunkedArray,
    entity: Entity,
    columns: Sequence[Column],
    stats: Stats,
    keep: Collection[str] = (),
) -> pa.Array:
    """Return `_rescued` and the columns of an entity's items, as one struct per item."""
    texts = items.combine_chunks() if isinstance(items, pa.ChunkedArray) else items
    empty = pa.array([""] * len(texts), pa.string())
    times = pa.array([0] * len(texts), pa.int64())
    narrow = pa.RecordBatch.from_arrays([empty, empty, texts, times], schema=NARROW_SCHEMA)
    fields = cell_fields(columns)
    (typed,) = shred_entity([narrow], entity, columns, stats, keep)
    return pa.StructArray.from_arrays([typed.column(f.name) for f in fields], fields=fields)


def cell_fields(columns: Sequence[Column]) -> list[pa.Field]:
    """Return the fields of the result of `shred_cells`."""
    schema = typed_schema(columns)
    return list(schema)[schema.get_field_index("_rescued") :]
