"""Descriptions, as JSON, of data files that workers have written and no commit names yet."""

import secrets
from collections.abc import Sequence

import msgspec
import pyarrow as pa
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.typedef import Record

from cdc_pipeline.lake.iceberg.writer import WrittenFiles


class FileDescriptor(msgspec.Struct, omit_defaults=True):
    """What a commit must know of a Parquet file without partition. `size`: in bytes.

    Maps are by field id; bounds are in Iceberg's bytes.
    """

    path: str
    rows: int
    size: int
    crc32: int
    column_sizes: dict[int, int] = {}
    value_counts: dict[int, int] = {}
    null_value_counts: dict[int, int] = {}
    nan_value_counts: dict[int, int] = {}
    lower_bounds: dict[int, bytes] = {}
    upper_bounds: dict[int, bytes] = {}
    split_offsets: list[int] | None = None

    def data_file(self, spec_id: int, content: DataFileContent = DataFileContent.DATA) -> DataFile:
        """Return the file for a manifest; `spec_id`: of the table, which has no partitions."""
        file = DataFile.from_args(
            content=content,
            file_path=self.path,
            file_format=FileFormat.PARQUET,
            partition=Record(),
            record_count=self.rows,
            file_size_in_bytes=self.size,
            column_sizes=self.column_sizes,
            value_counts=self.value_counts,
            null_value_counts=self.null_value_counts,
            nan_value_counts=self.nan_value_counts,
            lower_bounds=self.lower_bounds,
            upper_bounds=self.upper_bounds,
            split_offsets=self.split_offsets,
            sort_order_id=None,
            equality_ids=None,
            key_metadata=None,
        )
        file.spec_id = spec_id
        return file


def written_files(
    files: Sequence[FileDescriptor], schema: pa.Schema, planned: TableMetadata
) -> WrittenFiles:
    """Return what a commit of described files needs; `planned`: see `WrittenFiles`."""
    return WrittenFiles(
        [file.data_file(planned.default_spec_id) for file in files],
        {file.path: file.crc32 for file in files},
        schema,
        planned,
    )


def describe_file(file: DataFile, crc32: int) -> FileDescriptor:
    """Describe a file for a commit by another process."""
    return FileDescriptor(
        file.file_path,
        file.record_count,
        file.file_size_in_bytes,
        crc32,
        dict(file.column_sizes or {}),
        dict(file.value_counts or {}),
        dict(file.null_value_counts or {}),
        dict(file.nan_value_counts or {}),
        dict(file.lower_bounds or {}),
        dict(file.upper_bounds or {}),
        file.split_offsets,
    )


def commit_name() -> str:
    """Return a random part of file names, so that repeated tasks do not overwrite each other."""
    return secrets.token_hex(16)
