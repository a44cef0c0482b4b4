"""Erasing one item from the lake: where it can lie, finding it there, and removing it.

Each removal may be killed at any moment and run again. Landing objects are replaced through the
capture log, as compaction does it; Iceberg tables get a new snapshot without the item, and all
earlier ones go at once with the files that only they named. Whoever computed something from what
was there before can then no longer commit it.
"""

import time
import zlib
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from graphlib import TopologicalSorter
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table.refs import MAIN_BRANCH

from cdc_pipeline.aws.s3.objects import S3Store, StoredFile
from cdc_pipeline.core.errors import LakeError, NotReadyError, QueryError, SettingsError
from cdc_pipeline.core.log.entries import LandedObject, QuarantinedObject, Removed
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import entry_number, is_landing_name
from cdc_pipeline.core.plans.erasure import ItemTrace
from cdc_pipeline.erase.files import count_held, is_parquet, without_lines, without_rows
from cdc_pipeline.lake.engine.masking import sources_of
from cdc_pipeline.lake.iceberg.foreign_files import NamedFiles
from cdc_pipeline.lake.iceberg.tables import (
    PROPERTY,
    CommitConflictError,
    described_in,
    over_conflicts,
    referenced_files,
)
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import TAG, record_baseline, tag_baselines
from cdc_pipeline.lake.publish.cdc import ROWS
from cdc_pipeline.lake.publish.entity_tables import entity_tables
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.storage.compaction import remove_replaced
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA, count_reasons, write_object
from cdc_pipeline.lake.storage.log import CaptureLog, new_nonce
from cdc_pipeline.lake.storage.store import TEMPORARY, Store
from cdc_pipeline.transform.aggregates import Aggregate, broken_aggregates, load_aggregates

KEY_COLUMNS = {
    "current_state": "_key",
    "tombstones": "item_key",
    "cdc": "keys",
    "ttl_archive": "keys",
    "snapshot": "_key",
}
"""The Iceberg tables of a DynamoDB table, and the column of each that holds items' keys.

Tables of entities come with them: `key_columns`.
"""

_READERS = 8
_ATTEMPTS = 5
_TEMPORARY_SECONDS = 60
"""A file of a local lake has its name sooner than that, or its writer was killed."""

_T = TypeVar("_T")


def key_columns(table: TableLake) -> dict[str, str]:
    """`KEY_COLUMNS` with the tables of the table's entities."""
    return KEY_COLUMNS | dict.fromkeys(entity_tables(table), "_key")


@dataclass(frozen=True)
class Place:
    """A part of a store where an item can lie."""

    name: str
    store: Store
    prefix: str


@dataclass(frozen=True)
class Holding:
    """A file that holds the item; `rows`: rows, lines or entries of it that do."""

    place: str
    key: str
    rows: int


def lake_places(table: TableLake) -> list[Place]:
    """Every prefix of the lake under which something of the table's items can lie."""
    paths, store = table.paths, table.lake.store
    names = {kind: f"{table.safe_name}_{kind}" for kind in key_columns(table)}
    names |= {f"aggregates.{a.name}": a.table for a in _aggregates(table)}
    iceberg = [
        place for kind, name in names.items() for place in _table_places(table.lake, kind, name)
    ]
    return [
        Place("landing", store, paths.landing),
        Place("quarantine", store, paths.quarantine),
        Place("backups", store, paths.backups),
        Place("state", store, paths.state),
        Place("temporary", store, TEMPORARY),
        *iceberg,
    ]


def _table_places(lake: Lake, place: str, name: str) -> Iterator[Place]:
    """The table's folder in the lake, and its files if the catalogue has put it elsewhere."""
    yield Place(place, lake.store, _iceberg(lake, name))
    table = lake.iceberg.load(name)
    if table is not None and not lake.iceberg.is_placed(table):
        yield Place(place, NamedFiles(lake.iceberg, name), "")


def find_item(places: Iterable[Place], trace: ItemTrace) -> list[Holding]:
    """Read every file and tell which hold the item."""
    return [holding for place in places for holding in _look(place, trace)]


