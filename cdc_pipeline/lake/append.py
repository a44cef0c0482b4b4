"""Appending a stream of rows to an Iceberg table in one snapshot, with bounded memory."""

from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import cast

import pyarrow as pa
from pyiceberg.io.fileformat import FileFormatFactory
from pyiceberg.io.pyarrow import ParquetFormatWriter, _to_requested_schema, pyarrow_to_schema
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import sanitize_column_names
from pyiceberg.table import Transaction
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.typedef import Record

ROW_GROUP_ROWS = 20_000
"""What is read of a sorted file for one item."""

_ROW_GROUP_BYTES = 48 << 20
"""Arrow bytes after which a row group is full whatever its rows: they are in memory together."""

_FILE_BYTES = 128 << 20
"""Parquet bytes after which a file is full: whoever looks something up opens every file."""


def append_stream(transaction: Transaction, rows: pa.RecordBatchReader) -> None:
    """Append all rows, in their order; the snapshot is there even if there are none.

    The table has no partitions. Memory: a row group. PyIceberg 0.12 takes readers, too, but holds
    all rows of a file, and its executor asks for those of every file before the first is written
    (`pyiceberg.io.pyarrow.write_file`). Its writer, which is used here, takes them bit by bit.
    """
    groups = (_requested(transaction.table_metadata, group) for group in _row_groups(rows))
    with transaction.update_snapshot().fast_append() as files:
        for number in count():
            first = next(groups, None)
            if first is None:
                return
            name = f"00000-{number}-{files.commit_uuid}.parquet"  # as PyIceberg names them
            files.append_data_file(_write_file(transaction, name, chain([first], groups)))


def _write_file(transaction: Transaction, name: str, groups: Iterable[pa.Table]) -> DataFile:
    """Write row groups until the file is full; the rest stays in `groups`."""
    table = transaction.table_metadata
    path = load_location_provider(table.location, table.properties).new_data_location(name)
    file = transaction._table.io.new_output(path)
    model = FileFormatFactory.get(FileFormat.PARQUET)
    schema = sanitize_column_names(table.schema())
    writer = cast(ParquetFormatWriter, model.create_writer(file, schema, table.properties))
    with writer:
        for group in groups:
            writer.write(group)
            assert writer._fos is not None  # it is open since the first rows
            if writer._fos.tell() >= _FILE_BYTES:
                break
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        file_size_in_bytes=len(file),
        sort_order_id=None,
        spec_id=table.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **writer.result().to_serialized_dict(),
    )


def _requested(table: TableMetadata, group: pa.RecordBatch) -> pa.Table:
    """Rows as the table's files have them: names, order, nullability, field ids."""
    schema = table.schema()
    found = pyarrow_to_schema(group.schema, schema.name_mapping, format_version=2)
    batch = _to_requested_schema(
        sanitize_column_names(schema),
        found,
        group,
        include_field_ids=True,
        format_model=FileFormatFactory.get(FileFormat.PARQUET),
    )
    return pa.Table.from_batches([batch])


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows, in batches of the size of row groups."""
    parts: list[pa.RecordBatch] = []
    rows, size = 0, 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, ROW_GROUP_ROWS - rows)
            batch = batch.slice(part.num_rows)
            parts.append(part)
            rows, size = rows + part.num_rows, size + part.nbytes
            if rows == ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
                yield pa.concat_batches(parts)
                parts, rows, size = [], 0, 0
    if parts:
        yield pa.concat_batches(parts)
