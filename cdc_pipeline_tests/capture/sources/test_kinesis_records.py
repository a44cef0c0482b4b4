"""Kinesis records become what `core.changes.kinesis` makes of them, by whatever path."""

import base64
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.capture.sources import kinesis_records
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
from cdc_pipeline_tests.transform.ways import WAYS, both_ways, converted_by

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
    """What all ways find."""
    found = []
    for way in WAYS:
        with converted_by(way):
            changes, unreadable, others = _parse(_record(data), encodings=encodings)
        assert others == 0
        assert [kept for _, kept in unreadable] == ([] if changes else [data])
        found.append(changes[0] if changes else unreadable[0][0])
    assert found == [found[0]] * len(WAYS)
    return found[0]


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


_PRECISION = '"ApproximateCreationDateTimePrecision"'


@pytest.mark.parametrize(
    ("part", "other"),
    [
        *(("1649719712473", time) for time in ("1649719712473.0", "1.649719712473E12", "1e12")),
        *(("1649719712473", time) for time in ("0", "9" * 14, "9" * 17, "true", '"x"', "null")),
        *(("1649719712473", time) for time in ("1649719712473001", "-1649719712473")),
        *(
            ("1649719712473", f"{time}, {_PRECISION}: {unit}")
            for time in ("1649719712473", "1649719712473001")
            for unit in ('"MICROSECOND"', '"MILLISECOND"', '"SECOND"', '""', "null", "7")
        ),
        ('"recordFormat": "application/json"', '"recordFormat": null'),
        ('"recordFormat": "application/json", ', ""),
        ('"recordFormat"', '"eventVersion": "1.1", "recordFormat"'),
        ('"recordFormat"', '"eventSourceARN": "x", "recordFormat"'),
        ('"SizeBytes": 58', '"SequenceNumber": "1"'),
        ('"SizeBytes": 58', '"StreamViewType": "KEYS_ONLY"'),
        ('"MODIFY"', '"REMOVE"'),
        ('"MODIFY"', '"INSERT"'),
        ('"MODIFY"', '"UPSERT"'),
        ('"userIdentity": null', '"userIdentity": {"type": 1}'),
        ('"NewImage"', '"NewImage": null, "Other"'),
        ('"OldImage"', '"OldImage": null, "Other"'),
        ('"Keys"', '"Keys": {}, "Other"'),
        ('"S": "p"', '"BS": ["QQ=="]'),
        ('"S": "p"', '"L": [{"B": "UVE9PQ=="}]'),
    ],
)
def test_unusual_records_without_binaries(part: str, other: str) -> None:
    good = blob(envelope(NewImage={"name": {"S": "p"}, "n": {"N": "1.5"}}))
    assert part.encode() in good
    raw = good.replace(part.encode(), other.encode())
    assert [_found(data) for data in (good, raw)] == [_defined(data) for data in (good, raw)]


@both_ways
def test_records_of_other_tables_are_counted_whatever_they_are(way: str) -> None:
    other = {"tableName": "another"}
    broken = {"tableName": "another", "dynamodb": 5}
    with converted_by(way):
        found = _parse(*map(_record, map(blob, [envelope() | other, envelope(), broken])))
    assert ([c.event_id for c in found[0]], found[1], found[2]) == (["e-1"], [], 2)


@given(st.lists(blobs(), max_size=5), st.integers(1, 3), st.data())
def test_pages_are_their_records(found: list[bytes], encodings: int, data: st.DataObject) -> None:
    usual = [blob(envelope() | {"eventID": f"{n}"}) for n in range(2)]
    others = [b"{", blob({**envelope(), "tableName": "another"}), *usual]
    records = [_record(one) for one in data.draw(st.permutations([*found, *others]))]
    records.insert(data.draw(st.integers(0, len(records))), msgspec.Raw(b"[]"))
    singly = [_parse(record, encodings=encodings) for record in records]
    changes, unreadable = (list(chain.from_iterable(one[n] for one in singly)) for n in (0, 1))
    for way in WAYS:
        with converted_by(way):
            page = _parse(*records, encodings=encodings)
        assert page == (changes, unreadable, sum(one[2] for one in singly))


@pytest.mark.skipif(len(WAYS) == 1, reason="the extra `fast` is missing")
def test_the_compiled_scan_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinesis_records._Parser, "parse", None)
    number, text = {"N": "-1.5"}, {"S": '"B":"x {"BS":["y'}
    image = {"name": {"S": "p"}, "n": number, "BS": {"L": [text]}, "B": {"M": {"B": text}}}
    one = json.dumps(envelope(NewImage=image), separators=(",", ":")).encode()
    other = json.dumps(envelope() | {"tableName": "another"}).encode()
    with converted_by("compiled"):
        (change,), unreadable, others = _parse(_record(one), _record(other))
    assert (unreadable, others) == ([], 1)
    assert change == _defined(one)


@pytest.mark.parametrize(
    "raw", [b'{"Data":"e30="}', b'{"SequenceNumber":"1"}', b"[]", b'{"Data":5}']
)
def test_what_is_no_kinesis_record_is_kept_whole(raw: bytes) -> None:
    found = _parse(msgspec.Raw(raw))
    assert found == ([], [("a Kinesis record without number or data", raw)], 0)
    assert kinesis_sequence_number(msgspec.Raw(raw)) == ("1" if b"Seq" in raw else None)
