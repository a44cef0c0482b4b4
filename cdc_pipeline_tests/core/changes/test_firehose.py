"""What Firehose delivers, kind by kind, and what is refused of each."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.firehose import DeliveredRecord, delivered_records
from cdc_pipeline.core.changes.kinesis import from_envelope
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.transports import FIREHOSE
from cdc_pipeline_tests.simulators.firehose import envelope, error_record

TARGET = Target("orders", "T", {"pk": "S", "n": "N", "b": "B"})
TIME_US = 1_649_719_712_473_123
KEYS = {"pk": {"S": "a"}, "n": {"N": "1"}, "b": {"B": b"\x00"}}
ITEM = {**KEYS, "tags": {"SS": ["b", "a"]}, "raw": {"B": b"\x12\x02\x08{"}}


def _all(record: Any) -> list[DeliveredRecord]:
    return list(delivered_records(record, b"its bytes", TARGET))


def _one(record: Any) -> Change:
    (found,) = _all(record)
    assert found.change is not None, found.unreadable
    return found.change


def _row(**changes: Any) -> dict[str, Any]:
    """What our Lambda makes of a record."""
    change = from_envelope(
        envelope("U", KEYS, ITEM, KEYS, TIME_US), table_id="T", transport=FIREHOSE
    )
    return {**change._asdict(), "time_stamp": "2022-04-11 23:28:32.473", **changes}


def _legacy(data: Any, op: str = "U", **changes: Any) -> dict[str, Any]:
    row = {"uuid": "u1", "op": op, "time_stamp": datetime(2026, 1, 2, 3, 4, 5, 6000, UTC)}
    return {**row, "data": data if data is None else json.dumps(data), **changes}


def _with_text(data: str) -> dict[str, Any]:
    return {**_legacy(None), "data": data}


def test_an_envelope_is_a_change() -> None:
    record = envelope("I", KEYS, ITEM, None, TIME_US)
    assert _one(record) == from_envelope(record, table_id="T", transport=FIREHOSE)


def test_records_of_other_tables_are_theirs() -> None:
    assert _all(envelope("D", KEYS, None, KEYS, 1, table="others")) == [
        DeliveredRecord(None, other="others")
    ]


def test_our_lambdas_row_is_what_the_raw_record_is() -> None:
    raw = _one(envelope("U", KEYS, ITEM, KEYS, TIME_US))
    assert _one(_row()) == raw
    assert _one(json.loads(json.dumps(_row()))) == raw


@pytest.mark.parametrize("kind", ["processing-failed", "format-conversion-failed"])
def test_error_records_are_replayed(kind: str) -> None:
    record = envelope("U", KEYS, ITEM, KEYS, TIME_US)
    for raw in (record, _row()):
        assert _one(error_record(json.dumps(raw).encode(), kind)) == _one(record)


def test_a_legacy_row_is_typed_as_well_as_plain_json_can_be() -> None:
    data = {
        "pk": "a",
        "n": 12345678901234567890.12345678901234567,
        "b": "AA==",
        "list": [1, "x", None, {"y": True}],
    }
    text = json.dumps(data).replace("1.2345678901234567e+19", "12345678901234567890.1234567890")
    (found,) = _all(_with_text(text))
    change, time_us = found.change, 1_767_323_045_006_000
    assert found.legacy
    assert change is not None
    assert json.loads(change.keys) == {
        "pk": {"S": "a"},
        "n": {"N": "12345678901234567890.123456789"},
        "b": {"B": "AA=="},
    }
    assert json.loads(change.new_image or "")["list"] == {
        "L": [{"N": "1"}, {"S": "x"}, {"NULL": True}, {"M": {"y": {"BOOL": True}}}]
    }
    assert change.write_time_us == time_us
    assert change.position == position(0, time_us)
    assert (change.old_image, change.is_ttl_delete) == (None, None)
    assert change.uuid == hashlib.sha256(f"T\nlegacy\nu1\n{time_us}".encode()).hexdigest()


def test_an_image_that_comes_back_is_another_change() -> None:
    data = {"pk": "a", "n": "7", "b": "AA=="}
    first, again = (
        _one(_legacy(data, time_stamp=datetime(2026, 1, day, tzinfo=UTC))) for day in (1, 2)
    )
    assert first.uuid != again.uuid
    assert json.loads(first.keys)["n"] == {"N": "7"}  # decimals that were written as text


@pytest.mark.parametrize(
    "spelled",
    [
        "2026-01-02T03:04:05.006Z",
        "2026-01-02 03:04:05.006",
        1_767_323_045_006,
        1_767_323_045_006_000,
        datetime(2026, 1, 2, 3, 4, 5, 6000),  # noqa: DTZ001 - a Parquet timestamp without a zone
    ],
)
def test_arrival_times_in_every_spelling(spelled: Any) -> None:
    data = {"pk": "a", "n": 1, "b": ""}
    assert _one(_legacy(data, time_stamp=spelled)).write_time_us == 1_767_323_045_006_000


def test_a_legacy_delete_with_its_keys_is_one() -> None:
    change = _one(_legacy({"pk": "a", "n": 1, "b": "", "more": 1}, op="REMOVE"))
    assert (change.op, change.data, change.new_image) == ("D", None, None)
    assert json.loads(change.keys).keys() == TARGET.key_types.keys()


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"a": 1}, "unknown kind"),
        ([1], "unknown kind"),
        ({"dynamodb": 1}, "dynamodb part"),
        (
            envelope("I", {"x": {"S": "a"}}, {"x": {"S": "a"}}, None, TIME_US),
            "other key attributes",
        ),
        (error_record(b"{"), "not JSON"),
        (error_record(b""), "around no record"),
        ({"rawData": "!"}, "rawData is no record"),
        ({"rawData": None}, "rawData is no record"),
        (error_record(json.dumps(error_record(b"{}")).encode()), "inside an error record"),
        (error_record(b"[]"), "around no record"),
        (_row(op="X"), "unknown op"),
        (_row(uuid="0" * 64), "uuid"),
        (_row(write_time_us="1"), "write time"),
        (_row(write_time_us=0), "before 2012"),
        (_row(keys=None), "without keys"),
        (_row(keys="{}"), "without keys"),
        (_row(new_image=None), "does not fit"),
        (_row(new_image="{"), "not JSON"),
        (_row(new_image='{"a":1}'), "tagged"),
        (_legacy(None, op="D"), "delete without its keys"),
        (_legacy({"pk": "a"}, op="D"), "delete without its keys"),
        (_legacy({"pk": "a"}), "without its key attributes"),
        (_legacy({"pk": 1, "n": 1, "b": ""}), "another type"),
        (_legacy({"pk": "a", "n": "x", "b": ""}), "not a decimal"),
        (_legacy([1]), "no item"),
        (_legacy(None), "not JSON"),
        (_with_text('{"n": NaN}'), "not JSON"),
        (_legacy({}, op="?"), "unknown op"),
        (_legacy({}, uuid=None), "without its uuid"),
        (_legacy({"pk": "a", "n": 1, "b": ""}, time_stamp=None), "time_stamp"),
        (_legacy({"pk": "a", "n": 1, "b": ""}, time_stamp="soon"), "time_stamp"),
        (_legacy({"pk": "a", "n": 1, "b": ""}, time_stamp=0), "before 2012"),
    ],
)
def test_everything_else_is_refused(record: Any, why: str) -> None:
    (found,) = _all(record)
    assert found.change is None
    assert found.unreadable is not None
    assert why in found.unreadable[0]
