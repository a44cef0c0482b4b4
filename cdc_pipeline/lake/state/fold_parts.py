"""The whole state published by workers: changes sorted first, then each range of keys on its own.

A range has the rows of the base, the changes and the tombstones of some keys, and is folded as one
process folds everything (`lake.state.fold`): the same SQL, merge and types. Each group of landing
objects gives each item's last change only, so a key with many changes is no work for one range.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.manifest import DataFileContent, ManifestEntry, ManifestEntryStatus
from pyiceberg.table import Table as IcebergTable
from pyiceberg.table.metadata import TableMetadataUtil

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.items.columns import Column, Stats, subtract_stats
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.workers import Workers
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, literal, open_duckdb
from cdc_pipeline.lake.engine.folding import (
    CHANGED,
    REPLACED,
    create_delta_winners,
    create_effective,
    create_tombstones,
    create_touched_base,
    find_winners,
    usable_tombstones,
)
from cdc_pipeline.lake.engine.item_table import (
    TypedResult,
    description_text,
    max_order_key,
    prior_stats,
    size_properties,
    sorted_batches,
)
from cdc_pipeline.lake.engine.live_rows import (
    create_dead_places,
    dead_rows,
    placed_files,
    placed_relation,
)
from cdc_pipeline.lake.engine.sorted_files import SortedFiles
from cdc_pipeline.lake.engine.written_files import FileDescriptor, commit_name, describe_file
from cdc_pipeline.lake.iceberg.catalog import open_files
from cdc_pipeline.lake.iceberg.checksums import ChecksumIO
from cdc_pipeline.lake.iceberg.files import LiveFiles, live_files
from cdc_pipeline.lake.iceberg.row_delta import DeadRows
from cdc_pipeline.lake.iceberg.writer import WrittenFiles, write_rows
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.base import Base, require_whole, watermarks
from cdc_pipeline.lake.state.choice import (
    Choice,
    ColumnGoneError,
    exact_stats,
    guess_choice,
    merged_rows,
    oldest_generation,
    stays,
    with_cells,
)
from cdc_pipeline.lake.state.columns import plan_columns
from cdc_pipeline.lake.state.tombstones import (
    commit_tombstones,
    planned_tombstones,
    tombstones_after,
)
from cdc_pipeline.lake.storage.sorted_parts import KeyRange, SortedParts, key_ranges, ranges_between
from cdc_pipeline.transform.pinned_types import count_misfits
from cdc_pipeline.transform.shred import (
    NARROW_SCHEMA,
    collect_stats,
    merge_stats,
    stats_from_json,
    stats_to_json,
    typed_schema,
)

SORT, PREPARE, COUNT, WRITE = (
    "sort the changes",
    "fold the changes",
    "count the values",
    "write the state",
)

_GROUP_BYTES = 64 << 20
"""Landing objects that one task sorts, as Parquet."""

_RANGE_BYTES = 256 << 20
"""Files of the base that one task merges."""

_KEY_BYTES_ID = "_key"
_READERS = 8
_CHANGES = pa.schema(
    [
        NARROW_SCHEMA.field("item_key"),
        NARROW_SCHEMA.field("order_key"),
        pa.field("op", pa.string(), nullable=False),
        pa.field("item", pa.string()),
        NARROW_SCHEMA.field("write_time_us"),
    ]
)
_GONE = pa.schema([pa.field("path", pa.string()), pa.field("positions", pa.list_(pa.int64()))])


class _Fold(msgspec.Struct):
    """What every task must know. `metadata`: of the base's table. `is_baseline`: of its version.

    `parts`: names of the sorted changes. `tombstones`: files of them; `planned_tombstones`: the
    metadata for new ones; those before generation `oldest` go.
    """

    prefix: str
    name: list[str]
    metadata: str
    files: list[FileDescriptor]
    deletes: list[FileDescriptor]
    is_baseline: bool
    parts: list[str]
    tombstones: list[str]
    planned_tombstones: str
    oldest: int
    needs_newest: bool


class _Group(msgspec.Struct):
    """Landing objects that one task sorts, and the name of the part that it makes."""

    name: str
    objects: list[LandedObject]


class _Part(msgspec.Struct):
    """A range of keys and its number."""

    number: int
    keys: KeyRange


class _Prepared(msgspec.Struct):
    """The effective changes of a range. `gone`: rows of the base that they replace or delete."""

    changed: int
    gone: int
    newest: str
    stats: str
    tombstones: list[FileDescriptor]


class _Write(msgspec.Struct):
    """What every task that writes must know. `stays`: rows of the base keep their cells."""

    fold: _Fold
    planned: str
    columns: list[Column]
    stats: str
    stays: bool
    counts_cells: bool


class _Written(msgspec.Struct):
    """The files of a range, its cells with a value and its misfits, by attribute."""

    rows: int
    files: list[FileDescriptor]
    cells: dict[str, int]
    misfits: dict[str, int]


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
    fold = _Fold(
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
        msgspec.convert(done, _Prepared, str_keys=True)
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


def _groups(delta: Sequence[LandedObject]) -> list[_Group]:
    groups: list[_Group] = []
    size = 0
    for landed in delta:
        if not groups or size >= _GROUP_BYTES:
            groups.append(_Group(f"changes-{len(groups):06d}", []))
            size = 0
        groups[-1].objects.append(landed)
        size += landed.bytes
    return groups


def _ranges(table: IcebergTable, live: LiveFiles, sample: Sequence[str]) -> list[_Part]:
    """Return ranges of keys that begin where files of the base do; without such, by the sample."""
    field = table.schema().find_field(_KEY_BYTES_ID).field_id
    firsts = sorted((entry.data_file.lower_bounds or {}).get(field, b"") for entry in live.data)
    size = sum(entry.data_file.file_size_in_bytes for entry in live.data)
    count = size // _RANGE_BYTES + 1
    if len(firsts) >= count > 1:
        texts = {_text(firsts[len(firsts) * n // count]) for n in range(1, count)}
        keys = ranges_between(texts - {""})
    else:
        keys = key_ranges(sample, count)
    return [_Part(number, part) for number, part in enumerate(keys)]


def _text(bound: bytes) -> str:
    """Return a bound as text; any key is a valid bound of ranges."""
    return bound.decode(errors="ignore")


def _commit_tombstones(
    table: TableLake,
    tombstones: IcebergTable | None,
    planned: Any,
    prepared: Sequence[_Prepared],
    masking: Masking,
) -> None:
    files = [file for done in prepared for file in done.tombstones]
    written = WrittenFiles(
        [file.data_file(planned.default_spec_id) for file in files],
        {file.path: file.crc32 for file in files},
        planned.schema().as_arrow(),
        planned,
    )
    commit_tombstones(table, written, tombstones, masking)


def _kept_stats(
    base: Base, live: LiveFiles, fold: _Fold, ranges: Sequence[_Part], workers: Workers
) -> Stats:
    """Return statistics of the base's rows that stay, see `choice.counted_stats`."""
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
    fold: _Fold,
    ranges: Sequence[_Part],
    items: int,
    newest: str,
    workers: Workers,
    choice: Choice,
) -> TypedResult:
    name, schema = f"{table.safe_name}_current_state", typed_schema(choice.columns)
    planned = table.lake.iceberg.planned(name, schema, over=base.over, key="_key")
    shared = _Write(
        fold,
        planned.model_dump_json(),
        choice.columns,
        stats_to_json(choice.stats),
        stays(base, choice.columns, choice.kept),
        not choice.is_exact,
    )
    written = [
        msgspec.convert(done, _Written, str_keys=True)
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
        WrittenFiles(
            [file.data_file(planned.default_spec_id) for file in files],
            {file.path: file.crc32 for file in files},
            schema,
            planned,
        ),
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


def sort_changes(table: TableLake, shared: Any, argument: Any) -> Any:
    """Sort the last change of each item in some landing objects; a task of `SORT`."""
    group = msgspec.convert(argument, _Group)
    parts = SortedParts(table.lake.store, shared, _CHANGES)
    kept = parts.kept(group.name)
    if kept is None:
        with (
            tempfile.TemporaryDirectory() as folder,
            open_duckdb(table.lake, Path(folder)) as connection,
        ):
            create_delta_winners(connection, table, group.objects)
            ((count,),) = connection.execute("SELECT count(*) FROM winners").fetchall()
            rows = arrow_batches(
                connection,
                "SELECT c.item_key, c.order_key, c.op, c.item, c.write_time_us FROM changes AS c "
                "JOIN winners AS w ON w.place = c.place ORDER BY c.item_key",
                4_000,  # items are up to 400 kB
            )
            batches = (batch.cast(_CHANGES) for batch in rows)
            kept = parts.keep(group.name, batches, count, "")
    return {"rows": kept.rows, "sample": kept.sample()}


@contextmanager
def _opened(
    table: TableLake, fold: _Fold, keys: KeyRange
) -> Iterator[tuple[IcebergTable, LiveFiles]]:
    """Yield the base's table and those of its files that may have rows in the range."""
    io = open_files(table.lake.settings, table.lake.aws)
    metadata = TableMetadataUtil.parse_raw(fold.metadata)
    base = IcebergTable(tuple(fold.name), metadata, "", io, NoopCatalog("workers"))
    field = metadata.schema().find_field(_KEY_BYTES_ID).field_id
    data = [file for file in fold.files if _may_overlap(file, field, keys)]
    yield (
        base,
        LiveFiles(
            [_entry(file, DataFileContent.DATA) for file in data],
            [_entry(file, DataFileContent.POSITION_DELETES) for file in fold.deletes],
        ),
    )


def _may_overlap(file: FileDescriptor, field: int, keys: KeyRange) -> bool:
    first, last = file.lower_bounds.get(field), file.upper_bounds.get(field)
    return first is None or last is None or keys.overlaps(first, last)


def _entry(file: FileDescriptor, content: DataFileContent) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=ManifestEntryStatus.EXISTING, data_file=file.data_file(0, content)
    )