def _look(place: Place, trace: ItemTrace) -> Iterator[Holding]:
    files = list(place.store.files(place.prefix))

    def count(file: StoredFile) -> int:
        data = place.store.read(file.key)
        return count_held(data, trace) if data is not None else 0

    with ThreadPoolExecutor(_READERS) as pool:
        for file, rows in zip(files, pool.map(count, files), strict=True):
            if rows:
                yield Holding(place.name, file.key, rows)


def erase_landed(log: CaptureLog, trace: ItemTrace) -> Removed:
    """Replace landing objects by ones without the item, and delete them and all replaced ones."""
    remove_replaced(log, _ever(log))
    state = log.load()
    found = list(_look(Place("landing", log.store, log.paths.landing), trace))
    for holding in found:
        if holding.key in state.objects:
            _replace_object(log, state, state.objects[holding.key], trace)
        elif _is_orphan(holding.key, state):
            log.store.delete([holding.key])
        elif not is_landing_name(holding.key):
            rewrite_file(log.store, holding.key, trace)
        # What is left is on its way, and its writer will see that it lost.
    remove_replaced(log, _ever(log))
    return Removed("landing", len(found), sum(holding.rows for holding in found))


def _ever(log: CaptureLog) -> int:
    return log.now_us() + 24 * 3600 * 1_000_000


def _is_orphan(key: str, state: LogState) -> bool:
    """Of a writer that was killed, or that can no longer log it: what it merged is replaced."""
    return is_landing_name(key) and (entry_number(key) or 0) <= state.n


def _replace_object(
    log: CaptureLog, state: LogState, landed: LandedObject, trace: ItemTrace
) -> None:
    data = log.store.read(landed.key)
    if data is None:
        return  # merged meanwhile: the next round finds it
    rows = without_rows(data, trace)
    made: tuple[LandedObject, ...] = ()
    if rows.num_rows:
        day, entry = date.fromisoformat(landed.day), landed.entry
        key = log.paths.compacted(day, entry, entry, new_nonce())
        made = (
            write_object(
                log.store, key, [rows.cast(LANDING_SCHEMA)], landed.generation, through=entry
            ),
        )
    step = {"objects": made, "replaced": (landed.key,)}
    if not log.commit(state, lambda now: step if landed.key in now.objects else None):
        log.store.delete(other.key for other in made)


def erase_quarantined(log: CaptureLog, trace: ItemTrace) -> Removed:
    """Rewrite quarantined lines without the item's; a file without lines stays, for the log."""
    state, store = log.load(), log.store
    found = list(_look(Place("quarantine", store, log.paths.quarantine), trace))
    for holding in found:
        if not log.names_quarantined(state, holding.key):
            rewrite_file(store, holding.key, trace)
            continue
        lines = store.read(holding.key) or b""
        kept = without_lines(lines, trace)
        reasons = count_reasons(kept)
        was = None if holding.key in state.quarantined else count_reasons(lines)
        counted = QuarantinedObject(holding.key, sum(reasons.values()), reasons, was)
        # Counts first: after a crash in between the lines are found again, and counted again.
        log.commit(state, lambda _, counted=counted: {"quarantined": (counted,)})
        store.write(holding.key, kept)
    return Removed("quarantine", len(found), sum(holding.rows for holding in found))


def erase_files(place: Place, trace: ItemTrace) -> Removed:
    """Rewrite files that no log names; one that would be empty is deleted."""
    found = list(_look(place, trace))
    for holding in found:
        rewrite_file(place.store, holding.key, trace)
    return Removed(place.name, len(found), sum(holding.rows for holding in found))


def rewrite_file(store: Store, key: str, trace: ItemTrace) -> None:
    """Write a file again without the item, or delete it if nothing else is in it."""
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
            rest = b""  # it cannot be read to its end, and what can be holds the item
    if rest and rest != data:
        store.write(key, rest)
    else:
        store.delete([key])


