"""What workers do in a fold of the whole state: sort changes, then fold ranges of keys.

A range has the rows of the base, the changes and the tombstones of some keys, and is folded as one
process folds everything (`lake.state.fold`): the same SQL, merge and types.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from cdc_pipeline.core.items.columns import Column
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, literal, open_duckdb
from cdc_pipeline.lake.engine.folding import (
    CHANGED,
    REPLACED,
    create_delta_winners,
    create_effective,
    create_tombstones,
    create_touched_base,
    find_winners,
)
from cdc_pipeline.lake.engine.item_table import (
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
from cdc_pipeline.lake.iceberg.files import LiveFiles
from cdc_pipeline.lake.iceberg.row_delta import DeadRows
from cdc_pipeline.lake.iceberg.writer import write_rows
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.choice import (
    merged_rows,
    with_cells,
)
from cdc_pipeline.lake.state.tombstones import (
    tombstones_after,
)
from cdc_pipeline.lake.storage.sorted_parts import KeyRange, SortedParts
from cdc_pipeline.transform.pinned_types import count_misfits
from cdc_pipeline.transform.shred import (
    NARROW_SCHEMA,
    collect_stats,
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


class Fold(msgspec.Struct):
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


class Group(msgspec.Struct):
    """Landing objects that one task sorts, and the name of the part that it makes."""

    name: str
    objects: list[LandedObject]


class RangePart(msgspec.Struct):
    """A range of keys and its number."""

    number: int
    keys: KeyRange


class PreparedRange(msgspec.Struct):
    """The effective changes of a range. `gone`: rows of the base that they replace or delete."""

    changed: int
    gone: int
    newest: str
    stats: str
    tombstones: list[FileDescriptor]


class WriteFold(msgspec.Struct):
    """What every task that writes must know. `stays`: rows of the base keep their cells."""

    fold: Fold
    planned: str
    columns: list[Column]
    stats: str
    stays: bool
    counts_cells: bool


class WrittenRange(msgspec.Struct):
    """The files of a range, its cells with a value and its misfits, by attribute."""

    rows: int
    files: list[FileDescriptor]
    cells: dict[str, int]
    misfits: dict[str, int]


def sort_changes(table: TableLake, shared: Any, argument: Any) -> Any:
    """Sort the last change of each item in some landing objects; a task of `SORT`."""
    group = msgspec.convert(argument, Group)
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


def _opened(table: TableLake, fold: Fold, keys: KeyRange) -> tuple[IcebergTable, LiveFiles]:
    """Return the base's table and those of its files that may have rows in the range."""
    io = open_files(table.lake.settings, table.lake.aws)
    metadata = TableMetadataUtil.parse_raw(fold.metadata)
    base = IcebergTable(tuple(fold.name), metadata, "", io, NoopCatalog("workers"))
    field = metadata.schema().find_field("_key").field_id
    data = [file for file in fold.files if _may_overlap(file, field, keys)]
    return base, LiveFiles(
        [_entry(file, DataFileContent.DATA) for file in data],
        [_entry(file, DataFileContent.POSITION_DELETES) for file in fold.deletes],
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
    fold = msgspec.convert(shared, Fold, str_keys=True)
    part = msgspec.convert(argument, RangePart)
    base, live = _opened(table, fold, part.keys)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
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
        PreparedRange(
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
    fold: Fold,
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
    fold: Fold,
    part: RangePart,
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


def _gone_key(fold: Fold, part: RangePart) -> str:
    return f"{fold.prefix}gone-{part.number:06d}.arrow"


def _files(
    table: TableLake, fold: Fold, part: RangePart, base: IcebergTable, live: LiveFiles
) -> SortedFiles:
    text = table.lake.store.read(_gone_key(fold, part))
    if text is None:
        raise LakeError("what workers had prepared was removed", fix="materialise it again")
    gone = [
        DeadRows(batch.column(0)[0].as_py(), batch.column(1).flatten())
        for batch in pa.ipc.open_stream(text)
    ]
    return SortedFiles(base, live, gone, part.keys)


def _changed(table: TableLake, fold: Fold, part: RangePart) -> Iterator[pa.RecordBatch]:
    parts = SortedParts(table.lake.store, fold.prefix, NARROW_SCHEMA)
    return iter(parts.read(f"changed-{part.number:06d}", KeyRange()))


def count_range(table: TableLake, shared: Any, argument: Any) -> Any:
    """Return statistics of the rows that are gone, or of those that stay; a task of `COUNT`."""
    fold = msgspec.convert(shared, Fold, str_keys=True)
    part = msgspec.convert(argument["part"], RangePart)
    files = _files(table, fold, part, *_opened(table, fold, part.keys))
    return stats_to_json(collect_stats(files.items(gone=argument["gone"])))


def write_range(table: TableLake, shared: Any, argument: Any) -> Any:
    """Write the rows of a range as sorted, typed files; a task of `WRITE`."""
    wanted = msgspec.convert(shared, WriteFold, str_keys=True)
    part = msgspec.convert(argument, RangePart)
    fold, columns, stats = wanted.fold, wanted.columns, stats_from_json(wanted.stats)
    io = ChecksumIO(open_files(table.lake.settings, table.lake.aws))
    cells = Counter[str]()
    files = _files(table, fold, part, *_opened(table, fold, part.keys))
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
    return msgspec.to_builtins(WrittenRange(count, described, dict(cells), misfits))
