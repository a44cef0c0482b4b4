"""Firehose around the Lambda function, as far as it is written down: events, answers, Parquet."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline_tests.envelopes import TABLE, TABLE_ID
from infra import lambda_handler

ARRIVED_MS = 1649719712500
TABLE_IDS = json.dumps({TABLE: TABLE_ID})


class Context:
    """What Lambda hands a function: the time it has left, less by `step` each time it asks."""

    def __init__(self, left_ms: int = 60_000, step: int = 0) -> None:
        self._left_ms, self._step = left_ms, step

    def get_remaining_time_in_millis(self) -> int:
        self._left_ms -= self._step
        return self._left_ms


def event(blobs: Sequence[bytes]) -> dict[str, Any]:
    """An event with these records, numbered from 0."""
    return {
        "invocationId": "1",
        "region": "eu-central-1",
        "records": [
            {
                "recordId": f"record-{n}",
                "approximateArrivalTimestamp": ARRIVED_MS,
                "data": base64.b64encode(blob).decode(),
                "kinesisRecordMetadata": {"sequenceNumber": str(n), "shardId": "shard-1"},
            }
            for n, blob in enumerate(blobs)
        ],
    }


def answer(blobs: Sequence[bytes], context: Context | None = None) -> list[dict[str, Any]]:
    """The function's answers, one for each record and in their order."""
    asked = event(blobs)
    answers = lambda_handler.handler(asked, context or Context())["records"]
    assert [a["recordId"] for a in answers] == [r["recordId"] for r in asked["records"]]
    return answers


def lines(answers: Sequence[dict[str, Any]]) -> list[str]:
    """The JSON lines of the records that are ok."""
    return [base64.b64decode(a["data"]).decode() for a in answers if a["result"] == "Ok"]


_GLUE_TYPES = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "bigint": pa.int64(),
    # The reader of timestamps keeps nanoseconds, and Parquet as Hive writes it INT96.
    "timestamp": pa.timestamp("ns"),
}


def converted(rows: Sequence[str]) -> pa.Table:
    """JSON lines by the types of the Glue table, as Firehose's conversion takes them."""
    parsed = [json.loads(row) for row in rows]
    fields = [pa.field(column.name, _GLUE_TYPES[column.type]) for column in LANDING_COLUMNS]
    arrays = []
    for field in fields:
        values = [row[field.name] for row in parsed]
        if pa.types.is_timestamp(field.type):
            arrays.append(pa.array(values, pa.string()).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))
