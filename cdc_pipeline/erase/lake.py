"""Removal of an item from each place of the lake.

Each removal can be killed at any time and run again. Landing objects are replaced through the
capture log, as by compaction. Iceberg tables get a new snapshot without the item; all earlier
snapshots and the files that only they name are deleted at once. A writer that computed its rows
from an earlier snapshot can then no longer commit them.
"""

import time
import zlib
from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table.refs import MAIN_BRANCH

from cdc_pipeline.aws.s3.objects import S3Store, StoredFile
from cdc_pipeline.core.errors import LakeError, NotReadyError, QueryError
from cdc_pipeline.core.log.entries import LandedObject, QuarantinedObject, RemovedRows
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import entry_number, is_landing_name
from cdc_pipeline.core.plans.erasure import ItemTrace
from cdc_pipeline.erase.files import is_parquet, without_lines, without_rows
from cdc_pipeline.erase.places import (
    SearchedPrefix,
    aggregates_of,
    files_with_item,
    iceberg_folder,
    key_columns,
)
from cdc_pipeline.lake.iceberg.files import live_files, referenced_files
from cdc_pipeline.lake.iceberg.properties import PROPERTY, description_folder
from cdc_pipeline.lake.iceberg.tables import CommitConflictError, retry_on_conflict
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import TAG, record_baseline, tag_baselines
from cdc_pipeline.lake.publish.cdc import ROWS
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.state.rewrite import rewrite_without
from cdc_pipeline.lake.storage.compaction import remove_replaced
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA, count_reasons, write_object
from cdc_pipeline.lake.storage.log import CaptureLog, new_nonce
from cdc_pipeline.lake.storage.store import TEMPORARY, Store

_ATTEMPTS = 5
_TEMPORARY_SECONDS = 60
"""An older temporary file of a local lake is one of a killed writer."""

_T = TypeVar("_T")


def erase_landed(log: CaptureLog, trace: ItemTrace) -> RemovedRows:
    """Replace landing objects by ones without the item; delete all replaced objects."""
    remove_replaced(log, _tomorrow_us(log))
    state = log.load()
    holdings = list(files_with_item(SearchedPrefix("landing", log.store, log.paths.landing), trace))
    for holding in holdings:
        if holding.key in state.objects:
            _replace_object(log, state, state.objects[holding.key], trace)
        elif _is_orphan(holding.key, state):
            log.store.delete([holding.key])
        elif not is_landing_name(holding.key):
            rewrite_file(log.store, holding.key, trace)
        # The others have no entry yet; their writer will lose the race for it.
    remove_replaced(log, _tomorrow_us(log))
    return RemovedRows("landing", len(holdings), sum(holding.rows for holding in holdings))


def _tomorrow_us(log: CaptureLog) -> int:
    """Return a time after every replacement, so that all replaced objects are removed."""
    return log.now_us() + 24 * 3600 * 1_000_000


def _is_orphan(key: str, state: LogState) -> bool:
    """Whether no entry will name an object: its writer was killed, or its inputs are replaced."""
    return is_landing_name(key) and (entry_number(key) or 0) <= state.n


def _replace_object(
    log: CaptureLog, state: LogState, landed: LandedObject, trace: ItemTrace
) -> None:
    data = log.store.read(landed.key)
    if data is None:
        return  # merged meanwhile; the next round finds the merged object
    rows = without_rows(data, trace)
    written: tuple[LandedObject, ...] = ()
    if rows.num_rows:
        day, entry = date.fromisoformat(landed.day), landed.entry
        key = log.paths.compacted(day, entry, entry, new_nonce())
        written = (
            write_object(
                log.store, key, [rows.cast(LANDING_SCHEMA)], landed.generation, through=entry
            ),
        )
    parts = {"objects": written, "replaced": (landed.key,)}
    if not log.commit(state, lambda now: parts if landed.key in now.objects else None):
        log.store.delete(other.key for other in written)


def erase_quarantined(log: CaptureLog, trace: ItemTrace) -> RemovedRows:
    """Rewrite quarantine files without the item's lines; an empty file stays, the log names it."""
    state, store = log.load(), log.store
    holdings = list(
        files_with_item(SearchedPrefix("quarantine", store, log.paths.quarantine), trace)
    )
    for holding in holdings:
        if not log.names_quarantined(state, holding.key):
            rewrite_file(store, holding.key, trace)
            continue
        lines = store.read(holding.key) or b""
        kept = without_lines(lines, trace)
        reasons = count_reasons(kept)
        before = None if holding.key in state.quarantined else count_reasons(lines)
        counted = QuarantinedObject(holding.key, sum(reasons.values()), reasons, before)
        # Log the counts first: after a crash in between, the lines are found and counted again.
        log.commit(state, lambda _, counted=counted: {"quarantined": (counted,)})
        store.write(holding.key, kept)
    return RemovedRows("quarantine", len(holdings), sum(holding.rows for holding in holdings))


