"""Masking: what is left of values, and what can be told from the fingerprint."""

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.items.attributes import canonical_item, canonical_value, plain_json, to_json
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline_tests.strategies import items, values

_KEY, _OTHER = b"k" * 32, b"o" * 32
_names = st.sampled_from(["a", "b", "c", "", "日本"])
_items = st.dictionaries(_names, values, max_size=4)


def _text(item: dict[str, Any]) -> str:
    return to_json(canonical_item(item))


def _hash(value: dict[str, Any], key: bytes = _KEY) -> dict[str, str]:
    message = to_json(canonical_value(value)).encode()
    return {"S": hmac.new(key, message, hashlib.sha256).hexdigest()}


def test_the_hash_is_the_hmac_of_the_canonical_typed_value() -> None:
    masking = Masking(hashed=frozenset({"email"}), key=_KEY)
    shown = json.loads(masking.item(_text({"email": {"S": "a@b.c"}, "n": {"N": "1"}})))
    message = b'{"S":"a@b.c"}'
    digest = hmac.new(_KEY, message, hashlib.sha256).hexdigest()
    assert shown == {"email": {"S": digest}, "n": {"N": "1"}}


@given(_items, st.sets(_names), st.sets(_names), st.sets(_names))
def test_an_item_shows_what_the_rules_leave_and_is_canonical(
    item: dict[str, Any], hashed: set[str], dropped: set[str], texts: set[str]
) -> None:
    masks = dict.fromkeys(texts - hashed - dropped, "***")
    masking = Masking(frozenset(hashed - dropped), frozenset(dropped), masks, _KEY)
    shown = masking.item(_text(item))
    expected = {}
    for name, value in canonical_item(item).items():
        if name in masks and "NULL" not in value:
            value = {"S": "***"}
        elif name in masking.hashed and "NULL" not in value:
            value = _hash(value)
        if name not in dropped:
            expected[name] = value
    assert shown == _text(expected)
    assert masking.plain(_text(item)) == plain_json(canonical_item(expected))
    assert masking.seen == item.keys() & (hashed | dropped | texts)


@given(items)
def test_without_rules_for_it_an_item_stays_as_it_is(item: dict[str, Any]) -> None:
    masking = Masking(hashed=frozenset({"not there"}), key=_KEY)
    assert masking.item(_text(item)) == _text(item)
    assert not masking.seen


@given(values, values)
def test_hashes_are_equal_just_when_values_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    masking = Masking(hashed=frozenset({"a", "b"}), key=_KEY)
    shown = json.loads(masking.item(_text({"a": one, "b": other})))
    assert (shown["a"] == shown["b"]) == (canonical_value(one) == canonical_value(other))


def test_null_stays_null_and_absent_stays_absent() -> None:
    masking = Masking(hashed=frozenset({"a"}), masks={"b": "***"}, key=_KEY)
    text = _text({"a": {"NULL": True}, "b": {"NULL": True}})
    assert masking.item(text) == text
    assert masking.item("{}") == "{}"


def test_keys_may_be_hashed_only() -> None:
    key = _text({"pk": {"S": "x"}, "sk": {"N": "1"}})
    assert Masking(hashed=frozenset({"pk"}), key=_KEY).unmaskable(key) == []
    assert Masking(dropped=frozenset({"sk", "other"})).unmaskable(key) == ["sk"]
    assert Masking(masks={"pk": "***"}).unmaskable(key) == ["pk"]


@pytest.mark.parametrize(
    "other",
    [
        Masking(),
        Masking(hashed=frozenset({"b"}), key=_KEY),
        Masking(dropped=frozenset({"a"})),
        Masking(masks={"a": "***"}),
        Masking(hashed=frozenset({"a"}), key=_OTHER),
    ],
)
def test_the_fingerprint_tells_rules_and_keys_apart(other: Masking) -> None:
    masking = Masking(hashed=frozenset({"a"}), key=_KEY)
    assert masking.made(Masking(hashed=frozenset({"a"}), key=_KEY).fingerprint)
    assert not masking.made(other.fingerprint)
    assert not other.made(masking.fingerprint)


def test_without_the_key_the_rules_alone_are_told_apart() -> None:
    reader = Masking(hashed=frozenset({"a"}))
    assert reader.made(Masking(hashed=frozenset({"a"}), key=_KEY).fingerprint)
    assert not reader.made(Masking(hashed=frozenset({"b"}), key=_KEY).fingerprint)
    assert not reader.made("")


def test_nothing_tells_the_key() -> None:
    masking = Masking(hashed=frozenset({"a"}), key=_KEY)
    assert not masking or "kkkk" not in repr(masking) + masking.fingerprint
    assert Masking().fingerprint == ""
    assert Masking().made("")
