"""Stream records in compiled code: whatever their envelopes hold, the definition's result."""

import json
import threading
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the extra `fast` is missing")

from cdc_pipeline.capture.sources import streams_records
from cdc_pipeline.capture.sources.streams_records import parse_records
from cdc_pipeline.core.changes.change import Change, from_stream_record
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import TOO_DEEP
from cdc_pipeline.core.log.entries import ShardState, StreamRef
from cdc_pipeline.lake.storage.changes import CHANGE_SCHEMA, Changes
from cdc_pipeline.transform import compilation, fast
from cdc_pipeline.transform.compilation import RECORDS
from cdc_pipeline.transform.record_scan import scan_records
from cdc_pipeline_tests.strategies import items, texts
from cdc_pipeline_tests.transform.ways import converted_by

_STREAM = StreamRef("table-id", "arn", "NEW_AND_OLD_IMAGES", 0, 0)
_KEYS_ONLY = StreamRef("table-id", "arn", "KEYS_ONLY", 0, 0)
_SHARD = ShardState("shard-1", None, 3)
_TARGET = Target("orders", "table-id", {"pk": "S", "n": "N"})

_TTL = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}
_TIMES = [
    *("1700000000", "1700000000.0", "1.7E9", "1.7e+9", "17000000.00E2", "1700000000.5"),
    *("0", "-1700000000", "1e400", "1.7E09", "170000000000E-2", "1.70000000001E9", "9" * 30),
    *("null", '"2023-11-14T22:13:20Z"', "true", "1325376000", "1325375999", "01700000000"),
    *("4e9", "1700000000000", "1.", ".5", "1E", "1700000000 ", "1700000000000E-3", "[]"),
]
_odd = st.sampled_from(["null", "{}", "[]", '""', "7", '"x"', "true", '"\\u0041"', '"é"', "-1"])
_IDENTITIES = [
    *(json.dumps(_TTL), '{"Type":"Service","PrincipalId":"dynamodb.amazonaws.com"}'),
    *("null", "{}", '{"type":"Service"}', "[]", '{"type":{"a":[1,"}"]}}', "{]}", '{"a":}'),
]
_SIZES = ["1500", "0", "00", "1.5", "-3", "1e3", "null", "9" * 30]
_FIELDS: dict[str, st.SearchStrategy[str]] = {
    "eventVersion": st.just('"1.1"') | _odd,
    "eventSource": st.just('"aws:dynamodb"') | _odd,
    "awsRegion": st.just('"eu-west-1"') | _odd,
    "userIdentity": st.sampled_from(_IDENTITIES),
    "other": _odd,
}
_INNER: dict[str, st.SearchStrategy[str]] = {
    "SizeBytes": st.sampled_from(_SIZES),
    "StreamViewType": st.just('"NEW_AND_OLD_IMAGES"') | _odd,
    "Other": _odd,
}
_OPS = st.sampled_from(["INSERT", "MODIFY", "REMOVE", "MODIFY", "REMOVE", "UPSERT"]).map(json.dumps)
_IDS = ["e1", "0123456789abcdef" * 2, "", "é", 'a"b', "a\\b", "\x7f", "x y"]
_NUMBERS = ["1", "100000000000000000000001", "0" * 40, "9" * 40, "1" * 41, "", "a"]


def _image(image: Any) -> str:
    return json.dumps(image, ensure_ascii=False)


@st.composite
def _record(draw: st.DrawFn) -> bytes:
    """A record; usual ones, and some with unusual fields, in any order, some twice."""
    is_odd = draw(st.booleans())
    keys = {"pk": {"S": draw(texts)}, "n": {"N": str(draw(st.integers(-5, 5)))}}
    if is_odd and draw(st.booleans()):
        keys = draw(st.sampled_from([{}, {"pk": {"S": "a"}}, {"pk": {"N": "1"}, "n": {"N": "1"}}]))
    inner = {
        "ApproximateCreationDateTime": draw(st.sampled_from(_TIMES)) if is_odd else "1700000000",
        "Keys": _image(keys),
        "SequenceNumber": json.dumps(draw(st.sampled_from(_NUMBERS)))
        if is_odd
        else '"100000000000000000001"',
    }
    for name in ("NewImage", "OldImage"):
        if draw(st.booleans()):
            inner[name] = draw(items.map(_image) | _odd) if is_odd else _image(draw(items))
    event_id = draw(st.sampled_from(_IDS)) if is_odd else f"{draw(st.integers(0, 9)):032x}"
    record = {"eventID": json.dumps(event_id), "eventName": draw(_OPS)}
    for fields, more in ((inner, _INNER), (record, _FIELDS)):
        for name in draw(st.sets(st.sampled_from(sorted(more)), max_size=3)):
            if is_odd or name.lower() != "other":
                fields[name] = draw(more[name])
    space = draw(st.sampled_from(["", "", "", " ", "\n"]))
    record["dynamodb"] = _object(draw, inner, space, is_odd)
    return _object(draw, record, space, is_odd).encode("utf-8", "surrogatepass")


