"""current_state: the folded base, its tombstones, and the conditions of a publication."""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.changes.order import generation_prefix
from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import LakeError, NotReadyError
from cdc_pipeline.core.items.columns import (
    Column,
    ColumnChange,
    Stats,
    carry_widths,
    column_changes,
    columns_of,
)
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import Baseline, LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.duckdb_session import (
    arrow_batches,
    files_relation,
    literal,
    open_duckdb,
)
from cdc_pipeline.lake.engine.folding import (
    TOMBSTONE_SCHEMA,
    create_base,
    create_effective,
    create_winners,
)
from cdc_pipeline.lake.engine.item_table import (
    TypedResult,
    column_names,
    prior_columns,
    prior_stats,
    replace_typed,
)
from cdc_pipeline.lake.engine.masking import (
    PUBLISHED,
    expire_earlier_versions,
    masking_functions,
    masking_of,
    published_rules,
)
from cdc_pipeline.lake.iceberg.tables import CommitConflictError, data_files, table_property
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.entity_notes import note_entities
from cdc_pipeline.lake.publish.schema_contract import pinned_types, require_contract
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline.transform.sql import load_sql

_BATCH_ROWS = 100_000
_TYPES, _MAX_COLUMNS, _SEEN = "types", "max_columns", "rules_seen"


@dataclass(frozen=True)
class Base:
    """Items to fold a delta over: objects of `generation` and later, logged after entry `after`.

    `over`: the published table that a new base replaces, as loaded; None: none is published.
    `is_counted`: whether `items` is recorded; only very old versions did not record it.
    """

    table: IcebergTable
    over: IcebergTable | None
    snapshot_id: int | None
    generation: int
    after: int
    items: int
    is_counted: bool


@dataclass(frozen=True)
class PublishResult:
    """A published current state. `watermark`: the last log entry folded into it.

    With an open gap the state stays at the beginning of the gap: later changes are missing.
    `changes`: changes of columns since the version before; None: there was no version.
    `rebuilt`: made again from the exact data, because masking rules have changed.
    `unseen_rules`: attributes with a rule in the settings that no item has had so far.
    """

    items: int
    columns: list[Column]
    generation: int
    watermark: int
    watermark_us: int
    open_gaps: int
    changes_folded: int
    new_baseline: bool
    rebuilt: bool
    changes: list[ColumnChange] | None
    unseen_rules: list[str]
    seconds: float
    table: IcebergTable


def published_base(table: TableLake) -> Base | None:
    """Return the base that readers see now; None before the first publication."""
    published = table.iceberg("current_state")
    if published is None:
        return None
    return Base(
        table=published,
        over=published,
        snapshot_id=None,
        generation=_generation(published),
        after=int(table_property(published, "watermark") or 0),
        items=int(table_property(published, "items") or 0),
        is_counted=table_property(published, "items") is not None,
    )


def next_base(table: TableLake, state: LogState) -> Base:
    """Return the base of the next publication; raises `NotReadyError` if none is possible.

    A newer baseline replaces the base once everything written before its export time plus the
    margin has landed: from then on the folded changes no longer mix times.
    """
    current = published_base(table)
    staged = state.staged
    if staged is not None and (current is None or staged.generation > current.generation):
        landed_us = state.complete_to_us(staged.generation)
        if landed_us >= handover_us(table.lake, staged) and not state.incomplete:
            return _staged_base(table, staged, current)
        if current is None:
            raise NotReadyError(
                f"{table.safe_name}/current_state: the export shows the table as of "
                f"{_time(staged.export_time_us)}, and changes have landed up to "
                f"{_time(landed_us)}; a state can be published once they have landed up to "
                f"{_time(handover_us(table.lake, staged))}",
                fix="run the job `capture` (or materialise raw_stream) once more, then this again",
            )
    if current is None:
        raise NotReadyError(
            f"{table.safe_name}/current_state: there is no export of table {table.name} yet",
            fix=f"materialise {table.safe_name}/pitr_export first",
        )
    if not _is_masked_alike(table, current):
        # Published rows lack the exact values; the baseline and the landing zone have them.
        return _staged_base(table, state.baselines[current.generation], current)
    return current


def _is_masked_alike(table: TableLake, current: Base) -> bool:
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    tombstones = table.iceberg("tombstones")
    return all(masking.made(published_rules(t)) for t in (current.table, tombstones) if t)


def _is_typed_alike(table: Table, current: Base) -> bool:
    published = json.loads(table_property(current.table, _TYPES) or "{}")
    max_columns = table_property(current.table, _MAX_COLUMNS) or ""
    return published == pinned_types(table) and max_columns == str(table.max_columns or "")


