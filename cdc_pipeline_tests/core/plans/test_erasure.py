"""Erasures: what they suppress, how an item is recognised, and how the log tells of them."""

import base64
import json

import pytest

from cdc_pipeline.core.errors import EraseRefusedError, LakeError
from cdc_pipeline.core.log.entries import Erasure, RemovedRows
from cdc_pipeline.core.log.json_format import (
    entry_from_json,
    entry_to_json,
    state_from_json,
    state_to_json,
)
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.plans.erasure import ItemTrace, Suppressions, key_hash, new_salt, typed_key

_KEY = '{"pk":{"S":"ä/1"},"sk":{"N":"7"}}'
_SALT = "ab" * 32
_TYPES = {"pk": "S", "sk": "N"}


def _erasure(until_us: int, salt: str = _SALT, key: str = _KEY) -> Erasure:
    return Erasure(key_hash(salt, key), salt, until_us, "someone")


def test_what_was_written_until_then_is_dropped_and_nothing_else() -> None:
    erased = Suppressions([_erasure(100), _erasure(50, new_salt(), '{"pk":{"S":"b"}}')])
    assert erased.is_suppressed(_KEY, 100)
    assert not erased.is_suppressed(_KEY, 101)
    assert erased.is_suppressed('{"pk":{"S":"b"}}', 50)
    assert not erased.is_suppressed('{"pk":{"S":"b"}}', 51)
    assert not erased.is_suppressed('{"pk":{"S":"c"}}', 1)
    assert not Suppressions([]).is_suppressed(_KEY, 1)


def test_the_hash_tells_the_key_only_to_who_has_salt_and_key() -> None:
    assert key_hash(_SALT, _KEY) == key_hash(_SALT, _KEY)
    assert key_hash(_SALT, _KEY) != key_hash(new_salt(), _KEY)
    said = entry_to_json(Entry(1, "n", "o", 0, erasure=_erasure(100)))
    assert "ä" not in said
    assert "pk" not in said


def test_records_that_cannot_be_read_are_dropped_by_their_key() -> None:
    erased = Suppressions([_erasure(1_649_719_712_000_000)])
    body = {"Keys": json.loads(_KEY), "NewImage": {"x": {"BAD": 1}}}
    at = 1_649_719_712
    for time, dropped in ((at, True), (at + 1, False), (2, True), (None, True), ("soon", True)):
        record = {"dynamodb": {**body, "ApproximateCreationDateTime": time}}
        assert erased.is_suppressed_record(json.dumps(record).encode()) is dropped
        assert erased.is_suppressed_record(json.dumps(record["dynamodb"]).encode()) is dropped
    ms = {"ApproximateCreationDateTime": 1_649_719_712_473}
    us = {"ApproximateCreationDateTimePrecision": "MICROSECOND"}
    late = Suppressions([_erasure(1_649_719_712_473_000)])
    for time, dropped in (
        (ms, True),
        ({"ApproximateCreationDateTime": 1_649_719_712_474}, False),
        ({"ApproximateCreationDateTime": 1_649_719_712_473_000, **us}, True),
        ({"ApproximateCreationDateTime": 1_649_719_712_473_001, **us}, False),
    ):
        record = {"tableName": "t", "dynamodb": {**body, **time}}
        assert late.is_suppressed_record(json.dumps(record).encode()) is dropped
    for other in (b"\xff", b"[]", b'{"dynamodb": {}}', b'{"dynamodb": {"Keys": 7}}'):
        assert not erased.is_suppressed_record(other)


def test_entries_and_summaries_keep_erasures() -> None:
    erasure = Erasure("h", _SALT, 5, "someone", (RemovedRows("landing", 1, 2),), 9)
    entry = Entry(1, "n", "o", 0, erasure=erasure)
    assert entry_from_json(entry_to_json(entry), "it") == entry
    state = LogState()
    state.apply(entry)
    assert state_from_json(state_to_json(state), "it") == state
    assert state.erasures == {"h": erasure}


def test_versions_that_know_no_erasures_refuse_a_log_that_has_one() -> None:
    """Their format is another; entries and summaries without any stay as they were."""
    entry, state = Entry(1, "n", "o", 0), LogState()
    assert (
        json.loads(entry_to_json(entry))["format"]
        == json.loads(state_to_json(state))["format"]
        == 1
    )
    state.apply(Entry(1, "n", "o", 0, erasure=_erasure(1)))
    assert json.loads(state_to_json(state))["format"] == 2
    old = json.loads(state_to_json(LogState()))
    del old["erasures"]
    assert state_from_json(json.dumps(old), "old") == LogState()
    with pytest.raises(LakeError, match="reads 1 to 3"):
        state_from_json('{"format": 4}', "it")


