"""Publication of the whole state: every row is written again, changed or not.

The base's files are sorted by key, so their rows are copied in that order and merged with the
sorted items after the changes: what did not change is not sorted and, as long as its columns stay,
not parsed. If keys are masked anew, or another engine has written files, all rows are sorted.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cdc_pipeline.core.errors import LakeError, UnsortedFilesError
from cdc_pipeline.core.items.columns import Stats, subtract_stats
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.duckdb_session import literal, open_duckdb
from cdc_pipeline.lake.engine.folding import (
    CHANGED,
    REPLACED,
    create_base,
    create_effective,
    create_touched_base,
    create_winners,
)
from cdc_pipeline.lake.engine.item_table import (
    TypedResult,
    description_text,
    max_order_key,
    prior_stats,
    replace_typed,
    size_properties,
    sorted_batches,
    spool_narrow,
    spooled,
)
from cdc_pipeline.lake.engine.live_rows import (
    create_dead_places,
    dead_rows,
    placed_files,
    placed_relation,
    version_relation,
)
from cdc_pipeline.lake.engine.masking import (
    expire_earlier_versions,
    masking_functions,
    masking_of,
    published_rules,
)
from cdc_pipeline.lake.engine.sorted_files import SortedFiles
from cdc_pipeline.lake.iceberg.files import LiveFiles, live_files
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.base import Base, require_whole, watermarks
from cdc_pipeline.lake.state.choice import (
    Choice,
    ColumnGoneError,
    Plan,
    exact_stats,
    guess_choice,
    merged_rows,
    oldest_generation,
    stays,
    with_cells,
)
from cdc_pipeline.lake.state.columns import plan_columns
from cdc_pipeline.lake.state.fold_parts import fold_by_workers
from cdc_pipeline.lake.state.tombstones import replace_tombstones
from cdc_pipeline.transform.pinned_types import count_misfits
from cdc_pipeline.transform.shred import collect_stats, merge_stats, typed_schema
from cdc_pipeline.transform.sql import load_sql

_SORT_BYTES = 256 << 20
"""Changed items, as text, that are sorted at once, per 1,000 MB of `memory_mb`."""
_SORT_PERCENT = 50
"""Percentage of `memory_mb` for that sort."""
_COMPRESSED = 5
"""Size of items in DynamoDB, in sizes of their Parquet files (docs/spark.md)."""

_SAMPLES = 200
"""Keys looked at for each range."""

_GONE = f"{REPLACED} UNION ALL SELECT place FROM dead_places"


def publish_fold(
    table: TableLake, state: LogState, base: Base, delta: Sequence[LandedObject]
) -> TypedResult:
    """Publish the base with the changes as new files without dead rows.

    Tombstones are committed first. Raises `CommitConflictError`, `LakeError`,
    `SchemaContractError`, `SettingsError`.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    shows_too_much = base.over is not None and not masking.made(published_rules(base.over))
    published = None
    if not masking or base.table is base.over:  # or masked keys would have another order
        with suppress(UnsortedFilesError):
            published = _fold_ranges(table, state, base, delta, masking)
    if published is None:
        published = _fold_and_sort(table, state, base, delta, masking)
    if shows_too_much:
        expire_earlier_versions(table.lake, published.table)
    return published


def _fold_ranges(
    table: TableLake, state: LogState, base: Base, delta: Sequence[LandedObject], masking: Masking
) -> TypedResult:
    """Fold by workers, if the engine chooses them, else here."""
    stored = live_files(base.table, base.snapshot_id).data
    size = sum(entry.data_file.file_size_in_bytes for entry in stored) * _COMPRESSED
    start_workers = table.start_workers(size)
    if start_workers is not None:
        # By what the sorted changes follow from, so that a repeated run finds them.
        inputs = (base.table.metadata.current_snapshot_id, state.n, masking.fingerprint)
        digest = hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
        folds = f"{table.paths.work}fold-"
        prefix = f"{folds}{digest}/"
        with start_workers(f"{prefix}spark/") as workers:
            published = fold_by_workers(table, state, base, delta, masking, workers, prefix)
        table.lake.store.delete(list(table.lake.store.list(folds)))  # those given up, too
        return published
    try:
        return _fold_in_order(table, state, base, delta, masking)
    except ColumnGoneError:
        return _fold_in_order(table, state, base, delta, masking, counts_first=True)