def erase_scratch(table: TableLake) -> Removed:
    """Delete what is kept to be quick after a kill: converted exports, files without a name."""
    keys = list(table.lake.store.list(table.paths.staging))
    before = time.time() - _TEMPORARY_SECONDS
    keys += [file.key for file in table.lake.store.files(TEMPORARY) if file.modified < before]
    table.lake.store.delete(keys)
    return Removed("scratch", len(keys), 0)


def erase_state_rows(table: TableLake, trace: ItemTrace) -> None:
    """Take the item out of `current_state` alone.

    Before its changes leave the landing zone: readers would see it again once its delete is gone.
    """
    over_conflicts(
        partial(_remove_rows, table.lake, f"{table.safe_name}_current_state", "_key", trace)
    )


def erase_iceberg(table: TableLake, kind: str, trace: ItemTrace) -> Removed:
    """Take the item out of one of the table's Iceberg tables, all its versions included.

    Of `snapshot` every baseline stays, in a snapshot of its own without the item, and the log
    names the new one. Columns of a baseline whose type has changed since are empty in it then;
    `_item`, which states are made from, is as it was. Raises `CommitConflictError`, `LakeError`.
    """
    name = f"{table.safe_name}_{kind}"
    files = _files(table.lake, name)
    rows, kept = 0, set()
    if kind == "snapshot":
        rows, kept = _erase_baselines(table, trace)
    rows += over_conflicts(partial(_remove_rows, table.lake, name, key_columns(table)[kind], trace))
    return Removed(kind, _forget_versions(table.lake, name, files, kept), rows)


def _remove_rows(lake: Lake, name: str, column: str, trace: ItemTrace) -> int:
    found = lake.iceberg.load(name)
    if found is None:
        return 0
    committed, removed = lake.iceberg.remove_rows(found, column, trace.keys)
    # Verification compares the days of cdc with how many rows they were built with.
    start = f"{PROPERTY}{ROWS}."
    days = [n.removeprefix(start) for n in committed.properties if n.startswith(start)]
    if removed and days:
        left = {str(day): rows for day, rows in lake.iceberg.rows_by_day(committed).items()}
        counts = {f"{ROWS}.{day}": str(left.get(day, 0)) for day in days}
        lake.iceberg.set_properties(committed, counts)
    return removed


def _erase_baselines(table: TableLake, trace: ItemTrace) -> tuple[int, set[int | None]]:
    log = table.log
    state = log.load()
    staged = table.iceberg("snapshot")
    # Those of discarded shadows expire.
    there = {snapshot.snapshot_id for snapshot in staged.metadata.snapshots} if staged else set()
    rows = 0
    for generation, baseline in sorted(state.baselines.items()):
        if baseline.snapshot_id is None or baseline.snapshot_id not in there:
            continue
        erase = partial(_erase_baseline, table, baseline.snapshot_id, generation, trace)
        snapshot_id, removed = over_conflicts(erase)
        rows += removed
        items = (baseline.items or 0) - removed
        record_baseline(log, state, baseline, snapshot_id=snapshot_id, items=items)
    tag_baselines(table)  # else the tags keep the versions that have the item
    return rows, {baseline.snapshot_id for baseline in log.load().baselines.values()}


def _erase_baseline(
    table: TableLake, snapshot_id: int, generation: int, trace: ItemTrace
) -> tuple[int, int]:
    """A snapshot like this one without the item, on a branch of its own: its id, rows removed."""
    found = table.iceberg("snapshot")
    assert found is not None  # the log says that it was committed
    name = f"erase_{generation}"
    table.lake.iceberg.branch(found, name, snapshot_id)
    found, removed = table.lake.iceberg.remove_rows(found, "_key", trace.keys, name)
    snapshot_id = found.metadata.refs[name].snapshot_id
    table.lake.iceberg.drop_branch(found, name)
    return snapshot_id, removed


