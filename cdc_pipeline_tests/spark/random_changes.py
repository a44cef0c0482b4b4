"""Random landed changes with what real ones have: repeats, disorder, late rows, odd texts."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pyarrow as pa

from cdc_pipeline.core.changes.fold import KeyedChange, Row, fold
from cdc_pipeline.core.changes.order import order_key, position
from cdc_pipeline.lake.publish.cdc import CDC_SCHEMA
from cdc_pipeline.transform.shred import NARROW_SCHEMA
from cdc_pipeline_tests.healed_story import healed_story

# Texts that engines order or compare differently if they do not compare bytes.
_ODD = ["", " ", "a", "A", "a ", "a\x00", "é", "e\u0301", "日本", "\uffff", "😀", "''", '"', "\\"]
_KEYS = [*_ODD, *map(str, range(30))]
_TEXTS = ["", "null", "NULL", '{"a":{"S":"ü"}}', "😀\n\t", "\\u0000", "'", "x" * 3000]
_NUMBERS = [1, 5, 9, 10, 99, 100, 10**20]
_START = datetime(2026, 10, 24, 23, 59, 59, 999000, UTC)

CHANGES_SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("item_key", "order_key", "op", "item")]
    + [pa.field(name, pa.int64()) for name in ("write_time_us", "place")]
)
BASE_SCHEMA = NARROW_SCHEMA.append(pa.field("place", pa.int64()))
TOMBSTONES_SCHEMA = pa.schema(
    [NARROW_SCHEMA.field(name) for name in ("item_key", "order_key", "write_time_us")]
)
LANDED_SCHEMA = pa.schema([field for field in CDC_SCHEMA if field.name != "day"])

_EXPIRED_SCHEMA = pa.schema(
    [LANDED_SCHEMA.field(name) for name in ("keys", "time_stamp", "order_key", "old_image")]
)
_ITEMS_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("item_key", "item")])
_IMAGES_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("keys", "order_key", "item")])


@dataclass(frozen=True)
class Story:
    """What a state and a delivery are, and `expected`: items and tombstones after it.

    `of_heals`: uuid and generation of what `cdc` must have of a day with heals in `landed`.
    """

    relations: dict[str, pa.Table]
    expected: dict[str, Row]
    of_heals: set[tuple[str, int]]


def story(seed: int) -> Story:
    """A base and tombstones made of some changes, then a delivery of others and of those again."""
    chance = random.Random(seed)
    made = list(_changes(chance, 500))
    # What the state knows is not what is older: some of what is delivered comes late.
    before = fold({}, map(_keyed, chance.sample(made, 150)))
    landed = chance.sample(made, 300)
    landed += [_again(chance, row) for row in chance.choices(landed, k=60)]
    chance.shuffle(landed)
    healed = [healed_story(10 * seed + number) for number in range(10)]
    # Each has items of its own.
    of_heals = [
        row | {"keys": f"{number} {row['keys']}", "uuid": f"{number} {row['uuid']}"}
        for number, one in enumerate(healed)
        for row in one.landed
    ]
    relations = {
        "landed": pa.Table.from_pylist(landed + of_heals, LANDED_SCHEMA),
        "changes": pa.Table.from_pylist(list(map(_narrow, landed, count())), CHANGES_SCHEMA),
        "expired": pa.Table.from_pylist(made[::3], _EXPIRED_SCHEMA),
        "images": pa.Table.from_pylist([_image(row) for row in made], _IMAGES_SCHEMA),
        "base": _state(before, BASE_SCHEMA, deleted=False),
        "tombstones": _state(before, TOMBSTONES_SCHEMA, deleted=True),
        "earlier": _state(before, _ITEMS_SCHEMA, deleted=False),
        "baseline": _state(fold(before, map(_keyed, landed)), _ITEMS_SCHEMA, deleted=False),
        "explained": pa.table({"item_key": chance.sample(_KEYS, 10)}),
    }
    kept = {(f"{n} {uuid}", g) for n, one in enumerate(healed) for uuid, g in one.expected}
    return Story(relations, fold(before, map(_keyed, landed)), kept)


def _changes(chance: random.Random, count: int) -> Iterator[dict[str, Any]]:
    places = {
        (chance.choice(_KEYS), chance.randint(1, 3), chance.randint(0, 2), chance.choice(_NUMBERS))
        for _ in range(count)
    }
    for number, (key, generation, depth, at) in enumerate(sorted(places)):
        op = chance.choice("IUUUD")
        time = _START + timedelta(milliseconds=chance.choice([0, 1, 86_400_000, at % 10**9]))
        yield {
            "uuid": f"{number:064x}",
            "op": op,
            "time_stamp": time,
            "data": None if op == "D" else chance.choice(_TEXTS),
            "keys": key,
            "new_image": None if op == "D" else chance.choice(_TEXTS),
            "old_image": None if op == "I" else chance.choice([None, *_TEXTS]),
            "write_time_us": int(time.timestamp() * 1000) * 1000 + chance.randint(0, 999),
            "position": position(depth, at),
            "sequence_number": chance.choice([None, str(at)]),
            "shard_id": chance.choice([None, "", "shard-1"]),
            "event_id": None,
            "is_ttl_delete": chance.choice([None, True, False]),
            "transport": "dynamodb_streams",
            "landed_at": _START + timedelta(seconds=number),
            "generation": generation,
            "order_key": order_key(generation, position(depth, at)),
        }


def _again(chance: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """The same change once more, by the same log entry or a later one, perhaps moved in a tie."""
    later = timedelta(milliseconds=chance.choice([0, 1, 5000]))
    moved = chance.choice(["", "", ".0001", ".0002"])
    return row | {
        "landed_at": row["landed_at"] + later,
        "position": row["position"] + moved,
        "order_key": row["order_key"] + moved,
    }


def _narrow(row: dict[str, Any], place: int) -> dict[str, Any]:
    return row | {"item_key": row["keys"], "item": row["new_image"], "place": place}


def _image(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"item": row["new_image"]}


def _keyed(row: dict[str, Any]) -> KeyedChange:
    return KeyedChange(row["keys"], row["order_key"], row["new_image"])


def _state(state: dict[str, Row], schema: pa.Schema, *, deleted: bool) -> pa.Table:
    rows = [
        {"item_key": key, "order_key": row.order_key, "item": row.item, "write_time_us": 7}
        for key, row in state.items()
        if (row.item is None) == deleted
    ]
    rows = [row | {"place": place} for place, row in enumerate(rows)]
    return pa.Table.from_pylist(rows, schema)
