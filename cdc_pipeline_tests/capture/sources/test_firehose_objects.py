"""Changes as users' functions and pipes write them: either spelling, in any wrapper and framing."""

import base64
import gzip
import io
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.capture.sources.firehose_objects import records
from cdc_pipeline.capture.sources.kinesis_records import parse_envelopes
from cdc_pipeline.capture.sources.streams_records import parse_records
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.entries import ShardState, StreamRef
from cdc_pipeline_tests.infra.firehose import Context
from cdc_pipeline_tests.simulators.firehose import envelope, error_record, forwarded, zstd_frame
from cdc_pipeline_tests.strategies import items
from infra import lambda_handler

ARN = "arn:aws:dynamodb:us-east-1:000000000000:table/orders"
TARGET = Target("orders", "T", {"pk": "S", "n": "N"}, ARN)
KEYS = {"pk": {"S": "a"}, "n": {"N": "1"}}
SECOND = 1_764_424_985
US = SECOND * 1_000_000


def read(body: bytes) -> tuple[list[Change], list[tuple[str, bytes]], int]:
    """Changes, what is unreadable, and how many records are of other tables."""
    found = list(records(io.BytesIO(body), "s3://b/o", TARGET))
    changes = [r.change for r in found if r.change]
    unreadable = [r.unreadable for r in found if r.unreadable]
    return changes, unreadable, len(found) - len(changes) - len(unreadable)


def said(change: Change) -> tuple[Any, ...]:
    """What a change says, without how it is told apart."""
    return (change.op, change.write_time_us, change.keys, change.new_image, change.old_image)


def text(item: dict[str, Any] | None) -> str | None:
    return None if item is None else to_json(canonical_item(item))


def body_of(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def change(n: int = 1, op: str = "U", **how: Any) -> dict[str, Any]:
    new = None if op == "D" else {**KEYS, "v": {"N": str(n)}}
    old = None if op == "I" else {**KEYS, "v": {"N": str(n - 1)}}
    return forwarded(op, KEYS, new, old, how.pop("time", SECOND), 10**24 + n, **how)


@pytest.mark.parametrize(
    ("time", "write_time_us"),
    [
        (SECOND, US),
        (float(SECOND), US),
        (SECOND + 0.25, US + 250_000),
        ("2025-11-29T14:03:05+00:00", US),
        ("2025-11-29T15:03:05.5+01:00", US + 500_000),
        ("2025-11-29 14:03:05", US),
        ("2025-11-29T14:03:05Z", US),
    ],
)
def test_a_streams_times_are_seconds(time: Any, write_time_us: int) -> None:
    (found,), unreadable, _ = read(body_of(change(time=time)))
    assert unreadable == []
    assert found.write_time_us == write_time_us
    assert found.position == f"{position(0, write_time_us)}.{10**24 + 1:040d}"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (change(time=SECOND * 1000), "ahead"),
        (change(time=1.0e300), "ahead"),
        (change(time="soon"), "without its creation time"),
        (change(time=None), "without its creation time"),
        (change(time=1_325_375_999), "before 2012"),
        (change(time=datetime.now(UTC).timestamp() + 100_000), "ahead"),
        (envelope("I", KEYS, KEYS, None, SECOND), "before 2012"),
        (envelope("I", KEYS, KEYS, None, US * 1000), "ahead"),
        ({**change(), "recordFormat": "application/json"}, "both spellings"),
        ({"eventName": "INSERT", "dynamodb": {"Keys": KEYS, "NewImage": KEYS}}, "neither"),
        ({**change(), "eventSourceARN": "arn:aws:kinesis:x:1:stream/s"}, "eventSourceARN"),
        (forwarded("D", {"pk": {"S": "a"}}, None, None, SECOND, 1), "other key attributes"),
        (forwarded("D", {**KEYS, "n": {"S": "1"}}, None, None, SECOND, 1), "other key attributes"),
        (envelope("D", {**KEYS, "n": {"S": "1"}}, None, None, US), "other key attributes"),
    ],
)
def test_what_may_be_another_change_is_none(record: Any, why: str) -> None:
    changes, unreadable, others = read(body_of(change(7), record))
    assert [said(c) for c in changes] == [said(read(body_of(change(7)))[0][0])]
    ((reason, raw),) = unreadable
    assert why in reason
    assert json.loads(raw) == record
    assert others == 0


