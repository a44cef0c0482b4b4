"""Firehose's record format conversion: JSON records to one Parquet object by a Glue table.

As in AWS: the OpenX deserialiser, case-insensitive keys, fields missing in the table left out, and
timestamps as INT96.
"""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

# Numeric times are seconds below this value, else milliseconds.
_LEAST_MILLISECONDS = 100_000_000_000


class UnconvertibleError(Exception):
    """A record for the prefix of failed conversions, with Firehose's error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = f"DataFormatConversion.{code}"


class Conversion:
    """Rows of one Parquet object; `table`: the Glue table, None if it does not exist."""

    def __init__(self, table: dict[str, Any] | None) -> None:
        columns = (table or {}).get("StorageDescriptor", {}).get("Columns", [])
        self._columns = [(column["Name"].lower(), column["Type"].lower()) for column in columns]
        self._rows: list[dict[str, Any]] = []

    def add(self, record: bytes) -> None:
        """Add all JSON objects of one record; none if it raises UnconvertibleError."""
        if not self._columns:
            raise UnconvertibleError("EntityNotFound", "The specified table could not be found.")
        self._rows += [self._row(document) for document in _documents(record)]

    def parquet(self) -> bytes:
        """Return the Parquet object, empty if there are no rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            return b""
        types = {name: kind for name, kind in self._columns}
        schema = pa.schema([(name, _arrow_type(kind)) for name, kind in types.items()])
        table = pa.Table.from_pylist(self._rows, schema)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="snappy", use_deprecated_int96_timestamps=True)
        return sink.getvalue()

    def _row(self, document: Any) -> dict[str, Any]:
        if not isinstance(document, dict):
            raise UnconvertibleError("MalformedData", "The top level must be an object.")
        fields = {name.lower(): value for name, value in document.items()}
        return {name: _value(fields.get(name), kind) for name, kind in self._columns}


def _documents(record: bytes) -> list[Any]:
    decoder, documents, position = json.JSONDecoder(), [], 0
    try:
        text = record.decode()
        while rest := text[position:].lstrip():
            position = len(text) - len(rest)
            document, position = decoder.raw_decode(text, position)
            documents.append(document)
    except ValueError:
        raise UnconvertibleError("ParseError", "Encountered malformed JSON.") from None
    if not documents:
        raise UnconvertibleError("MalformedData", "The record was empty.")
    return documents


def _value(value: Any, kind: str) -> Any:
    if value is None:
        return None
    try:
        return _VALUES[kind](value)
    except KeyError:
        raise UnconvertibleError("UnsupportedType", f"the sandbox has no type {kind}") from None
    except (OverflowError, TypeError, ValueError):
        raise UnconvertibleError("MalformedData", "Data does not match the schema.") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError


def _whole(value: Any) -> int:
    if isinstance(value, bool | float):
        raise TypeError
    return int(value)


def _time(value: Any) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value).replace(tzinfo=None)
    seconds = value / 1000 if value >= _LEAST_MILLISECONDS else value
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


_VALUES: dict[str, Callable[[Any], Any]] = {
    "string": _text,
    "boolean": _boolean,
    "bigint": _whole,
    "int": _whole,
    "timestamp": _time,
}


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    return {
        "string": pa.string(),
        "boolean": pa.bool_(),
        "bigint": pa.int64(),
        "int": pa.int32(),
        "timestamp": pa.timestamp("ns"),
    }[kind]
