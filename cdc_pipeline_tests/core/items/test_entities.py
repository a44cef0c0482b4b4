"""Telling entities apart, and flattening, on hostile names and values."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.items.attributes import canonical_item
from cdc_pipeline.core.items.entities import (
    MAX_DEPTH,
    Condition,
    Entity,
    classifier,
    flatten,
    rules_mark,
    unreachable,
)
from cdc_pipeline_tests.strategies import items


def _split_path(path: str) -> list[str]:
    """Parts of a dotted name, by reading it sign by sign."""
    parts, signs = [""], iter(path)
    for sign in signs:
        if sign == ".":
            parts.append("")
        else:
            parts[-1] += next(signs) if sign == "\\" else sign
    return parts


def _joined(flat: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `flatten`."""
    whole: dict[str, Any] = {}
    for path, value in flat.items():
        *above, last = _split_path(path)
        place = whole
        for name in above:
            place = place.setdefault(name, {"M": {}})["M"]
        place[last] = value
    return whole


@given(items, st.integers(1, MAX_DEPTH), st.sets(st.sampled_from(["a.b", "S", ""])))
def test_flattening_loses_nothing(item: dict[str, Any], depth: int, keep: set[str]) -> None:
    item = canonical_item(item)
    flat = flatten(item, depth, keep)
    assert _joined(flat) == item
    for path, value in flat.items():
        parts = _split_path(path)
        assert len(parts) <= depth + 1
        if value.get("M") and parts[0] not in keep:
            assert len(parts) == depth + 1


def test_paths_and_names_with_dots_are_told_apart() -> None:
    item = {"a": {"M": {"b": {"S": "1"}, "c.d": {"S": "2"}}}, "a.b": {"S": "3"}, "e": {"M": {}}}
    assert flatten(item, 1) == {
        "a.b": {"S": "1"},
        "a.c\\.d": {"S": "2"},
        "a\\.b": {"S": "3"},
        "e": {"M": {}},
    }
    assert flatten(item, 0) == item
    assert flatten(item, 1, {"a"})["a"] == item["a"]


_TYPE = Condition("type", equals=(("S", "order"), ("N", "7")))
_PREFIX = Condition("sk", prefix="o#")
_REGEX = Condition("sk", regex="o#[0-9]+")


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        (_TYPE, {"S": "order"}, True),
        (_TYPE, {"N": "7"}, True),
        (_TYPE, {"S": "7"}, False),
        (_TYPE, {"N": "8"}, False),
        (_TYPE, {"SS": ["order"]}, False),
        (_TYPE, {"NULL": True}, False),
        (_PREFIX, {"S": "o#"}, True),
        (_PREFIX, {"S": "O#1"}, False),
        (_PREFIX, {"B": "o#1="}, False),
        (_PREFIX, {"SS": ["o#1"]}, False),
        (_REGEX, {"S": "o#12"}, True),
        (_REGEX, {"S": "o#12\n"}, False),
        (_REGEX, {"S": "xo#12"}, False),
        (_REGEX, {"N": "12"}, False),
    ],
)
def test_what_meets_a_condition(
    condition: Condition, value: dict[str, Any], expected: bool
) -> None:
    meets = condition.test()
    assert meets({condition.attribute: value}) is expected
    assert not meets({"other": value})


def test_the_first_that_matches_it_is() -> None:
    entities = [Entity("both", (_PREFIX, _TYPE)), Entity("order", (_PREFIX,))]
    classify = classifier(entities)
    assert classify({"sk": {"S": "o#1"}, "type": {"S": "order"}}) == "both"
    assert classify({"sk": {"S": "o#1"}}) == "order"
    assert classify({"type": {"S": "order"}}) is None
    assert unreachable(entities) is None
    found = unreachable(entities[::-1])
    assert found is not None
    assert [entity.name for entity in found] == ["both", "order"]


@pytest.mark.parametrize(
    ("earlier", "later", "hidden"),
    [
        (_PREFIX, Condition("sk", prefix="o#1"), True),
        (_PREFIX, Condition("sk", prefix="o"), False),
        (_PREFIX, Condition("pk", prefix="o#1"), False),
        (_PREFIX, Condition("sk", equals=(("S", "o#1"), ("S", "o#2"))), True),
        (_PREFIX, Condition("sk", equals=(("S", "o#1"), ("N", "2"))), False),
        (_REGEX, Condition("sk", equals=(("S", "o#1"),)), True),
        (_REGEX, _PREFIX, False),
        (_PREFIX, _REGEX, False),
        (_TYPE, Condition("type", equals=(("N", "7"),)), True),
        (_TYPE, _TYPE, True),
    ],
)
def test_an_entity_without_items(earlier: Condition, later: Condition, hidden: bool) -> None:
    found = unreachable([Entity("a", (earlier,)), Entity("b", (later,))])
    assert (found is not None) is hidden


def test_other_rules_have_another_mark() -> None:
    marks = {
        rules_mark([]),
        rules_mark([Entity("a", (_PREFIX,))]),
        rules_mark([Entity("a", (_PREFIX,), 1)]),
        rules_mark([Entity("a", (_REGEX,))]),
        rules_mark([Entity("b", (_PREFIX,))]),
        rules_mark([Entity("a", (_PREFIX,))], ["x"]),
    }
    assert len(marks) == 6
    assert all(json.dumps(mark) for mark in marks)
