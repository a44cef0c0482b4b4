"""Exact values: any item that DynamoDB stores comes out of the lake as it went in.

Exports and stream records go through real files into real tables, and what readers see is compared
with the items by a meaning of values that shares no code with the product. Both ways of converting
are tested: compiled (the extra `fast`) and not.
"""

import base64
import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, example, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.aws import export
from cdc_pipeline.aws.export import DataFile, ExportStatus, Manifest
from cdc_pipeline.capture.sources.streams_records import parse_records
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.items.columns import SYSTEM_COLUMNS, Column
from cdc_pipeline.core.items.view_names import VIEW_COLUMNS
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.run_context import SILENT
from cdc_pipeline.lake.engine.item_table import prior_columns
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.snapshot import snapshot
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    plain_view,
    temporary_lake,
)
from cdc_pipeline_tests.strategies import HOSTILE_NAMES, items
from cdc_pipeline_tests.transform.ways import both_ways, converted_by

Item = dict[str, Any]
Key = frozenset[tuple[str, Any]]

_SYSTEM = {*SYSTEM_COLUMNS, *VIEW_COLUMNS}
# A token of JSON without zeros that say nothing.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?(E[+-][1-9][0-9]*)?").fullmatch
_KEY_NAMES = [("pk",), ("S", "M"), ("_item", "_key"), ("a", "A")]
_KEYS = [
    lambda n: ({"S": f"k{n}"}, {"N": str(n)}),
    lambda n: ({"S": f'"{n}\\é'}, {"N": f"-{n}.5"}),
    lambda n: ({"S": f"\x00{n}"}, {"N": f"{n}E+90"}),
]

# ------------------------------------------------------------------------------------- meaning


def meaning(value: Any) -> Any:
    """What a typed value says, equal for all its spellings."""
    ((tag, content),) = value.items()
    if tag == "N":
        return tag, Decimal(content)
    if tag == "B":
        return tag, base64.b64decode(content)
    if tag == "M":
        return tag, item_meaning(content)
    if tag == "L":
        return tag, [meaning(element) for element in content]
    if tag in ("SS", "NS", "BS"):
        return tag, frozenset(meaning({tag[0]: member}) for member in content)
    return tag, content


def item_meaning(item: Item) -> dict[str, Any]:
    """What each attribute of a typed item says."""
    return {name: meaning(value) for name, value in item.items()}


def is_shown(value: Any, plain: Any) -> bool:
    """Whether plain JSON (its numbers as `Decimal`) says what a typed value says."""
    ((tag, content),) = value.items()
    if tag == "M":
        return content.keys() == plain.keys() and all(
            is_shown(content[name], plain[name]) for name in content
        )
    if tag == "L":
        return len(content) == len(plain) and all(map(is_shown, content, plain))
    if tag in ("SS", "NS", "BS"):
        found = frozenset(meaning({tag[0]: member}) for member in plain)
        typed = tag != "NS" or all(isinstance(member, Decimal) for member in plain)
        return typed and found == meaning(value)[1] and len(found) == len(plain)
    if tag == "N":
        return isinstance(plain, Decimal) and plain == Decimal(content)
    return plain == (None if tag == "NULL" else content)


def is_cell(value: Any, cell: Any) -> bool:
    """Whether a cell of a typed column holds exactly a typed value."""
    ((tag, content),) = value.items()
    if tag in ("M", "L"):
        return is_shown(value, _plain(cell))
    if tag in ("SS", "NS", "BS"):
        exact = [member for member in content if any(is_cell({tag[0]: member}, c) for c in cell)]
        numbers = [Decimal(c) for c in cell] if tag == "NS" else cell
        return exact == content and numbers == sorted({*numbers})
    if tag == "N":
        spelled = _NUMBER(cell) if isinstance(cell, str) else isinstance(cell, int | Decimal)
        return bool(spelled) and Decimal(cell) == Decimal(content)
    if tag == "B":
        return cell == base64.b64decode(content)
    return type(cell) is type(content) and cell == content


def _plain(text: str) -> Any:
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


def assert_typed(
    rows: Sequence[dict[str, Any]], columns: Iterable[Column], expected: dict[Key, Item]
) -> None:
    """The rows of a typed table are the expected items, value for value.

    Of `columns` only their names count: a column's type is what its cells are.
    """
    names = {column.attribute: column.name for column in columns}
    assert len({*names.values()} - _SYSTEM) == len(names)
    assert len(rows) == len(expected)
    found = {_key_of_text(row["_key"]): row for row in rows}
    assert found.keys() == expected.keys()
    held: dict[str, set[tuple[str, str]]] = {}
    for key, item in expected.items():
        row = found[key]
        assert item_meaning(json.loads(row["_item"])) == item_meaning(item)
        rescued = json.loads(row["_rescued"] or "{}")
        assert all(meaning(value) == meaning(item[name]) for name, value in rescued.items())
        typed = {n: v for n, v in item.items() if n not in rescued and "NULL" not in v}
        for name, value in typed.items():
            cell = row[names[name]]
            assert cell is not None
            assert is_cell(value, cell), (name, value, cell)
            held.setdefault(names[name], set()).add((name, next(iter(value))))
        filled = {name for name, cell in row.items() if cell is not None} - _SYSTEM
        assert filled == {names[name] for name in typed}
    assert all(len(what) == 1 for what in held.values())  # one attribute, and of it one type


