"""From GetRecords answers to a landing Parquet file: ours, and what one would write by hand.

Run by `make bench`. Every contender gets the same answers as bytes, as they come from the socket,
and writes a Parquet file for every few of them, with identity, operation, time, key and both
images of each change. The peers write less: boto3's way and dynamodb_json's one spelling of the
images instead of two, and none of them a canonical form. Ours is measured with its compiled code
loaded (as it is from the 40th MB of a process on) and without the extra `fast`; and in two threads,
each with answers of its own, as two shards are captured.
"""

import base64
import hashlib
import io
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import (
    Row,
    Target,
    cheaper,
    cheapest,
    in_own_process,
    measure,
    quickest,
    report,
)
from benchmarks.stream_pages import DATA_SETS, TABLE_ID, pages
from cdc_pipeline.lake.storage.landing import _REPEATING
from cdc_pipeline.transform import compilation

_PAGES = 24
_PAGES_A_FILE = 6
_RUNS = 3


def ours(bodies: list[bytes]) -> pa.Table:
    """The product's own functions, from the response parser on, compiled."""
    return _ours(bodies, is_compiled=True)


def without_fast(bodies: list[bytes]) -> pa.Table:
    """The same as in a process that has not loaded the compiled code."""
    return _ours(bodies, is_compiled=False)


def _ours(bodies: list[bytes], *, is_compiled: bool) -> pa.Table:
    from cdc_pipeline.aws.shards import parse_page
    from cdc_pipeline.capture.sources.streams_records import parse_records
    from cdc_pipeline.core.log.entries import ShardState, StreamRef
    from cdc_pipeline.lake.storage.changes import Changes
    from cdc_pipeline.lake.storage.landing import landing_table

    compilation.pays = lambda *_: is_compiled
    stream = StreamRef(TABLE_ID, "arn", "NEW_AND_OLD_IMAGES", 0, 0)
    shard = ShardState("shard", None, 0)
    changes = Changes()
    for body in bodies:
        page = parse_page(body, None)
        assert page is not None
        parsed, unreadable = parse_records(page.records, stream, shard)
        assert not unreadable
        changes.extend(parsed)
    return landing_table(changes, 0)


def boto3_way(bodies: list[bytes]) -> pa.Table:
    """Botocore's parser, boto3's TypeDeserializer, json, pyarrow."""
    import botocore.session
    from boto3.dynamodb.types import TypeDeserializer
    from botocore.parsers import ResponseParserFactory

    deserialize = TypeDeserializer().deserialize
    model = botocore.session.get_session().get_service_model("dynamodbstreams")
    shape = model.operation_model("GetRecords").output_shape
    parser = ResponseParserFactory().create_parser("json")

    def plain(image: dict[str, Any]) -> str:
        values = {name: deserialize(value) for name, value in image.items()}
        return json.dumps(values, default=_plain)

    def records(body: bytes) -> Any:
        answer = {"body": body, "headers": {}, "status_code": 200}
        return parser.parse(answer, shape)["Records"]

    return _peer_table(bodies, records, plain)


def dynamodb_json_way(bodies: list[bytes]) -> pa.Table:
    """Json (the library wants wire form, not botocore's), the library dynamodb_json, pyarrow."""
    from dynamodb_json import json_util

    def plain(image: dict[str, Any]) -> str:
        return json.dumps(json_util.loads(image), default=_plain)

    return _peer_table(bodies, lambda body: json.loads(body)["Records"], plain)


def orjson_by_hand(bodies: list[bytes]) -> pa.Table:
    """Orjson, with exact numbers as fragments, both images typed with sorted names, and plain."""
    import orjson

    loads, dumps, sort, fragment = orjson.loads, orjson.dumps, orjson.OPT_SORT_KEYS, orjson.Fragment

    def plain(value: dict[str, Any]) -> Any:
        ((tag, content),) = value.items()
        if tag == "N":
            return fragment(content)
        if tag == "M":
            return {name: plain(member) for name, member in content.items()}
        if tag == "L":
            return [plain(element) for element in content]
        if tag == "NS":
            return [fragment(number) for number in content]
        return None if tag == "NULL" else content

    def typed(image: dict[str, Any] | None) -> str | None:
        return None if image is None else dumps(image, option=sort).decode()

    rows = []
    for body in bodies:
        for record in loads(body)["Records"]:
            change, event_id = record["dynamodb"], record["eventID"]
            new = change.get("NewImage")
            data = None if new is None else {name: plain(value) for name, value in new.items()}
            rows.append(
                (
                    hashlib.sha256(f"{TABLE_ID}\n{event_id}".encode()).hexdigest(),
                    record["eventName"],
                    change["ApproximateCreationDateTime"],
                    None if data is None else dumps(data, option=sort).decode(),
                    typed(change["Keys"]),
                    typed(new),
                    typed(change.get("OldImage")),
                    change["SequenceNumber"],
                    event_id,
                )
            )
    names = ["uuid", "op", "time_stamp", "data", "keys", "new", "old", "sequence_number", "event"]
    return pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))