def erase_files(place: SearchedPrefix, trace: ItemTrace) -> RemovedRows:
    """Rewrite files that no log names, without the item; delete those that would be empty."""
    holdings = list(files_with_item(place, trace))
    for holding in holdings:
        rewrite_file(place.store, holding.key, trace)
    return RemovedRows(place.name, len(holdings), sum(holding.rows for holding in holdings))


def rewrite_file(store: Store, key: str, trace: ItemTrace) -> None:
    """Rewrite a file without the item, or delete it if it holds nothing else."""
    data = store.read(key)
    if data is None:
        return
    if is_parquet(data):
        rows = without_rows(data, trace)
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        rest = sink.getvalue().to_pybytes() if rows.num_rows else b""
    else:
        try:
            rest = without_lines(data, trace)
        except (OSError, EOFError, zlib.error):
            rest = b""  # not readable to its end, and the readable part holds the item
    if rest and rest != data:
        store.write(key, rest)
    else:
        store.delete([key])


def erase_scratch(table: TableLake) -> RemovedRows:
    """Delete what unfinished runs have converted or sorted, and temporary files."""
    keys = [*table.lake.store.list(table.paths.staging), *table.lake.store.list(table.paths.work)]
    before = time.time() - _TEMPORARY_SECONDS
    keys += [file.key for file in table.lake.store.files(TEMPORARY) if file.modified < before]
    table.lake.store.delete(keys)
    return RemovedRows("scratch", len(keys), 0)


def erase_state_rows(table: TableLake, trace: ItemTrace) -> None:
    """Remove the item from `current_state` only.

    This precedes its removal from the landing zone, or readers would see the item again once its
    delete is removed.
    """
    retry_on_conflict(
        partial(_remove_rows, table.lake, f"{table.safe_name}_current_state", "_key", trace)
    )


def erase_iceberg(table: TableLake, kind: str, trace: ItemTrace) -> RemovedRows:
    """Remove the item from an Iceberg table of the table, including all its versions.

    In `snapshot`, every baseline gets a new snapshot without the item, which the log then names.
    Columns of a baseline whose type has changed since become empty in it; `_item`, from which
    states are made, stays the same. Raises `CommitConflictError`, `LakeError`.
    """
    name = f"{table.safe_name}_{kind}"
    files = _files(table.lake, name)
    rows, kept = 0, set()
    if kind == "snapshot":
        rows, kept = _erase_baselines(table, trace)
    rows += retry_on_conflict(
        partial(_remove_rows, table.lake, name, key_columns(table)[kind], trace)
    )
    return RemovedRows(kind, _forget_versions(table.lake, name, files, kept), rows)


def _remove_rows(lake: Lake, name: str, column: str, trace: ItemTrace) -> int:
    table = lake.iceberg.load(name)
    if table is None:
        return 0
    if live_files(table).deletes:
        # Rows that are dead for readers are still in the files.
        return rewrite_without(lake, table, trace.keys)
    committed, removed = lake.iceberg.remove_rows(table, column, trace.keys)
    # Verification compares each day of cdc with the recorded number of rows.
    prefix = f"{PROPERTY}{ROWS}."
    days = [n.removeprefix(prefix) for n in committed.properties if n.startswith(prefix)]
    if removed and days:
        left = {str(day): rows for day, rows in lake.iceberg.rows_by_day(committed).items()}
        counts = {f"{ROWS}.{day}": str(left.get(day, 0)) for day in days}
        lake.iceberg.set_properties(committed, counts)
    return removed


def _erase_baselines(table: TableLake, trace: ItemTrace) -> tuple[int, set[int | None]]:
    log = table.log
    state = log.load()
    staged = table.iceberg("snapshot")
    # Snapshots of discarded shadows may have expired.
    existing = {snapshot.snapshot_id for snapshot in staged.metadata.snapshots} if staged else set()
    rows = 0
    for generation, baseline in sorted(state.baselines.items()):
        if baseline.snapshot_id is None or baseline.snapshot_id not in existing:
            continue
        erase = partial(_erase_baseline, table, baseline.snapshot_id, generation, trace)
        snapshot_id, removed = retry_on_conflict(erase)
        rows += removed
        items = (baseline.items or 0) - removed
        record_baseline(log, state, baseline, snapshot_id=snapshot_id, items=items)
    tag_baselines(table)  # or the tags would keep the snapshots with the item
    return rows, {baseline.snapshot_id for baseline in log.load().baselines.values()}


