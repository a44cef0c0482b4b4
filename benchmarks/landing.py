"""From GetRecords answers to a landing Parquet file: ours, boto3's way, and dynamodb_json's.

Run by `make bench`. Every contender gets the same answers as bytes, as they come from the socket,
and writes a Parquet file for every few of them, with identity, operation, time, key and both
images of each change. The peers write less: one spelling of the images instead of two, and no
canonical form.
"""

import base64
import io
import json
import sys
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import Row, Target, cheapest, in_own_process, measure, report
from benchmarks.stream_pages import DATA_SETS, TABLE_ID, pages
from cdc_pipeline.lake.storage.landing import _REPEATING

_PAGES = 24
_PAGES_A_FILE = 6
_RUNS = 3


def ours(bodies: list[bytes]) -> pa.Table:
    """The product's own functions, from the response parser on."""
    from cdc_pipeline.aws.shards import parse_page
    from cdc_pipeline.capture.sources.streams_records import parse_records
    from cdc_pipeline.core.log.entries import ShardState, StreamRef
    from cdc_pipeline.lake.storage.landing import landing_table

    stream = StreamRef(TABLE_ID, "arn", "NEW_AND_OLD_IMAGES", 0, 0)
    shard = ShardState("shard", None, 0)
    changes = []
    for body in bodies:
        page = parse_page(body, None)
        assert page is not None
        parsed, unreadable = parse_records(page.records, stream, shard)
        assert not unreadable
        changes += parsed
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


CONTENDERS = {"ours": ours, "boto3": boto3_way, "dynamodb_json": dynamodb_json_way}


def check_equal(data: str) -> None:
    """The same changes with the same values, before anything is timed.

    boto3's numbers are compared as decimals; dynamodb_json turns some into floats, so of its rows
    only keys and sequence numbers are compared.
    """
    bodies = pages(data, 2)
    mine, theirs, library = (make(bodies).to_pylist() for make in CONTENDERS.values())
    for a, b, c in zip(mine, theirs, library, strict=True):
        assert a["sequence_number"] == b["sequence_number"] == c["sequence_number"]
        assert json.loads(b["keys"]) == json.loads(c["keys"])
        assert _numbers_as_text(a["data"]) == _numbers_as_text(b["data"])
        assert (a["old_image"] is None) == (b["old"] is None) == (c["old"] is None)


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
    return found


def _work(data: str) -> str:
    return f"GetRecords answers → landing Parquet, {data}"


TARGETS: list[Target] = []


def _contend(name: str, data: str) -> None:
    bodies = pages(data, _PAGES)
    CONTENDERS[name](bodies[:1])  # imports and caches of the libraries

    def work() -> int:
        rows = 0
        for first in range(0, _PAGES, _PAGES_A_FILE):
            table = CONTENDERS[name](bodies[first : first + _PAGES_A_FILE])
            repeating = _REPEATING if name == "ours" else ["op", "time_stamp"]
            pq.write_table(
                table,
                io.BytesIO(),
                compression="zstd",
                use_dictionary=repeating,  # type: ignore[arg-type]
            )
            rows += table.num_rows
        return rows

    report(measure(work))


if __name__ == "__main__":
    _contend(*sys.argv[1:])