def prepare_range(table: TableLake, shared: Any, argument: Any) -> Any:
    """Find the effective changes of a range, and its tombstones; a task of `PREPARE`."""
    fold = msgspec.convert(shared, _Fold, str_keys=True)
    part = msgspec.convert(argument, _Part)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
        _opened(table, fold, part.keys) as (base, live),
    ):
        _create_changes(connection, table, fold, part.keys, Path(folder) / "changes.parquet")
        find_winners(connection, "", "")
        create_tombstones(connection, fold.tombstones, where=_condition("item_key", part.keys))
        create_dead_places(connection, live)
        stored = (
            placed_files(connection, live.paths)
            if fold.is_baseline
            else placed_relation(connection, base, LiveFiles(live.data, []))
        )
        stored = f"(SELECT * FROM {stored} WHERE {_condition('_key', part.keys)})"
        create_touched_base(connection, stored)
        create_effective(connection)
        ((gone,),) = connection.execute(f"SELECT count(*) FROM ({REPLACED})").fetchall()
        ((changed,),) = connection.execute(f"SELECT count(*) FROM ({CHANGED})").fetchall()
        newest_of = [f"SELECT max(order_key) AS newest FROM ({CHANGED})"]
        if fold.needs_newest:
            newest_of.append(f"SELECT max(_order_key) FROM {stored}")
        newest_sql = f"SELECT max(newest) FROM ({' UNION ALL '.join(newest_of)})"
        ((newest,),) = connection.execute(newest_sql).fetchall()
        _keep_gone(table, fold, part, connection, live)
        parts = SortedParts(table.lake.store, fold.prefix, NARROW_SCHEMA)
        parts.keep(f"changed-{part.number:06d}", sorted_batches(connection, CHANGED), changed, "")
        stats = collect_stats(_changed(table, fold, part), changed)
        io = ChecksumIO(open_files(table.lake.settings, table.lake.aws))
        metadata = TableMetadataUtil.parse_raw(fold.planned_tombstones)
        rows = tombstones_after(connection, fold.oldest)
        files = list(write_rows(metadata, io, rows, commit_name()))
    return msgspec.to_builtins(
        _Prepared(
            changed,
            gone,
            newest or "",
            stats_to_json(stats),
            [describe_file(file, io.sums[file.file_path]) for file in files],
        )
    )


