"""What Firehose does to records on their way to S3: framing, folders, names. Not its buffering."""

import base64
import gzip
import io
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CALENDAR = "{0:%Y/%m/%d/%H}/"
HIVE = "year={0:%Y}/month={0:%m}/day={0:%d}/"
WEEK_YEAR = "{1:04d}/{0:%m/%d/%H}/"
"""What Java makes of `YYYY/MM/dd/HH` where weeks begin on Sunday."""

OPS = {"I": "INSERT", "U": "MODIFY", "D": "REMOVE"}


def envelope(
    op: str,
    keys: dict[str, Any],
    new: dict[str, Any] | None,
    old: dict[str, Any] | None,
    time_us: int,
    *,
    table: str = "orders",
    by_ttl: bool = False,
    milliseconds: bool = False,
) -> dict[str, Any]:
    """A change as DynamoDB writes it to Kinesis: times in µs (or ms), binary encoded twice."""
    body: dict[str, Any] = {"ApproximateCreationDateTime": time_us, "Keys": _twice(keys)}
    body |= {"NewImage": _twice(new)} if new is not None else {}
    body |= {"OldImage": _twice(old)} if old is not None else {}
    body |= {"SizeBytes": 58, "ApproximateCreationDateTimePrecision": "MICROSECOND"}
    if milliseconds:
        del body["ApproximateCreationDateTimePrecision"]
        body["ApproximateCreationDateTime"] = time_us // 1000
    identity = {"type": "Service", "principalId": "dynamodb.amazonaws.com"} if by_ttl else None
    return {
        "awsRegion": "us-east-1",
        "eventID": str(uuid.uuid5(uuid.NAMESPACE_OID, repr((keys, time_us, op)))),
        "eventName": OPS[op],
        "userIdentity": identity,
        "recordFormat": "application/json",
        "tableName": table,
        "dynamodb": body,
        "eventSource": "aws:dynamodb",
    }


def _twice(value: Any) -> Any:
    """An item as botocore takes it (binary as bytes), with its binaries as Kinesis has them."""
    if isinstance(value, bytes):
        return base64.b64encode(base64.b64encode(value)).decode()
    if isinstance(value, dict):
        return {name: _twice(content) for name, content in value.items()}
    return [_twice(element) for element in value] if isinstance(value, list) else value


def concatenated(records: list[Any], *, members: int = 0) -> bytes:
    """Records without delimiters; as GZIP in so many members, 0 for none."""
    parts = [json.dumps(record, ensure_ascii=False).encode() for record in records]
    if not members:
        return b"".join(parts)
    size = -(-len(parts) // members) or 1
    chunks = (parts[i : i + size] for i in range(0, len(parts), size))
    return b"".join(gzip.compress(b"".join(chunk)) for chunk in chunks)


def zstd(records: list[Any]) -> bytes:
    """Records a line each, as ZSTD in as many frames."""
    parts = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records]
    return b"".join(zstd_frame(part) for part in parts)


def zstd_frame(data: bytes) -> bytes:
    """One frame, as those write it who do not know the length when they begin."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def raw_snappy(data: bytes) -> bytes:
    """A block of Snappy without a frame."""
    return pa.compress(data, "snappy", asbytes=True)


def forwarded(
    op: str,
    keys: dict[str, Any],
    new: dict[str, Any] | None,
    old: dict[str, Any] | None,
    time: Any,
    number: int,
    *,
    table: str = "orders",
    account: str = "000000000000",
) -> dict[str, Any]:
    """A change as a stream spells it and a Lambda function gets it: binary encoded once."""
    body: dict[str, Any] = {"ApproximateCreationDateTime": time, "Keys": _once(keys)}
    body |= {"SequenceNumber": f"{number:025d}", "SizeBytes": 58}
    body |= {"StreamViewType": "NEW_AND_OLD_IMAGES"}
    body |= {"NewImage": _once(new)} if new is not None else {}
    body |= {"OldImage": _once(old)} if old is not None else {}
    arn = f"arn:aws:dynamodb:us-east-1:{account}:table/{table}/stream/2026-11-01T00:00:00.000"
    return {
        "eventID": f"{number:032x}",
        "eventName": OPS[op],
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": body,
        "eventSourceARN": arn,
    }


def _once(value: Any) -> Any:
    """An item as botocore takes it (binary as bytes), as JSON."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _once(content) for name, content in value.items()}
    return [_once(element) for element in value] if isinstance(value, list) else value


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    """Rows as Firehose's format conversion writes them."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="snappy")
    return sink.getvalue()


def error_record(raw: bytes, kind: str = "processing-failed") -> dict[str, Any]:
    """A line of an error object: the record as it was, in base64."""
    last = "last" if kind == "format-conversion-failed" else ""
    code = "lastErrorCode" if last else "errorCode"
    message = "lastErrorMessage" if last else "errorMessage"
    return {
        "attemptsMade": 4,
        "arrivalTimestamp": 1649719712500,
        code: "Lambda.FunctionError",
        message: "The Lambda function was successfully invoked but it returned an error.",
        "attemptEndingTimestamp": 1649719792500,
        "rawData": base64.b64encode(raw).decode(),
    }


class FirehoseFiles:
    """The objects of one delivery stream in one bucket."""

    def __init__(self, s3: Any, bucket: str, prefix: str = "raw/orders/") -> None:
        self.s3 = s3
        self.bucket = bucket
        self.prefix = prefix

    @property
    def uri(self) -> str:
        """The prefix as the settings name it."""
        return f"s3://{self.bucket}/{self.prefix}"

    def put(
        self,
        body: bytes,
        at: datetime | None = None,
        *,
        folder: str = CALENDAR,
        named: bool = True,
        extension: str = "",
    ) -> str:
        """Write an object whose oldest record arrived `at` (default: now); returns its URI."""
        at = at or datetime.now(UTC)
        week_year = at.year + (at.month == 12 and at.day + (5 - at.weekday()) % 7 > 31)
        time = f"{at:%Y-%m-%d-%H-%M-%S}-" if named else ""
        name = f"orders-1-{time}{uuid.uuid4()}{extension}"
        key = self.prefix + folder.format(at, week_year) + name
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        return f"s3://{self.bucket}/{key}"

    def records(self, *records: Any, at: datetime | None = None, **how: Any) -> str:
        """Write some records as one object."""
        members = how.pop("members", 0)
        return self.put(concatenated(list(records), members=members), at, **how)