def handover_us(lake: Lake, baseline: Baseline) -> int:
    """Return the time in µs up to which changes must have landed before a baseline is published."""
    margin_us = int(lake.settings.handover_margin_seconds * 1_000_000)
    # Landing times are from our clock, the export's time from AWS's.
    return baseline.export_time_us + margin_us + lake.settings.clock_margin_us


def _staged_base(table: TableLake, staged: Baseline, current: Base | None) -> Base:
    snapshot = table.iceberg("snapshot")
    assert snapshot is not None  # committed, by the log
    over = current.table if current else None
    return Base(
        table=snapshot,
        over=over,
        snapshot_id=staged.snapshot_id,
        generation=staged.generation,
        after=0,
        items=staged.items or 0,
        is_counted=staged.items is not None,
    )


def _time(time_us: int) -> str:
    if not time_us:
        return "(no time yet)"
    return f"{time_text(time_us)} UTC"


def is_worth_folding(table: TableLake) -> bool:
    """Whether the delta is large enough or the base old enough for an automatic fold.

    Readers merge the delta themselves and do not wait for a fold, which rewrites the whole base.
    """
    base, state = published_base(table), table.log.load()
    if base is None or (state.staged and state.staged.generation > base.generation):
        return True
    if not (_is_typed_alike(table.settings, base) and _is_masked_alike(table, base)):
        return True
    options = table.lake.settings.current_state
    changes = sum(o.rows for o in state.delta(generation=base.generation, after=base.after))
    if changes * 100 >= base.items * options.fold_percent:
        return True
    snapshot = base.table.current_snapshot()
    assert snapshot is not None  # a published table has one
    age_us = table.log.now_us() - snapshot.timestamp_ms * 1000
    return age_us >= options.fold_minutes * 60_000_000


def has_unpublished_changes(base: Base, table: Table, state: LogState) -> bool:
    """Whether a publication over this base would have other rows or columns."""
    return (
        base.table is not base.over
        or bool(state.delta(generation=base.generation, after=base.after))
        or not _is_typed_alike(table, base)
    )


def advance_watermark(lake: Lake, base: Base, state: LogState) -> IcebergTable:
    """Move the watermark of published rows to a later time, after which nothing has changed.

    Commits properties only; does nothing if another writer published meanwhile. Returns the table.
    """
    until_us = state.complete_to_us(base.generation)
    if until_us <= int(table_property(base.table, "watermark_us") or 0):
        return base.table
    properties = {"watermark": str(state.horizon(base.generation)), "watermark_us": str(until_us)}
    with suppress(CommitConflictError):
        return lake.iceberg.set_properties(base.table, properties)
    return base.table


def publish_current_state(table: TableLake) -> PublishResult:
    """Fold everything that landed into a new base and commit it with its watermark.

    Without new changes the rows stay as they are. Tombstones are committed first: after a crash in
    between, readers have the old base, and the next fold has tombstones that its own delta
    explains. Raises `NotReadyError`, `CommitConflictError`, `LakeError`, `SchemaContractError`, and
    `SettingsError` for masking that is not possible.
    """
    started = time.monotonic()
    state = table.log.load()
    base = next_base(table, state)
    # Read before the commit, which refreshes the table objects.
    is_new, before = base.table is not base.over, prior_columns(base.over)
    is_first, new_baseline = base.over is None, _generation(base.over) != base.generation
    delta = state.delta(generation=base.generation, after=base.after)
    if has_unpublished_changes(base, table.settings, state):
        published = _publish(table, state, base, delta)
        columns, items, committed = published.columns, published.rows, published.table
    else:
        columns, items, committed = before, base.items, advance_watermark(table.lake, base, state)
    seen = json.loads(table_property(committed, _SEEN) or "[]")
    note_entities(table, committed)
    return PublishResult(
        items=items,
        columns=columns,
        generation=base.generation,
        watermark=state.horizon(base.generation),
        watermark_us=state.complete_to_us(base.generation),
        open_gaps=len(state.open_gaps(base.generation)),
        changes_folded=sum(landed.rows for landed in delta),
        new_baseline=new_baseline,
        rebuilt=is_new and not new_baseline,
        changes=None if is_first else column_changes(before, columns),
        unseen_rules=sorted(table.settings.columns.keys() - seen),
        seconds=time.monotonic() - started,
        table=committed,
    )


def _generation(table: IcebergTable | None) -> int:
    return int(table_property(table, "generation") or 0) if table else -1


