"""Appending a stream of rows to an Iceberg table in one snapshot, with bounded memory."""

from collections.abc import Iterable, Iterator
from itertools import count

import pyarrow as pa
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.table import Transaction

_FILE_BYTES = 48 << 20
"""Arrow bytes of one data file, which are in memory together; in Parquet they are a fifth or so."""


def append_stream(transaction: Transaction, rows: pa.RecordBatchReader) -> None:
    """Append all rows; the snapshot is there even if there are none.

    PyIceberg 0.12 takes readers, too, but its executor asks for every file's rows at once, before
    the first file is written (`pyiceberg.io.pyarrow.write_file`): with it memory grows with the
    table. Its function for one file's rows is the one its own `append` calls.
    """
    number = count()  # part of a file's name: without it each chunk would replace the one before
    with transaction.update_snapshot().fast_append() as files:
        for chunk in _chunks(rows):
            table = pa.Table.from_batches(chunk, rows.schema)
            for file in _dataframe_to_data_files(
                transaction.table_metadata,
                table,
                transaction._table.io,
                files.commit_uuid,
                number,
            ):
                files.append_data_file(file)


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    chunk: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        chunk.append(batch)
        size += batch.nbytes
        if size >= _FILE_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
