"""One object of Firehose, read record by record: its bytes show the format, not its name.

JSON is concatenated, with or without delimiters, and may be GZIP or ZSTD in several members;
Parquet holds rows of this project's Lambda or of an older one. The order of records is that of the
object, the same at every reading.
"""

import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cdc_pipeline.aws.s3.objects import FoundObject, SourceBucket
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.firehose import delivered_records, refused_shape
from cdc_pipeline.core.changes.json_stream import NOT_JSON, pieces
from cdc_pipeline.core.changes.kinesis import AGGREGATED
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import SourceError

_GZIP = b"\x1f\x8b"
_ZSTD = b"(\xb5/\xfd"
_PARQUET = b"PAR1"
_OTHERS = {
    b"PK\x03\x04": "ZIP",
    b"\xff\x06\x00\x00sNaPpY": "Snappy",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"BZh": "bzip2",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    AGGREGATED: "the producer library's format of aggregated records",
}
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)
CUT_OFF = "an object whose compressed rest cannot be read"
_SNAPPY_SIZE = re.compile(rb"[\x80-\xff]{0,4}[\x01-\x7f]")
_SNAPPY_TEXT = (b"{", b"[", b"\xef\xbb\xbf", b"\n", b" ")
_READ = "GZIP or ZSTD, or none"
_IN_MEMORY = 8 << 20
_BATCH_ROWS = 2000
_LEGACY_COLUMNS = {"uuid", "op", "time_stamp", "data"}
_LANDING_COLUMNS = {"uuid", "op", "keys", "new_image", "write_time_us"}
_MORE_COLUMNS = {"old_image", "sequence_number", "shard_id", "event_id", "is_ttl_delete"}


class Record(NamedTuple):
    """One record: a change, or a reason and the bytes; neither for a record of another table.

    `size`: approximate number of bytes. `other`: name of the other table.
    """

    change: Change | None
    unreadable: tuple[str, bytes] | None
    legacy: bool
    size: int
    other: str = ""


def download(bucket: SourceBucket, item: FoundObject) -> BinaryIO | None:
    """Download an object to a temporary file, None if it is gone; raises `SourceError`."""
    file = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY))  # noqa: SIM115
    try:
        if bucket.download(item, file):
            file.seek(0)
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def records(file: BinaryIO, uri: str, target: Target) -> Iterator[Record]:
    """Read all records of an object; unreadable parts become records with a reason.

    `uri` is kept in quarantine in place of bytes that are too many or missing: Firehose's objects
    stay where they are. Raises `SourceError` for an object in a known, unsupported format, or with
    a first record of an unsupported shape: none of its records has landed then.
    """
    magic = file.read(32)
    file.seek(0)
    if (kind := _other_format(magic)) is not None:
        raise SourceError(
            f"an object in {kind}, which is not read",
            fix=f"let its writer use {_READ}, write the object again, and remove this one",
        )
    if magic.startswith(_PARQUET):
        yield from _parquet(file, uri, target)
    else:
        yield from _json(file, uri, target)


def _other_format(magic: bytes) -> str | None:
    """Format of an object that is neither JSON (plain, GZIP or ZSTD) nor Parquet."""
    for begins, kind in _OTHERS.items():
        if magic.startswith(begins):
            return kind
    return "Snappy" if _is_snappy(magic) or _is_snappy(magic[8:]) else None


def _is_snappy(block: bytes) -> bool:
    """Whether a block of raw Snappy with JSON text begins; Hadoop's has 8 bytes before it.

    It begins with a length (7 bits a byte) and a literal of 60 bytes or less, or with its own
    length in up to 4 bytes (Snappy's format description). JSON never begins like this.
    """
    match = _SNAPPY_SIZE.match(block)
    if match is None or len(block) <= match.end() or block[match.end()] & 3:
        return False
    tag = block[match.end()] >> 2
    text_start = match.end() + 1 + max(0, tag - 59)
    return block[text_start:].startswith(_SNAPPY_TEXT)


def _json(file: BinaryIO, uri: str, target: Target) -> Iterator[Record]:
    try:
        for number, (value, raw) in enumerate(pieces(open_unpacked(file))):
            if not number and (shape := refused_shape(value)) is not None:
                raise SourceError(
                    f"an object that begins with {shape}, which is not read",
                    fix="keep objects that are not changes of the table out of this prefix",
                )
            if value is None:
                yield _unreadable(NOT_JSON, raw)
            else:
                yield from _records(value, raw, target)
    except BROKEN:
        yield _unreadable(CUT_OFF, uri.encode())


def open_unpacked(file: BinaryIO) -> Callable[[int], bytes]:
    """Return a reader of the bytes of an object that may be GZIP or ZSTD, by its first bytes.

    It returns all bytes before damaged compressed data, and then raises; GZIP's own `read` loses
    them.
    """
    magic = file.read(len(_ZSTD))
    file.seek(0)
    if magic.startswith(_GZIP):
        return _until_broken(gzip.GzipFile(fileobj=file, mode="rb").read1)
    if magic.startswith(_ZSTD):
        return _until_broken(_zstd(file))
    return file.read


def _zstd(file: BinaryIO) -> Callable[[int], bytes]:
    """Arrow reads any number of frames in a row, and has one error for all damages."""
    source = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")

    def read(size: int) -> bytes:
        try:
            return source.read(size)
        except OSError:
            raise EOFError from None

    return read


def _until_broken(read_some: Callable[[int], bytes]) -> Callable[[int], bytes]:
    broken: list[Exception] = []

    def read(size: int) -> bytes:
        if broken:
            raise broken[0]
        data = bytearray()
        try:
            while len(data) < size and (part := read_some(size - len(data))):
                data += part
        except BROKEN as error:
            broken.append(error)
            if not data:
                raise
        return bytes(data)

    return read


def _records(value: Any, raw: bytes, target: Target) -> Iterator[Record]:
    size = len(raw)
    for record in delivered_records(value, raw, target):
        yield Record(record.change, record.unreadable, record.legacy, size, record.other)
        size = 0  # counted once for all records of a wrapper


def _unreadable(reason: str, raw: bytes) -> Record:
    return Record(None, (reason, raw), False, len(raw))


def _parquet(file: BinaryIO, uri: str, target: Target) -> Iterator[Record]:
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)  # else Arrow keeps the whole object
        names = set(parquet.schema_arrow.names)
        if names >= _LANDING_COLUMNS:
            columns = sorted(names & (_LANDING_COLUMNS | _MORE_COLUMNS))
        elif names >= _LEGACY_COLUMNS:
            columns = sorted(_LEGACY_COLUMNS)
        else:
            raise SourceError(
                "a Parquet object whose columns are neither those of this project's Lambda nor of "
                f"older ones: {', '.join(sorted(names))}",
                fix="keep objects that are not copies of the table's changes out of this prefix",
            )
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            for row in _plain(batch).to_pylist():
                yield _row(row, target)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        yield _unreadable("a Parquet object that is damaged", uri.encode())


def _plain(batch: pa.RecordBatch) -> pa.Table:
    """Convert timestamps to µs, Python's resolution."""
    table = pa.Table.from_batches([batch])
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            fine = pa.timestamp("us", field.type.tz)
            table = table.set_column(index, field.name, table[index].cast(fine, safe=False))
    return table


def _row(row: dict[str, Any], target: Target) -> Record:
    (record,) = _records(row, b"", target)  # its columns are not those of a wrapper
    if record.unreadable is None:
        return record._replace(size=sum(len(v) for v in row.values() if isinstance(v, str)))
    raw = json.dumps(row, default=str, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return _unreadable(record.unreadable[0], raw)
