"""How DynamoDB keeps items: numbers, sets, keys, limits, and that every read finds them."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pytest

from cdc_pipeline_tests.contract.backends import TAKING_WRITES, Backend, error_code, key
from cdc_pipeline_tests.contract.deviations import holds
from cdc_pipeline_tests.simulators.items import Item

pytestmark = [
    pytest.mark.contract,
    pytest.mark.parametrize("backend", TAKING_WRITES, indirect=True),
]

_MOST_KEY_BYTES = 2048
_MOST_ITEM_BYTES = 400 * 1024


@pytest.fixture
def table(backend: Backend) -> str:
    return backend.create_table_without_stream()


def _put(backend: Backend, table: str, item: Item) -> str:
    """The code of the error that a put ends with, '' if it succeeds."""
    return error_code(backend.dynamodb.put_item, TableName=table, Item=item)


def _accepted(backend: Backend, table: str, values: Iterable[Any]) -> list[Any]:
    """Those of the values that are not refused as invalid; another refusal is an error."""
    codes = {repr(v): _put(backend, table, {**key("a"), "v": v}) for v in values}
    assert set(codes.values()) <= {"", "ValidationException"}
    return [v for v in values if not codes[repr(v)]]


def _numbers(texts: Iterable[str]) -> list[Item]:
    return [{"N": text} for text in texts]


def _kept(backend: Backend, table: str, value: Item) -> Item:
    """What a value reads as after it was written."""
    backend.put(table, {**key("a"), "v": value})
    found = backend.get(table, key("a"))
    assert found is not None
    return found["v"]


def test_numbers_are_normalised(backend: Backend, table: str) -> None:
    canonical = {"001.500": "1.5", "00": "0", "0.0": "0", "1.0": "1", "-01.10": "-1.1"}
    kept = {text: _kept(backend, table, {"N": text})["N"] for text in canonical}
    wrong = [text for text in canonical if kept[text] != canonical[text]]
    holds(backend, "zeros at the ends of a number are trimmed", wrong, [])
    members = _kept(backend, table, {"NS": ["001.500", "2"]})["NS"]
    wrong = sorted(set(members) - {"1.5", "2"})
    holds(backend, "zeros at the ends of a number in a set are trimmed", wrong, [])


def test_numbers_are_exact(backend: Backend, table: str) -> None:
    texts = ["9" * 38, "-0." + "1" * 38, "9" * 38 + "0", "1E2", "2.50e-3", "1E-130", "-1E-130"]
    texts += [f"{sign}9.{'9' * 37}E+125" for sign in ("", "-")]
    kept = {text: _kept(backend, table, {"N": text})["N"] for text in texts}
    assert {text: Decimal(kept[text]) for text in texts} == {t: Decimal(t) for t in texts}


def test_numbers_out_of_range_are_refused(backend: Backend, table: str) -> None:
    found = _accepted(backend, table, _numbers(["9" * 39, "-0." + "1" * 39]))
    holds(backend, "a number has at most 38 digits", len(found), 0)
    found = _accepted(backend, table, _numbers(["1E126", "-1E126"]))
    holds(backend, "a number is below 1E126", len(found), 0)
    found = _accepted(backend, table, _numbers(["1E-131", "-1E-131"]))
    holds(backend, "a number is not nearer to 0 than 1E-130", len(found), 0)
    inside = {"N": "9" * 39}
    found = _accepted(backend, table, [{"NS": ["1", inside["N"]]}, {"L": [inside]}])
    holds(backend, "a number inside a value has at most 38 digits", len(found), 0)


def test_what_is_no_number_is_refused(backend: Backend, table: str) -> None:
    none = _numbers(["", "x", "NaN", "Infinity", "0x10", "1E", " 1"])
    assert _accepted(backend, table, none) == []
    found = _accepted(backend, table, _numbers(["1_000"]))
    holds(backend, "a number has no underscores", len(found), 0)


def test_sets_have_no_duplicates(backend: Backend, table: str) -> None:
    twice = [{"SS": ["a", "a"]}, {"NS": ["1", "1"]}, {"BS": [b"a", b"a"]}]
    twice.append({"M": {"inside": {"SS": ["a", "a"]}}})
    found = _accepted(backend, table, twice)
    holds(backend, "a set has each member once", len(found), 0)
    found = _accepted(backend, table, [{"NS": ["1", "1.0"]}])
    holds(backend, "a set has each number once however it is spelled", len(found), 0)


def test_empty_values(backend: Backend, table: str) -> None:
    empty: list[Item] = [{"S": ""}, {"B": b""}, {"L": []}, {"M": {}}]
    assert [_kept(backend, table, value) for value in empty] == empty
    assert _accepted(backend, table, [{"SS": []}, {"NS": []}]) == []
    found = _accepted(backend, table, [{"BS": []}])
    holds(backend, "a set of binaries is not empty", len(found), 0)


def test_values_nest_32_levels(backend: Backend, table: str) -> None:
    def nested(depth: int) -> Item:
        return {"L": [nested(depth - 1)]} if depth else {"S": "x"}

    assert _kept(backend, table, nested(30)) == nested(30)
    found = _accepted(backend, table, [nested(33), {"M": {"a": nested(33)}}])
    holds(backend, "values nest no deeper than 32 levels", len(found), 0)


def test_an_item_has_at_most_400_kb(backend: Backend, table: str) -> None:
    # pk, a, sk, 1, v: what is left for the value is a little less than the whole.
    largest = "x" * (_MOST_ITEM_BYTES - 32)
    code = _put(backend, table, {**key("a"), "v": {"S": largest}})
    holds(backend, "an item of almost 400 KB is taken", code, "")
    code = _put(backend, table, {**key("a"), "v": {"S": largest + "x" * 32}})
    assert code == "ValidationException"


def test_keys_are_checked(backend: Backend, table: str) -> None:
    wrong: dict[str, Item] = {
        "empty": {**key("a"), "pk": {"S": ""}},
        "missing": {"pk": {"S": "a"}},
        "another type": {**key("a"), "sk": {"S": "1"}},
        "null": {**key("a"), "pk": {"NULL": True}},
        "too long": key("x" * (_MOST_KEY_BYTES + 1)),
    }
    codes = {what: _put(backend, table, item) for what, item in wrong.items()}
    assert codes == dict.fromkeys(wrong, "ValidationException")
    found = [sk for sk in ("9" * 39, "1E126") if not _put(backend, table, key("a", sk))]
    holds(backend, "a number that is a key is checked like any other", len(found), 0)
    longest = key("x" * _MOST_KEY_BYTES)
    backend.put(table, longest)
    assert backend.get(table, longest) == longest


@pytest.mark.parametrize("spelling", ["1E2", "100.0", "0100"])
def test_a_number_key_is_one_key_however_it_is_spelled(
    backend: Backend, table: str, spelling: str
) -> None:
    asked = key("a", spelling)
    backend.put(table, {**key("a", 100), "v": {"S": "put"}})
    assert (backend.get(table, asked) or {}).get("v") == {"S": "put"}
    answer = backend.dynamodb.batch_get_item(RequestItems={table: {"Keys": [asked]}})
    assert len(answer["Responses"][table]) == 1
    backend.update(table, asked, v={"S": "updated"})
    assert [item["v"] for item in backend.scan(table)] == [{"S": "updated"}]
    backend.put(table, {**asked, "v": {"S": "put again"}})
    (item,) = backend.scan(table)
    assert item["v"] == {"S": "put again"}
    rule = "a number key reads as its normal form"
    holds(backend, rule, item["sk"]["N"] == "100", True)
    backend.delete(table, asked)
    assert backend.scan(table) == []


def test_an_update_of_a_missing_item_makes_it(backend: Backend, table: str) -> None:
    backend.update(table, key("a"), v={"N": "1"})
    assert backend.scan(table) == [{**key("a"), "v": {"N": "1"}}]


def test_a_scan_in_segments_and_pages_finds_each_item_once(backend: Backend, table: str) -> None:
    items = [{**key(f"k{n % 7}", n), "v": {"S": "x" * n}} for n in range(60)]
    for item in items:
        backend.put(table, item)
    found: list[Item] = []
    for segment in range(4):
        pages = backend.dynamodb.get_paginator("scan").paginate(
            TableName=table, ConsistentRead=True, Limit=7, Segment=segment, TotalSegments=4
        )
        found += [item for page in pages for item in page["Items"]]
    assert sorted(found, key=lambda item: int(item["sk"]["N"])) == items


def test_a_batch_of_reads_finds_what_is_there(backend: Backend, table: str) -> None:
    for number in range(5):
        backend.put(table, key("a", number))
    wanted = [key("a", number) for number in range(3, 9)]
    answer = backend.dynamodb.batch_get_item(RequestItems={table: {"Keys": wanted}})
    found = answer["Responses"][table]
    # By number: dynoxide gives attributes in any order.
    assert sorted(found, key=lambda item: int(item["sk"]["N"])) == wanted[:2]
    assert not answer["UnprocessedKeys"]