def _erase_baseline(
    table: TableLake, snapshot_id: int, generation: int, trace: ItemTrace
) -> tuple[int, int]:
    """Commit a copy of a snapshot without the item, on a temporary branch.

    Returns the new snapshot's id and the number of removed rows.
    """
    staged = table.iceberg("snapshot")
    assert staged is not None  # committed, by the log
    branch = f"erase_{generation}"
    table.lake.iceberg.branch(staged, branch, snapshot_id)
    staged, removed = table.lake.iceberg.remove_rows(staged, "_key", trace.keys, branch)
    snapshot_id = staged.metadata.refs[branch].snapshot_id
    table.lake.iceberg.drop_branch(staged, branch)
    return snapshot_id, removed


def _forget_versions(
    lake: Lake, name: str, files: list[StoredFile], keep: Collection[int | None]
) -> int:
    """Expire all versions except the present one and `keep`; delete files that only they name.

    `files`: the table's files before the item was removed. Newer ones may belong to a commit in
    progress; such a commit cannot be based on an earlier version. Returns the number of deleted
    files.
    """
    table = lake.iceberg.load(name)
    if table is None:
        return 0
    others = [n for n in table.metadata.refs if n != MAIN_BRANCH and not n.startswith(TAG)]
    if others:
        raise LakeError(
            f"table {name}: earlier versions may hold the item, and tags or branches of another "
            f"engine keep some: {', '.join(sorted(others))}",
            fix="drop them with the engine that made them, then erase again",
        )
    prefix = f"{lake.store.uri('').rstrip('/')}/"
    old = {file.key for file in files}
    for _ in range(_ATTEMPTS):
        # Expiry itself writes manifests that name removed files.
        old |= {
            uri.removeprefix(prefix) for uri in referenced_files(table) if uri.startswith(prefix)
        }
        lake.iceberg.expire(table, datetime.now(UTC) + timedelta(days=1), keep)
        table = lake.iceberg.load(name)
        assert table is not None  # loaded before
        kept = {table.metadata.current_snapshot_id, *keep}
        if all(snapshot.snapshot_id in kept for snapshot in table.metadata.snapshots):
            break
    else:
        raise CommitConflictError(
            f"table {name}: other writers kept committing while earlier versions were expired",
            fix="run it again",
        )
    referenced = referenced_files(table)
    unreferenced = sorted(key for key in old if lake.store.uri(key) not in referenced)
    lake.store.delete(unreferenced)
    return len(unreferenced)


def rebuild_aggregates(table: TableLake) -> tuple[list[RemovedRows], list[str]]:
    """Rebuild every aggregate with rows from the table, all its days; expire earlier versions.

    Returns the removed files and the names of aggregates that could not be built: these still
    include the item.
    """
    removed, stale = [], []
    for aggregate in aggregates_of(table):
        files = _files(table.lake, aggregate.table)
        built = table.lake.iceberg.load(aggregate.table)
        if built is None:
            continue
        days = sorted(table.lake.iceberg.days(built)) if aggregate.daily else [None]
        try:
            for day in days:
                build_aggregate(table.lake, aggregate, day)
        except (NotReadyError, QueryError):
            stale.append(aggregate.name)
            continue
        retry_on_conflict(partial(_remove_nothing, table.lake, aggregate.table))
        files_removed = _forget_versions(table.lake, aggregate.table, files, ())
        removed.append(RemovedRows(f"aggregates.{aggregate.name}", files_removed, 0))
    return removed, stale


def _remove_nothing(lake: Lake, name: str) -> None:
    """Commit a new snapshot whose manifests name only existing files."""
    table = lake.iceberg.load(name)
    if table is not None:
        lake.iceberg.remove_rows(table, "", ())


def erase_versions(places: Iterable[SearchedPrefix]) -> RemovedRows:
    """Delete every earlier S3 version and delete marker under these prefixes.

    Not only those with the item, which cannot be determined: Iceberg's manifests have parts of
    values.
    """
    count = 0
    for place in places:
        if isinstance(place.store, S3Store):
            versions = list(place.store.old_versions(place.prefix))
            place.store.delete_versions(versions)
            count += len(versions)
    return RemovedRows("versions", count, 0)


def _files(lake: Lake, name: str) -> list[StoredFile]:
    """Return the files in the folders of an Iceberg table, including its descriptions."""
    folders = (iceberg_folder(lake, name), description_folder(lake.database, name))
    return [file for folder in folders for file in lake.store.files(folder)]