def _peer_table(
    bodies: list[bytes],
    records: Callable[[bytes], Any],
    plain: Callable[[dict[str, Any]], str],
) -> pa.Table:
    rows = []
    for body in bodies:
        for record in records(body):
            change = record["dynamodb"]
            rows.append(
                {
                    "uuid": record["eventID"],
                    "op": record["eventName"],
                    "time_stamp": change["ApproximateCreationDateTime"],
                    "data": plain(change["NewImage"]) if "NewImage" in change else None,
                    "old": plain(change["OldImage"]) if "OldImage" in change else None,
                    "keys": plain(change["Keys"]),
                    "sequence_number": change["SequenceNumber"],
                }
            )
    return pa.Table.from_pylist(rows)


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted((_plain(member) for member in value), key=str)
    if isinstance(value, Decimal):
        return str(value)
    raw = getattr(value, "value", value)
    return base64.b64encode(raw).decode() if isinstance(raw, bytes) else str(value)


BY_HAND, WITHOUT_FAST = "orjson by hand", "ours, without `fast`"
CONTENDERS = {
    "ours": ours,
    WITHOUT_FAST: without_fast,
    BY_HAND: orjson_by_hand,
    "boto3": boto3_way,
    "dynamodb_json": dynamodb_json_way,
}
_TWO_THREADS = "in two threads"


def check_equal(data: str) -> None:
    """The same changes with the same values, before anything is timed.

    boto3's numbers are compared as decimals; dynamodb_json turns some into floats, so of its rows
    only keys and sequence numbers are compared. By hand sets stay as they came, so members of lists
    of texts and numbers are compared in any order.
    """
    bodies = pages(data, 2)
    slow = without_fast(bodies)
    mine = ours(bodies)
    assert mine.equals(slow)
    hand, theirs, library = (
        CONTENDERS[name](bodies).to_pylist() for name in (BY_HAND, "boto3", "dynamodb_json")
    )
    for a, h, b, c in zip(mine.to_pylist(), hand, theirs, library, strict=True):
        numbers = (row["sequence_number"] for row in (h, b, c))
        assert {a["sequence_number"]} == set(numbers)
        assert json.loads(b["keys"]) == json.loads(c["keys"])
        assert _numbers_as_text(a["data"]) == _numbers_as_text(b["data"])
        assert (a["old_image"] is None) == (b["old"] is None) == (c["old"] is None)
        assert (a["uuid"], a["keys"], a["event_id"]) == (h["uuid"], h["keys"], h["event"])
        for name, other in (("data", "data"), ("new_image", "new"), ("old_image", "old")):
            assert _in_any_order(a[name]) == _in_any_order(h[other])


def _in_any_order(text: str | None) -> Any:
    def sort(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: sort(member) for name, member in value.items()}
        if not isinstance(value, list):
            return value
        is_plain = all(isinstance(member, str) for member in value)
        return sorted(value) if is_plain else [sort(member) for member in value]

    return sort(_numbers_as_text(text))


def _numbers_as_text(text: str | None) -> Any:
    return None if text is None else json.loads(text, parse_float=str, parse_int=str)


def run() -> list[Row]:
    """Each contender and each run of it in a process of its own."""
    found = []
    for data in DATA_SETS:
        check_equal(data)
        for name in CONTENDERS:
            cost = cheapest(_RUNS, partial(in_own_process, "benchmarks.landing", name, data))
            found.append((_work(data), name, cost))
        threads = partial(in_own_process, "benchmarks.landing", "ours", data, _TWO_THREADS)
        found.append((f"{_work(data)}, {_TWO_THREADS}", "ours", quickest(_RUNS, threads)))
    return found


def _work(data: str) -> str:
    return f"GetRecords answers → landing Parquet, {data}"


def _two_threads(data: str) -> Target:
    claim = f"landing {data}: changes a second of two threads, those of one"
    return Target(
        claim,
        True,
        1.7,
        lambda costs: (
            costs[f"{_work(data)}, {_TWO_THREADS}", "ours"].rows
            / costs[f"{_work(data)}, {_TWO_THREADS}", "ours"].wall
            * costs[_work(data), "ours"].wall
            / costs[_work(data), "ours"].rows
        ),
    )


TARGETS = [
    target
    for data, by_hand in (("orders", 2.5), ("hostile to caches", 3))
    for target in (
        cheaper(f"landing {data}: CPU time of boto3", 20, _work(data), "ours", "boto3"),
        cheaper(f"landing {data}: CPU time of {BY_HAND}", by_hand, _work(data), "ours", BY_HAND),
        _two_threads(data),
    )
]


def _contend(name: str, data: str, threads: str = "") -> None:
    bodies = pages(data, _PAGES)
    CONTENDERS[name](bodies[:1])  # imports and caches of the libraries

    def land(bodies: list[bytes]) -> int:
        rows = 0
        for first in range(0, len(bodies), _PAGES_A_FILE):
            table = CONTENDERS[name](bodies[first : first + _PAGES_A_FILE])
            repeating = _REPEATING if name in ("ours", WITHOUT_FAST) else ["op", "time_stamp"]
            pq.write_table(
                table,
                io.BytesIO(),
                compression="zstd",
                use_dictionary=repeating,  # type: ignore[arg-type]
            )
            rows += table.num_rows
        return rows

    def in_threads() -> int:
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(land, [bodies, bodies]))

    report(measure(in_threads if threads else partial(land, bodies)))


if __name__ == "__main__":
    _contend(*sys.argv[1:])
