"""Which rows and lines of a file hold one item, and the file without them.

Files are told apart by their first bytes: Parquet, Avro (Iceberg's manifests), GZIP, and
everything else, which is read as JSON documents, one or several to a line.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cdc_pipeline.core.plans.erasure import ItemTrace

_PARQUET, _AVRO, _GZIP = b"PAR1", b"Obj\x01", b"\x1f\x8b"
_BASE64_FIELDS = (b'"record_base64"', b'"rawData"')
_BATCH_ROWS = 20_000
_PIECE_BYTES = 1 << 10


def count_held(data: bytes, trace: ItemTrace) -> int:
    """Rows, lines or (of Avro) files that hold the item; a damaged file counts by its bytes."""
    try:
        if data.startswith(_PARQUET):
            return sum(_held_rows(batch, trace).true_count for batch in _batches(data))
        if data.startswith(_AVRO):
            return int(any(key.encode() in _avro_text(data) for key in trace.keys))
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except (pa.ArrowInvalid, OSError, EOFError, zlib.error, IndexError):
        return int(trace.may_be_in(_readable(data) if data.startswith(_GZIP) else data))
    return sum(1 for line in data.splitlines() for _ in _held_documents(line, trace))


def _readable(data: bytes) -> bytes:
    """What can be read of a damaged GZIP file, from its beginning."""
    inflate, found = zlib.decompressobj(wbits=31), b""
    for at in range(0, len(data), _PIECE_BYTES):
        try:
            found += inflate.decompress(data[at : at + _PIECE_BYTES])
        except zlib.error:
            break
    return found


def without_lines(data: bytes, trace: ItemTrace) -> bytes:
    """A file of JSON, compressed as it was, without the documents that hold the item."""
    if data.startswith(_GZIP):
        # Without a time in its header the result is the same each time.
        return gzip.compress(without_lines(gzip.decompress(data), trace), mtime=0)
    kept: list[bytes] = []
    for line in data.splitlines(keepends=True):
        held = list(_held_documents(line, trace))
        rest = line
        for document in held:
            rest = rest.replace(document, b"", 1)
        if not held or rest.strip():
            kept.append(rest)
    return b"".join(kept)


def without_rows(data: bytes, trace: ItemTrace) -> pa.Table:
    """The rows of a Parquet file that do not hold the item."""
    batches = [batch.filter(_held_rows(batch, trace, kept=True)) for batch in _batches(data)]
    return pa.Table.from_batches(batches, pq.read_schema(io.BytesIO(data)))


def is_parquet(data: bytes) -> bool:
    """Whether a file is Parquet, to go by its first bytes."""
    return data.startswith(_PARQUET)


def _batches(data: bytes) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        yield from file.iter_batches(_BATCH_ROWS)


def _held_rows(batch: pa.RecordBatch, trace: ItemTrace, kept: bool = False) -> pa.BooleanArray:
    """For each row whether one of its text cells holds the item; `kept`: whether none does."""
    rows = [kept] * batch.num_rows
    for column in batch.columns:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        for text in trace.rarest:
            matches = pc.match_substring(column, text)  # type: ignore[attr-defined]
            for row, found in enumerate(matches.to_pylist()):
                if found and trace.is_in_text(column[row].as_py()):
                    rows[row] = not kept
    return pa.array(rows, pa.bool_())


def _held_documents(line: bytes, trace: ItemTrace) -> Iterator[bytes]:
    """The documents of a line that hold the item, as they stand there."""
    wrapped = any(name in line for name in _BASE64_FIELDS)
    if not wrapped and not trace.may_be_in(line):
        return
    for text, document in _documents(line.decode(errors="surrogateescape")):
        raw = text.encode(errors="surrogateescape")
        if trace.is_in_document(document, raw):
            yield raw


def _documents(text: str) -> Iterator[tuple[str, object]]:
    """JSON documents one behind the other; a rest that is none comes as it is, with None."""
    decode: Callable[[str, int], tuple[object, int]] = json.JSONDecoder().raw_decode
    at, end = 0, len(text.rstrip())
    while at < end:
        if text[at].isspace():
            at += 1
            continue
        try:
            document, behind = decode(text, at)
        except (ValueError, RecursionError):
            document, behind = None, end
        yield text[at:behind], document
        at = behind


def _avro_text(data: bytes) -> bytes:
    """The blocks of an Avro object container file, inflated (Avro specification 1.11)."""
    file = io.BytesIO(data[len(_AVRO) :])
    codec = _avro_metadata(file).get(b"avro.codec", b"null")
    file.seek(16, io.SEEK_CUR)  # the marker between blocks
    blocks = []
    while file.tell() < len(data) - len(_AVRO):
        _avro_long(file)  # entries
        block = file.read(_avro_long(file))
        blocks.append(zlib.decompress(block, -zlib.MAX_WBITS) if codec == b"deflate" else block)
        file.seek(16, io.SEEK_CUR)
    return b"".join(blocks)


def _avro_metadata(file: io.BytesIO) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while count := _avro_long(file):
        if count < 0:
            _avro_long(file)  # the size of the block
        for _ in range(abs(count)):
            name = file.read(_avro_long(file))
            found[name] = file.read(_avro_long(file))
    return found


def _avro_long(file: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