def test_binary_is_encoded_once_in_a_stream_and_twice_in_kinesis() -> None:
    item = {**KEYS, "b": {"B": b"test"}, "bs": {"BS": [b"dGVzdA==", b"\x00"]}}
    (one, two), unreadable, _ = read(
        body_of(
            forwarded("I", KEYS, item, None, SECOND, 1), envelope("I", KEYS, item, None, US + 1)
        )
    )
    assert unreadable == []
    assert one.new_image == two.new_image
    assert json.loads(one.new_image or "")["b"] == {"B": "dGVzdA=="}


def test_another_tables_records_are_counted_however_they_name_it() -> None:
    other_region = ARN.replace("us-east-1", "eu-west-1") + "/stream/2026-11-01T00:00:00.000"
    wanted, theirs = change(1), change(2, table="customers")
    body = body_of(
        theirs,
        {**change(3), "eventSourceARN": other_region},
        envelope("I", KEYS, KEYS, None, US, table="customers"),
        wanted,
        {**theirs, "dynamodb": {"SequenceNumber": "1"}},
    )
    changes, unreadable, others = read(body)
    assert ([said(c) for c in changes], unreadable, others) == (
        [said(read(body_of(wanted))[0][0])],
        [],
        4,
    )


def test_a_change_is_one_however_it_was_wrapped() -> None:
    record = change()
    flat = {**record["dynamodb"], "eventName": "MODIFY"}
    plain, unreadable, _ = read(body_of(record, flat, {"Records": [record]}))
    assert unreadable == []
    assert len({(c.uuid, c.position, *said(c)) for c in plain}) == 1


def test_a_wrapper_costs_only_what_is_broken_in_it() -> None:
    good, bad = change(1), {**change(2), "eventName": "UPSERT"}
    changes, unreadable, _ = read(body_of({"Records": [good, bad, 5, {"s3": {}}]}))
    assert [said(c) for c in changes] == [said(read(body_of(good))[0][0])]
    assert [(why, json.loads(raw)) for why, raw in unreadable] == [
        ("an unknown event name", bad),
        ("a record of an unknown kind", 5),
        ("a record of an unknown kind", {"s3": {}}),
    ]
    cut = json.dumps({"Records": [good, change(2), change(3)]}).encode()[:-40]
    changes, unreadable, _ = read(cut)
    assert [said(c)[3] for c in changes] == [text({**KEYS, "v": {"N": str(n)}}) for n in (1, 2)]
    assert {why for why, _ in unreadable} == {"a stretch that is not JSON"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"Item": KEYS}, "a line of a full export"),
        ({"payload": {}, "schema": {}}, "an event of Debezium"),
        ({"records": [], "deliveryStreamArn": "x"}, "an event of Firehose"),
        ({"kinesis": {"data": "!"}}, "whose data is not base64"),
        ({"kinesis": {"data": ""}}, "around no record"),
        ({"kinesis": {"data": base64.b64encode(b"\xf3\x89\x9a\xc2").decode()}}, "aggregated"),
    ],
)
def test_what_is_refused_is_named(value: Any, why: str) -> None:
    (read_before,), ((reason, _),), _ = read(body_of(change(), value))
    assert said(read_before) == said(read(body_of(change()))[0][0])
    assert why in reason


def _kinesis_event(*values: Any) -> dict[str, Any]:
    data = [base64.b64encode(json.dumps(value).encode()).decode() for value in values]
    return {"Records": [{"kinesis": {"data": one}, "eventID": "s:1"} for one in data]}


