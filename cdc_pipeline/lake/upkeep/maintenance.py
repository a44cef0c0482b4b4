"""Maintenance: merging small objects, expiring snapshots, removing what nothing refers to."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cdc_pipeline.aws.s3.objects import StoredFile
from cdc_pipeline.core.names import is_landing_name
from cdc_pipeline.lake.iceberg.tables import (
    CommitConflictError,
    ExpiryIgnoredError,
    described_in,
    referenced_files,
)
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import kept_baselines, tag_baselines
from cdc_pipeline.lake.publish.current_state import published_base
from cdc_pipeline.lake.publish.entity_tables import entity_tables
from cdc_pipeline.lake.storage.compaction import Compaction, compact_landing, remove_replaced
from cdc_pipeline.lake.storage.store import TEMPORARY

_OF_A_TABLE = ("snapshot", "current_state", "tombstones", "cdc", "ttl_archive")


@dataclass
class Upkeep:
    """What was done. `files` and `bytes`: removed because nothing referred to them any more.

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


def maintain_table(table: TableLake) -> Upkeep:
    """Tidy up one table's landing zone and Iceberg tables; safe beside everything else.

    Never touches what a log entry or a kept snapshot names, nor the snapshots that are baselines
    of the log: time travel starts from them. Raises `LakeError`.
    """
    options, log = table.lake.settings.maintenance, table.log
    base = published_base(table)
    done = Upkeep(compact_landing(log, base.after if base else 0))
    replaced_us = options.keep_replaced_minutes * 60_000_000
    done.replaced_removed = remove_replaced(log, log.now_us() - replaced_us)
    _remove_unlogged(table, done)
    with suppress(CommitConflictError):  # the next maintenance will do
        tag_baselines(table)
    baselines = {baseline.snapshot_id for baseline in kept_baselines(log.load())}
    for kind in (*_OF_A_TABLE, *entity_tables(table)):
        _maintain_iceberg(table.lake, f"{table.safe_name}_{kind}", baselines, done)
    return done


def maintain_aggregate(lake: Lake, name: str) -> Upkeep:
    """Tidy up the Iceberg table of an aggregate."""
    done = Upkeep()
    _maintain_iceberg(lake, name, set(), done)
    return done


def _remove_unlogged(table: TableLake, done: Upkeep) -> None:
    """Remove what killed runs left in the landing zone, of any day."""
    log, paths = table.log, table.paths
    found = [
        file
        for zone in (paths.landing, paths.quarantine)
        for file in _old_files(table.lake, zone)
        if is_landing_name(file.key)
    ]
    # The log after the files: what was logged in between is in it.
    state = log.load()
    live = state.objects.keys() | state.replaced.keys()
    unlogged = [
        file for file in found if file.key not in live and not state.may_be_quarantined(file.key)
    ]
    _remove(table.lake, unlogged, done)
    # Converted files of an export that a run left unfinished; who takes it up converts them again.
    _remove(
        table.lake,
        [*_old_files(table.lake, TEMPORARY), *_old_files(table.lake, paths.staging)],
        done,
    )


def _maintain_iceberg(lake: Lake, name: str, keep: set[int | None], done: Upkeep) -> None:
    folders = (f"iceberg/{lake.database}/{name}/", described_in(lake.database, name))
    found = [file for folder in folders for file in _old_files(lake, folder)]
    table = lake.iceberg.load(name)
    if table is None:
        return  # never committed to: what lies there may be a first commit under way
    until = datetime.now(UTC) - timedelta(days=lake.settings.maintenance.keep_snapshot_days)
    try:
        done.snapshots_expired += lake.iceberg.expire(table, until, keep)
    except ExpiryIgnoredError:
        done.not_expired.append(name)
    table = lake.iceberg.load(name)
    assert table is not None  # it was there
    referenced = referenced_files(table)
    _remove(lake, [f for f in found if lake.store.uri(f.key) not in referenced], done)


def _old_files(lake: Lake, prefix: str) -> Iterator[StoredFile]:
    """Files old enough that no writer can still be about to refer to them."""
    hours = lake.settings.maintenance.unreferenced_hours
    until = datetime.now(UTC).timestamp() - hours * 3600
    return (file for file in lake.store.files(prefix) if file.modified < until)


def _remove(lake: Lake, files: list[StoredFile], done: Upkeep) -> None:
    lake.store.delete(file.key for file in files)
    done.removed(files)
