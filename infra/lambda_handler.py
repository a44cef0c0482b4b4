"""The Lambda function of Firehose: changes as DynamoDB writes them to Kinesis, as landing rows.

Firehose turns the rows into Parquet by a Glue table with the same columns. Needs the standard
library and `cdc_pipeline.core` only; `make lambda` packs both.
"""

import base64
import binascii
import json
import os
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.forwarded import from_record, nested
from cdc_pipeline.core.changes.kinesis import read_envelope
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.changes.ownership import table_named_by
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import TOO_DEEP
from cdc_pipeline.core.transports import FIREHOSE

TABLE_IDS = "TABLE_IDS"
"""Environment variable: DynamoDB's ids of the tables, a JSON object, `{"orders": "9f1c..."}`."""

# Lambda takes an answer of 6 MiB, Firehose one of 5 minutes (the template allows less).
_ANSWER_BYTES = 6_000_000
_AROUND_DATA = 100  # of an answer's record: names, quotes, result
_SPARE_MS = 5_000


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Answer each record of a Firehose event: its landing row as a JSON line, or failed.

    Failed records go back as they came, so Firehose writes them under its error prefix, whence the
    pipeline reads them again. Those are the unreadable ones, records of tables that are not in
    `TABLE_IDS`, and what no longer fits an answer or its time. The log tells how many, and why.
    """
    table_ids = json.loads(os.environ[TABLE_IDS])
    # Every record has its room, should it fail; rows may take what is left.
    room = _ANSWER_BYTES - sum(_size(record) for record in event["records"])
    answers, failed = [], Counter()
    for record in event["records"]:
        try:
            if context.get_remaining_time_in_millis() < _SPARE_MS:
                raise UnreadableError("no time left")
            row = _row(record, table_ids)
            growth = len(row) - len(record["data"])
            if growth > room:
                raise UnreadableError("no room left in the answer")
            room -= growth
            answers.append({"recordId": record["recordId"], "result": "Ok", "data": row})
        except UnreadableError as error:
            failed[error.reason] += 1
            answers.append(
                {
                    "recordId": record["recordId"],
                    "result": "ProcessingFailed",
                    "data": record["data"],
                }
            )
    print(json.dumps({"records": len(answers), "failed": failed}))
    return {"records": answers}


def _size(record: Mapping[str, Any]) -> int:
    return len(record["recordId"]) + len(record["data"]) + _AROUND_DATA


def _row(record: Mapping[str, Any], table_ids: Mapping[str, str]) -> str:
    """The landing row of a record, one JSON line in base64; raises `UnreadableError`."""
    try:
        envelope = nested(read_envelope(base64.b64decode(record["data"], validate=True)))
        source = record.get("kinesisRecordMetadata") or {}
        change = from_record(
            envelope,
            table_id=_table_id(envelope, table_ids),
            transport=FIREHOSE,
            sequence_number=source.get("sequenceNumber", ""),
            shard_id=source.get("shardId", ""),
        )
    except binascii.Error:
        raise UnreadableError("data that is not base64") from None
    except RecursionError:
        raise UnreadableError(TOO_DEEP) from None
    line = landing_line(change, record["approximateArrivalTimestamp"])
    return base64.b64encode(line.encode()).decode()


def _table_id(envelope: Mapping[str, Any], table_ids: Mapping[str, str]) -> str:
    table_id = table_ids.get(table_named_by(envelope))
    if table_id is None:
        raise UnreadableError("a record of a table that is not in TABLE_IDS")
    return table_id


def landing_line(change: Change, arrived_ms: int) -> str:
    """A change in the landing columns, as a JSON line."""
    values = change._asdict()
    values["time_stamp"] = _timestamp(change.write_time_us // 1000)
    values["landed_at"] = _timestamp(arrived_ms)
    row = {column.name: values[column.name] for column in LANDING_COLUMNS}
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def _timestamp(time_ms: int) -> str:
    """The one spelling that both JSON readers of Firehose (OpenX, Hive) take without options."""
    seconds, ms = divmod(time_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{ms:03d}"