def _key_of_text(text: str) -> Key:
    return frozenset(item_meaning(json.loads(text)).items())


def _keyed(found: list[Item], key_names: Sequence[str]) -> dict[Key, Item]:
    """The items with keys of their own, by `_key_of_text` of these."""
    keyed = {}
    for number, item in enumerate(found):
        keys = dict(zip(key_names, _KEYS[number % len(_KEYS)](number), strict=False))
        keyed[_key_of_text(json.dumps(keys))] = {**item, **keys}
    return keyed


many_items = st.lists(items, min_size=40, max_size=80)
_ODD = [{name: {"S": name}} for name in HOSTILE_NAMES] + [
    {name: {"N": "1"}} for name in HOSTILE_NAMES
]
# What differs is named by the assertion; to shrink lakes takes minutes.
_PHASES = (Phase.explicit, Phase.generate)
_SOME, _MANY = (budget(max_examples=n, phases=_PHASES) for n in (6, 12))


# ------------------------------------------------------------------------------------- exports


def _exported(built: LakeBuilder, lines: Sequence[str], key_names: tuple[str, ...]) -> None:
    """An export of these lines in two files and an empty one, staged as `take_snapshot` does."""
    objects = {
        f"{n}.json.gz": gzip.compress("".join(lines[n::2] if n < 2 else []).encode("utf-8"))
        for n in range(3)
    }
    files = [
        DataFile(
            key,
            base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
            len(lines[n::2]) if n < 2 else 0,
        )
        for n, (key, data) in enumerate(objects.items())
    ]
    baseline = Baseline(1, START_US, START_US)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "open_object", lambda _aws, _bucket, key: io.BytesIO(objects[key]))
        staged, _ = snapshot._stage(
            built.table_lake,
            ExportStatus("arn/export/1", "COMPLETED", "bucket", "", None, ""),
            Manifest("bucket", len(lines), "", files),
            baseline,
            key_names,
            list,
            SILENT,
        )
    committed = staged.table.current_snapshot()
    assert committed is not None
    built.append(baseline=replace(baseline, snapshot_id=committed.snapshot_id, items=staged.rows))


def check_export(found: list[Item], key_names: tuple[str, ...], escaped: bool, way: str) -> None:
    expected = _keyed(found, key_names)
    lines = [json.dumps({"Item": i}, ensure_ascii=escaped) + "\n" for i in expected.values()]
    with temporary_lake() as built, converted_by(way):
        built.start()
        _exported(built, lines, key_names)
        rows = plain_view(built.lake, "SELECT * FROM orders.pitr_export")
        assert_typed(rows, _columns(built, "snapshot"), expected)


def _columns(built: LakeBuilder, name: str) -> list[Column]:
    table = built.lake.iceberg.load(f"orders_{name}")
    assert table is not None
    return prior_columns(table)


exports = given(many_items, st.sampled_from(_KEY_NAMES), st.booleans())


@both_ways
@_SOME
@exports
@example(_ODD, ("pk",), False)
def test_items_survive_an_export(
    way: str, found: list[Item], key_names: tuple[str, ...], escaped: bool
) -> None:
    check_export(found, key_names, escaped, way)


@pytest.mark.slow
@both_ways
@_MANY
@exports
def test_many_items_survive_an_export(
    way: str, found: list[Item], key_names: tuple[str, ...], escaped: bool
) -> None:
    check_export(found, key_names, escaped, way)


# ------------------------------------------------------------------------------------- streams


@dataclass(frozen=True)
class Event:
    """One change of an item; None: it was not there."""

    key: Key
    keys: Item
    old: Item | None
    new: Item | None

    @property
    def op(self) -> str:
        return "I" if self.old is None else "D" if self.new is None else "U"


def _events(found: list[Item], key_names: Sequence[str]) -> tuple[list[Event], list[Event]]:
    """Every item is put, then becomes another one; some are deleted in between or at last."""
    first = _keyed(found, key_names)
    then = _keyed(found[1:] + found[:1], key_names)
    puts, others = [], []
    for number, (key, item) in enumerate(first.items()):
        keys = {name: item[name] for name in key_names}
        puts.append(Event(key, keys, None, item))
        if number % 7 == 1:
            others += Event(key, keys, item, None), Event(key, keys, None, then[key])
        elif number % 7 != 3:
            others.append(Event(key, keys, item, then[key]))
        if number % 5 == 2:
            others.append(Event(key, keys, others[-1].new if number % 7 != 3 else item, None))
    return puts, others


