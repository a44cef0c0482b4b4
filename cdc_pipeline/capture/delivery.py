"""One object of Firehose, read record by record: what is in it is told by its bytes, not its name.

JSON is concatenated without delimiters and may be GZIP in several members; Parquet is rows of our
Lambda or of an older one. The order of records is that of the object, the same at every reading.
"""

import gzip
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cdc_pipeline.aws.s3 import FoundObject, SourceBucket
from cdc_pipeline.core.attributes import TOO_DEEP
from cdc_pipeline.core.changes import Change
from cdc_pipeline.core.delivered import Delivered, Target, delivered
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.framing import pieces

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_OTHERS = (b"PK\x03\x04", b"\xff\x06\x00\x00sNaPpY", b"(\xb5/\xfd", b"ORC", b"Obj\x01", b"BZh")
_BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
_IN_MEMORY = 8 << 20
_BATCH_ROWS = 2000
_LEGACY_COLUMNS = {"uuid", "op", "time_stamp", "data"}
_LANDING_COLUMNS = {"uuid", "op", "keys", "new_image", "write_time_us"}
_MORE_COLUMNS = {"old_image", "sequence_number", "shard_id", "event_id", "is_ttl_delete"}


class Record(NamedTuple):
    """One record: a change, or why there is none and its bytes; or neither: another table's.

    `size`: of its bytes, about.
    """

    change: Change | None
    unreadable: tuple[str, bytes] | None
    legacy: bool
    size: int


def download(bucket: SourceBucket, found: FoundObject) -> BinaryIO | None:
    """The whole object in a temporary file, None if it is gone; raises `SourceError`."""
    file = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY))  # noqa: SIM115
    try:
        if bucket.download(found, file):
            file.seek(0)
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def records(file: BinaryIO, uri: str, target: Target) -> Iterator[Record]:
    """Every record of an object; what cannot be read is told, whatever it is.

    `uri` takes the place of bytes that are too many, or none, to be kept in quarantine: Firehose's
    objects stay where they are.
    """
    magic = file.read(16)
    file.seek(0)
    if magic.startswith(_OTHERS):
        yield _unreadable("an object in a format or compression that is not read", uri.encode())
    elif magic.startswith(_PARQUET):
        yield from _parquet(file, uri, target)
    else:
        yield from _json(file, uri, target)


def _json(file: BinaryIO, uri: str, target: Target) -> Iterator[Record]:
    zipped = file.read(2) == _GZIP
    file.seek(0)
    try:
        for value, raw in pieces(_unzipped(file) if zipped else file.read):
            if value is None:
                yield _unreadable("a stretch that is not JSON", raw)
            else:
                yield _record(value, raw, target)
    except _BROKEN_GZIP:
        yield _unreadable("an object whose compressed rest cannot be read", uri.encode())


def _unzipped(file: BinaryIO) -> Callable[[int], bytes]:
    """Reads up to where the compressed data breaks, and then raises; `read` itself loses that."""
    source = gzip.GzipFile(fileobj=file, mode="rb")
    broken: list[Exception] = []

    def read(size: int) -> bytes:
        if broken:
            raise broken[0]
        data = bytearray()
        try:
            while len(data) < size and (part := source.read1(size - len(data))):
                data += part
        except _BROKEN_GZIP as error:
            broken.append(error)
            if not data:
                raise
        return bytes(data)

    return read


def _record(value: Any, raw: bytes, target: Target) -> Record:
    try:
        found: Delivered = delivered(value, target)
    except UnreadableError as error:
        return _unreadable(error.reason, raw)
    except RecursionError:
        return _unreadable(TOO_DEEP, raw)
    return Record(found.change, None, found.legacy, len(raw))


def _unreadable(reason: str, raw: bytes) -> Record:
    return Record(None, (reason, raw), False, len(raw))


def _parquet(file: BinaryIO, uri: str, target: Target) -> Iterator[Record]:
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)  # else all of it is kept
        names = set(parquet.schema_arrow.names)
        if names >= _LANDING_COLUMNS:
            columns = sorted(names & (_LANDING_COLUMNS | _MORE_COLUMNS))
        elif names >= _LEGACY_COLUMNS:
            columns = sorted(_LEGACY_COLUMNS)
        else:
            yield _unreadable("a Parquet object with other columns", uri.encode())
            return
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            for row in _plain(batch).to_pylist():
                yield _row(row, target)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        yield _unreadable("a Parquet object that is damaged", uri.encode())


def _plain(batch: pa.RecordBatch) -> pa.Table:
    """With timestamps in µs: Python has nothing finer."""
    table = pa.Table.from_batches([batch])
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            fine = pa.timestamp("us", field.type.tz)
            table = table.set_column(index, field.name, table[index].cast(fine, safe=False))
    return table


def _row(row: dict[str, Any], target: Target) -> Record:
    found = _record(row, b"", target)
    if found.unreadable is None:
        return found._replace(size=sum(len(v) for v in row.values() if isinstance(v, str)))
    raw = json.dumps(row, default=str, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return _unreadable(found.unreadable[0], raw)
