"""Types from the settings: a value is exact in its column or exact in the rescue column."""

import base64
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.core.items.attributes import canonical_item, plain_value, to_json
from cdc_pipeline.core.items.columns import Column, Stats, carry_widths, columns_of, tags_of_type
from cdc_pipeline.transform.pinned_types import count_misfits, shred_pinned
from cdc_pipeline.transform.shred import NARROW_SCHEMA, collect_stats, typed_schema
from cdc_pipeline_tests.strategies import names, numbers, values

KINDS = [
    "string",
    "boolean",
    "binary",
    "json",
    "int64",
    "decimal(38,2)",
    "decimal(5,0)",
    "decimal(3,3)",
    "decimal(38,38)",
    "list<string>",
    "list<binary>",
    "list<int64>",
    "list<decimal(10,1)>",
]
_number_values = numbers.map(lambda n: {"N": n}) | st.lists(numbers, min_size=1, max_size=3).map(
    lambda n: {"NS": n}
)
_attributes = st.sampled_from(["a", "A", "b.c", ""]) | names
_items = st.lists(
    st.dictionaries(_attributes, _number_values | values, max_size=5), min_size=1, max_size=4
)
_pins = st.dictionaries(_attributes, st.sampled_from(KINDS), max_size=5)


def _batches(found: list[dict[str, Any]]) -> list[pa.RecordBatch]:
    texts = [to_json(canonical_item(item)) for item in found]
    count = range(len(texts))
    rows = {
        "item_key": [f"k{n}" for n in count],
        "order_key": ["o" for _ in count],
        "item": texts,
        "write_time_us": [0 for _ in count],
    }
    return pa.table(rows, schema=NARROW_SCHEMA).to_batches(2)


def _exact(column: Column, content: Any) -> Any:
    kind = column.type.removeprefix("list<").removesuffix(">")
    if kind == "json":
        return plain_value({column.tag: content})
    if column.type != kind:
        return [_exact(Column("", "", column.tag[0], kind), one) for one in content]
    if kind == "int64":
        return int(content)
    if kind == "binary":
        return base64.b64decode(content)
    return Decimal(content) if kind.startswith("decimal") else content


def _holds(kind: str, tag: str, content: Any) -> bool:
    """Whether a type can hold a value, by trying it."""
    if tag not in tags_of_type(kind):
        return False
    element = kind.removeprefix("list<").removesuffix(">")
    for number in content if tag == "NS" else [content] if tag == "N" else []:
        if element == "int64" and not (
            Decimal(number) % 1 == 0 if abs(Decimal(number)) < 10**20 else False
        ):
            return False
        if element == "int64" and not -(2**63) <= int(Decimal(number)) < 2**63:
            return False
        if element.startswith("decimal"):
            precision, scale = map(int, element[8:-1].split(","))
            try:
                pa.array([Decimal(number)], pa.decimal128(precision, scale))
            except (pa.ArrowInvalid, ValueError):
                return False
    return True


def _check(found: list[dict[str, Any]], columns: list[Column], stats: Stats) -> None:
    batches = list(shred_pinned(_batches(found), columns, stats))
    rows = pa.Table.from_batches(batches, typed_schema(columns)).to_pylist()
    misfits: dict[str, int] = {}
    for item, row in zip(map(canonical_item, found), rows, strict=True):
        rescued = json.loads(row["_rescued"]) if row["_rescued"] is not None else {}
        if row["_rescued"] is not None:
            assert row["_rescued"] == to_json(canonical_item(rescued))
        assert row["_item"] == to_json(item)
        for column in columns:
            value, cell = item.get(column.attribute), row[column.name]
            if value is None or "NULL" in value:
                assert cell is None
            elif column.tag in value and (
                not column.pinned or _holds(column.type, column.tag, value[column.tag])
            ):
                expected = _exact(column, value[column.tag])
                assert cell == expected
                assert type(cell) is type(expected)
            else:
                assert cell is None
                assert rescued.pop(column.attribute) == value
                if column.tag in value:
                    misfits[column.attribute] = misfits.get(column.attribute, 0) + 1
        assert rescued == {}
    assert count_misfits(_batches(found), columns, stats) == misfits


@budget(max_examples=300)
@given(_items, _pins)
def test_every_value_is_exact_in_its_column_or_rescued(
    found: list[dict[str, Any]], pins: dict[str, str]
) -> None:
    stats = collect_stats(_batches(found))
    columns = columns_of(stats, pins=pins)
    assert {c.attribute for c in columns if c.pinned} == pins.keys() & stats.keys()
    assert all(c.type == pins[c.attribute] for c in columns if c.pinned)
    _check(found, columns, stats)


@budget(max_examples=100)
@given(st.lists(_items, min_size=2, max_size=3), _pins)
def test_step_by_step_types_only_widen_and_stay_exact(
    steps: list[list[dict[str, Any]]], pins: dict[str, str]
) -> None:
    before: list[Column] = []
    prior: Stats = {}
    for found in steps:
        stats = collect_stats(_batches(found))
        carry_widths(stats, prior)
        columns = columns_of(stats, before, pins=pins)
        had = {c.attribute: c for c in before}
        for column in columns:
            old = had.get(column.attribute)
            if old and old.tag == column.tag and column.tag in ("N", "NS"):
                assert _width(old.type) <= _width(column.type)
        _check(found, columns, stats)
        before, prior = columns, stats


def _width(kind: str) -> tuple[int, int]:
    kind = kind.removeprefix("list<").removesuffix(">")
    if kind.startswith("decimal"):
        precision, scale = map(int, kind[8:-1].split(","))
        return precision, scale
    return (0, 0) if kind == "int64" else (99, 0)


@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (
            "int64",
            ["0", "-9223372036854775808", "9223372036854775807"],
            ["9223372036854775808", "-9223372036854775809", "0.5", "1E+100", "1E-100"],
        ),
        ("decimal(5,2)", ["999.99", "-0.01", "0"], ["1000", "0.001", "999.991", "1E+37"]),
        ("decimal(2,2)", ["0.99", "0", "0.05"], ["1", "0.005"]),
        ("decimal(38,0)", ["9" * 38, "1E+37"], ["1E+38", "0.1"]),
        ("string", ["1E-130", "5"], []),
    ],
)
def test_bounds_of_pinned_numbers(kind: str, fitting: list[str], others: list[str]) -> None:
    found: list[dict[str, Any]] = [{"n": {"N": number}} for number in [*fitting, *others]]
    stats = collect_stats(_batches(found))
    columns = columns_of(stats, pins={"n": kind})
    _check(found, columns, stats)
    assert count_misfits(_batches(found), columns, stats).get("n", 0) == len(others)


def test_a_pin_that_no_value_fits_rescues_all() -> None:
    found = [{"t": {"S": "2026-01-01"}, "n": {"N": "1"}}, {"t": {"S": "x"}}]
    stats = collect_stats(_batches(found))
    columns = columns_of(stats, pins={"t": "int64"})
    _check(found, columns, stats)
    assert [(c.attribute, c.tag, c.type) for c in columns] == [
        ("n", "N", "int64"),
        ("t", "N", "int64"),
    ]


@pytest.mark.parametrize(
    "kind",
    ["", "int", "decimal", "decimal(39,0)", "decimal(5,6)", "decimal(0,0)", "decimal(5)", "list<>",
     "list<json>", "list<boolean>", "list<list<string>>", "float", "list<int64", "int64>"],
)  # fmt: skip
def test_types_that_are_none(kind: str) -> None:
    assert tags_of_type(kind) == ()
