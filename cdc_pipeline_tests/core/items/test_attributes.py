"""Attribute values: one canonical spelling, exact plain JSON, readable refusals."""

import base64
import json
import random
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items import spelling
from cdc_pipeline.core.items.attributes import (
    canonical_item,
    canonical_number,
    canonical_value,
    plain_json,
    plain_value,
    spell_item,
    spell_value,
    to_json,
)
from cdc_pipeline.core.items.spelling import Speller
from cdc_pipeline_tests.strategies import binaries, items, numbers, respelled, values

_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SETS = ("SS", "NS", "BS")


def _shuffle(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same value with other orders of names and set members, which may be repeated."""
    ((tag, content),) = value.items()
    if tag == "M":
        content = _shuffle_item(content, chance)
    elif tag == "L":
        content = [_shuffle(element, chance) for element in content]
    elif tag in _SETS:
        content = [*content, chance.choice(content)]
        chance.shuffle(content)
    return {tag: content}


def _shuffle_item(item: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    pairs = [(name, _shuffle(value, chance)) for name, value in item.items()]
    chance.shuffle(pairs)
    return dict(pairs)


def _meaning(value: dict[str, Any]) -> Any:
    """What plain JSON must parse to."""
    ((tag, content),) = value.items()
    if tag == "N":
        return Decimal(content)
    if tag == "NS":
        return [Decimal(number) for number in content]
    if tag == "M":
        return {name: _meaning(child) for name, child in content.items()}
    if tag == "L":
        return [_meaning(child) for child in content]
    return None if tag == "NULL" else content


@given(items)
def test_canonical_form_is_a_fixed_point(item: dict[str, Any]) -> None:
    once = canonical_item(item)
    assert to_json(canonical_item(json.loads(to_json(once)))) == to_json(once)
    assert list(once) == sorted(item)


@given(items, st.randoms(use_true_random=False))
def test_order_of_names_and_set_members_says_nothing(
    item: dict[str, Any], chance: random.Random
) -> None:
    assert to_json(canonical_item(_shuffle_item(item, chance))) == to_json(canonical_item(item))


@given(st.lists(numbers, min_size=1, max_size=5))
def test_number_sets_are_sorted_by_value_and_unique(members: list[str]) -> None:
    found = [Decimal(n) for n in canonical_value({"NS": members})["NS"]]
    assert found == sorted({Decimal(n) for n in members})


@given(st.data())
def test_equal_numbers_have_one_spelling(data: st.DataObject) -> None:
    number = data.draw(numbers)
    assert canonical_number(data.draw(respelled(number))) == canonical_number(number)


@given(numbers, numbers)
def test_numbers_keep_their_value_and_unequal_ones_differ(one: str, other: str) -> None:
    assert Decimal(canonical_number(one)) == Decimal(one)
    same = canonical_number(one) == canonical_number(other)
    assert same == (Decimal(one) == Decimal(other))


@given(numbers)
def test_a_neighbour_in_the_last_digit_differs(number: str) -> None:
    near = Decimal(number)
    sign, digits, exponent = near.as_tuple()
    assert isinstance(exponent, int)
    other = Decimal((sign, (*digits[:-1], (digits[-1] + 1) % 10), exponent))
    assert (canonical_number(number) == canonical_number(f"{other:E}")) == (near == other)


@given(numbers)
def test_canonical_numbers_are_json_number_tokens(number: str) -> None:
    assert _JSON_NUMBER.fullmatch(canonical_number(number))


@pytest.mark.parametrize(
    ("spelled", "canonical"),
    [
        ("-0", "0"),
        ("0E999", "0"),
        ("00012", "12"),
        ("+5", "5"),
        ("1.50", "1.5"),
        ("100", "100"),
        ("1E2", "100"),
        ("1E38", "1E+38"),
        (".5", "0.5"),
        ("1E-38", "0." + "0" * 37 + "1"),
        ("1E-39", "1E-39"),
        ("1" * 38 + "00", "1." + "1" * 37 + "E+39"),
    ],
)
def test_spellings(spelled: str, canonical: str) -> None:
    assert canonical_number(spelled) == canonical


@given(items)
def test_plain_json_parses_to_the_exact_values(item: dict[str, Any]) -> None:
    canonical = canonical_item(item)
    parsed = json.loads(plain_json(canonical), parse_float=Decimal, parse_int=Decimal)
    assert parsed == {name: _meaning(value) for name, value in canonical.items()}
    assert list(parsed) == list(canonical)


@given(values)
def test_plain_values_tell_true_from_one(value: dict[str, Any]) -> None:
    canonical = canonical_value(value)
    parsed = json.loads(plain_value(canonical), parse_float=Decimal, parse_int=Decimal)
    assert repr(parsed) == repr(_meaning(canonical))


_SECRET = "s3cr3t-7391"
_BAD_NUMBERS = ["1" * 39, "1." + "0" * 250 + "1", "1" + "0" * 250 + "1", "NaN", "sNaN", "Infinity"]
_BAD_NUMBERS += ["-Infinity", "1E126", "9E-131", "1E+9999999", "1E-9999999", "1E+99999999999999999"]
_BAD_NUMBERS += ["", "0x10", _SECRET, "1,5", "--1"]


@pytest.mark.parametrize("number", [*_BAD_NUMBERS, True, False, 5, 5.0, None, ["1"], {"N": "1"}])
def test_what_dynamodb_would_not_have_stored_is_no_number(number: Any) -> None:
    for value in ({"N": number}, {"NS": [number]}, {"L": [{"M": {"x": {"N": number}}}]}):
        with pytest.raises(UnreadableError):
            canonical_value(value)


@pytest.mark.parametrize(
    "value",
    [
        {"X": _SECRET},
        {"s": _SECRET},
        {"S": _SECRET, "N": "1"},
        {},
        None,
        _SECRET,
        [_SECRET],
        {"S": 7391},
        {"S": None},
        {"N": _SECRET},
        {"B": _SECRET},
        {"B": "QQ="},
        {"B": "Q Q=="},
        {"B": "日本"},
        {"B": 7391},
        {"BOOL": _SECRET},
        {"BOOL": 1},
        {"BOOL": "true"},
        {"NULL": False},
        {"NULL": _SECRET},
        {"NULL": 1},
        {"L": _SECRET},
        {"L": {"0": {"S": _SECRET}}},
        {"L": [_SECRET]},
        {"M": [_SECRET]},
        {"M": {_SECRET: _SECRET}},
        {"SS": []},
        {"SS": _SECRET},
        {"SS": [1]},
        {"NS": [_SECRET]},
        {"BS": [_SECRET]},
    ],
)
def test_unreadable_values_are_refused_without_being_quoted(value: Any) -> None:
    for nested in (value, {"L": [value]}, {"M": {"a": value}}):
        with pytest.raises(UnreadableError) as refused:
            canonical_value(nested)
        assert "7391" not in refused.value.reason
        assert refused.value.reason


@pytest.mark.parametrize("item", [None, [], "x", 5, {"a": "x"}])
def test_an_item_is_an_object_of_tagged_values(item: Any) -> None:
    with pytest.raises(UnreadableError):
        canonical_item(item)


@pytest.mark.parametrize(
    "item", [{"a": {"S": "\ud800"}}, {"\udfff": {"S": "x"}}, {"a": {"M": {"\ud800": {"N": "1"}}}}]
)
def test_lone_surrogates_are_refused_in_both_spellings(item: dict[str, Any]) -> None:
    canonical = canonical_item(item)
    for spell in (to_json, plain_json):
        with pytest.raises(UnreadableError, match="not Unicode"):
            spell(canonical)


def test_binary_has_one_spelling() -> None:
    assert canonical_value({"B": "QR=="}) == canonical_value({"B": "QQ=="}) == {"B": "QQ=="}


def test_identity_text_is_compact_and_keeps_unicode() -> None:
    assert to_json(canonical_item({"b": {"S": "日本"}, "a": {"N": "1.0"}})) == (
        '{"a":{"N":"1"},"b":{"S":"日本"}}'
    )


@given(binaries | st.text("AQgwBI+/=-", max_size=9))
def test_binary_is_read_as_base64_says(text: str) -> None:
    try:
        expected = base64.b64encode(base64.b64decode(text, validate=True)).decode()
    except ValueError:
        with pytest.raises(UnreadableError):
            canonical_value({"B": text})
    else:
        assert canonical_value({"B": text}) == {"B": expected}


@pytest.mark.parametrize(
    "value",
    [
        '{"S":"%"}',
        '{"S":"a\\"b"}',
        '{"N":"%"}',
        '{"M":{"z":{"S":"%"},"S":{"N":"%"},"a":{"L":[{"B":"QQ=="},{"BOOL":true}]}}}',
        '{"SS":["b","%","a","a"]}',
        '{"NS":["3","%","1"]}',
        '{"BS":["Qg==","QQ=="]}',
    ],
)
def test_a_shape_that_is_met_often_becomes_known(value: str) -> None:
    speller = Speller(spell_value)
    for _ in range(spelling._OFTEN - 1):
        assert speller.spell(value.replace("%", "7")) is None
    for number in ("1", "1.5", "2.50", "1E2"):
        text = value.replace("%", number)
        assert speller.spell(text) == spell_value(json.loads(text))


def test_what_shapes_remember_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelling, "_LEARNT_CHARACTERS", 10_000)
    monkeypatch.setattr(spelling, "_OFTEN", 2)
    speller = Speller(spell_item)
    for number in range(500):
        for value in ("x", "y", "z"):
            text = f'{{"name-{number}":{{"S":"{value}"}}}}'
            assert speller.spell(text) in (None, spell_item(json.loads(text)))
    assert 0 < sum(map(len, speller._shapes)) <= 10_000
    assert 0 < sum(map(len, speller._met)) <= 10_000
    assert speller._learnt <= 10_000
