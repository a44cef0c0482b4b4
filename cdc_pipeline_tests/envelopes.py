"""The one corpus of Kinesis envelopes: what each becomes in whatever reads them, or why it is not.

Whoever reads envelopes (the definition, the fast parser, the Lambda function, what lands from its
Parquet) is held against `ENVELOPES`, by `expected`, and against `blobs` by the definition.
"""

import base64
import hashlib
import json
from typing import Any, NamedTuple

from hypothesis import strategies as st

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.items.attributes import TOO_DEEP
from cdc_pipeline_tests.strategies import items, names, numbers, respelled, texts, values

TABLE, TABLE_ID = "people", "0f3c1a2b-0000-4000-8000-00000000c0de"


class Facts(NamedTuple):
    """What an envelope says, as its change has it."""

    op: str
    write_time_us: int
    data: str | None
    keys: str
    new_image: str | None
    old_image: str | None
    is_ttl_delete: bool = False
    event_id: str = "e-1"


class Envelope(NamedTuple):
    """The bytes of one record, and its facts or the reason why it has none."""

    name: str
    blob: bytes
    becomes: Facts | str


def expected(
    facts: Facts, *, transport: str, sequence_number: str = "", shard_id: str = ""
) -> Change:
    """The change of an envelope; identity and position are spelled out in docs/architecture.md."""
    said = (TABLE_ID, facts.keys, str(facts.write_time_us), facts.op)
    images = (facts.new_image or "", facts.old_image or "")
    return Change(
        uuid=hashlib.sha256("\n".join([*said, *images]).encode()).hexdigest(),
        op=facts.op,
        write_time_us=facts.write_time_us,
        data=facts.data,
        keys=facts.keys,
        new_image=facts.new_image,
        old_image=facts.old_image,
        position="000000." + str(facts.write_time_us).zfill(40),
        sequence_number=sequence_number,
        shard_id=shard_id,
        event_id=facts.event_id,
        is_ttl_delete=facts.is_ttl_delete,
        transport=transport,
    )


MS, US = 1649719712473, 1649719712473123
KEYS = {"name": {"S": "p"}}
_KEYS = '{"name":{"S":"p"}}'
_BYTES = base64.b64encode(b"\x12\x02\x08\x7b").decode()
_TWICE = base64.b64encode(_BYTES.encode()).decode()
_TTL = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}


def envelope(event: str = "MODIFY", *, time: Any = MS, **more: Any) -> dict[str, Any]:
    """A record as DynamoDB writes it; `more` goes to its `dynamodb` part, None leaves out."""
    body = {"ApproximateCreationDateTime": time, "Keys": KEYS, "SizeBytes": 58}
    if event != "REMOVE":
        body["NewImage"] = KEYS
    if event != "INSERT":
        body["OldImage"] = KEYS
    body |= more
    return {
        "awsRegion": "ap-south-1",
        "eventID": "e-1",
        "eventName": event,
        "userIdentity": None,
        "recordFormat": "application/json",
        "tableName": TABLE,
        "dynamodb": {name: value for name, value in body.items() if value is not None},
        "eventSource": "aws:dynamodb",
    }


