"""Random stories of one day with two gaps and their heals, as landed rows, and what `cdc` must be.

The writes are known, and which of them were captured: each of those is in `cdc`, and of the others
each that is the last one of its item in a window, once.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cdc_pipeline.core.changes.change import content_identity, stream_identity
from cdc_pipeline.core.changes.order import order_key, position

SECOND_US = 1_000_000
START = datetime(2026, 10, 24, 12, tzinfo=UTC)
_START_US = int(START.timestamp()) * SECOND_US
_UNIT_US = {"dynamodb_streams": SECOND_US, "kinesis_ms": 1000, "kinesis": 1}


_KEYS = "abcd"


@dataclass(frozen=True)
class Write:
    """What DynamoDB accepted. `old`, `new`: images, None where there is no item."""

    number: int
    key: str
    time_us: int
    old: str | None
    new: str | None
    by_ttl: bool


@dataclass(frozen=True)
class Window:
    """What one heal exports: writes of [from_us, to_us), in the heal's generation."""

    from_us: int
    to_us: int
    generation: int

    def holds(self, time_us: int) -> bool:
        return self.from_us <= time_us < self.to_us


@dataclass
class HealedStory:
    """`landed`: rows with the log's columns. `expected`: uuid and generation of those in `cdc`.

    `numbers`: of the writes that rows are of, by uuid and generation.
    """

    transport: str
    landed: list[dict[str, Any]] = field(default_factory=list)
    expected: set[tuple[str, int]] = field(default_factory=set)
    numbers: dict[tuple[str, int], int] = field(default_factory=dict)


def healed_story(seed: int) -> HealedStory:
    """The story of a seed."""
    chance = random.Random(seed)
    story = HealedStory(chance.choice(list(_UNIT_US)))
    at = sorted(chance.sample(range(60), 4))
    gaps = [(at[0], at[1]), (at[2], at[3])]
    margin = chance.choice((0, 1, 20))
    windows = [
        Window(_us(start - chance.choice((0, 1, 20))), _us(end + margin), g)
        for (start, end), g in zip(gaps, (2, 4), strict=True)
    ]
    writes = list(_writes(chance, story.transport))
    lucky = chance.choice((0, 0, 0.5))  # Kinesis skips some records, a lost shard is one of many
    captured = {
        w.number
        for w in writes
        if chance.random() < lucky or not any(_us(a) <= w.time_us < _us(b) for a, b in gaps)
    }
    records = [(w, 1 + 2 * sum(w.time_us >= _us(b) for _, b in gaps)) for w in writes]
    records = [(w, generation) for w, generation in records if w.number in captured]
    for write, generation in records:
        row = _record(story.transport, write, generation)
        story.expected.add((row["uuid"], generation))
        story.numbers[row["uuid"], generation] = write.number
        story.landed += [row] * chance.choice((1, 1, 1, 2))
    lines = {window: list(_lines(window, writes)) for window in windows}
    first, second = windows
    again = {write.number for write, _ in lines[second]}
    for window, changed in lines.items():
        for write, before in changed:
            row = _line(write, before, window.generation)
            story.landed.append(row)
            story.numbers[row["uuid"], window.generation] = write.number
            if write.number not in captured and not (window is first and write.number in again):
                story.expected.add((row["uuid"], window.generation))
    for window in windows:
        for row in _reads(chance, window, writes, records, lines[window]):
            story.landed.append(row)
            later = [
                w.time_us for w, g in records if g > window.generation and w.key == row["keys"]
            ]
            if window is first:
                later += [w.time_us for w, _ in lines[second] if w.key == row["keys"]]
            if not any(time_us < window.to_us for time_us in later):
                story.expected.add((row["uuid"], window.generation))
    chance.shuffle(story.landed)
    return story


def _us(second: float) -> int:
    return _START_US + int(second * SECOND_US)


