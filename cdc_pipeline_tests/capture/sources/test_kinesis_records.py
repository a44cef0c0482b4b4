"""Kinesis records become what `core.changes.kinesis` makes of them, by whatever path."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.capture.sources.kinesis_records import kinesis_sequence_number, parse_envelopes
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.forwarded import from_record
from cdc_pipeline.core.changes.kinesis import AGGREGATED, read_envelope
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import SourceError, UnreadableError
from cdc_pipeline.core.items import spelling
from cdc_pipeline.core.transports import KINESIS
from cdc_pipeline_tests.envelopes import (
    ENVELOPES,
    TABLE,
    TABLE_ID,
    Envelope,
    Facts,
    blob,
    blobs,
    envelope,
    expected,
)

_NUMBER = "49590338271490256608559692538361571095921575989136588898"


@pytest.fixture(autouse=True, scope="module")
def _quick_learner() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spelling, "_OFTEN", 1)
        yield


def _record(data: bytes) -> msgspec.Raw:
    text = base64.b64encode(data).decode()
    record = {"Data": text, "PartitionKey": "k", "SequenceNumber": _NUMBER}
    return msgspec.Raw(json.dumps(record).encode())


def _parse(*records: msgspec.Raw, encodings: int = 2) -> Any:
    return parse_envelopes(
        records, target=Target(TABLE, TABLE_ID, {}), shard_id="s-1", encodings=encodings
    )


def _defined(data: bytes, encodings: int = 2) -> Change | str:
    try:
        record = read_envelope(data)
        if isinstance(record, dict):
            assert not Target(TABLE, TABLE_ID, {}).is_of_another(record)
        return from_record(
            record,
            table_id=TABLE_ID,
            transport=KINESIS,
            sequence_number=_NUMBER,
            shard_id="s-1",
            encodings=encodings,
        )
    except UnreadableError as error:
        return error.reason


def _found(data: bytes, encodings: int = 2) -> Change | str:
    changes, unreadable, others = _parse(_record(data), encodings=encodings)
    assert others == 0
    assert [kept for _, kept in unreadable] == ([] if changes else [data])
    return changes[0] if changes else unreadable[0][0]


@pytest.mark.parametrize("one", ENVELOPES, ids=lambda one: one.name)
def test_the_corpus(one: Envelope) -> None:
    if one.blob.startswith(AGGREGATED):
        with pytest.raises(SourceError, match=r"record 4959.*aggregated"):
            _parse(_record(one.blob))
        return
    facts = one.becomes
    if isinstance(facts, Facts):
        facts = expected(facts, transport=KINESIS, sequence_number=_NUMBER, shard_id="s-1")
    # Until the shapes of its images are known, and then.
    assert [_found(one.blob) for _ in range(3)] == [facts] * 3


@given(blobs(), st.integers(1, 3))
def test_records_are_read_as_defined(data: bytes, encodings: int) -> None:
    for _ in range(3):
        assert _found(data, encodings) == _defined(data, encodings)


_TWICE = base64.b64encode(base64.b64encode(b"\x12\x02\x08\x7b")).decode()


@pytest.mark.parametrize(
    ("part", "other"),
    [
        # The name of a type, escaped.
        (f'"B": "{_TWICE}"', rf'"\u0042": "{_TWICE}"'),
        (f'"BS": ["{_TWICE}"]', rf'"\u0042S": ["{_TWICE}"]'),
        (f'"BS": ["{_TWICE}"]', rf'"B\u0053": ["{_TWICE}"]'),
        (f'"B": "{_TWICE}"', '"B": "QQ=="'),
        (f'"B": "{_TWICE}"', rf'"S": "\"B\": {_TWICE}"'),
        (f'"B": "{_TWICE}"', f'"B": "{_TWICE}", "B": "{_TWICE}"'),
        ('"OldImage"', '"OldImage": null, "Other"'),
        ('"NewImage"', '"NewImage": null, "Other"'),
        ('"eventID": "e-1"', '"eventID": 7'),
        ('"eventName": "MODIFY"', '"eventName": ["MODIFY"]'),
        ('"tableName": "people"', '"tableName": 7'),
        ('"tableName": "people", ', ""),
        ("1649719712473", "1649719712473.0"),
        ("1649719712473", "1" + "0" * 30),
        ("1649719712473", "true"),
        ("1649719712473", '1, "ApproximateCreationDateTime": 1649719712473'),
    ],
)
def test_unusual_records(part: str, other: str) -> None:
    image = {"name": {"S": "p"}, "a": {"B": _TWICE}, "b": {"BS": [_TWICE]}, "c": {"BOOL": True}}
    good = blob(envelope(NewImage=image))
    assert part.encode() in good
    raw = good.replace(part.encode(), other.encode())
    for data in (good, raw, raw, good, raw):
        assert _found(data) == _defined(data)


def test_records_of_other_tables_are_counted_whatever_they_are() -> None:
    other = {"tableName": "another"}
    broken = {"tableName": "another", "dynamodb": 5}
    found = _parse(*map(_record, map(blob, [envelope() | other, envelope(), broken])))
    assert ([c.event_id for c in found[0]], found[1], found[2]) == (["e-1"], [], 2)


@pytest.mark.parametrize(
    "raw", [b'{"Data":"e30="}', b'{"SequenceNumber":"1"}', b"[]", b'{"Data":5}']
)
def test_what_is_no_kinesis_record_is_kept_whole(raw: bytes) -> None:
    found = _parse(msgspec.Raw(raw))
    assert found == ([], [("a Kinesis record without number or data", raw)], 0)
    assert kinesis_sequence_number(msgspec.Raw(raw)) == ("1" if b"Seq" in raw else None)
