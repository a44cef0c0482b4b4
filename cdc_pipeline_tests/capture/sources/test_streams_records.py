"""Stream records become what `from_stream_record` makes of them, by whatever path."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.capture.sources.streams_records import parse_records
from cdc_pipeline.core.changes.change import from_stream_record
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items import spelling
from cdc_pipeline.core.items.attributes import TOO_DEEP
from cdc_pipeline.core.log.entries import ShardState, StreamRef
from cdc_pipeline_tests.strategies import binaries, items, names, numbers, respelled, values
from cdc_pipeline_tests.transform.ways import WAYS, converted_by


@pytest.fixture(autouse=True, scope="module")
def _quick_learner() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spelling, "_OFTEN", 1)
        yield


_STREAM = StreamRef("table-id", "arn", "NEW_AND_OLD_IMAGES", 0, 0)
_SHARD = ShardState("shard-1", None, 3)

_TRICKY = [
    *(
        "",
        ":",
        "}",
        "{",
        "[",
        "]",
        ",",
        '"',
        "\\",
        '","',
        '":"',
        '"}',
        "a]b",
        "%s",
        "%",
        "\n",
        "\x00",
    ),
    *(
        '{"S":"x"}',
        "73914826500000",
        "7391482650000000",
        "7391482650000001",
        "é",
        "日本",
        "\U0001f600",
    ),
    *("\ud800", "\udfff", "S", "N", "Z", "a", "b", "\x7f", "\u2028", "/"),
]
_BAD_NUMBERS = [
    *(
        "",
        "1,2",
        '1"2',
        "1.",
        ".5",
        "01",
        "1.0",
        "-0",
        "0.0",
        "+5",
        "1e2",
        "1E126",
        "NaN",
        "1" * 38,
    ),
    *(
        "1" * 39,
        "1." + "1" * 38,
        "0." + "0" * 31 + "1",
        "\uff11",
        " 1",
        "1_0",
        "0",
        "10",
        "-0.5",
        "100.50",
    ),
]
_BAD_BINARIES = [
    "QQ",
    "QR==",
    "Q Q=",
    "QQ==QQ==",
    "QR=",
    "====",
    "A===",
    "QUI=",
    "QUJ=",
    "日本",
    "\n",
]

_strings = st.sampled_from(_TRICKY) | st.text(max_size=4)
_any_numbers = numbers | numbers.flatmap(respelled) | st.sampled_from(_BAD_NUMBERS)
_any_binaries = binaries | st.sampled_from(_BAD_BINARIES)
_CONTENTS: dict[str, st.SearchStrategy[Any]] = {
    "S": _strings,
    "N": _any_numbers,
    "B": _any_binaries,
    "BOOL": st.booleans(),
    "NULL": st.just(True),
    "SS": st.lists(_strings, min_size=1, max_size=3),
    "NS": st.lists(_any_numbers, min_size=1, max_size=3),
    "BS": st.lists(_any_binaries, min_size=1, max_size=3),
}
_broken = st.sampled_from(
    [
        *({"S": 5}, {"N": 5}, {"N": None}, {"B": 5}, {"BOOL": "true"}, {"NULL": False}, {"SS": []}),
        *(
            {"SS": "x"},
            {"NS": [1]},
            {"L": {}},
            {"M": []},
            {"X": "x"},
            {},
            [],
            None,
            "x",
            {"s": "x"},
        ),
        *({"S": "a", "N": "1"}, {"S": ["a"]}, {"N": ["1"]}, {"S": {"S": "a"}}, {"SS": [["a"]]}),
        {"SS": ["a", 5]},
    ]
)
_values = st.recursive(
    values | st.one_of(*(c.map(lambda v, t=t: {t: v}) for t, c in _CONTENTS.items())),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: {"L": v})
        | st.dictionaries(names | _strings, inner, max_size=3).map(lambda v: {"M": v})
    ),
    max_leaves=5,
)
_items = items | st.dictionaries(names | _strings, _values, max_size=5)
_broken_items = st.dictionaries(names, _values | _broken, min_size=1, max_size=3)


def _other_strings(value: Any, data: st.DataObject) -> Any:
    """A value with the same names, types and nesting, but other strings."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    ((tag, content),) = value.items()
    if tag == "M" and isinstance(content, dict):
        return {tag: {name: _other_strings(v, data) for name, v in content.items()}}
    if tag == "L" and isinstance(content, list):
        return {tag: [_other_strings(v, data) for v in content]}
    return {tag: data.draw(_CONTENTS[tag])} if tag in ("S", "N", "B", "SS", "NS", "BS") else value