_WRAPPERS = {
    "none": body_of,
    "concatenated": lambda *values: body_of(*values).replace(b"\n", b""),
    "indented": lambda *values: b"".join(json.dumps(v, indent=2).encode() for v in values),
    "array": lambda *values: json.dumps(list(values)).encode(),
    "arrays": lambda *values: b"".join(json.dumps([v]).encode() for v in values),
    "commas": lambda *values: b",\n".join(json.dumps(v).encode() for v in values),
    "separators": lambda *values: b"".join(b"\x1e" + json.dumps(v).encode() for v in values),
    "event": lambda *values: body_of({"Records": list(values)}),
    "event bus": lambda *values: body_of(*({"detail-type": "x", "detail": v} for v in values)),
    "event of Kinesis": lambda *values: body_of(_kinesis_event(*values)),
    "queue": lambda *values: body_of(
        {"Records": [{"eventSource": "aws:sqs", "body": json.dumps(v)} for v in values]}
    ),
    "topic": lambda *values: body_of(
        *({"Type": "Notification", "Message": json.dumps(v)} for v in values)
    ),
    "one error": lambda *values: body_of(error_record(body_of(*values))),
    "errors": lambda *values: body_of(*(error_record(json.dumps(v).encode()) for v in values)),
    "error of an event": lambda *values: body_of(error_record(body_of({"Records": list(values)}))),
}
_PACKED = {
    "plain": lambda data: data,
    "mark": lambda data: b"\xef\xbb\xbf" + data,
    "gzip": gzip.compress,
    "gzip twice": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    "zstd": zstd_frame,
    "zstd twice": lambda data: zstd_frame(data[:9]) + zstd_frame(data[9:]),
}
_OPS = st.sampled_from("IUD")


@st.composite
def _changes(draw: st.DrawFn) -> tuple[Any, tuple[Any, ...]]:
    """A record and what it says."""
    op = draw(_OPS)
    # Binary is text here, as JSON has it: encoded once.
    new = None if op == "D" else {**draw(items), **KEYS}
    old = None if op == "I" else {**draw(items), **KEYS}
    if draw(st.booleans()):
        time = draw(st.integers(1_400_000_000, SECOND))
        record = forwarded(op, KEYS, new, old, time, draw(st.integers(1, 10**30)))
        record = draw(st.sampled_from([record, {**record["dynamodb"], **_head(record)}]))
        time_us = time * 1_000_000
    else:
        time_us = draw(st.integers(1_400_000_000_000_000, US))
        bytes_new, bytes_old = (_as_bytes(image) for image in (new, old))
        record = envelope(op, KEYS, bytes_new, bytes_old, time_us)
    return record, (op, time_us, text(KEYS), text(new), text(old))


def _head(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "dynamodb"}


def _as_bytes(value: Any) -> Any:
    """An item with its binaries as bytes, which the simulator encodes twice."""
    if not isinstance(value, dict):
        return value
    found = {}
    for name, content in value.items():
        ((tag, inner),) = content.items()
        if tag == "B":
            inner = base64.b64decode(inner)
        elif tag == "BS":
            inner = [base64.b64decode(member) for member in inner]
        elif tag == "M":
            inner = _as_bytes(inner)
        elif tag == "L":
            inner = [_as_bytes({"x": element})["x"] for element in inner]
        found[name] = {tag: inner}
    return found


@given(
    cases=st.lists(_changes(), min_size=1, max_size=4),
    wrapper=st.sampled_from(sorted(_WRAPPERS)),
    packed=st.sampled_from(sorted(_PACKED)),
    broken=st.booleans(),
)
def test_every_change_comes_out_once_as_it_was_whatever_is_around_it(
    cases: list[tuple[Any, tuple[Any, ...]]], wrapper: str, packed: str, broken: bool
) -> None:
    values = [record for record, _ in cases]
    if broken:
        values.insert(1, {"eventName": "INSERT", "dynamodb": {"Keys": KEYS}})
    body = _PACKED[packed](_WRAPPERS[wrapper](*values))
    changes, unreadable, others = read(body)
    assert [said(c) for c in changes] == [facts for _, facts in cases]
    assert (len(unreadable), others) == (int(broken), 0)


def test_changes_that_say_the_same_are_as_many_as_their_numbers() -> None:
    there = forwarded("U", KEYS, KEYS, KEYS, SECOND, 10**24 + 9)
    again = forwarded("U", KEYS, KEYS, KEYS, SECOND, 10**24 + 8)
    changes, _, _ = read(body_of(there, again, there))
    assert [c.uuid for c in changes].count(changes[0].uuid) == 2
    assert changes[1].uuid != changes[0].uuid
    assert changes[1].position < changes[0].position