def _object(draw: st.DrawFn, fields: dict[str, str], space: str, is_odd: bool) -> str:
    members = [f'"{n}"{space}:{space}{v}' for n, v in draw(st.permutations(list(fields.items())))]
    if is_odd and draw(st.integers(0, 5)) == 0:
        members.append(members[0])
    return f"{space}{{{space}{f'{space},{space}'.join(members)}{space}}}{space}"


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A record with some bytes replaced, inserted or removed."""
    record = bytearray(draw(_record()))
    odd = b'{}[]",:\\/utrfalse0-.E+ \n\x00\x1f\x7f\x80\xc3\xed\xff'
    for _ in range(draw(st.integers(1, 2))):
        at, how = draw(st.integers(0, len(record) - 1)), draw(st.integers(0, 2))
        mark = draw(st.sampled_from(odd) | st.integers(0, 255))
        record[at : at + (how != 1)] = bytes([mark]) if how else b""
    return bytes(record)


def _defined(raw: bytes, stream: StreamRef, target: Target | None) -> Change | str:
    try:
        change = from_stream_record(
            msgspec.json.decode(raw),
            table_id=stream.table_id,
            shard_id=_SHARD.shard_id,
            depth=_SHARD.depth,
            full_images=stream.full_images,
        )
        if target is not None:
            target.require_keys(change.keys)
        return change
    except UnreadableError as error:
        return error.reason
    except RecursionError:
        return TOO_DEEP
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "a record that is not JSON"


def _check(raws: list[bytes], stream: StreamRef, target: Target | None) -> None:
    defined = [(_defined(raw, stream, target), raw) for raw in raws]
    changes, unreadable = _parsed(raws, stream, target)
    assert list(changes) == [found for found, _ in defined if isinstance(found, Change)]
    assert unreadable == [(found, raw) for found, raw in defined if isinstance(found, str)]
    table = Changes.of(changes).table()
    table.validate(full=True)
    assert table.schema.equals(CHANGE_SCHEMA)


def _parsed(
    raws: list[bytes], stream: StreamRef = _STREAM, target: Target | None = None
) -> tuple[Any, list[tuple[str, bytes]]]:
    with converted_by("compiled"):
        return parse_records([msgspec.Raw(raw) for raw in raws], stream, _SHARD, target)


_pages = st.lists(_record(), min_size=1, max_size=6)
_streams = st.sampled_from([_STREAM, _KEYS_ONLY])
_targets = st.sampled_from([None, _TARGET, Target("orders", "table-id", {})])


@budget(max_examples=100)
@given(_pages, _streams, _targets)
def test_pages_become_what_is_defined(
    raws: list[bytes], stream: StreamRef, target: Target | None
) -> None:
    _check(raws, stream, target)


@budget(max_examples=150)
@given(st.lists(_damaged() | _record(), min_size=1, max_size=3), _streams, _targets)
def test_damaged_records_take_no_other_with_them(
    raws: list[bytes], stream: StreamRef, target: Target | None
) -> None:
    _check(raws, stream, target)


def _usual(number: int, op: str = "MODIFY", **more: Any) -> bytes:
    image = {
        "pk": {"S": f"é\n{number}"},
        "n": {"N": "-1.5"},
        "b": {"B": "AAEC"},
        "m": {"M": {"y": {"L": [{"NULL": True}, {"SS": ["b", "a"]}]}, "x": {"BOOL": False}}},
    }
    body = {
        "ApproximateCreationDateTime": 1_700_000_000,
        "Keys": {"pk": image["pk"], "n": image["n"]},
        "SequenceNumber": str(10**20 + number),
        "SizeBytes": 100,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
        **({"NewImage": image} if op != "REMOVE" else {}),
        **({"OldImage": image} if op != "INSERT" else {}),
    }
    record = {"eventID": f"{number:032x}", "eventName": op, "eventVersion": "1.1"}
    known = {"eventSource": "aws:dynamodb", "awsRegion": "us-east-1", "dynamodb": body}
    return json.dumps({**record, **known, **more}, separators=(",", ":")).encode()


_USUAL = [
    *(_usual(n, op) for n, op in enumerate(["INSERT", "MODIFY", "REMOVE"])),
    *(_usual(n, "REMOVE", userIdentity=identity) for n, identity in ((3, _TTL), (4, None))),
]


def test_the_compiled_scan_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What AWS writes is understood; else all of the above would prove nothing."""
    monkeypatch.setattr(streams_records, "_parse", None)
    changes, unreadable = _parsed(_USUAL * 5, target=_TARGET)
    assert isinstance(changes, Changes)
    assert len(changes) == 25
    assert unreadable == []
    assert [change.is_ttl_delete for change in changes[:5]] == [False, False, False, True, False]