def _record(event: Event, number: int, escaped: bool) -> msgspec.Raw:
    """As GetRecords answers it."""
    images = {"Keys": event.keys, "NewImage": event.new, "OldImage": event.old}
    record = {
        "eventID": f"event-{number}",
        "eventName": {"I": "INSERT", "U": "MODIFY", "D": "REMOVE"}[event.op],
        "dynamodb": {
            "ApproximateCreationDateTime": START_US // 1_000_000 + number // 4,
            "SequenceNumber": str(10**20 + number),
            **{name: image for name, image in images.items() if image is not None},
        },
    }
    return msgspec.Raw(json.dumps(record, ensure_ascii=escaped).encode())


def _land(built: LakeBuilder, events: Sequence[Event], start: int, escaped: bool) -> None:
    assert built.state.stream is not None
    records = [_record(event, start + n, escaped) for n, event in enumerate(events)]
    shard = built.state.shards["shard-1"]
    changes, unreadable = parse_records(records, built.state.stream, shard)
    assert unreadable == []
    built.land(changes)


def _latest(events: Iterable[Event]) -> dict[Key, Item]:
    last = {event.key: event.new for event in events}
    return {key: item for key, item in last.items() if item is not None}


def _current(built: LakeBuilder) -> list[dict[str, Any]]:
    return plain_view(built.lake, "SELECT * FROM orders.current_state")


def _publish(built: LakeBuilder) -> list[Column]:
    return publish_current_state(built.table_lake).columns


def check_stream(found: list[Item], key_names: tuple[str, ...], escaped: bool, way: str) -> None:
    puts, others = _events(found, key_names)
    with temporary_lake() as built, converted_by(way):
        built.start()
        built.stage({})
        built.read_to(START_US + MARGIN_US)
        _land(built, puts, 0, escaped)
        columns = _publish(built)
        assert_typed(_current(built), columns, _latest(puts))
        _land(built, others, len(puts), escaped)
        merged = _current(built)
        columns = _publish(built)
        assert_typed(_current(built), columns, _latest(puts + others))
        # Attributes that were deleted since have a column in the merged view, but no value.
        kept = [{n: c for n, c in row.items() if c is not None} for row in merged]
        blank = dict.fromkeys([*_SYSTEM, *(column.name for column in columns)])
        assert_typed([blank | row for row in kept], columns, _latest(puts + others))
        build_cdc_day(built.table_lake, day_of(START_US))
        check_changes(built, puts + others)


def check_changes(built: LakeBuilder, events: list[Event]) -> None:
    """`cdc` and `history` have every change, its images and, as plain JSON, its new image."""
    rows = plain_view(built.lake, "SELECT * FROM orders.cdc ORDER BY order_key")
    assert [row["op"] for row in rows] == [event.op for event in events]
    for row, event in zip(rows, events, strict=True):
        assert _key_of_text(row["keys"]) == event.key
        assert_image(row["new_image"], event.new)
        assert_image(row["old_image"], event.old)
        assert_plain(row["data"], event.new)
    versions = plain_view(built.lake, "SELECT * FROM orders.history ORDER BY order_key")
    current = _latest(events)
    for row, event in zip(versions, events, strict=True):
        assert (_key_of_text(row["item_key"]), row["op"]) == (event.key, event.op)
        assert_image(row["item"], event.new)
        assert_plain(row["data"], event.new)
        assert row["is_current"] == (row["valid_to"] is None and event.key in current)
    shown = {_key_of_text(row["item_key"]) for row in versions if row["is_current"]}
    assert shown == current.keys()


def assert_image(text: str | None, item: Item | None) -> None:
    assert (text is None) == (item is None)
    if text is not None and item is not None:
        assert item_meaning(json.loads(text)) == item_meaning(item)


def assert_plain(text: str | None, item: Item | None) -> None:
    assert (text is None) == (item is None)
    if text is not None:
        assert is_shown({"M": item}, _plain(text))


@both_ways
@_SOME
@exports
@example(_ODD, ("pk",), False)
def test_items_survive_a_stream(
    way: str, found: list[Item], key_names: tuple[str, ...], escaped: bool
) -> None:
    check_stream(found, key_names, escaped, way)


@pytest.mark.slow
@both_ways
@_MANY
@exports
def test_many_items_survive_a_stream(
    way: str, found: list[Item], key_names: tuple[str, ...], escaped: bool
) -> None:
    check_stream(found, key_names, escaped, way)
