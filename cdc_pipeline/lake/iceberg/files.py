"""Files of a table's versions: data files, files with the places of dead rows, references.

A publication of few changes leaves its data files as they are and adds the places of replaced rows
(Iceberg v2 position deletes: file and row number). Readers leave out these dead rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestEntry
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg.checksums import checksum_lists
from cdc_pipeline.lake.iceberg.properties import description_files


@dataclass(frozen=True)
class LiveFiles:
    """Files of one version. `data` and `deletes`: manifest entries, in order of `path_of`.

    `deletes`: position deletes, each row of which is the place of a dead row.
    """

    data: list[ManifestEntry]
    deletes: list[ManifestEntry]

    @property
    def paths(self) -> list[str]:
        """Paths of the data files as DuckDB reads them."""
        return [path_of(entry.data_file) for entry in self.data]

    @property
    def rows(self) -> int:
        """Number of rows of the data files, with dead ones."""
        return sum(entry.data_file.record_count for entry in self.data)


def path_of(file: DataFile) -> str:
    """Return a file's path without the scheme of local files."""
    return file.file_path.removeprefix("file://")


def live_files(table: Table, snapshot_id: int | None = None) -> LiveFiles:
    """Return the files of a version of the table; default: the present one.

    Raises `LakeError` for an expired snapshot, for which PyIceberg would list no files, and for
    delete files of other kinds than position deletes in Parquet.
    """
    snapshot = table.snapshot_by_id(snapshot_id) if snapshot_id else table.current_snapshot()
    if snapshot is None and snapshot_id is not None:
        name = table.name()[-1]
        label = name.removesuffix("_snapshot")
        raise LakeError(
            f"table {name} has no snapshot {snapshot_id}, which a baseline of the capture log "
            "needs: another engine has expired it",
            fix=f"materialise {label}/pitr_export for a new baseline, then `cdc-pipeline "
            f"reconcile {label} --full --repair`, which discards the lost one",
        )
    live = LiveFiles([], [])
    for entry in live_entries(table, snapshot):
        file = entry.data_file
        if file.content == DataFileContent.DATA:
            live.data.append(entry)
        elif (
            file.content == DataFileContent.POSITION_DELETES
            and file.file_format == FileFormat.PARQUET
        ):
            live.deletes.append(entry)
        else:
            raise LakeError(
                f"table {'.'.join(table.name())} has row-level deletes of another engine that are "
                "not position deletes in Parquet",
                fix="compact it with the engine that wrote them",
            )
    for entries in (live.data, live.deletes):
        entries.sort(key=lambda entry: path_of(entry.data_file))
    return live


def live_entries(table: Table, snapshot: Snapshot | None) -> Iterator[ManifestEntry]:
    """Yield the entries of all files of a version: data files and delete files."""
    for manifest in snapshot.manifests(table.io) if snapshot else ():
        yield from manifest.fetch_manifest_entry(table.io, discard_deleted=True)


def data_files(table: Table, snapshot_id: int | None = None) -> list[str]:
    """Return the paths of a version's data files, for tables that never have dead rows.

    Raises the errors of `live_files`, and `LakeError` for any row-level deletes.
    """
    live = live_files(table, snapshot_id)
    if live.deletes:
        raise LakeError(
            f"table {'.'.join(table.name())} has row-level deletes of another engine",
            fix="compact it with the engine that wrote them",
        )
    return live.paths


def referenced_files(table: Table) -> set[str]:
    """Return every file that a snapshot or the metadata log of the table names."""
    files = {table.metadata_location}
    files.update(earlier.metadata_file for earlier in table.metadata.metadata_log)
    manifests: set[str] = set()
    files.update(description_files(table))
    files.update(checksum_lists(table))
    for snapshot in table.metadata.snapshots:
        files.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path in manifests:
                continue
            manifests.add(manifest.manifest_path)
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=False)
            files.update(entry.data_file.file_path for entry in entries)
    return {path.removeprefix("file://") for path in files | manifests}