def _forget_versions(
    lake: Lake, name: str, files: list[StoredFile], keep: Collection[int | None]
) -> int:
    """Expire all versions but the present one and those to keep; delete what no other names.

    `files`: what lay there before the item was removed; younger ones may be on their way into a
    commit, but none that was computed from an earlier version can still come to one.
    """
    table = lake.iceberg.load(name)
    if table is None:
        return 0
    others = [n for n in table.metadata.refs if n != MAIN_BRANCH and not n.startswith(TAG)]
    if others:
        raise LakeError(
            f"table {name}: earlier versions may hold the item, and {', '.join(sorted(others))} "
            "(a tag or branch that is not ours) keeps some",
            fix="drop it with the engine that made it, then erase again",
        )
    prefix = f"{lake.store.uri('').rstrip('/')}/"
    old = {file.key for file in files}
    for _ in range(_ATTEMPTS):
        # Removal itself makes manifests of what it removes.
        old |= {
            uri.removeprefix(prefix) for uri in referenced_files(table) if uri.startswith(prefix)
        }
        lake.iceberg.expire(table, datetime.now(UTC) + timedelta(days=1), keep)
        table = lake.iceberg.load(name)
        assert table is not None  # it was there
        kept = {table.metadata.current_snapshot_id, *keep}
        if all(snapshot.snapshot_id in kept for snapshot in table.metadata.snapshots):
            break
    else:
        raise CommitConflictError(
            f"table {name}: other writers kept committing while earlier versions were to go",
            fix="run it again",
        )
    named = referenced_files(table)
    gone = sorted(key for key in old if lake.store.uri(key) not in named)
    lake.store.delete(gone)
    return len(gone)


def rebuild_aggregates(table: TableLake) -> tuple[list[Removed], list[str]]:
    """Build every aggregate that the table is in anew, each of its days; forget its past.

    Also returns those that could not be built: what they hold is still made from the item, too.
    """
    done, stale = [], []
    for aggregate in _aggregates(table):
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
        over_conflicts(partial(_remove_nothing, table.lake, aggregate.table))
        gone = _forget_versions(table.lake, aggregate.table, files, ())
        done.append(Removed(f"aggregates.{aggregate.name}", gone, 0))
    return done, stale


def _remove_nothing(lake: Lake, name: str) -> None:
    """A new snapshot whose manifests name only files that are there."""
    found = lake.iceberg.load(name)
    if found is not None:
        lake.iceberg.remove_rows(found, "", ())


def _aggregates(table: TableLake) -> list[Aggregate]:
    """Aggregates with rows from this table, each behind those that it reads.

    Raises `SettingsError` for one that was built and is broken now: whose rows it has is not known.
    """
    for broken in broken_aggregates(table.lake.settings.aggregates_folder):
        if table.lake.iceberg.load(broken.table) is not None:
            fix = "mend the file, so that its rows can be made anew"
            raise SettingsError(broken.error, fix=fix)
    every = load_aggregates(table.lake.settings.aggregates_folder)
    by_name = {aggregate.name: aggregate for aggregate in every}
    order = TopologicalSorter({a.name: [name for _, name in a.inputs] for a in every})
    sorted_names = [name for name in order.static_order() if name in by_name]
    return [
        by_name[name]
        for name in sorted_names
        if table.settings in sources_of(table.lake, by_name[name], every)
    ]


def erase_versions(places: Iterable[Place]) -> Removed:
    """Delete every earlier version and delete marker under these prefixes, whatever it holds.

    Which of them hold the item cannot be told for sure: manifests of Iceberg hold parts of values.
    """
    count = 0
    for place in places:
        if isinstance(place.store, S3Store):
            versions = list(place.store.old_versions(place.prefix))
            place.store.delete_versions(versions)
            count += len(versions)
    return Removed("versions", count, 0)


def count_versions(places: Iterable[Place]) -> int:
    """Earlier versions and delete markers that S3 still has; a folder keeps none."""
    return sum(
        1
        for place in places
        if isinstance(place.store, S3Store)
        for _ in place.store.old_versions(place.prefix)
    )


def _files(lake: Lake, name: str) -> list[StoredFile]:
    """What lies there of an Iceberg table, its descriptions too."""
    folders = (_iceberg(lake, name), described_in(lake.database, name))
    return [file for folder in folders for file in lake.store.files(folder)]


def _iceberg(lake: Lake, name: str) -> str:
    return f"iceberg/{lake.database}/{name}/"
