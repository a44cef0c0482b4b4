"""Maintenance: merges small objects, expires snapshots, removes unreferenced files."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cdc_pipeline.aws.s3.objects import StoredFile
from cdc_pipeline.core.names import is_landing_name
from cdc_pipeline.lake.iceberg.checksums import checksum_folder
from cdc_pipeline.lake.iceberg.files import referenced_files
from cdc_pipeline.lake.iceberg.properties import description_folder
from cdc_pipeline.lake.iceberg.tables import CommitConflictError, ExpiryIgnoredError
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import kept_baselines, tag_baselines
from cdc_pipeline.lake.publish.entity_tables import entity_tables
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline.lake.storage.compaction import Compaction, compact_landing, remove_replaced
from cdc_pipeline.lake.storage.store import TEMPORARY

_TABLE_KINDS = ("snapshot", "current_state", "tombstones", "cdc", "ttl_archive")


@dataclass
class MaintenanceResult:
    """Result of maintenance. `files` and `bytes`: removed because they were unreferenced.

    `not_expired`: tables whose catalogue ignores expiry.
    """

    compaction: Compaction = field(default_factory=Compaction)
    replaced_removed: int = 0
    snapshots_expired: int = 0
    not_expired: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def removed(self, files: Iterable[StoredFile]) -> None:
        """Count removed files."""
        for file in files:
            self.files += 1
            self.bytes += file.bytes


def maintain_table(table: TableLake) -> MaintenanceResult:
    """Maintain one table's landing zone and Iceberg tables; safe beside all other runs.

    Keeps everything that a log entry or a kept snapshot names, and the snapshots of the log's
    baselines, from which time travel starts. Raises `LakeError`.
    """
    options, log = table.lake.settings.maintenance, table.log
    base = published_base(table)
    result = MaintenanceResult(compact_landing(log, base.after if base else 0))
    replaced_us = options.keep_replaced_minutes * 60_000_000
    result.replaced_removed = remove_replaced(log, log.now_us() - replaced_us)
    _remove_unlogged(table, result)
    with suppress(CommitConflictError):  # the next maintenance tags them
        tag_baselines(table)
    baselines = {baseline.snapshot_id for baseline in kept_baselines(log.load())}
    for kind in (*_TABLE_KINDS, *entity_tables(table)):
        _maintain_iceberg(table.lake, f"{table.safe_name}_{kind}", baselines, result)
    return result


def maintain_aggregate(lake: Lake, name: str) -> MaintenanceResult:
    """Maintain the Iceberg table of an aggregate."""
    result = MaintenanceResult()
    _maintain_iceberg(lake, name, set(), result)
    return result


def _remove_unlogged(table: TableLake, result: MaintenanceResult) -> None:
    """Remove objects of killed runs from the landing zone, and old temporary files."""
    log, paths = table.log, table.paths
    old = [
        file
        for zone in (paths.landing, paths.quarantine)
        for file in _old_files(table.lake, zone)
        if is_landing_name(file.key)
    ]
    # Load the log after listing the files, so that it names those logged in between.
    state = log.load()
    live = state.objects.keys() | state.replaced.keys()
    unlogged = [
        file for file in old if file.key not in live and not state.may_be_quarantined(file.key)
    ]
    _remove(table.lake, unlogged, result)
    # Unfinished exports and folds: a run that resumes one converts or sorts again.
    folders = (TEMPORARY, paths.staging, paths.work)
    temporary = [file for folder in folders for file in _old_files(table.lake, folder)]
    _remove(table.lake, temporary, result)


def _maintain_iceberg(
    lake: Lake, name: str, keep: set[int | None], result: MaintenanceResult
) -> None:
    folders = (
        f"iceberg/{lake.database}/{name}/",
        description_folder(lake.database, name),
        checksum_folder(lake.database, name),
    )
    old = [file for folder in folders for file in _old_files(lake, folder)]
    table = lake.iceberg.load(name)
    if table is None:
        return  # not committed to yet: the files may belong to a first commit in progress
    until = datetime.now(UTC) - timedelta(days=lake.settings.maintenance.keep_snapshot_days)
    try:
        result.snapshots_expired += lake.iceberg.expire(table, until, keep)
    except ExpiryIgnoredError:
        result.not_expired.append(name)
    table = lake.iceberg.load(name)
    assert table is not None  # loaded before
    referenced = referenced_files(table)
    _remove(lake, [f for f in old if lake.store.uri(f.key) not in referenced], result)


def _old_files(lake: Lake, prefix: str) -> Iterator[StoredFile]:
    """Yield files too old to become referenced by a running writer."""
    hours = lake.settings.maintenance.unreferenced_hours
    until = datetime.now(UTC).timestamp() - hours * 3600
    return (file for file in lake.store.files(prefix) if file.modified < until)


def _remove(lake: Lake, files: list[StoredFile], result: MaintenanceResult) -> None:
    lake.store.delete(file.key for file in files)
    result.removed(files)