def _publish(
    table: TableLake, state: LogState, base: Base, delta: list[LandedObject]
) -> TypedResult:
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    shows_too_much = base.over is not None and not masking.made(published_rules(base.over))
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
        masking_functions(connection, masking),
    ):
        files = data_files(base.table, base.snapshot_id)
        _require_whole(connection, table.settings, base, files)
        is_exact = base.table is not base.over
        create_base(connection, table.settings, files, masking if is_exact else Masking())
        tombstones = create_winners(connection, table, delta)
        create_effective(connection)
        # Until this base is committed, readers use the base before it, with its own tombstones.
        oldest = _generation(base.over) if base.over else base.generation
        _replace_tombstones(connection, table, tombstones, masking, oldest)
        published = replace_typed(
            table.lake.iceberg,
            f"{table.safe_name}_current_state",
            connection,
            load_sql("fold"),
            {
                "generation": str(base.generation),
                "watermark": str(state.horizon(base.generation)),
                "watermark_us": str(state.complete_to_us(base.generation)),
            },
            over=base.over,
            scratch=Path(folder),
            plan=_plan(
                table.settings,
                base.over,
                masking,
                column_names(table.lake.iceberg, table.safe_name),
            ),
        )
    if shows_too_much:
        expire_earlier_versions(table.lake, published.table)
    return published


def _require_whole(
    connection: duckdb.DuckDBPyConnection, table: Table, base: Base, files: list[str]
) -> None:
    """Raise `LakeError` unless a base has the number of rows it was committed with.

    The snapshot's assertion does not detect commits of another engine in between.
    """
    relation = files_relation(connection, files, typed_schema([]))
    rows = connection.execute(f"SELECT count(*) FROM {relation}").fetchall()[0][0]
    if base.is_counted and rows != base.items:
        raise LakeError(
            f"table {'.'.join(base.table.name())} has {rows} rows and was committed with "
            f"{base.items}: another engine has changed it",
            fix=f"cdc-pipeline reconcile {table.safe_name} --full --repair"
            if base.over
            else f"materialise {table.safe_name}/pitr_export, which makes a new baseline",
        )


def _plan(
    table: Table, over: IcebergTable | None, masking: Masking, names: dict[str, str]
) -> Callable[[Stats], tuple[list[Column], dict[str, str]]]:
    """Return the function that decides the next version's columns and properties.

    It raises `SchemaContractError` for columns that the contract does not allow.
    """
    pins = pinned_types(table)

    def plan(stats: Stats) -> tuple[list[Column], dict[str, str]]:
        before = prior_columns(over)
        carry_widths(stats, prior_stats(over))
        columns = columns_of(stats, before, pins=pins, limit=table.max_columns, names=names)
        require_contract(table, before, columns)
        prior_seen = table_property(over, _SEEN) if over else None
        seen = {*json.loads(prior_seen or "[]"), *masking.seen, *(pins.keys() & stats.keys())}
        properties = {PUBLISHED: masking.fingerprint, _TYPES: json.dumps(pins)}
        properties[_MAX_COLUMNS] = str(table.max_columns or "")
        return columns, {**properties, _SEEN: json.dumps(sorted(seen))}

    return plan


def forget_tombstones(table: TableLake) -> None:
    """Replace unreadable tombstones by none; valid only with a new baseline, which needs none.

    Tombstones of older generations exclude only changes that the new baseline ignores.
    """
    name = f"{table.safe_name}_tombstones"
    no_rows = TOMBSTONE_SCHEMA.empty_table().to_reader()
    table.lake.iceberg.replace(
        name, no_rows, {}, over=table.lake.iceberg.load(name), key="item_key"
    )


def _replace_tombstones(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    tombstones: IcebergTable | None,
    masking: Masking,
    oldest: int,
) -> None:
    """Commit the tombstones after this fold, without those of generations before `oldest`.

    Tombstones do not expire by time: one is needed as long as a change of its generation can land,
    and backlogs, repeats and late files have no time limit. Changes of generations before a
    published baseline are ignored, so the tombstones that exclude them are not needed.
    """
    sql = (
        f"SELECT {', '.join(TOMBSTONE_SCHEMA.names)} FROM ({load_sql('tombstones')}) "
        f"WHERE order_key >= {literal(generation_prefix(oldest))}"
    )
    kept = arrow_batches(connection, sql, _BATCH_ROWS)
    batches = (batch.cast(TOMBSTONE_SCHEMA) for batch in kept)
    rows = pa.RecordBatchReader.from_batches(TOMBSTONE_SCHEMA, batches)
    name = f"{table.safe_name}_tombstones"
    shows_too_much = tombstones is not None and not masking.made(published_rules(tombstones))
    properties = {PUBLISHED: masking.fingerprint}
    committed = table.lake.iceberg.replace(name, rows, properties, over=tombstones, key="item_key")
    if shows_too_much:
        expire_earlier_versions(table.lake, committed)
