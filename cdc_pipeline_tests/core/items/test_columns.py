"""Column types: wide enough for everything seen, names that stay."""

import hashlib
import re
from collections import Counter
from decimal import Context, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.items.attributes import canonical_item, canonical_number
from cdc_pipeline.core.items.columns import (
    DECIMAL_DIGITS,
    MAX_COLUMNS,
    SYSTEM_COLUMNS,
    AttributeStats,
    Column,
    Stats,
    columns_of,
    number_type,
    observe,
    without_columns,
)
from cdc_pipeline_tests.strategies import HOSTILE_NAMES, items, names, numbers


def _stats(*seen: dict[str, Any]) -> Stats:
    stats: Stats = {}
    for item in seen:
        observe(stats, canonical_item(item))
    return stats


def _types(*seen: dict[str, Any]) -> dict[str, str]:
    return {column.attribute: column.type for column in columns_of(_stats(*seen))}


def _holds(kind: str, number: Decimal) -> bool:
    if kind == "int64":
        return number == int(number) and -(2**63) <= number < 2**63
    if kind == "string":
        return True
    precision, scale = map(int, kind[8:-1].split(","))
    scaled = number.scaleb(scale, Context(prec=400))
    assert 0 <= scale <= precision <= DECIMAL_DIGITS
    return scaled == int(scaled) and len(str(abs(int(scaled)))) <= precision


@given(st.lists(numbers, min_size=1, max_size=6), st.booleans())
def test_every_number_fits_its_type_exactly(seen: list[str], in_sets: bool) -> None:
    found = [{"a": {"NS": [n]} if in_sets else {"N": n}} for n in seen]
    kind = _types(*found)["a"].removeprefix("list<").removesuffix(">")
    for number in map(Decimal, seen):
        assert _holds(kind, number)


@given(st.lists(numbers, max_size=4), st.lists(numbers, max_size=4))
def test_merged_statistics_are_those_of_all(one: list[str], other: list[str]) -> None:
    def of(seen: list[str]) -> AttributeStats:
        return _stats({"a": {"NULL": True}}, *({"a": {"N": n}} for n in seen))["a"]

    merged = of(one)
    merged.merge(of(other))
    both = of(one + other)
    both.tags["NULL"] += 1
    assert merged == both


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (["0"], "int64"),
        (["9" * 18, "-5"], "int64"),
        (["9" * 19], "decimal(38,0)"),
        (["-" + "9" * 19], "decimal(38,0)"),
        (["1.5", "200"], "decimal(18,1)"),
        (["1.25", "9" * 17], "decimal(38,2)"),
        (["9" * 37, "0.5"], "decimal(38,1)"),
        (["9" * 38, "0.5"], "string"),
        (["1E+37"], "decimal(38,0)"),
        (["1E+38"], "string"),
        (["1E-38"], "decimal(38,38)"),
        (["1E-39"], "string"),
    ],
)
def test_number_types(seen: list[str], kind: str) -> None:
    assert _types(*({"a": {"N": n}} for n in seen)) == {"a": kind}
    assert _types({"a": {"NS": seen}}) == {"a": f"list<{kind}>"}


def test_types_of_the_other_tags() -> None:
    item = {
        "s": {"S": ""},
        "b": {"B": ""},
        "t": {"BOOL": False},
        "z": {"NULL": True},
        "m": {"M": {}},
        "l": {"L": []},
        "ss": {"SS": ["a"]},
        "bs": {"BS": [""]},
    }
    assert _types(item) == {
        "s": "string",
        "b": "binary",
        "t": "boolean",
        "z": "string",
        "m": "json",
        "l": "json",
        "ss": "list<string>",
        "bs": "list<binary>",
    }


def test_the_commonest_tag_wins_a_conflict_and_null_does_not_count() -> None:
    text, number, null = {"a": {"S": "x"}}, {"a": {"N": "1"}}, {"a": {"NULL": True}}
    assert _types(text, number, number, null, null, null) == {"a": "int64"}
    assert _types(text, text, number) == {"a": "string"}


@given(st.lists(names, unique=True, max_size=12))
def test_names_are_unique_lower_case_and_never_the_systems(attributes: list[str]) -> None:
    found = columns_of({a: AttributeStats(Counter("S")) for a in attributes})
    given_names = [column.name for column in found]
    assert len({name.lower() for name in [*given_names, *SYSTEM_COLUMNS]}) == (
        len(attributes) + len(SYSTEM_COLUMNS)
    )
    assert sorted(column.attribute for column in found) == sorted(attributes)
    assert given_names == sorted(given_names)
    # In Parquet files Iceberg replaces whatever Avro has not in its names.
    assert all(re.fullmatch("[a-z_][a-z0-9_]*", name) for name in given_names)


def test_an_attribute_named_like_another_ones_substitute_keeps_them_apart() -> None:
    digest = hashlib.sha256(b"Id").hexdigest()
    attributes = ["id", "Id", f"id_{digest[:6]}", f"id_{digest[:7]}"]
    found = columns_of({a: AttributeStats(Counter("S")) for a in attributes})
    assert len({column.name for column in found}) == len(attributes)