class _Writer:
    """JSON as a hostile writer spells it: the same seed spells the same structure alike."""

    def __init__(self, seed: int, *, plainly: bool) -> None:
        self._chance = Random(seed)
        self._plainly = plainly

    def write(self, value: Any) -> str:
        space = self._space()
        if isinstance(value, dict):
            pairs = list(value.items())
            self._chance.shuffle(pairs)
            if pairs and not self._plainly and self._one_of(20):
                pairs.append(pairs[0])
            inner = f",{space}".join(f"{self.write(k)}{space}:{self.write(v)}" for k, v in pairs)
            return f"{{{space}{inner}}}"
        if isinstance(value, list):
            inner = f"{space},".join(self.write(element) for element in value)
            return f"[{inner}{space}]"
        escaped = not self._plainly and self._one_of(8)
        if isinstance(value, str) and escaped:
            return '"' + "".join(_escape(c) for c in value) + '"'
        return json.dumps(value, ensure_ascii=False)

    def _space(self) -> str:
        return " \n" if not self._plainly and self._one_of(8) else ""

    def _one_of(self, many: int) -> bool:
        return self._chance.randrange(many) == 0


def _escape(character: str) -> str:
    return r"\/" if character == "/" else json.dumps(character)[1:-1].replace("a", r"\u0061")


def _record(new: Any, old: Any, *, seed: int = 0, plainly: bool = True) -> bytes:
    body = {
        "ApproximateCreationDateTime": 1_700_000_000,
        "Keys": {"pk": {"S": "a"}},
        "SequenceNumber": "1" * 21,
        "NewImage": new,
        "OldImage": old,
    }
    record = {"eventID": "e1", "eventName": "MODIFY", "dynamodb": body}
    return _Writer(seed, plainly=plainly).write(record).encode("utf-8", "surrogatepass")


def _defined(raw: bytes, stream: StreamRef = _STREAM) -> Any:
    """What the definition says: a change, or a reason."""
    try:
        record = msgspec.json.decode(raw)
        return from_stream_record(
            record,
            table_id=stream.table_id,
            shard_id=_SHARD.shard_id,
            depth=_SHARD.depth,
            full_images=stream.full_images,
        )
    except UnreadableError as error:
        return error.reason
    except RecursionError:
        return TOO_DEEP
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "a record that is not JSON"


def _check(raws: list[bytes], stream: StreamRef = _STREAM) -> None:
    defined = [_defined(raw, stream) for raw in raws]
    changes = [found for found in defined if not isinstance(found, str)]
    unreadable = [(f, raw) for f, raw in zip(defined, raws, strict=True) if isinstance(f, str)]
    records = [msgspec.Raw(raw) for raw in raws]
    for way in WAYS:
        with converted_by(way):
            assert parse_records(records, stream, _SHARD) == (changes, unreadable)


@given(_items | _broken_items, _items, st.integers(0, 1000), st.booleans(), st.data())
def test_records_are_read_as_defined(
    new: Any, old: Any, seed: int, plainly: bool, data: st.DataObject
) -> None:
    raws = [_record(new, old, seed=seed, plainly=plainly)]
    for _ in range(3):  # now their shapes are known
        images = [{k: _other_strings(v, data) for k, v in image.items()} for image in (new, old)]
        raws.append(_record(*images, seed=seed, plainly=plainly))
    _check(raws)


@given(st.sampled_from(["S", "N", "B", "SS", "NS", "BS"]), st.data())
def test_strings_of_a_known_shape_are_read_as_defined(tag: str, data: st.DataObject) -> None:
    contents = data.draw(st.lists(_CONTENTS[tag], min_size=4, max_size=8))
    name = data.draw(names | _strings)
    _check([_record({name: {tag: content}}, {"a": {"S": "b"}}) for content in contents])


@pytest.mark.parametrize(
    ("tag", "contents"),
    [("S", _TRICKY), ("N", _BAD_NUMBERS), ("B", _BAD_BINARIES)],
)
def test_every_tricky_spelling(tag: str, contents: list[str]) -> None:
    _check([_record({"a": {tag: content}}, {}) for content in contents])
    for others in ([], ["1"], ["QQ=="], ["b", "a"]):
        sets = [[content, *others] for content in contents]
        _check([_record({"a": {tag + "S": members}}, {}) for members in sets])