def _create_changes(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    fold: _Fold,
    keys: KeyRange,
    path: Path,
) -> None:
    """Gather the changes of a range in a temporary file; create view `changes`."""
    parts = SortedParts(table.lake.store, fold.prefix, _CHANGES)
    with (
        ThreadPoolExecutor(_READERS, "read") as pool,
        pq.ParquetWriter(path, _CHANGES, compression="lz4") as writer,
    ):
        # A few at a time: the results wait in memory.
        for start in range(0, len(fold.parts), _READERS):
            some = fold.parts[start : start + _READERS]
            for batches in pool.map(lambda name: parts.read(name, keys), some):
                if batches:
                    writer.write_table(pa.Table.from_batches(batches, _CHANGES))
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW changes AS SELECT item_key, order_key, op, item, "
        f"write_time_us, file_row_number AS place FROM read_parquet({literal(str(path))})"
    )


def _condition(column: str, keys: KeyRange) -> str:
    least = "true" if keys.least is None else f"{column} >= {literal(keys.least)}"
    end = "true" if keys.end is None else f"{column} < {literal(keys.end)}"
    return f"({least} AND {end})"


def _keep_gone(
    table: TableLake,
    fold: _Fold,
    part: _Part,
    connection: duckdb.DuckDBPyConnection,
    live: LiveFiles,
) -> None:
    gone = f"{REPLACED} UNION ALL SELECT place FROM dead_places"
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _GONE) as writer:
        for dead in dead_rows(connection, gone, live):
            row = pa.ListArray.from_arrays(pa.array([0, len(dead.positions)]), dead.positions)
            writer.write_batch(
                pa.RecordBatch.from_arrays([pa.array([dead.path]), row], schema=_GONE)
            )
    table.lake.store.write(_gone_key(fold, part), sink.getvalue().to_pybytes())