def _fold_in_order(
    table: TableLake,
    state: LogState,
    base: Base,
    delta: Sequence[LandedObject],
    masking: Masking,
    *,
    counts_first: bool = False,
) -> TypedResult:
    memory_mb = table.lake.settings.memory_mb
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
        masking_functions(connection, masking),
    ):
        live = live_files(base.table, base.snapshot_id)
        alive = create_dead_places(connection, live)
        require_whole(table.settings, base, alive)
        tombstones = create_winners(connection, table, delta)
        stored = _stored_rows(connection, base, live)
        create_touched_base(connection, stored)
        create_effective(connection)
        files = SortedFiles(base.table, live, dead_rows(connection, _GONE, live))
        replace_tombstones(connection, table, tombstones, masking, oldest_generation(base))
        spool = Path(folder) / "changed.parquet"
        changed = spool_narrow(connection, CHANGED, spool)
        ((gone,),) = connection.execute(f"SELECT count(*) FROM ({REPLACED})").fetchall()
        newest = max(_newest(connection, base, stored), changed.max_order_key or "")
        connection.execute("DROP TABLE base; DROP TABLE effective; DROP TABLE dead_places")
        plan = plan_columns(table, base.over, masking)
        guess = None if counts_first else guess_choice(base, changed.stats, plan)
        cells = None if guess is None else Counter[str]()
        chosen = guess or _counted_plan(base, live, files, changed.stats, plan)
        stats, columns = chosen.stats, chosen.columns
        misfits = count_misfits(chain(files.items(gone=False), spooled(spool)), columns, stats)
        # The rest of the memory is for Arrow, which types and writes the rows.
        connection.execute(f"SET memory_limit = '{memory_mb * _SORT_PERCENT // 100}MB'")
        ranges = _text_bytes(spool) * 1000 // (_SORT_BYTES * memory_mb) + 1
        parts = key_ranges(connection, spool, changed.rows, ranges)
        changes = chain.from_iterable(sorted_batches(connection, part) for part in parts)
        items = alive - gone + changed.rows
        merged = merged_rows(
            files, columns, stats, changes, stays=stays(base, columns, chosen.kept), items=items
        )
        rows = _counted(merged, base, items)
        if cells is not None:
            rows = with_cells(rows, columns, cells)
        committed = table.lake.iceberg.replace(
            f"{table.safe_name}_current_state",
            pa.RecordBatchReader.from_batches(typed_schema(columns), rows),
            {**watermarks(base, state), **chosen.properties, **size_properties(items, newest)},
            over=base.over,
            key="_key",
            described=lambda: description_text(
                exact_stats(stats, columns, cells), columns, misfits
            ),
        )
    return TypedResult(committed, columns, items)


def _fold_and_sort(
    table: TableLake, state: LogState, base: Base, delta: Sequence[LandedObject], masking: Masking
) -> TypedResult:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
        masking_functions(connection, masking),
    ):
        live = live_files(base.table, base.snapshot_id)
        require_whole(table.settings, base, create_dead_places(connection, live))
        rows = version_relation(connection, base.table, base.snapshot_id)
        is_exact = base.table is not base.over
        create_base(connection, table.settings, rows, masking if is_exact else Masking())
        tombstones = create_winners(connection, table, delta)
        create_effective(connection)
        replace_tombstones(connection, table, tombstones, masking, oldest_generation(base))
        return replace_typed(
            table.lake.iceberg,
            f"{table.safe_name}_current_state",
            connection,
            load_sql("fold"),
            watermarks(base, state),
            over=base.over,
            scratch=Path(folder),
            plan=plan_columns(table, base.over, masking),
        )


def _stored_rows(connection: duckdb.DuckDBPyConnection, base: Base, live: LiveFiles) -> str:
    """Return SQL for the rows of the base with their places, dead ones included."""
    if base.snapshot_id is not None:
        return placed_files(connection, live.paths)
    return placed_relation(connection, base.table, LiveFiles(live.data, []))


def _newest(connection: duckdb.DuckDBPyConnection, base: Base, stored: str) -> str:
    """Return an order key that no row of the base exceeds; "" without rows."""
    known = max_order_key(base.table) if base.snapshot_id is None else None
    if known is None:
        ((known,),) = connection.execute(f"SELECT max(_order_key) FROM {stored}").fetchall()
    return known or ""


def _counted_plan(
    base: Base, live: LiveFiles, files: SortedFiles, changed: Stats, plan: Plan
) -> Choice:
    """Choose with exact statistics."""
    kept = _kept_stats(base, live, files)
    stats = merge_stats(kept, changed)
    return Choice(kept, stats, *plan(stats), is_exact=True)


def _kept_stats(base: Base, live: LiveFiles, files: SortedFiles) -> Stats:
    """Return statistics of the base's rows that stay.

    Those of the last publication without the rows that are gone since, if it counted every row of
    the files: an attribute of all items, as those of the key, has as many values.
    """
    prior = prior_stats(base.table) if base.table is base.over else {}
    counted = max((sum(seen.tags.values()) for seen in prior.values()), default=0)
    if counted == live.rows:
        return subtract_stats(prior, collect_stats(files.items(gone=True)))
    return collect_stats(files.items(gone=False), live.rows)


def key_ranges(
    connection: duckdb.DuckDBPyConnection, spool: Path, rows: int, ranges: int
) -> list[str]:
    """Return SQL for the rows of a spool in about `ranges` ranges of keys, in their order.

    By a sample of the keys; the spool is read once for each range, which costs less than a sort of
    more than the memory holds.
    """
    spooled_rows = f"SELECT * FROM read_parquet({literal(str(spool))})"
    step = max(rows // (ranges * _SAMPLES), 1)
    sample = connection.execute(
        f"SELECT item_key FROM ({spooled_rows} WHERE file_row_number % {step} = 0) "
        f"ORDER BY item_key"
    ).fetchall()
    bounds = sorted({sample[len(sample) * n // ranges][0] for n in range(1, ranges)})
    conditions = [f"item_key >= {literal(bound)}" for bound in bounds]
    ends = [f"item_key < {literal(bound)}" for bound in bounds]
    pairs = zip(["true", *conditions], [*ends, "true"], strict=True)
    return [f"{spooled_rows} WHERE {start} AND {end}" for start, end in pairs]


def _text_bytes(spool: Path) -> int:
    metadata = pq.read_metadata(spool)
    return sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))


def _counted(rows: Iterator[pa.RecordBatch], base: Base, items: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows; raise `LakeError` before a commit of other than `items` rows."""
    count = 0
    for batch in rows:
        count += len(batch)
        yield batch
    if count != items:
        raise LakeError(
            f"table {'.'.join(base.table.name())}: its files and {items} items after the changes "
            f"gave {count} rows, which were not committed",
            fix="run `cdc-pipeline verify`; with whole files, it is an error of cdc_pipeline",
        )