@pytest.mark.parametrize("name", ["7391482650000000", "7391482650000001", "a7391482650000000b"])
def test_names_that_look_like_markers(name: str) -> None:
    for value in ({"S": "x"}, {"M": {name: {"S": "x"}}}, {"BOOL": True}):
        _check([_record({name: value, "a": {"N": number}}, {}) for number in ("1", "2", "3")])


@pytest.mark.parametrize("depth", [1, 2, 31, 32, 40])
def test_nesting(depth: int) -> None:
    for tag in ("L", "M"):
        value: Any = {"S": "x"}
        for level in range(depth):
            value = {"L": [value]} if tag == "L" else {"M": {"N": value, f"{level}": {"N": "1"}}}
        _check([_record({"b": value, "a": {"N": text}}, {}) for text in ("1", "2", "3.0", "x")])


_GOOD = _record({"b": {"S": "x"}, "a": {"N": "1"}}, {"b": {"SS": ["b", "a"]}})


@pytest.mark.parametrize(
    ("part", "other"),
    [
        *((b'{"SS":["b","a"]}', x) for x in (b'{"SS":["b", "a"]}', b'{"SS":[ "c","a"]}')),
        *((b'{"SS":["b","a"]}', x) for x in (b'{"SS":["z","y","z"]}', b'{"S":["b","a"]}')),
        (b'{"S":"x"}', b'{"S":"x","S":"y"}'),
        (b'"b":{"S":"x"}', b'"b":{"S":"x"},"b":{"N":"1.0"}'),
        (b'"b":{"S":"x"}', b'"b":{"N":"x"},"b":{"S":"y"}'),
        (b'{"S":"x"}', b'{"S":"\xff"}'),
        (b'{"S":"x"}', b'{"S":"\x01"}'),
        (b'{"S":"x"}', rb'{"S":"\ud83d\ude00"}'),
        (b'{"S":"x"}', rb'{"S":"\ud83d"}'),
        (b'{"S":"x"}', rb'{"S":"\u0041\/\"\\"}'),
        (b'{"N":"1"}', rb'{"N":"\u0031"}'),
        (b'{"S":"x"}', b'{"S":x}'),
        (b'"e1"', '"é"'.encode()),
        (b'"e1"', b'""'),
        (b'"e1"', b"7"),
        (b'"MODIFY"', b'"UPSERT"'),
        (b'"MODIFY"', b'"REMOVE"'),
        (b'"MODIFY"', b'["MODIFY"]'),
        (b'"111111111111111111111"', '"\uff11\uff12"'.encode()),
        (b'"111111111111111111111"', b'"' + b"1" * 41 + b'"'),
        (b'"111111111111111111111"', b'""'),
        (b"1700000000", b"1700000000.0"),
        (b"1700000000", b'"1700000000"'),
        (b"1700000000", b"0"),
        (b"1700000000", b"1e400"),
        (b'{"pk":{"S":"a"}}', b"{}"),
        (b'{"pk":{"S":"a"}}', b"null"),
        (b'{"pk":{"S":"a"}}', b'{"pk":"a"}'),
        (b'"NewImage":', b'"NewImage":null,"Other":'),
        (b'"OldImage":', b'"OldImage":null,"Other":'),
        (b'"OldImage":', b'"OldImage":{},"Other":'),
        (b'"OldImage":', b'"OldImage":[],"Other":'),
        (b'"OldImage":', b'"OldImage":"","Other":'),
        (b'{"eventID"', b'[{"eventID"'),
    ],
)
def test_unusual_records(part: bytes, other: bytes) -> None:
    assert part in _GOOD or part == b'{"eventID"'
    raw = _GOOD.replace(part, other)
    keys_only = StreamRef("table-id", "arn", "KEYS_ONLY", 0, 0)
    for stream in (_STREAM, keys_only):
        _check([_GOOD, raw, raw, _GOOD, raw, raw.replace(b'"x"', b'"z"')], stream)


def test_one_unreadable_record_takes_no_other_with_it() -> None:
    raws = [_GOOD, _GOOD.replace(b'{"N":"1"}', b'{"N":"x"}'), b"{", _GOOD]
    changes, unreadable = parse_records([msgspec.Raw(raw) for raw in raws], _STREAM, _SHARD)
    assert changes == [_defined(_GOOD)] * 2
    assert unreadable == [(_defined(raw), raw) for raw in raws[1:3]]
