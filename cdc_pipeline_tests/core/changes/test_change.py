"""Change records: what a stream record becomes, and which ones are refused."""

import copy
import hashlib
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.changes.change import (
    Change,
    export_item,
    from_export_line,
    from_stream_record,
    stream_identity,
)
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import canonical_item, plain_json, to_json
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline_tests.strategies import items

_TABLE_ID = "6c5e2f4e-0000-4000-8000-000000000001"
_SEQUENCE = "111" + "0" * 18
_KEYS = {"pk": {"S": "a"}, "n": {"N": "1.0"}}
_NEW = {**_KEYS, "x": {"NS": ["2", "1.0"]}}
_OLD = {**_KEYS, "x": {"NULL": True}}


def _record(event: str = "MODIFY", **parts: Any) -> dict[str, Any]:
    body = {
        "ApproximateCreationDateTime": 1_700_000_000,
        "Keys": _KEYS,
        "SequenceNumber": _SEQUENCE,
        "SizeBytes": 10,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    }
    if event != "REMOVE":
        body["NewImage"] = _NEW
    if event != "INSERT":
        body["OldImage"] = _OLD
    record = {"eventID": "e1", "eventName": event, "eventVersion": "1.1", "dynamodb": body}
    for name, value in parts.items():
        part = record if name.startswith(("event", "user")) else body
        if value is ...:
            del part[name]
        else:
            part[name] = value
    return copy.deepcopy(record)


def _change(record: Any, *, full_images: bool = True) -> Change:
    return from_stream_record(
        record, table_id=_TABLE_ID, shard_id="shard-1", depth=4, full_images=full_images
    )


@pytest.mark.parametrize(("event", "op"), [("INSERT", "I"), ("MODIFY", "U"), ("REMOVE", "D")])
def test_a_record_becomes_a_change(event: str, op: str) -> None:
    change = _change(_record(event))
    new = None if op == "D" else canonical_item(_NEW)
    assert change == Change(
        uuid=stream_identity(_TABLE_ID, "e1"),
        op=op,
        write_time_us=1_700_000_000_000_000,
        data=None if new is None else plain_json(new),
        keys='{"n":{"N":"1"},"pk":{"S":"a"}}',
        new_image=None if new is None else to_json(new),
        old_image=None if op == "I" else to_json(canonical_item(_OLD)),
        position=position(4, _SEQUENCE),
        sequence_number=_SEQUENCE,
        shard_id="shard-1",
        event_id="e1",
        is_ttl_delete=False,
        transport=DYNAMODB_STREAMS,
    )


def test_plain_data_holds_exact_numbers() -> None:
    number = "1." + "2" * 37
    change = _change(_record("INSERT", NewImage={**_KEYS, "x": {"N": number}}))
    assert change.data is not None
    assert json.loads(change.data, parse_float=Decimal)["x"] == Decimal(number)


def test_identity_is_of_table_and_event_alone() -> None:
    expected = hashlib.sha256(f"{_TABLE_ID}\ne1".encode()).hexdigest()
    again = from_stream_record(
        _record("REMOVE"), table_id=_TABLE_ID, shard_id="another", depth=9
    ).uuid
    assert _change(_record("INSERT")).uuid == again == expected
    assert _change(_record(eventID="e2")).uuid != expected
    other = from_stream_record(_record(), table_id="another", shard_id="shard-1", depth=4)
    assert other.uuid != expected


_TTL = {"Type": "Service", "PrincipalId": "dynamodb.amazonaws.com"}


@pytest.mark.parametrize(
    ("event", "identity", "by_ttl"),
    [
        ("REMOVE", _TTL, True),
        ("REMOVE", {"type": "Service", "principalId": "dynamodb.amazonaws.com"}, True),
        ("MODIFY", _TTL, False),
        ("REMOVE", {**_TTL, "PrincipalId": "replication.dynamodb.amazonaws.com"}, False),
        ("REMOVE", {**_TTL, "Type": "User"}, False),
        ("REMOVE", {}, False),
        ("REMOVE", None, False),
        ("REMOVE", "Service", False),
    ],
)
def test_ttl_deletes_are_told_in_both_spellings(event: str, identity: Any, by_ttl: bool) -> None:
    assert _change(_record(event, userIdentity=identity)).is_ttl_delete is by_ttl


def test_new_image_view_has_no_old_image() -> None:
    change = _change(_record("MODIFY", OldImage=...))
    assert (change.op, change.old_image) == ("U", None)
    removed = _change(_record("REMOVE", OldImage=...))
    assert (removed.data, removed.new_image, removed.old_image) == (None, None, None)


def test_keys_only_view_is_read_when_no_images_are_expected() -> None:
    record = _record("MODIFY", NewImage=..., OldImage=...)
    assert _change(record, full_images=False).new_image is None
    with pytest.raises(UnreadableError):
        _change(record)