def test_the_attribute_that_is_spelled_like_its_column_gets_the_name() -> None:
    found = {c.attribute: c.name for c in columns_of(_stats({"ID": {"S": ""}, "id": {"S": ""}}))}
    assert found["id"] == "id"
    assert found["ID"].startswith("id_")


@given(st.lists(st.sampled_from(HOSTILE_NAMES), unique=True), st.integers(0, 30))
def test_names_stay_with_their_attributes(attributes: list[str], cut: int) -> None:
    everything = {a: AttributeStats(Counter("S")) for a in attributes}
    prior = columns_of({a: everything[a] for a in attributes[:cut]})
    now = {c.attribute: c.name for c in columns_of(everything, prior)}
    assert {c.attribute: c.name for c in prior}.items() <= now.items()
    assert len({*now.values()}) == len(attributes)


def test_an_attribute_that_is_gone_keeps_its_name_reserved() -> None:
    prior = columns_of(_stats({"Id": {"S": "x"}}))
    (column,) = columns_of(_stats({"id": {"S": "x"}}), prior)
    assert prior[0].name == "id" != column.name


@given(items, items)
def test_kept_tags_stay_whatever_comes(before: dict[str, Any], then: dict[str, Any]) -> None:
    prior = columns_of(_stats(before))
    kept = {c.attribute: c for c in columns_of(_stats(before, then, then), prior, keep_tags=True)}
    for column in prior:
        assert (kept[column.attribute].name, kept[column.attribute].tag) == (
            column.name,
            column.tag,
        )
    free = {c.attribute: c.tag for c in columns_of(_stats(then), prior)}
    assert free == {c.attribute: c.tag for c in columns_of(_stats(then))}


def test_a_type_only_grows_in_steps_that_hold_what_was_there() -> None:
    stats = AttributeStats()
    seen: list[Decimal] = []
    for number in ("5", "1.5", "9" * 19, "0." + "1" * 20, "1E-100"):
        stats.see("N", canonical_number(number))
        seen.append(Decimal(number))
        assert all(_holds(number_type(stats), before) for before in seen)


_LONG = "https://shop.example/" + "p/" * 140


def _seen(**counts: int) -> Stats:
    return {name: AttributeStats(Counter({"S": count})) for name, count in counts.items()}


def test_long_names_are_shortened_alike_beside_any_others() -> None:
    stats = {_LONG + end: AttributeStats(Counter({"S": 1})) for end in "xyé"}
    together = {c.attribute: c.name for c in columns_of(stats)}
    assert len({*together.values()}) == 3
    for attribute, name in together.items():
        assert len(name) == 255
        assert re.fullmatch(r"[a-z0-9_]+", name)
        assert [c.name for c in columns_of({attribute: stats[attribute]})] == [name]
    taken = {"é" * 255: AttributeStats(), "_" * 255: AttributeStats()}
    assert all(len(c.name) <= 255 for c in columns_of(taken))


def test_a_limit_keeps_the_most_frequent_and_pinned_attributes() -> None:
    stats = _seen(a=1, b=5, c=3, d=2)
    stats["nothing"] = AttributeStats(Counter({"NULL": 99}))
    assert [c.attribute for c in columns_of(stats, limit=2)] == ["b", "c"]
    assert [c.attribute for c in columns_of(stats, limit=2, pins={"a": "string"})] == ["a", "b"]
    assert without_columns(columns_of(stats, limit=3), stats) == {"a": 1, "nothing": 99}


def test_a_column_goes_only_to_an_attribute_with_twice_as_many_values() -> None:
    prior = columns_of(_seen(a=5, b=4))
    assert [c.attribute for c in columns_of(_seen(a=5, b=4, c=7), prior, limit=2)] == ["a", "b"]
    assert [c.attribute for c in columns_of(_seen(a=5, b=4, c=9), prior, limit=2)] == ["a", "c"]
    merged = columns_of(_seen(a=5, b=4, c=99), prior, limit=1, keep_tags=True, pins={"c": "string"})
    assert [c.attribute for c in merged] == ["a", "b"], "a view has all columns of its base"


def test_without_a_setting_a_table_keeps_the_columns_that_it_has() -> None:
    many = _seen(**{f"a{n}": 1 for n in range(MAX_COLUMNS + 100)})
    assert len(columns_of(many)) == MAX_COLUMNS
    prior = [Column(name, name, "S", "string") for name in many]
    assert len(columns_of(many | _seen(new=9), prior)) == MAX_COLUMNS + 100
    assert len(columns_of(many, prior, limit=MAX_COLUMNS)) == MAX_COLUMNS


def test_a_type_changes_only_when_the_old_one_has_no_values_left() -> None:
    prior = [Column("n", "n", "N", "int64")]
    mixed = {"n": AttributeStats(Counter({"N": 1, "S": 9}), 3)}
    assert columns_of(mixed, prior) == prior
    assert columns_of(mixed) == [Column("n", "n", "S", "string")]
    gone = {"n": AttributeStats(Counter({"S": 9}), 3)}
    assert columns_of(gone, prior) == [Column("n", "n", "S", "string")]
    (pinned,) = columns_of(mixed, prior, pins={"n": "boolean"})
    assert (pinned.tag, pinned.type) == ("BOOL", "boolean")
