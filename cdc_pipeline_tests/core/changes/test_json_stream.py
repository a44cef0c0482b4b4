"""Concatenated JSON: nothing is lost whatever lies between records and wherever reads end."""

import io
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.changes.json_stream import Piece, is_record, pieces


def _record(number: int, text: str = "") -> dict[str, Any]:
    return {
        "eventName": "INSERT",
        "dynamodb": {
            "Keys": {"pk": {"S": str(number)}},
            "NewImage": {"pk": {"S": str(number)}, "t": {"S": text}, "m": {"M": {"n": {"N": "1"}}}},
        },
    }


def _cut(data: bytes, step: int = 7, most: int = 1 << 20) -> list[Piece]:
    return list(pieces(_reader(data, step), most))


def _reader(data: bytes, step: int) -> Callable[[int], bytes]:
    stream = io.BytesIO(data)
    return lambda _: stream.read(step)


def _records(found: list[Piece]) -> list[Any]:
    return [piece.value for piece in found if piece.value is not None and is_record(piece.value)]


_TEXTS = st.text(max_size=12) | st.sampled_from(['}{"a', '{"dynamodb":{"Keys":{}}}', "\\", "ä𝄞"])
_RUBBISH = st.sampled_from(
    [
        b"",
        b"\n",
        b"}}",
        b'{"awsRegion":"us-east-1","dynamodb":{"Keys":{"pk":{"S":"lo',
        b'st"}}},"eventName":"INSERT"}',
        b"\xff\xfe\x00",
        b'{"eventName": NaN}',
        b"[1,2",
        b'"',
        b"{",
        b'{"\\u12',
    ]
)


_BETWEEN = b" \t\r\n\v\f\x1c\x1d\x1e\x1f,[]\xef\xbb\xbf"


@given(
    parts=st.lists(st.tuples(_RUBBISH, _TEXTS), max_size=6),
    tail=_RUBBISH,
    step=st.integers(1, 200),
    spaced=st.booleans(),
    ascii_only=st.booleans(),
)
def test_whole_records_survive_whatever_is_between_them(
    parts: list[tuple[bytes, str]], tail: bytes, step: int, spaced: bool, ascii_only: bool
) -> None:
    written = [_record(number, text) for number, (_, text) in enumerate(parts)]
    data = b"".join(
        rubbish + json.dumps(record, ensure_ascii=ascii_only).encode() + b"\n" * spaced
        for (rubbish, _), record in zip(parts, written, strict=True)
    )
    data += tail
    found = _cut(data, step)
    assert _records(found) == written
    # Nothing but what may stand between records is left out.
    kept, between = b"".join(p.raw for p in found), _BETWEEN
    assert kept.translate(None, between) == data.translate(None, between)


def test_reading_is_the_same_wherever_reads_end() -> None:
    data = b'{"a":"x' + b"".join(json.dumps(_record(n)).encode() for n in range(20)) + b"}{"
    assert _cut(data, 1) == _cut(data, 13) == _cut(data, 1 << 20)


def test_a_broken_record_costs_itself() -> None:
    one, two, three = (json.dumps(_record(n)).encode() for n in range(3))
    found = _cut(one + two[:-30] + three)
    assert [piece.value is None for piece in found] == [False, True, False]
    assert found[1].raw == two[:-30]


def test_a_stretch_without_end_is_given_in_parts() -> None:
    one = json.dumps(_record(1)).encode()
    found = _cut(b'{"never ends": "' + b"x" * 5000 + one, 100, most=1000)
    assert _records(found) == [_record(1)]
    assert max(len(piece.raw) for piece in found) < 1200


def test_a_record_that_the_bound_cuts_is_not_part_of_the_stretch_before_it() -> None:
    data = b"}" * 950 + json.dumps(_record(1)).encode()
    assert _records(_cut(data, 100, most=1000)) == [_record(1)]


def test_unknown_records_are_given_one_by_one() -> None:
    assert [p.value for p in _cut(b'{"a":1}{"b":2} {"c":3}')] == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_memory_is_bounded_by_a_record_not_by_the_object() -> None:
    record = json.dumps(_record(1, "x" * 1000)).encode()
    left = [record * 100] * 400  # 45 MB

    def read(_: int) -> bytes:
        return left.pop() if left else b""

    tracemalloc.start()
    count = sum(1 for _ in pieces(read))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40_000
    assert peak < 8 << 20


def test_what_reading_raises_comes_behind_what_was_read() -> None:
    answers = [json.dumps(_record(1)).encode() + b'{"cut', EOFError()]

    def read(_: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = pieces(read)
    assert next(found).value == _record(1)
    assert next(found) == Piece(None, b'{"cut')
    with pytest.raises(EOFError):
        next(found)


def test_parts_of_images_are_no_records() -> None:
    assert not is_record({"rawData": {"S": "x"}})
    assert not is_record({"uuid": {"S": "x"}, "op": {"S": "I"}})
    assert not is_record({"dynamodb": {"M": {}}, "eventName": {"S": "INSERT"}})