@given(items, items)
def test_any_image_lands_canonically(new: dict[str, Any], old: dict[str, Any]) -> None:
    change = _change(_record("MODIFY", NewImage=new, OldImage=old))
    assert change.new_image == to_json(canonical_item(new))
    assert change.old_image == to_json(canonical_item(old))


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "record",
        {},
        {"eventID": "e1", "eventName": "INSERT", "dynamodb": None},
        _record(eventName=...),
        _record(eventName="UPSERT"),
        _record(eventName=None),
        _record(eventName=["INSERT"]),
        _record(eventID=...),
        _record(eventID=""),
        _record(eventID=7),
        _record(eventID="\ud800"),
        _record(SequenceNumber=...),
        _record(SequenceNumber=111),
        _record(SequenceNumber="-1"),
        _record(SequenceNumber="1e5"),
        _record(SequenceNumber="1" * 41),
        _record(Keys=...),
        _record(Keys={}),
        _record(Keys={"pk": "a"}),
        _record(NewImage=...),
        _record("REMOVE", NewImage=_NEW),
        _record(NewImage={"a": {"?": 1}}),
        _record(OldImage={"a": {"S": 1}}),
        _record(ApproximateCreationDateTime=...),
        _record(ApproximateCreationDateTime=0),
        _record(ApproximateCreationDateTime=-5),
        _record(ApproximateCreationDateTime=True),
        _record(ApproximateCreationDateTime="1700000000"),
        _record(ApproximateCreationDateTime=1e308),
        _record(ApproximateCreationDateTime=1e15),
    ],
    ids=lambda record: None,
)
def test_records_with_missing_or_broken_parts_are_unreadable(record: Any) -> None:
    with pytest.raises(UnreadableError):
        _change(record)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
_PARTS = ["eventID", "eventName", "SequenceNumber", "Keys", "NewImage", "OldImage", "userIdentity"]


@given(
    st.dictionaries(st.sampled_from([*_PARTS, "ApproximateCreationDateTime"]), _json, max_size=3)
)
def test_no_record_raises_anything_but_unreadable(parts: dict[str, Any]) -> None:
    try:
        change = _change(_record(**parts))
    except UnreadableError:
        return
    assert change.uuid


def test_whole_seconds_may_be_spelled_as_floats() -> None:
    change = _change(_record(ApproximateCreationDateTime=1_700_000_000.0))
    assert change.write_time_us == 1_700_000_000_000_000


def test_an_export_line_gives_keys_and_item() -> None:
    keys, item = export_item({"Item": _NEW}, ("pk", "n"))
    assert keys == '{"n":{"N":"1"},"pk":{"S":"a"}}' == _change(_record()).keys
    assert item == _change(_record()).new_image


@pytest.mark.parametrize("line", [None, [], {}, {"item": _NEW}, {"Item": None}, {"Item": {"n": 1}}])
def test_export_lines_without_a_readable_item_are_refused(line: Any) -> None:
    with pytest.raises(UnreadableError):
        export_item(line, ("pk",))


def test_an_exported_item_without_its_key_is_refused() -> None:
    with pytest.raises(UnreadableError, match="key attribute sk"):
        export_item({"Item": _NEW}, ("pk", "sk"))


_LINE_KEYS = {"pk": {"S": "a"}}
_TIME = 1_768_386_096_366_933


def _line(time: Any = None, **images: Any) -> dict[str, Any]:
    written = {"N": str(_TIME)} if time is None else time
    return {"Metadata": {"WriteTimestampMicros": written}, "Keys": _LINE_KEYS, **images}


@pytest.mark.parametrize("time", [{"N": str(_TIME)}, str(_TIME), _TIME])
def test_a_line_of_an_incremental_export_is_a_change(time: Any) -> None:
    old = {**_NEW, "n": {"N": "0"}}
    for images, op in (
        ({"NewImage": _NEW}, "I"),
        ({"OldImage": old, "NewImage": _NEW}, "U"),
        ({"OldImage": old}, "D"),
        ({}, "D"),  # of the view NEW_IMAGE
    ):
        change = from_export_line(_line(time, **images), table_id="t")
        assert (change.op, change.write_time_us) == (op, _TIME)
        assert change.keys == to_json(_LINE_KEYS)
        assert (change.new_image is None) == (change.data is None) == (op == "D")
        assert (change.old_image is None) == ("OldImage" not in images)
        again = from_export_line(_line(_TIME, **images), table_id="t")
        assert change == again  # the same identity, however the time is spelled


def test_the_identity_of_an_exported_change_is_everything_it_says() -> None:
    lines = [
        _line(NewImage=_NEW),
        _line(_TIME + 1, NewImage=_NEW),
        _line(NewImage={**_NEW, "n": {"N": "9"}}),
        _line(OldImage=_NEW),
        _line(OldImage=_NEW, NewImage=_NEW),
        _line(),
    ]
    found = {from_export_line(line, table_id=table).uuid for line in lines for table in "ab"}
    assert len(found) == 2 * len(lines)


@pytest.mark.parametrize(
    "line",
    [
        None,
        {},
        {"Item": _NEW},
        _line({"S": "now"}),
        _line(True),
        _line(1.5),
        _line(-1),
        _line({"N": "1e15"}),
        {"Keys": _LINE_KEYS, "NewImage": _NEW},
        _line(NewImage={"n": 1}),
    ],
)
def test_lines_that_are_no_change_are_refused(line: Any) -> None:
    with pytest.raises(UnreadableError):
        from_export_line(line, table_id="t")