def _writes(chance: random.Random, transport: str) -> Iterator[Write]:
    """No two of them are alike as far as the transport's times tell: nobody could know better."""
    unit = max(_UNIT_US[transport], 1000)
    items: dict[str, str] = {}
    seen: set[tuple[str, int, str | None]] = set()
    offsets = (0, 1, 999, 1000, 1001, 400_000, 999_999)
    seconds = chance.sample(range(80), chance.choice((8, 40)))  # close together or not
    times = sorted({_us(chance.choice(seconds)) + chance.choice(offsets) for _ in range(60)})
    for number, time_us in enumerate(times):
        key = chance.choice(_KEYS)
        old = items.get(key)
        gone = old is not None and chance.random() < 0.4
        new = None if gone else f"{key}{chance.randrange(3)}"
        # Two of one ms would share a place, which `capture.landing.ties` orders before they land.
        mark = (key, time_us // unit, None if transport == "kinesis_ms" else new)
        if new == old or mark in seen:
            continue
        seen.add(mark)
        if new is None:
            del items[key]
        else:
            items[key] = new
        yield Write(number, key, time_us, old, new, gone and chance.random() < 0.5)


def _lines(window: Window, writes: list[Write]) -> Iterator[tuple[Write, str | None]]:
    """The last write of each item in a window, with the image before the window."""
    found: dict[str, list[Write]] = {}
    for write in writes:
        if window.holds(write.time_us):
            found.setdefault(write.key, []).append(write)
    for of_item in found.values():
        if of_item[0].old is not None or of_item[-1].new is not None:
            yield of_item[-1], of_item[0].old


def _reads(
    chance: random.Random,
    window: Window,
    writes: list[Write],
    records: list[tuple[Write, int]],
    lines: list[tuple[Write, str | None]],
) -> Iterator[dict[str, Any]]:
    """Items that had landed in the window and are in no line, as they are when the heal reads."""
    early = chance.random() < 0.5  # before the records behind the gap have landed
    read_us = window.to_us + (0 if early else chance.randrange(30) * SECOND_US)
    in_lines = {write.key for write, _ in lines}
    for key in _KEYS:
        had = [w for w, g in records if w.key == key and g < window.generation]
        had = [w for w in had if window.holds(w.time_us)]
        seen = any(w.key == key and g > window.generation for w, g in records)
        if not had or had[-1].new is None or key in in_lines or (seen and not early):
            continue
        past = [w for w in writes if w.key == key and w.time_us < read_us]
        image, time_us = past[-1].new, window.to_us - 1
        op = "D" if image is None else "U"
        place = f"{position(0, time_us)}.read"
        uuid = content_identity("id", key, time_us, op, image, None)
        images = (image, None)
        yield _row(uuid, key, op, images, time_us, place, window.generation, "read", "", None)


def _record(transport: str, write: Write, generation: int) -> dict[str, Any]:
    time_us = write.time_us - write.time_us % _UNIT_US[transport]
    op = "D" if write.new is None else ("I" if write.old is None else "U")
    event, by_ttl = f"event-{write.number}", op == "D" and write.by_ttl
    images = (write.new, write.old)
    if transport == "dynamodb_streams":
        uuid, place = stream_identity("id", event), position(1, 1000 + write.number)
    else:
        uuid = content_identity("id", write.key, time_us, op, *images)
        place = position(0, time_us)
    name = transport.removesuffix("_ms")
    return _row(uuid, write.key, op, images, time_us, place, generation, name, event, by_ttl)


def _line(write: Write, before: str | None, generation: int) -> dict[str, Any]:
    op = "D" if write.new is None else ("I" if before is None else "U")
    uuid = content_identity("id", write.key, write.time_us, op, write.new, before)
    by_ttl, place = None if op == "D" else False, position(0, write.time_us)
    images = (write.new, before)
    return _row(uuid, write.key, op, images, write.time_us, place, generation, "export", "", by_ttl)


def _row(
    uuid: str,
    key: str,
    op: str,
    images: tuple[str | None, str | None],
    time_us: int,
    place: str,
    generation: int,
    transport: str,
    event: str,
    by_ttl: bool | None,
) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "op": op,
        "time_stamp": START + timedelta(milliseconds=(time_us - _START_US) // 1000),
        "data": images[0],
        "keys": key,
        "new_image": images[0],
        "old_image": images[1],
        "write_time_us": time_us,
        "position": place,
        "sequence_number": "",
        "shard_id": "",
        "event_id": event,
        "is_ttl_delete": by_ttl,
        "transport": transport,
        "landed_at": START,
        "generation": generation,
        "order_key": order_key(generation, place),
    }
