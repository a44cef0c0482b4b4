"""Row deltas: commits that add changed rows and the places of the rows that they replace.

PyIceberg 0.12 reads position deletes and does not write them: its producer of appends is extended
here, and only here. Iceberg v2: a position delete is a data file's path and a row number from 0, in
Parquet, ordered by both; it applies to files of the same or an earlier sequence number
(https://iceberg.apache.org/spec/#position-delete-files).
"""

import io as byte_io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.conversions import to_bytes
from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriterV2,
)
from pyiceberg.table import Table, Transaction
from pyiceberg.table.locations import load_location_provider
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.table.update.snapshot import _FastAppendFiles
from pyiceberg.typedef import Record
from pyiceberg.types import LongType, StringType

from cdc_pipeline.lake.iceberg.checksums import (
    ChecksumFolder,
    ChecksumIO,
    Checksums,
    LostChecksumsError,
    known_checksums,
    no_checksums,
)
from cdc_pipeline.lake.iceberg.files import LiveFiles, live_files
from cdc_pipeline.lake.iceberg.writer import WrittenFiles, added_files, write_rows

_PATH_ID, _POSITION_ID = 2147483546, 2147483545
"""Field ids that the specification reserves for the columns of position deletes."""

_SMALL_MANIFEST = 64
"""Entries below which a manifest is merged with others when files leave the table."""


@dataclass(frozen=True)
class DeadRows:
    """Rows of one data file that are dead: `positions` in ascending order, 64-bit integers."""

    path: str
    positions: pa.Array


@dataclass(frozen=True)
class RowDelta:
    """A change of a table's rows.

    `rows`: added, sorted. `dead`: for the new delete file, in order of path, spelled as in the
    manifests. `live`: the table's files as they were read. `removed`: paths of data files and
    delete files that leave the table. `forgets`: no manifest names them, whose bounds could have
    values of erased rows.
    """

    rows: pa.RecordBatchReader
    dead: Iterable[DeadRows]
    live: LiveFiles
    removed: set[str] = field(default_factory=set)
    forgets: bool = False


def commit_row_delta(
    transaction: Transaction,
    delta: RowDelta,
    properties: Mapping[str, str],
    checksums: ChecksumFolder,
) -> None:
    """Make one snapshot of a row delta in a table without partitions, also without any change.

    Memory: one row group and the dead rows of one file. The commit asserts the snapshot that the
    transaction began with.
    """
    summary: dict[str, str] = {**properties}
    files = _RowDeltaFiles(transaction, transaction._table.io, summary)
    checked = ChecksumIO(transaction._table.io)
    metadata = transaction.table_metadata
    for file in write_rows(metadata, checked, delta.rows, str(files.commit_uuid)):
        files.append_data_file(file)
    path = load_location_provider(metadata.location, metadata.properties).new_data_location(
        f"00000-0-{files.commit_uuid}-deletes.parquet"
    )
    dead_file = _write_dead_rows(checked, path, delta.dead, metadata.default_spec_id)
    files.dead = [dead_file] if dead_file else []
    entries = [*delta.live.data, *delta.live.deletes]
    files.removed = {
        entry.data_file.file_path: entry
        for entry in entries
        if entry.data_file.file_path in delta.removed
    }
    before = _checksums_before(transaction._table, [entry.data_file for entry in entries])
    left = {path: crc32 for path, crc32 in before.sums.items() if path not in files.removed}
    summary.update(checksums.record(left | checked.sums, before))
    files.forgets = delta.forgets
    files.commit()


def append_to_empty(
    transaction: Transaction,
    rows: pa.RecordBatchReader | WrittenFiles,
    properties: Mapping[str, str],
    checksums: ChecksumFolder,
) -> None:
    """Append to a table whose data files are deleted by this transaction, and drop its dead rows.

    PyIceberg's delete of all rows keeps the delete files for ever.
    """
    summary: dict[str, str] = {**properties}
    files = _RowDeltaFiles(transaction, transaction._table.io, summary)
    added, sums = added_files(transaction, rows, str(files.commit_uuid))
    for file in added:
        files.append_data_file(file)
    live = live_files(transaction._table)
    files.removed = {entry.data_file.file_path: entry for entry in live.deletes}
    summary.update(checksums.record(sums))
    files.commit()


def _checksums_before(table: Table, files: Sequence[DataFile]) -> Checksums:
    """Return the sums of the present version, unknown ones if their list is lost.

    A publication does not stop for it: no row is lost, and `verify` counts the rows of a file
    without a sum.
    """
    try:
        return known_checksums(files, table.current_snapshot(), table.io)
    except LostChecksumsError:
        return no_checksums(files)


