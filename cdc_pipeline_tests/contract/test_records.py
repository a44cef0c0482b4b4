"""What DynamoDB Streams records: which writes, how, with which values, in which order."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from cdc_pipeline_tests.contract.backends import (
    BOTH_IMAGES,
    WITH_BOTH,
    Backend,
    key,
    read_shard,
    read_stream,
)
from cdc_pipeline_tests.contract.deviations import holds
from cdc_pipeline_tests.simulators.items import Item, same

pytestmark = pytest.mark.contract

EVERY_TYPE: Item = {
    "string": {"S": 'größe \U0001f6aa «x» \u0000 "\\'},
    "empty string": {"S": ""},
    "number": {"N": "-12345678901234567890123456789012345678"},
    "small number": {"N": "1.2345678901234567890123456789012345678E-130"},
    "big number": {"N": "9.9999999999999999999999999999999999999E+125"},
    "fraction": {"N": "0.10000000000000000000000000000000000001"},
    "zero": {"N": "0"},
    "binary": {"B": bytes(range(256))},
    "empty binary": {"B": b""},
    "boolean": {"BOOL": False},
    "null": {"NULL": True},
    "strings": {"SS": ["b", "a", "ä", ""]},
    "numbers": {"NS": ["2", "10", "-1.5", "1E-130"]},
    "binaries": {"BS": [b"\x00", b"\xff\xfe", b""]},
    "list": {"L": [{"N": "1"}, {"L": []}, {"M": {" ": {"NULL": True}}}, {"SS": ["x"]}]},
    "map": {"M": {"a": {"S": "1"}, "A": {"N": "1"}, "deep": {"M": {"b": {"B": b"\x01"}}}}},
    "empty list": {"L": []},
    "empty map": {"M": {}},
    "dots. and - spaces": {"S": "x"},
    "Case": {"S": "upper"},
    "case": {"S": "lower"},
}


def _names(records: list[dict[str, Any]]) -> list[str]:
    return [record["eventName"] for record in records]


def _images(record: dict[str, Any]) -> tuple[Item | None, Item | None]:
    return record["dynamodb"].get("OldImage"), record["dynamodb"].get("NewImage")


def test_inserts_changes_and_deletes_have_their_images_and_keys(backend: Backend) -> None:
    table = backend.create_table()
    first = {**key("a"), "n": {"N": "1"}}
    backend.put(table, first)
    backend.put(table, {**key("a"), "n": {"N": "2"}})
    backend.update(table, key("a"), n={"N": "3"}, more={"S": "x"})
    backend.delete(table, key("a"))
    records = read_stream(backend, backend.arn(table), 4)
    assert _names(records) == ["INSERT", "MODIFY", "MODIFY", "REMOVE"]
    last = {**key("a"), "n": {"N": "3"}, "more": {"S": "x"}}
    versions = [None, first, {**key("a"), "n": {"N": "2"}}, last, None]
    assert [_images(record) for record in records] == list(pairwise(versions))
    assert [record["dynamodb"]["Keys"] for record in records] == [key("a")] * 4


def test_an_update_of_a_missing_item_is_an_insert(backend: Backend) -> None:
    table = backend.create_table()
    backend.update(table, key("a"), n={"N": "1"})
    records = read_stream(backend, backend.arn(table), 1)
    holds(backend, "an update that makes an item has one record", len(records), 1)
    assert set(_names(records)) == {"INSERT"}
    assert _images(records[-1]) == (None, {**key("a"), "n": {"N": "1"}})


def test_every_type_is_exact(backend: Backend) -> None:
    table = backend.create_table()
    item = {**key("größe"), **EVERY_TYPE}
    backend.put(table, item)
    backend.delete(table, key("größe"))
    inserted, removed = read_stream(backend, backend.arn(table), 2)
    for image in (inserted["dynamodb"]["NewImage"], removed["dynamodb"]["OldImage"]):
        different = [name for name in item if not _equal(image.get(name), item[name])]
        assert not different
        assert image.keys() == item.keys()


def _equal(one: Any, other: Any) -> bool:
    return same({"x": one}, {"x": other})


def test_keys_of_every_value(backend: Backend) -> None:
    table = backend.create_table()
    keys = [key(pk, sk) for pk in ("a", "A", "ä", " ", "a/b", '"') for sk in (-1, 0, 10**37)]
    for wanted in keys:
        backend.put(table, wanted)
    records = read_stream(backend, backend.arn(table), len(keys))
    found = [record["dynamodb"]["Keys"] for record in records]
    assert len(found) == len(keys)
    assert all(sum(same(one, wanted) for one in found) == 1 for wanted in keys)


@pytest.mark.parametrize(
    ("how", "again"),
    [
        ("changes nothing", {}),
        ("spells a number in another way", {"n": {"N": "1"}}),
        ("lists a set in another order", {"s": {"SS": ["y", "x"]}, "ns": {"NS": ["2", "1"]}}),
        ("lists attributes in another order", {"m": {"M": {"b": {"S": ""}, "a": {"N": "1"}}}}),
    ],
)
def test_a_put_that_changes_nothing_has_no_record(backend: Backend, how: str, again: Item) -> None:
    table = backend.create_table()
    item = {
        "n": {"N": "1.0"},
        "s": {"SS": ["x", "y"]},
        "ns": {"NS": ["1", "2"]},
        "m": {"M": {"a": {"N": "1"}, "b": {"S": ""}}},
    }
    backend.put(table, {**key("a"), **item})
    backend.put(table, {**key("a"), **item, **again})
    backend.delete(table, key("a"))
    found = _names(read_stream(backend, backend.arn(table), 2))
    rule = f"a put that {how} has no record"
    holds(backend, rule, found, ["INSERT", "REMOVE"])


def test_an_update_that_changes_nothing_has_no_record(backend: Backend) -> None:
    table = backend.create_table()
    backend.put(table, {**key("a"), "n": {"N": "1"}})
    backend.update(table, key("a"), n={"N": "1"})
    backend.delete(table, key("a"))
    found = _names(read_stream(backend, backend.arn(table), 2))
    holds(backend, "an update that changes nothing has no record", found, ["INSERT", "REMOVE"])


def test_a_delete_of_nothing_has_no_record(backend: Backend) -> None:
    table = backend.create_table()
    backend.delete(table, key("a"))
    backend.put(table, key("a"))
    assert _names(read_stream(backend, backend.arn(table), 1)) == ["INSERT"]


def test_changes_of_an_item_are_in_order(backend: Backend) -> None:
    table = backend.create_table()
    for number in range(30):
        for pk in ("a", "b", "c"):
            backend.put(table, {**key(pk), "n": {"N": str(number)}})
    records = read_stream(backend, backend.arn(table), 90)
    for pk in ("a", "b", "c"):
        images = [r["dynamodb"]["NewImage"] for r in records if r["dynamodb"]["Keys"] == key(pk)]
        assert [int(image["n"]["N"]) for image in images] == list(range(30))


def test_sequence_numbers_are_numbers_and_rise_within_a_shard(backend: Backend) -> None:
    table = backend.create_table()
    for number in range(40):
        backend.put(table, key(f"k{number}"))
    arn = backend.arn(table)
    assert len(read_stream(backend, arn, 40)) == 40
    texts: list[str] = []
    for shard in backend.shard_ids(arn):
        records = read_shard(backend, backend.iterator(arn, shard, "TRIM_HORIZON"))
        numbers = [record["dynamodb"]["SequenceNumber"] for record in records]
        assert all(one.isdecimal() for one in numbers)
        assert [int(one) for one in numbers] == sorted({int(one) for one in numbers})
        texts += numbers
    lengths = {21 <= len(text) <= 40 for text in texts}
    holds(backend, "sequence numbers have 21 to 40 digits", lengths, {True})


def test_what_else_a_record_says(backend: Backend) -> None:
    table = backend.create_table()
    before = int(backend.clock())
    for number in range(3):
        backend.put(table, {**key("a"), "n": {"N": str(number)}})
    records = read_stream(backend, backend.arn(table), 3)
    assert len({record["eventID"] for record in records}) == 3
    assert {record["eventSource"] for record in records} == {"aws:dynamodb"}
    regions = {record["awsRegion"] for record in records}
    holds(backend, "records name their region", regions, {"us-east-1"})
    assert {record["dynamodb"]["StreamViewType"] for record in records} == {BOTH_IMAGES}
    assert all(record["dynamodb"]["SizeBytes"] > 0 for record in records)
    assert not any("userIdentity" in record for record in records)
    created = [record["dynamodb"]["ApproximateCreationDateTime"] for record in records]
    assert created == sorted(created)
    whole = {moment.microsecond for moment in created} == {0}
    holds(backend, "record times are whole seconds", whole, True)
    assert before <= int(created[0].timestamp()) <= backend.clock()


@pytest.mark.parametrize(
    ("view", "images"),
    [
        ("KEYS_ONLY", set()),
        ("NEW_IMAGE", {"NewImage"}),
        ("OLD_IMAGE", {"OldImage"}),
        (BOTH_IMAGES, {"NewImage", "OldImage"}),
    ],
)
def test_view_types(backend: Backend, view: str, images: set[str]) -> None:
    table = backend.create_table(view)
    versions = [{**key("a"), "n": {"N": number}} for number in "12"]
    for version in versions:
        backend.put(table, version)
    backend.delete(table, key("a"))
    records = read_stream(backend, backend.arn(table), 3)
    assert _names(records) == ["INSERT", "MODIFY", "REMOVE"]
    bodies = [record["dynamodb"] for record in records]
    assert [body["Keys"] for body in bodies] == [key("a")] * 3
    assert {body["StreamViewType"] for body in bodies} == {view}
    full = [(None, versions[0]), (versions[0], versions[1]), (versions[1], None)]
    wanted = [
        (old if "OldImage" in images else None, new if "NewImage" in images else None)
        for old, new in full
    ]
    assert [_images(record) for record in records] == wanted
    assert backend.describe_stream(backend.arn(table))["StreamViewType"] == view


@pytest.mark.parametrize("backend", WITH_BOTH, indirect=True)
def test_batches_and_transactions_have_one_record_per_item(backend: Backend) -> None:
    """The simulator takes no writes over HTTP."""
    table = backend.create_table()
    backend.put(table, key("gone"))
    batch: list[Any] = [{"PutRequest": {"Item": key(f"batch {n}")}} for n in range(10)]
    batch.append({"DeleteRequest": {"Key": key("gone")}})
    backend.dynamodb.batch_write_item(RequestItems={table: batch})
    actions: list[Any] = [{"Put": {"TableName": table, "Item": key(f"act {n}")}} for n in range(3)]
    actions.append({"Delete": {"TableName": table, "Key": key("batch 0")}})
    backend.dynamodb.transact_write_items(TransactItems=actions)
    found = Counter(
        (record["eventName"], record["dynamodb"]["Keys"]["pk"]["S"])
        for record in read_stream(backend, backend.arn(table), 16)
    )
    inserted = ["gone", *(f"batch {n}" for n in range(10)), *(f"act {n}" for n in range(3))]
    removed = ["gone", "batch 0"]
    assert found == Counter(
        [*(("INSERT", pk) for pk in inserted), *(("REMOVE", pk) for pk in removed)]
    )


@pytest.mark.parametrize("backend", WITH_BOTH, indirect=True)
def test_a_transaction_that_fails_has_no_record(backend: Backend) -> None:
    """The simulator takes no writes over HTTP."""
    table = backend.create_table()
    backend.put(table, key("there"))
    missing = "attribute_not_exists(pk)"
    actions: list[Any] = [
        {"Put": {"TableName": table, "Item": key("new")}},
        {"Put": {"TableName": table, "Item": key("there"), "ConditionExpression": missing}},
    ]
    with pytest.raises(backend.dynamodb.exceptions.TransactionCanceledException):
        backend.dynamodb.transact_write_items(TransactItems=actions)
    backend.delete(table, key("there"))
    assert _names(read_stream(backend, backend.arn(table), 2)) == ["INSERT", "REMOVE"]
