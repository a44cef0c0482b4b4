"""Appends of rows to an Iceberg table in one snapshot, with bounded memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, cast

import pyarrow as pa
import pyiceberg.io.pyarrow as pyiceberg_arrow
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.fileformat import FileFormatFactory
from pyiceberg.io.pyarrow import (
    ParquetFormatWriter,
    _dataframe_to_data_files,
    _to_requested_schema,
    pyarrow_to_schema,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import sanitize_column_names
from pyiceberg.table import TableProperties, Transaction
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.typedef import Record

from cdc_pipeline.lake.iceberg.checksums import ChecksumFolder, ChecksumIO

ROW_GROUP_ROWS = 20_000
"""The rows of a sorted file that are read to find one item."""

_ROW_GROUP_BYTES = 32 << 20
"""Arrow bytes after which a row group ends even with fewer rows: it is held in memory."""

_FILE_BYTES = 128 << 20
"""Parquet bytes after which a file is full; large, because a view opens every file."""

DICTIONARY_BYTES = 32 << 10
"""Parquet bytes of different values after which a column of a row group is no dictionary any more.

With PyArrow's megabyte even columns of keys stay dictionaries for a whole row group: files of
orders are 10 % larger and take a sixth more CPU time to write.
"""

PARQUET_PROPERTIES = {
    TableProperties.PARQUET_DICT_SIZE_BYTES: str(DICTIONARY_BYTES),
    # Both limits are checked after so many rows. PyIceberg's 20,000 make a page of a row group,
    # whatever its bytes, and a dictionary of any size.
    TableProperties.PARQUET_PAGE_ROW_LIMIT: "1024",
}

_LAST_CHARACTER = chr(0x10FFFF)


@dataclass(frozen=True)
class WrittenFiles:
    """Data files that are whole and that no commit names yet.

    `sums`: their CRC-32 by path. `schema`: of their rows. `planned`: metadata of the table by which
    they were written, see `tables.Tables.planned`.
    """

    files: Sequence[DataFile]
    sums: Mapping[str, int]
    schema: pa.Schema
    planned: TableMetadata


def added_files(
    transaction: Transaction, rows: pa.RecordBatchReader | WrittenFiles, commit: str
) -> tuple[Iterable[DataFile], Mapping[str, int]]:
    """Return data files with the rows, and their CRC-32 by path, known once all are read.

    Raises `CommitFailedException` for files that were written for another schema.
    """
    if isinstance(rows, WrittenFiles):
        if transaction.table_metadata.schema().as_struct() != rows.planned.schema().as_struct():
            raise CommitFailedException("the files have the field ids of another schema")
        return rows.files, rows.sums
    io = ChecksumIO(transaction._table.io)
    return write_rows(transaction.table_metadata, io, rows, commit), io.sums


def append_stream(
    transaction: Transaction,
    rows: pa.RecordBatchReader | WrittenFiles,
    properties: Mapping[str, str],
    checksums: ChecksumFolder,
) -> None:
    """Append all rows, in order, to a table without partitions; makes a snapshot even without rows.

    `properties`: of the snapshot's summary. Memory: one row group. PyIceberg 0.12 accepts readers,
    too, but holds all rows of a file, and its executor reads those of every file before the first
    is written (`pyiceberg.io.pyarrow.write_file`). Its Parquet writer, used here, writes in parts.
    """
    summary: dict[str, str] = {**properties}
    with transaction.update_snapshot(summary).fast_append() as files:
        added, sums = added_files(transaction, rows, str(files.commit_uuid))
        for file in added:
            files.append_data_file(file)
        summary.update(checksums.record(sums))


def write_rows(
    table: TableMetadata, io: ChecksumIO, rows: pa.RecordBatchReader, commit: str
) -> Iterator[DataFile]:
    """Write all rows, in order, and yield the files. `commit`: part of the files' names."""
    stored = _stored_schema(table, rows.schema)
    names = [field.name for field in table.schema().fields]
    groups = (
        group.select(names).rename_columns(stored.names).cast(stored) for group in _row_groups(rows)
    )
    for number in count():
        first = next(groups, None)
        if first is None:
            break
        name = f"00000-{number}-{commit}.parquet"  # as PyIceberg names them
        yield _write_file(table, io, name, chain([first], groups))


def append_tables(
    transaction: Transaction, tables: Iterable[pa.Table], checksums: ChecksumFolder
) -> None:
    """Append tables one after the other; makes a snapshot even without tables.

    Each table has its own files. PyIceberg scans a whole table for each of its days, so tables of
    few days are written faster than one of many days.
    """
    number = count()  # part of the file name, or each table would replace the one before
    io: Any = ChecksumIO(transaction._table.io)
    summary: dict[str, str] = {}
    with transaction.update_snapshot(summary).fast_append() as files:
        for table in tables:
            metadata = transaction.table_metadata
            for file in _dataframe_to_data_files(metadata, table, io, files.commit_uuid, number):
                files.append_data_file(file)
        summary.update(checksums.record(io.sums))


def upper_text_bound(text: str, length: int | None) -> str | None:
    """Return an upper bound of `text` with at most `length` characters; None: there is none.

    The bound is the shortened text with its last character increased. Iceberg orders texts by code
    points, and Unicode has no characters between U+D7FF and U+E000. PyIceberg 0.12 uses the code
    point after U+D7FF, cannot encode it, and would fail every commit with such a text.
    """
    if length is None or len(text) <= length:
        return text
    kept = text[:length].rstrip(_LAST_CHARACTER)
    if not kept:
        return None
    increased = "\ue000" if kept[-1] == "\ud7ff" else chr(ord(kept[-1]) + 1)
    return kept[:-1] + increased


# Every commit imports this module, including those whose files PyIceberg writes itself, such as a
# rewrite for a removed row. PyIceberg makes its bounds in this one function and has no setting.
pyiceberg_arrow.__dict__["truncate_upper_bound_text_string"] = upper_text_bound


def _write_file(
    table: TableMetadata, io: ChecksumIO, name: str, groups: Iterable[pa.Table]
) -> DataFile:
    """Write row groups until the file is full; the rest stays in `groups`."""
    path = load_location_provider(table.location, table.properties).new_data_location(name)
    file: Any = io.new_output(path)
    model = FileFormatFactory.get(FileFormat.PARQUET)
    schema = sanitize_column_names(table.schema())
    properties = {**table.properties, **PARQUET_PROPERTIES}
    writer = cast(ParquetFormatWriter, model.create_writer(file, schema, properties))
    with writer:
        for group in groups:
            writer.write(group)
            assert writer._fos is not None  # open since the first rows
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


def _stored_schema(table: TableMetadata, schema: pa.Schema) -> pa.Schema:
    """Return the schema of the table's files: names, order, nullability, field ids."""
    present = table.schema()
    return _to_requested_schema(
        sanitize_column_names(present),
        pyarrow_to_schema(schema, present.name_mapping, format_version=2),
        pa.RecordBatch.from_pylist([], schema),
        include_field_ids=True,
        format_model=FileFormatFactory.get(FileFormat.PARQUET),
    ).schema


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of row group size."""
    parts: list[pa.RecordBatch] = []
    rows, size = 0, 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, ROW_GROUP_ROWS - rows)
            batch = batch.slice(part.num_rows)
            parts.append(part)
            rows, size = rows + part.num_rows, size + part.nbytes
            if rows == ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
                yield pa.Table.from_batches(parts)
                parts, rows, size = [], 0, 0
    if parts:
        yield pa.Table.from_batches(parts)
