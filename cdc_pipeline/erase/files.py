"""Rows and lines of a file that hold one item, and the file without them.

The first bytes decide the format: Parquet, Avro (Iceberg's manifests), GZIP; everything else is
read as JSON documents, one or more per line.
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
    """Count the rows or lines with the item; 1 for an Avro or damaged file that has its bytes."""
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
    """Return the readable beginning of a damaged GZIP file."""
    inflate, text = zlib.decompressobj(wbits=31), b""
    for start in range(0, len(data), _PIECE_BYTES):
        try:
            text += inflate.decompress(data[start : start + _PIECE_BYTES])
        except zlib.error:
            break
    return text


def without_lines(data: bytes, trace: ItemTrace) -> bytes:
    """Return a JSON file without the documents that hold the item, compressed if it was."""
    if data.startswith(_GZIP):
        # No time in the header, so that the same input gives the same bytes.
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
    """Return the rows of a Parquet file that do not hold the item."""
    batches = [batch.filter(_held_rows(batch, trace, kept=True)) for batch in _batches(data)]
    return pa.Table.from_batches(batches, pq.read_schema(io.BytesIO(data)))


def is_parquet(data: bytes) -> bool:
    """Whether a file is Parquet, by its first bytes."""
    return data.startswith(_PARQUET)


def _batches(data: bytes) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        yield from file.iter_batches(_BATCH_ROWS)


def _held_rows(batch: pa.RecordBatch, trace: ItemTrace, kept: bool = False) -> pa.BooleanArray:
    """Return for each row whether a text cell holds the item; with `kept`, whether none does."""
    rows = [kept] * batch.num_rows
    for column in batch.columns:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        for text in trace.rarest:
            matches = pc.match_substring(column, text)  # type: ignore[attr-defined]
            for row, is_match in enumerate(matches.to_pylist()):
                if is_match and trace.is_in_text(column[row].as_py()):
                    rows[row] = not kept
    return pa.array(rows, pa.bool_())


def _held_documents(line: bytes, trace: ItemTrace) -> Iterator[bytes]:
    """Yield the documents of a line that hold the item, byte for byte."""
    has_base64 = any(name in line for name in _BASE64_FIELDS)
    if not has_base64 and not trace.may_be_in(line):
        return
    for text, document in _documents(line.decode(errors="surrogateescape")):
        raw = text.encode(errors="surrogateescape")
        if trace.is_in_document(document, raw):
            yield raw


def _documents(text: str) -> Iterator[tuple[str, object]]:
    """Yield consecutive JSON documents with their text; a rest that is not JSON has None."""
    decode: Callable[[str, int], tuple[object, int]] = json.JSONDecoder().raw_decode
    start, end = 0, len(text.rstrip())
    while start < end:
        if text[start].isspace():
            start += 1
            continue
        try:
            document, stop = decode(text, start)
        except (ValueError, RecursionError):
            document, stop = None, end
        yield text[start:stop], document
        start = stop


def _avro_text(data: bytes) -> bytes:
    """Return the inflated blocks of an Avro object container file (Avro specification 1.11)."""
    file = io.BytesIO(data[len(_AVRO) :])
    codec = _avro_metadata(file).get(b"avro.codec", b"null")
    file.seek(16, io.SEEK_CUR)  # sync marker
    blocks = []
    while file.tell() < len(data) - len(_AVRO):
        _avro_long(file)  # number of entries
        block = file.read(_avro_long(file))
        blocks.append(zlib.decompress(block, -zlib.MAX_WBITS) if codec == b"deflate" else block)
        file.seek(16, io.SEEK_CUR)
    return b"".join(blocks)


def _avro_metadata(file: io.BytesIO) -> dict[bytes, bytes]:
    metadata: dict[bytes, bytes] = {}
    while count := _avro_long(file):
        if count < 0:
            _avro_long(file)  # size of the block
        for _ in range(abs(count)):
            name = file.read(_avro_long(file))
            metadata[name] = file.read(_avro_long(file))
    return metadata


def _avro_long(file: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