def test_a_record_is_told_by_any_field_that_only_one_spelling_has() -> None:
    whole = change()
    for name in ("SequenceNumber", "StreamViewType", "eventSourceARN", "eventVersion"):
        marks = {"SequenceNumber", "StreamViewType", "eventSourceARN", "eventVersion"} - {name}
        body = {k: v for k, v in whole["dynamodb"].items() if k not in marks}
        record = {**{k: v for k, v in whole.items() if k not in marks}, "dynamodb": body}
        (found,), unreadable, _ = read(body_of(record))
        assert (found.write_time_us, unreadable) == (US, [])
    for name in ("recordFormat", "ApproximateCreationDateTimePrecision", "tableName"):
        record = envelope("I", KEYS, KEYS, None, US, milliseconds=True)
        record.pop("recordFormat")
        record.pop("tableName")
        if name == "ApproximateCreationDateTimePrecision":
            record["dynamodb"][name] = "MILLISECOND"
        else:
            record[name] = "orders"
        (found,), unreadable, _ = read(body_of(record))
        assert (found.write_time_us, unreadable) == (US, [])


def test_wrappers_in_wrappers_have_an_end() -> None:
    value = change()
    for depth in range(6):
        changes, unreadable, _ = read(body_of(value))
        assert ([why for why, _ in unreadable], len(changes)) == (
            ([], 1) if depth <= 4 else (["a record wrapped too often"], 0)
        )
        value = {"Records": [value]}


def test_flat_records_behind_something_broken_are_found() -> None:
    flat = {**change()["dynamodb"], "eventName": "MODIFY"}
    changes, ((why, raw),), _ = read(b'{"broken": ' + body_of(flat, flat))
    assert [said(c) for c in changes] == [said(read(body_of(change()))[0][0])] * 2
    assert (why, raw.strip()) == ("a stretch that is not JSON", b'{"broken":')


def test_a_row_that_our_lambda_made_of_a_streams_record_is_that_change() -> None:
    record = change()
    data = base64.b64encode(json.dumps(record).encode()).decode()
    event = {
        "records": [{"recordId": "r", "data": data, "approximateArrivalTimestamp": US // 1000}]
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(lambda_handler.TABLE_IDS, json.dumps({"orders": "T"}))
        (answer,) = lambda_handler.handler(event, Context())["records"]
    assert answer["result"] == "Ok"
    changes, unreadable, _ = read(base64.b64decode(answer["data"]) + body_of(record))
    assert unreadable == []
    assert changes[0] == changes[1]
    row = json.loads(base64.b64decode(answer["data"]))
    _, ((why, _),), _ = read(body_of({**row, "sequence_number": "7"}))
    assert "uuid" in why


def _of_kinesis(*values: Any) -> Any:
    records = [
        {
            "Data": base64.b64encode(json.dumps(value).encode()).decode(),
            "SequenceNumber": "9",
            "PartitionKey": "k",
        }
        for value in values
    ]
    raws = [msgspec.Raw(json.dumps(one).encode()) for one in records]
    return parse_envelopes(raws, target=TARGET, shard_id="s")


def test_the_kinesis_road_tells_spellings_tables_and_keys_apart() -> None:
    other_keys = {**KEYS, "n": {"S": "1"}}
    changes, unreadable, others = _of_kinesis(
        change(),
        {**change(), "tableName": "orders"},
        {**change(), "recordFormat": "application/json", "tableName": "orders"},
        envelope("I", other_keys, other_keys, None, US),
        envelope("I", KEYS, KEYS, None, US + 1),
        change(table="customers"),
        envelope("I", KEYS, KEYS, None, US, table="customers"),
    )
    (wanted,), _, _ = read(body_of(change()))
    one, two, three = changes
    assert one == two == wanted._replace(transport="kinesis")
    assert (three.write_time_us, three.sequence_number) == (US + 1, "9")
    assert [why for why, _ in unreadable] == [
        "a record with the marks of both spellings of a change",
        "a record with other key attributes than the table has",
    ]
    assert others == 2


def test_the_streams_road_compares_keys() -> None:
    raws = [msgspec.Raw(body_of(change()).strip()), msgspec.Raw(body_of(_other_keys()).strip())]
    stream = StreamRef("T", f"{ARN}/stream/x", "NEW_AND_OLD_IMAGES", 1, 0)
    changes, unreadable = parse_records(raws, stream, ShardState("s", None, 1000), TARGET)
    assert [c.keys for c in changes] == [text(KEYS)]
    assert [why for why, _ in unreadable] == [
        "a record with other key attributes than the table has"
    ]


def _other_keys() -> dict[str, Any]:
    keys = {"pk": {"S": "a"}}
    return forwarded("I", keys, keys, None, SECOND, 10**24 + 3)
