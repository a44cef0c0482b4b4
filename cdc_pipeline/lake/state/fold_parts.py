"""The whole state published by workers: what the run asks them, and what it commits.

Changes are sorted in groups of landing objects, then each range of keys is folded on its own. Each
group gives each item's last change only, so a key with many changes is no work for one range.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.items.columns import Stats, subtract_stats
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.workers import Workers
from cdc_pipeline.lake.engine.duckdb_session import open_duckdb
from cdc_pipeline.lake.engine.folding import (
    usable_tombstones,
)
from cdc_pipeline.lake.engine.item_table import (
    TypedResult,
    description_text,
    max_order_key,
    prior_stats,
    size_properties,
)
from cdc_pipeline.lake.engine.live_rows import (
    create_dead_places,
)
from cdc_pipeline.lake.engine.written_files import describe_file, written_files
from cdc_pipeline.lake.iceberg.files import LiveFiles, live_files
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.base import Base, require_whole, watermarks
from cdc_pipeline.lake.state.choice import (
    Choice,
    ColumnGoneError,
    exact_stats,
    guess_choice,
    oldest_generation,
    stays,
)
from cdc_pipeline.lake.state.columns import plan_columns
from cdc_pipeline.lake.state.fold_tasks import (
    COUNT,
    PREPARE,
    SORT,
    WRITE,
    Fold,
    Group,
    PreparedRange,
    RangePart,
    WriteFold,
    WrittenRange,
)
from cdc_pipeline.lake.state.tombstones import (
    commit_tombstones,
    planned_tombstones,
)
from cdc_pipeline.lake.storage.sorted_parts import key_ranges, ranges_between
from cdc_pipeline.transform.shred import (
    merge_stats,
    stats_from_json,
    stats_to_json,
    typed_schema,
)

_GROUP_BYTES = 64 << 20
"""Landing objects that one task sorts, as Parquet."""

_RANGE_BYTES = 256 << 20
"""Files of the base that one task merges."""


def fold_by_workers(
    table: TableLake,
    state: LogState,
    base: Base,
    delta: Sequence[LandedObject],
    masking: Masking,
    workers: Workers,
    prefix: str,
) -> TypedResult:
    """Publish the base with the changes as new files; the same as `fold.publish_fold`.

    `prefix`: of what the workers hand on. Raises also `UnsortedFilesError` and `WorkersError`.
    Memory: descriptions of files.
    """
    live = live_files(base.table, base.snapshot_id)
    alive = _count_alive(table, live)
    require_whole(table.settings, base, alive)
    groups = _groups(delta)
    sorted_parts = workers.map(SORT, _builtins(groups), prefix)
    tombstones = table.iceberg("tombstones")
    newest = max_order_key(base.table) if base.snapshot_id is None else None
    planned_tombstones_ = planned_tombstones(table, tombstones)
    fold = Fold(
        prefix,
        list(base.table.name()),
        _without_versions(base.table),
        [describe_file(entry.data_file, 0) for entry in live.data],
        [describe_file(entry.data_file, 0) for entry in live.deletes],
        base.snapshot_id is not None,
        [group.name for group in groups],
        usable_tombstones(table, tombstones),
        planned_tombstones_.model_dump_json(),
        oldest_generation(base),
        newest is None,
    )
    sample = [key for part in sorted_parts for key in part["sample"]]
    ranges = _ranges(base.table, live, sample)
    prepared = [
        msgspec.convert(done, PreparedRange, str_keys=True)
        for done in workers.map(PREPARE, _builtins(ranges), _builtins(fold))
    ]
    _commit_tombstones(table, tombstones, planned_tombstones_, prepared, masking)
    items = alive + sum(done.changed - done.gone for done in prepared)
    changed = merge_stats(*(stats_from_json(done.stats) for done in prepared))
    plan = plan_columns(table, base.over, masking)
    choice = guess_choice(base, changed, plan)
    newest = max(newest or "", *(done.newest for done in prepared))
    write = partial(_write, table, state, base, fold, ranges, items, newest, workers)
    try:
        if choice is not None:
            return write(choice)
    except ColumnGoneError:
        pass
    kept = _kept_stats(base, live, fold, ranges, workers)
    stats = merge_stats(kept, changed)
    choice = Choice(kept, stats, *plan(stats), is_exact=True)
    return write(choice)


def _count_alive(table: TableLake, live: LiveFiles) -> int:
    with tempfile.TemporaryDirectory() as folder, open_duckdb(table.lake, Path(folder)) as duck:
        return create_dead_places(duck, live)


def _groups(delta: Sequence[LandedObject]) -> list[Group]:
    groups: list[Group] = []
    size = 0
    for landed in delta:
        if not groups or size >= _GROUP_BYTES:
            groups.append(Group(f"changes-{len(groups):06d}", []))
            size = 0
        groups[-1].objects.append(landed)
        size += landed.bytes
    return groups


def _ranges(table: IcebergTable, live: LiveFiles, sample: Sequence[str]) -> list[RangePart]:
    """Return ranges of keys that begin where files of the base do; without such, by the sample."""
    field = table.schema().find_field("_key").field_id
    firsts = sorted((entry.data_file.lower_bounds or {}).get(field, b"") for entry in live.data)
    size = sum(entry.data_file.file_size_in_bytes for entry in live.data)
    count = size // _RANGE_BYTES + 1
    if len(firsts) >= count > 1:
        texts = {_text(firsts[len(firsts) * n // count]) for n in range(1, count)}
        keys = ranges_between(texts - {""})
    else:
        keys = key_ranges(sample, count)
    return [RangePart(number, part) for number, part in enumerate(keys)]


def _text(bound: bytes) -> str:
    """Return a bound as text; any key is a valid bound of ranges."""
    return bound.decode(errors="ignore")


def _commit_tombstones(
    table: TableLake,
    tombstones: IcebergTable | None,
    planned: Any,
    prepared: Sequence[PreparedRange],
    masking: Masking,
) -> None:
    files = [file for done in prepared for file in done.tombstones]
    written = written_files(files, planned.schema().as_arrow(), planned)
    commit_tombstones(table, written, tombstones, masking)


def _kept_stats(
    base: Base, live: LiveFiles, fold: Fold, ranges: Sequence[RangePart], workers: Workers
) -> Stats:
    """Return statistics of the base's rows that stay.

    Those of the last publication without the rows that are gone, if it counted every row.
    """
    prior = prior_stats(base.table) if base.table is base.over else {}
    counted = max((sum(seen.tags.values()) for seen in prior.values()), default=0)
    is_known = counted == live.rows
    arguments = [{"part": part, "gone": is_known} for part in _builtins(ranges)]
    parts = workers.map(COUNT, arguments, _builtins(fold))
    found = merge_stats(*map(stats_from_json, parts))
    return subtract_stats(prior, found) if is_known else found


def _write(
    table: TableLake,
    state: LogState,
    base: Base,
    fold: Fold,
    ranges: Sequence[RangePart],
    items: int,
    newest: str,
    workers: Workers,
    choice: Choice,
) -> TypedResult:
    name, schema = f"{table.safe_name}_current_state", typed_schema(choice.columns)
    planned = table.lake.iceberg.planned(name, schema, over=base.over, key="_key")
    shared = WriteFold(
        fold,
        planned.model_dump_json(),
        choice.columns,
        stats_to_json(choice.stats),
        stays(base, choice.columns, choice.kept),
        not choice.is_exact,
    )
    written = [
        msgspec.convert(done, WrittenRange, str_keys=True)
        for done in workers.map(WRITE, _builtins(ranges), _builtins(shared))
    ]
    rows = sum(done.rows for done in written)
    if rows != items:
        raise LakeError(
            f"table {name}: workers wrote {rows} rows instead of {items}",
            fix=f"cdc-pipeline reconcile {table.safe_name} --full --repair",
        )
    cells, misfits = Counter[str](), Counter[str]()
    for done in written:
        cells.update(done.cells)
        misfits.update(done.misfits)
    stats = exact_stats(choice.stats, choice.columns, None if choice.is_exact else cells)
    files = [file for done in written for file in done.files]
    committed = table.lake.iceberg.replace(
        name,
        written_files(files, schema, planned),
        {**watermarks(base, state), **choice.properties, **size_properties(items, newest)},
        over=base.over,
        key="_key",
        described=description_text(stats, choice.columns, misfits),
    )
    return TypedResult(committed, choice.columns, items)


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _without_versions(table: IcebergTable) -> str:
    """Return the metadata that reading the table's files needs, as JSON."""
    return table.metadata.model_copy(
        update={
            "current_snapshot_id": None,
            "snapshots": [],
            "snapshot_log": [],
            "metadata_log": [],
            "refs": {},
            "properties": {},
        }
    ).model_dump_json()