def test_fields_twice_or_elsewhere() -> None:
    usual = _usual(3)
    body = json.dumps(json.loads(_usual(4, "INSERT"))["dynamodb"])
    beginning, inner = '{"eventID":', '"dynamodb":{'
    for raw in (
        usual[:-1] + f',"dynamodb":{body}}}'.encode(),
        usual[:-2] + b',"OldImage":null}}',
        usual[:-2] + b',"OldImage":{}}}',
        usual[:-1] + b',"eventName":"INSERT"}',
        usual[:-1] + b',"SequenceNumber":"7"}',
        usual[:-1] + b',"OldImage":{}}',
        usual[:-2] + b',"eventName":"INSERT"}}',
        usual[:-2] + b',"userIdentity":null}}',
        _usual(3, "INSERT")[:-1] + b',"OldImage":{"pk":{"S":"a"}}}',
        _usual(3, "REMOVE")[:-2] + f',"userIdentity":{json.dumps(_TTL)}}}}}'.encode(),
        usual.replace(beginning.encode(), b'{"dynamodb":{},"eventID":'),
        usual.replace(inner.encode(), b'"dynamodb":{"dynamodb":{},'),
    ):
        assert raw != usual
        _check([raw, *_USUAL], _STREAM, None)


def test_only_deletes_are_ttl_deletes() -> None:
    ops = ("INSERT", "MODIFY", "REMOVE")
    _check([_usual(n, op, userIdentity=_TTL) for n, op in enumerate(ops)], _STREAM, None)


@pytest.mark.parametrize("place", [0, 2, 5])
def test_one_record_that_is_not_understood(place: int) -> None:
    odd, wrong = _usual(9, more=1), _usual(9).replace(b'"-1.5"', b'"x"')
    for raw in (odd, wrong, b"{", b"\xff", _usual(9).replace(b"\\n", b"\xff")):
        raws = list(_USUAL)
        raws.insert(place, raw)
        _check(raws, _STREAM, _TARGET)


@pytest.mark.parametrize(
    ("part", "others"),
    [
        (b"1700000000", [time.encode() for time in _TIMES]),
        (json.dumps(_TTL, separators=(",", ":")).encode(), [i.encode() for i in _IDENTITIES]),
        (b'"SizeBytes":100', [b'"SizeBytes":' + size.encode() for size in _SIZES]),
        (b'"100000000000000000003"', [json.dumps(n).encode() for n in _NUMBERS]),
        (json.dumps(f"{3:032x}").encode(), [json.dumps(i).encode() for i in _IDS]),
    ],
)
def test_one_unusual_part(part: bytes, others: list[bytes]) -> None:
    usual = _usual(3, "REMOVE", userIdentity=_TTL)
    assert part in usual
    for other in others:
        _check([usual.replace(part, other), *_USUAL], _STREAM, None)


@pytest.mark.parametrize(
    "kinds", [{"pk": "S"}, {"pk": "S", "n": "S"}, {"pk": "S", "n": "N", "x": "B"}, {'"é': "N"}]
)
def test_records_with_other_keys(kinds: dict[str, str]) -> None:
    _check(_USUAL, _STREAM, Target("orders", "table-id", kinds))


@pytest.mark.parametrize("depth", [31, 62, 63, 64, 65, 200])
def test_nesting(depth: int) -> None:
    value: Any = {"S": "x"}
    for _ in range(depth):
        value = {"L": [value]}
    raw = _usual(1).replace(b'{"B":"AAEC"}', json.dumps(value, separators=(",", ":")).encode())
    _check([raw, *_USUAL], _STREAM, None)


# ------------------------------------------------------------------------------- when it pays


def test_small_pages_and_little_in_all_take_the_exact_path(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    exact: Counter[str] = Counter()
    monkeypatch.setattr(compilation, "pays", lambda *asking: asked.append(asking))
    monkeypatch.setattr(compilation, "_exact", exact)
    for count in (1, 31, 32, 100):
        assert scan_records([bytes(500)] * count) is None
    assert asked == [(RECORDS, 32 * 100), (RECORDS, 100 * 100)]
    assert exact == {RECORDS: 164 * 100}


def test_without_the_extra_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "pays", lambda *_: True)
    monkeypatch.setattr(fast, "_batches", lambda: None)
    assert scan_records([bytes(500)] * 100) is None


def test_two_threads_read_at_once() -> None:
    found: dict[int, Any] = {}

    def read(number: int) -> None:
        raws = [_usual(n, userIdentity=None) for n in range(number, number + 200)]
        parsed = parse_records([msgspec.Raw(raw) for raw in raws], _STREAM, _SHARD)
        found[number] = list(parsed[0]) == [_defined(raw, _STREAM, None) for raw in raws]

    with converted_by("compiled"):
        threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == dict.fromkeys(range(4), True)