def _write_dead_rows(
    io: ChecksumIO, path: str, dead: Iterable[DeadRows], spec_id: int
) -> DataFile | None:
    """Write a delete file with a row group for each data file; None: there are no dead rows.

    Readers skip row groups of other data files by their bounds. The bounds in the manifest are
    whole paths: shortened ones would make the file apply to every data file of the table.
    """
    sink, writer = byte_io.BytesIO(), None
    first = last = ""
    least = most = rows = 0
    for part in dead:
        if not len(part.positions):
            continue
        if writer is None:
            writer = pq.ParquetWriter(sink, _SCHEMA, compression="zstd")
            first, least = part.path, part.positions[0].as_py()
        table = pa.Table.from_arrays(
            [pa.repeat(part.path, len(part.positions)), part.positions], schema=_SCHEMA
        )
        writer.write_table(table, row_group_size=len(part.positions))
        last = part.path
        least = min(least, part.positions[0].as_py())
        most = max(most, part.positions[-1].as_py())
        rows += len(part.positions)
    if writer is None:
        return None
    writer.close()
    with io.new_output(path).create() as stream:
        stream.write(sink.getbuffer())
    return DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=rows,
        file_size_in_bytes=sink.getbuffer().nbytes,
        value_counts={_PATH_ID: rows, _POSITION_ID: rows},
        null_value_counts={_PATH_ID: 0, _POSITION_ID: 0},
        lower_bounds={
            _PATH_ID: to_bytes(StringType(), first),
            _POSITION_ID: to_bytes(LongType(), least),
        },
        upper_bounds={
            _PATH_ID: to_bytes(StringType(), last),
            _POSITION_ID: to_bytes(LongType(), most),
        },
        sort_order_id=None,
        spec_id=spec_id,
        equality_ids=None,
        key_metadata=None,
    )


def _column(name: str, kind: pa.DataType, field_id: int) -> pa.Field:
    return pa.field(name, kind, False, {"PARQUET:field_id": str(field_id)})


_SCHEMA = pa.schema(
    [_column("file_path", pa.string(), _PATH_ID), _column("pos", pa.int64(), _POSITION_ID)]
)


class _RowDeltaFiles(_FastAppendFiles):
    """PyIceberg's append with a delete file, and without files that leave the table."""

    def __init__(self, transaction: Transaction, io: FileIO, properties: dict[str, str]) -> None:
        super().__init__(Operation.OVERWRITE, transaction, io, snapshot_properties=properties)
        self.dead: list[DataFile] = []
        self.removed: dict[str, ManifestEntry] = {}
        self.forgets = False

    def _deleted_entries(self) -> list[ManifestEntry]:
        return self._left(DataFileContent.DATA)

    def _left(self, content: DataFileContent) -> list[ManifestEntry]:
        return [
            self._entry(entry, ManifestEntryStatus.DELETED)
            for entry in self.removed.values()
            if entry.data_file.content == content and not self.forgets
        ]

    def _entry(self, entry: ManifestEntry, status: ManifestEntryStatus) -> ManifestEntry:
        """Copy an entry; a deleted one has the snapshot that deleted it."""
        is_deleted = status == ManifestEntryStatus.DELETED
        return ManifestEntry.from_args(
            status=status,
            snapshot_id=self._snapshot_id if is_deleted else entry.snapshot_id,
            sequence_number=entry.sequence_number,
            file_sequence_number=entry.file_sequence_number,
            data_file=entry.data_file,
        )

    def _existing_manifests(self) -> list[ManifestFile]:
        manifests = super()._existing_manifests()
        if not self.removed:
            return manifests
        kept: list[ManifestFile] = []
        left: dict[ManifestContent, list[ManifestEntry]] = {}
        for manifest in manifests:
            entries = self.fetch_manifest_entry(manifest)
            stay = [e for e in entries if e.data_file.file_path not in self.removed]
            if len(stay) == len(entries) >= _SMALL_MANIFEST:
                kept.append(manifest)
            else:
                left.setdefault(manifest.content, []).extend(stay)
        for content, entries in left.items():
            copies = [self._entry(entry, ManifestEntryStatus.EXISTING) for entry in entries]
            kept += self._written(content, copies)
        return kept

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        added = [
            ManifestEntry.from_args(
                status=ManifestEntryStatus.ADDED,
                snapshot_id=self._snapshot_id,
                sequence_number=None,
                file_sequence_number=None,
                data_file=file,
            )
            for file in self.dead
        ]
        left = self._left(DataFileContent.POSITION_DELETES)
        return manifests + self._written(ManifestContent.DELETES, [*added, *left])

    def _written(
        self, content: ManifestContent, entries: list[ManifestEntry]
    ) -> list[ManifestFile]:
        if not entries:
            return []
        kind = _DeleteManifest if content == ManifestContent.DELETES else ManifestWriterV2
        metadata = self._transaction.table_metadata
        with kind(
            metadata.spec(),
            metadata.schema(),
            self.new_manifest_output(),
            self._snapshot_id,
            self._compression,
        ) as writer:
            for entry in entries:
                writer.add_entry(entry)
        return [writer.to_manifest_file()]

    def _summary(self, snapshot_properties: Mapping[str, str] = {}) -> Summary:
        """Count delete files, too: PyIceberg counts files by their content."""
        data, removed = self._added_data_files, self._deleted_data_files
        self._added_data_files = [*data, *self.dead]
        self._deleted_data_files = {entry.data_file for entry in self.removed.values()}
        try:
            return super()._summary(dict(snapshot_properties))
        finally:
            self._added_data_files, self._deleted_data_files = data, removed


class _DeleteManifest(ManifestWriterV2):
    """A manifest of delete files."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, Any]:
        return {**super()._meta, "content": "deletes"}