def test_binary_keys_are_recognised_as_kinesis_encodes_them() -> None:
    once = base64.b64encode(b"\x12\x02").decode()
    erased = Suppressions(
        [_erasure(2_000_000, key=json.dumps({"pk": {"B": once}}).replace(" ", ""))]
    )
    twice = {"pk": {"B": base64.b64encode(once.encode()).decode()}}
    record = {"tableName": "t", "dynamodb": {"Keys": twice}}
    assert erased.is_suppressed_record(json.dumps(record).encode())
    assert not erased.is_suppressed_record(json.dumps({"dynamodb": {"Keys": twice}}).encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"pk": "ä/1", "sk": 7}',
        '{"sk": "7.0", "pk": "ä/1"}',
        '{"sk": 7.00, "pk": {"S": "ä/1"}}',
        '{"pk": {"S": "\\u00e4/1"}, "sk": {"N": "07"}}',
    ],
)
def test_keys_are_plain_or_typed(text: str) -> None:
    assert typed_key(text, _TYPES) == _KEY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pk=1", r"not JSON(.|\n)*pk \(S\), sk \(N\)"),
        ("[1]", "no object"),
        ('{"pk": "a"}', r"has the attributes pk(.|\n)*exactly pk \(S\), sk \(N\)"),
        ('{"pk": "a", "sk": 1, "x": 1}', "attributes pk, sk, x"),
        ('{"pk": 1, "sk": 1}', "pk: .*(.|\n)*type S"),
        ('{"pk": "a", "sk": "many"}', "sk: a number that is not a decimal"),
        ('{"pk": {"N": "1"}, "sk": 1}', "pk has type N"),
        ('{"pk": null, "sk": 1}', "pk: "),
    ],
)
def test_other_keys_are_refused(text: str, message: str) -> None:
    with pytest.raises(EraseRefusedError, match=message):
        typed_key(text, _TYPES)


_TRACE = ItemTrace(_KEY)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (_KEY, True),
        ('{"a":{"S":"x"},"pk":{"S":"ä/1"},"sk":{"N":"7"}}', True),
        ('{"pk":"ä/1","sk":7,"z":[1.5]}', True),
        ('{"pk":{"S":"ä/1"},"sk":{"N":"8"}}', False),
        ('{"pk":{"S":"ä/12"},"sk":{"N":"7"}}', False),
        ('{"copy":{"M":{"pk":{"S":"ä/1"},"sk":{"N":"7"}}},"pk":{"S":"b"},"sk":{"N":"7"}}', False),
        ("ä/1 7", False),
        ('{"pk":"ä/1","sk":7', False),
    ],
)
def test_cells(text: str, held: bool) -> None:
    assert _TRACE.is_in_text(text) is held
    assert not held or all(part in text for part in _TRACE.rarest)


def _record(keys: object) -> bytes:
    return json.dumps({"dynamodb": {"Keys": keys, "NewImage": {"x": {"S": "ä/1 7"}}}}).encode()


@pytest.mark.parametrize(
    ("line", "held"),
    [
        (_record(json.loads(_KEY)), True),
        (_record({"pk": {"S": "ä/1"}, "sk": {"N": "7.0"}}), True),
        (_record({"pk": {"S": "b"}, "sk": {"N": "7"}}), False),
        (b'{"Item":' + _KEY.encode() + b"}", True),
        (b'{"Keys":' + _KEY.encode() + b',"OldImage":{}}', True),
        (b'{"Item":{"pk":{"S":"b"},"sk":{"N":"7"},"to":{"S":"\xc3\xa4/1"}}}', False),
        (b'"\xc3\xa4/1" and 7', True),
        (b"neither", False),
    ],
)
def test_lines_also_when_they_are_wrapped(line: bytes, held: bool) -> None:
    def parsed(text: bytes) -> object:
        try:
            return json.loads(text)
        except ValueError:
            return None

    assert _TRACE.is_in_document(parsed(line), line) is held
    if b"dynamodb" in line or b"Item" not in line:
        wrapped = {"reason": "?", "record_base64": base64.b64encode(line).decode()}
        found = _TRACE.is_in_document(wrapped, json.dumps(wrapped).encode())
        assert found is held