def _gone_key(fold: _Fold, part: _Part) -> str:
    return f"{fold.prefix}gone-{part.number:06d}.arrow"


def _files(
    table: TableLake, fold: _Fold, part: _Part, base: IcebergTable, live: LiveFiles
) -> SortedFiles:
    text = table.lake.store.read(_gone_key(fold, part))
    if text is None:
        raise LakeError("what workers had prepared was removed", fix="materialise it again")
    gone = [
        DeadRows(batch.column(0)[0].as_py(), batch.column(1).flatten())
        for batch in pa.ipc.open_stream(text)
    ]
    return SortedFiles(base, live, gone, part.keys)


def _changed(table: TableLake, fold: _Fold, part: _Part) -> Iterator[pa.RecordBatch]:
    parts = SortedParts(table.lake.store, fold.prefix, NARROW_SCHEMA)
    return iter(parts.read(f"changed-{part.number:06d}", KeyRange()))


def count_range(table: TableLake, shared: Any, argument: Any) -> Any:
    """Return statistics of the rows that are gone, or of those that stay; a task of `COUNT`."""
    fold = msgspec.convert(shared, _Fold, str_keys=True)
    part = msgspec.convert(argument["part"], _Part)
    with _opened(table, fold, part.keys) as (base, live):
        files = _files(table, fold, part, base, live)
        return stats_to_json(collect_stats(files.items(gone=argument["gone"])))


def write_range(table: TableLake, shared: Any, argument: Any) -> Any:
    """Write the rows of a range as sorted, typed files; a task of `WRITE`."""
    wanted = msgspec.convert(shared, _Write, str_keys=True)
    part = msgspec.convert(argument, _Part)
    fold, columns, stats = wanted.fold, wanted.columns, stats_from_json(wanted.stats)
    io = ChecksumIO(open_files(table.lake.settings, table.lake.aws))
    cells = Counter[str]()
    with _opened(table, fold, part.keys) as (base, live):
        files = _files(table, fold, part, base, live)
        kept = chain(files.items(gone=False), _changed(table, fold, part))
        misfits = count_misfits(kept, columns, stats)
        rows = merged_rows(files, columns, stats, _changed(table, fold, part), stays=wanted.stays)
        if wanted.counts_cells:
            rows = with_cells(rows, columns, cells)
        typed = pa.RecordBatchReader.from_batches(typed_schema(columns), rows)
        metadata = TableMetadataUtil.parse_raw(wanted.planned)
        written = list(write_rows(metadata, io, typed, commit_name()))
    described = [describe_file(file, io.sums[file.file_path]) for file in written]
    count = sum(file.record_count for file in written)
    return msgspec.to_builtins(_Written(count, described, dict(cells), misfits))
