"""Typing: every value is in its column exactly, or rescued."""

import base64
import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.core.items.attributes import canonical_item, plain_value, to_json
from cdc_pipeline.core.items.columns import Column, Stats, columns_of, observe
from cdc_pipeline.transform.shred import (
    NARROW_SCHEMA,
    arrow_type,
    collect_stats,
    shred,
    stats_from_json,
    stats_to_json,
    typed_schema,
)
from cdc_pipeline_tests.strategies import items
from cdc_pipeline_tests.transform.ways import both_ways, converted_by


def _batches(found: list[dict[str, Any]], size: int = 2) -> list[pa.RecordBatch]:
    texts = [to_json(canonical_item(item)) for item in found]
    rows = pa.table(
        {
            "item_key": [f"k{n}" for n in range(len(texts))],
            "order_key": [f"o{n}" for n in range(len(texts))],
            "item": texts,
            "write_time_us": list(range(len(texts))),
        },
        schema=NARROW_SCHEMA,
    )
    return rows.to_batches(size)


def _shredded(
    way: str, found: list[dict[str, Any]], prior: Iterable[Column] = (), *, keep_tags: bool = False
) -> tuple[list[Column], list[dict[str, Any]]]:
    batches = _batches(found)
    with converted_by(way):
        columns = columns_of(collect_stats(batches), prior, keep_tags=keep_tags)
        table = pa.Table.from_batches(shred(batches, columns), typed_schema(columns))
    return columns, table.to_pylist()


def _scalar(kind: str, content: str) -> Any:
    if kind == "int64":
        return int(content)
    if kind == "binary":
        return base64.b64decode(content)
    return Decimal(content) if kind.startswith("decimal") else content


def _exact(column: Column, content: Any) -> Any:
    """What a cell must hold, derived from the column's declared type alone."""
    if column.type == "json":
        return plain_value({column.tag: content})
    if column.type.startswith("list<"):
        return [_scalar(column.type[5:-1], member) for member in content]
    return _scalar(column.type, content)


def _check(found: list[dict[str, Any]], columns: list[Column], rows: list[dict[str, Any]]) -> None:
    assert len(rows) == len(found)
    for number, (item, row) in enumerate(zip(found, rows, strict=True)):
        canonical = canonical_item(item)
        assert row["_item"] == to_json(canonical)
        place = (row["_key"], row["_order_key"], row["_write_time_us"])
        assert place == (f"k{number}", f"o{number}", number)
        rescued = json.loads(row["_rescued"]) if row["_rescued"] is not None else {}
        for column in columns:
            value, cell = canonical.get(column.attribute), row[column.name]
            if value is None or "NULL" in value:
                assert cell is None
                assert column.attribute not in rescued
            elif column.tag in value:
                expected = _exact(column, value[column.tag])
                assert cell == expected
                assert type(cell) is type(expected)
                assert column.attribute not in rescued
            else:
                assert cell is None
                assert rescued.pop(column.attribute) == value
        assert rescued == {}


@both_ways
@given(st.lists(items, max_size=5))
def test_every_value_is_typed_exactly_or_rescued(way: str, found: list[dict[str, Any]]) -> None:
    columns, rows = _shredded(way, found)
    _check(found, columns, rows)


@both_ways
@budget(max_examples=50)
@given(st.lists(items, max_size=3), st.lists(items, max_size=3))
def test_columns_kept_from_a_table_hold_what_fits_and_rescue_the_rest(
    way: str, before: list[dict[str, Any]], then: list[dict[str, Any]]
) -> None:
    prior = columns_of(collect_stats(_batches(before)))
    columns, rows = _shredded(way, then, prior, keep_tags=True)
    _check(then, columns, rows)


@given(st.lists(items, max_size=4))
def test_statistics_survive_their_json(found: list[dict[str, Any]]) -> None:
    stats = collect_stats(_batches(found))
    again = stats_from_json(stats_to_json(stats))
    assert again == stats
    assert columns_of(again) == columns_of(stats)


@both_ways
@given(st.lists(items, max_size=4))
def test_statistics_are_of_all_batches(way: str, found: list[dict[str, Any]]) -> None:
    expected: Stats = {}
    for item in found:
        observe(expected, canonical_item(item))
    with converted_by(way):
        assert collect_stats(_batches(found, size=1)) == expected


@both_ways
def test_null_absent_and_empty_differ_in_the_exact_item_only(way: str) -> None:
    _, rows = _shredded(way, [{"a": {"NULL": True}}, {}, {"a": {"S": ""}}])
    assert [row["a"] for row in rows] == [None, None, ""]
    assert [row["_item"] for row in rows] == ['{"a":{"NULL":true}}', "{}", '{"a":{"S":""}}']
    assert [row["_rescued"] for row in rows] == [None] * 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("string", pa.string()),
        ("json", pa.string()),
        ("int64", pa.int64()),
        ("decimal(38,4)", pa.decimal128(38, 4)),
        ("list<decimal(18,2)>", pa.list_(pa.decimal128(18, 2))),
        ("list<binary>", pa.list_(pa.binary())),
    ],
)
def test_arrow_types(kind: str, expected: pa.DataType) -> None:
    assert arrow_type(kind) == expected


@both_ways
def test_no_rows_have_a_schema(way: str) -> None:
    columns, rows = _shredded(way, [])
    assert (columns, rows) == ([], [])
    assert typed_schema([]).names == ["_key", "_order_key", "_write_time_us", "_item", "_rescued"]