def blob(record: Any) -> bytes:
    """A record's bytes."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _insert(image: dict[str, Any], typed: str, plain: str) -> tuple[bytes, Facts]:
    """An insert with an image beside the key, and its facts: `name` sorts before what is told."""
    record = blob(envelope("INSERT", NewImage={**KEYS, **image}))
    new = '{"name":{"S":"p"},' + typed + "}"
    return record, Facts("I", MS * 1000, '{"name":"p",' + plain + "}", _KEYS, new, None)


def _refused(record: Any, why: str) -> tuple[bytes, str]:
    return record if isinstance(record, bytes) else blob(record), why


def _update(**more: Any) -> tuple[bytes, Facts]:
    return blob(envelope() | more), Facts("U", MS * 1000, '{"name":"p"}', _KEYS, _KEYS, _KEYS)


_MICROSECONDS = {"time": US, "ApproximateCreationDateTimePrecision": "MICROSECOND"}
_LONG = "12345678901234567890.123456789012345678"
_BEFORE_2012 = "a record of before 2012, when there was no DynamoDB"
_NOT_TWICE = "a binary that is not encoded twice"
_UNFIT = "a record whose new image does not fit its event name"

_CORPUS: dict[str, tuple[bytes, Facts | str]] = {
    "update, ms": _update(),
    "update, µs": (
        blob(envelope(**_MICROSECONDS)),
        Facts("U", US, '{"name":"p"}', _KEYS, _KEYS, _KEYS),
    ),
    "update, ms by name": (
        blob(envelope(ApproximateCreationDateTimePrecision="MILLISECOND")),
        Facts("U", MS * 1000, '{"name":"p"}', _KEYS, _KEYS, _KEYS),
    ),
    "delete": (blob(envelope("REMOVE")), Facts("D", MS * 1000, None, _KEYS, None, _KEYS)),
    "delete by TTL": (
        blob(envelope("REMOVE") | {"userIdentity": _TTL}),
        Facts("D", MS * 1000, None, _KEYS, None, _KEYS, is_ttl_delete=True),
    ),
    "delete by a service that is not TTL": (
        blob(envelope("REMOVE") | {"userIdentity": {**_TTL, "principalId": "x.amazonaws.com"}}),
        Facts("D", MS * 1000, None, _KEYS, None, _KEYS),
    ),
    "update by TTL's identity is no delete": _update(userIdentity=_TTL),
    "an old image where none is needed": (
        blob(envelope("INSERT", OldImage=KEYS)),
        Facts("I", MS * 1000, '{"name":"p"}', _KEYS, _KEYS, _KEYS),
    ),
    "images that are null": (
        blob(envelope("REMOVE")).replace(b'"OldImage"', b'"NewImage": null, "OldImage"'),
        Facts("D", MS * 1000, None, _KEYS, None, _KEYS),
    ),
    "number of 38 digits": _insert({"z": {"N": _LONG}}, f'"z":{{"N":"{_LONG}"}}', f'"z":{_LONG}'),
    "numbers in other spellings": _insert(
        {"y": {"N": "1.50"}, "z": {"NS": ["10", "9.0", "9"]}},
        '"y":{"N":"1.5"},"z":{"NS":["9","10"]}',
        '"y":1.5,"z":[9,10]',
    ),
    "binary": _insert({"z": {"B": _TWICE}}, f'"z":{{"B":"{_BYTES}"}}', f'"z":"{_BYTES}"'),
    "empty binary": _insert({"z": {"B": ""}}, '"z":{"B":""}', '"z":""'),
    "binaries inside": _insert(
        {"z": {"L": [{"M": {"B": {"B": _TWICE}}}, {"BS": [_TWICE]}, {"S": _TWICE}]}},
        f'"z":{{"L":[{{"M":{{"B":{{"B":"{_BYTES}"}}}}}},{{"BS":["{_BYTES}"]}},{{"S":"{_TWICE}"}}]}}',
        f'"z":[{{"B":"{_BYTES}"}},["{_BYTES}"],"{_TWICE}"]',
    ),
    "sets, NULL, booleans, empty things": _insert(
        {"v": {"L": []}, "w": {"M": {}}, "x": {"NULL": True}, "y": {"BOOL": False}}
        | {"z": {"SS": ["b", "a", "b"]}},
        '"v":{"L":[]},"w":{"M":{}},"x":{"NULL":true},"y":{"BOOL":false},"z":{"SS":["a","b"]}',
        '"v":[],"w":{},"x":null,"y":false,"z":["a","b"]',
    ),
    "text that needs escapes": _insert(
        {"z": {"S": 'a"\\\n\x00\u2028日\U0001f600'}},
        '"z":{"S":"a\\"\\\\\\n\\u0000\u2028日\U0001f600"}',
        '"z":"a\\"\\\\\\n\\u0000\u2028日\U0001f600"',
    ),
    "text in escapes": (
        blob(envelope("INSERT", Keys={"name": {"S": "Zü"}}, NewImage={"name": {"S": "Zü"}}))
        .replace("ü".encode(), b"\\u00fc")
        .replace(b'"Z', b'"\\u005a'),
        Facts("I", MS * 1000, '{"name":"Zü"}', '{"name":{"S":"Zü"}}', '{"name":{"S":"Zü"}}', None),
    ),
    "names in another order, with spaces": (
        json.dumps(dict(reversed(envelope().items())), indent=1).encode() + b"\n",
        Facts("U", MS * 1000, '{"name":"p"}', _KEYS, _KEYS, _KEYS),
    ),
    "no event id": (
        blob({name: value for name, value in envelope().items() if name != "eventID"}),
        Facts("U", MS * 1000, '{"name":"p"}', _KEYS, _KEYS, _KEYS, event_id=""),
    ),
    "fields unheard of": _update(somethingNew={"a": [1, None, "x"]}),
    "no JSON": _refused(b'{"not": "a change', "a record that is not JSON"),
    "cut": _refused(blob(envelope())[:-20], "a record that is not JSON"),
    "nothing": _refused(b"", "a record that is not JSON"),
    "no UTF-8": _refused(blob(envelope()).replace(b'"p"', b'"\xff"'), "a record that is not JSON"),
    "two in one": _refused(blob(envelope()) * 2, "a record that is not JSON"),
    "a constant that is no JSON": _refused(
        blob(envelope(NewImage=KEYS | {"z": {"N": float("nan")}})), "a record that is not JSON"
    ),
    "aggregated": _refused(b"\xf3\x89\x9a\xc2" + blob(envelope()), "an aggregated record"),
    "no object": _refused([envelope()], "a record without its dynamodb part"),
    "another object": _refused({"tableName": TABLE}, "a record without its dynamodb part"),
    "unknown event": _refused(envelope() | {"eventName": "UPSERT"}, "an unknown event name"),
    "no keys": _refused(envelope(Keys={}), "a record without keys"),
    "update without its new image": _refused(envelope(NewImage=None), _UNFIT),
    "delete with a new image": _refused(envelope("REMOVE", NewImage=KEYS), _UNFIT),
    "no time": _refused(envelope(time=None), "a record without its creation time"),
    "time with a fraction": _refused(envelope(time=1.5), "a record without its creation time"),
    "time in text": _refused(envelope(time=str(MS)), "a record without its creation time"),
    "µs that say ms": _refused(envelope(time=US), "a record of more than a day ahead"),
    "s that say ms": _refused(envelope(time=MS // 1000), _BEFORE_2012),
    "time before 1970": _refused(envelope(time=-1), _BEFORE_2012),
    "unknown precision": _refused(
        envelope(ApproximateCreationDateTimePrecision="NANOSECOND"),
        "a record whose time has an unknown precision",
    ),
    "binary encoded once": _refused(envelope(NewImage=KEYS | {"z": {"B": "gICAgA=="}}), _NOT_TWICE),
    "binary that is a number": _refused(envelope(NewImage=KEYS | {"z": {"B": 5}}), _NOT_TWICE),
    "unknown type": _refused(
        envelope(NewImage=KEYS | {"z": {"X": "1"}}), "an unknown attribute type"
    ),
    "number of 39 digits": _refused(
        envelope(NewImage=KEYS | {"z": {"N": "1" * 39}}), "a number of more than 38 digits"
    ),
    "nested without end": _refused(b"[" * 100_000, TOO_DEEP),
    "half a character": _refused(
        blob(envelope()).replace(b'"p"', rb'"\ud83d"'), "text that is not Unicode"
    ),
}

ENVELOPES = [Envelope(name, *what) for name, what in _CORPUS.items()]
READABLE = [e for e in ENVELOPES if isinstance(e.becomes, Facts)]


def twice(value: Any) -> Any:
    """An item or value as it stands in Kinesis: base64 of the base64 of binaries."""
    if not isinstance(value, dict):
        return value
    return {name: _twice_value(content) for name, content in value.items()}


def _twice_value(value: dict[str, Any]) -> Any:
    ((tag, content),) = value.items()
    if tag == "B":
        return {tag: base64.b64encode(content.encode()).decode()}
    if tag == "BS":
        return {tag: [base64.b64encode(member.encode()).decode() for member in content]}
    if tag == "M":
        return {tag: twice(content)}
    return {tag: [_twice_value(element) for element in content]} if tag == "L" else value


_respelled = numbers.flatmap(respelled).map(lambda number: {"N": number})
_images = items | st.dictionaries(names, values | _respelled, max_size=4)
_broken = st.sampled_from(
    [{"B": "gICAgA=="}, {"B": 5}, {"X": "x"}, {"N": "x"}, {"SS": []}, {"S": 5}, {}, None, "x", []]
)


@st.composite
def blobs(draw: st.DrawFn) -> bytes:
    """The bytes of records: most are changes; some have something wrong in them."""
    event = draw(st.sampled_from(["INSERT", "MODIFY", "REMOVE"]))
    time = draw(st.integers(1_325_376_000_000, 1_800_000_000_000_000))
    keys = draw(st.dictionaries(texts, texts.map(lambda text: {"S": text}), min_size=1, max_size=2))
    more: dict[str, Any] = {"Keys": twice(keys)}
    if event != "REMOVE":
        more["NewImage"] = twice(keys | draw(_images))
    if event != "INSERT":
        more["OldImage"] = twice(keys | draw(_images))
    if draw(st.booleans()):
        more["ApproximateCreationDateTimePrecision"] = "MICROSECOND"
    if draw(st.integers(0, 9)) == 0:
        wrong = st.sampled_from(["Keys", "NewImage", "OldImage"])
        more[draw(wrong)] = draw(st.dictionaries(names, _broken, max_size=2) | st.none())
    record = envelope(event, time=time, **more)
    record["userIdentity"] = draw(st.sampled_from([None, _TTL]))
    whole = json.dumps(
        dict(draw(st.permutations(list(record.items())))),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1])),
    ).encode()
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 19)) == 0 else whole
