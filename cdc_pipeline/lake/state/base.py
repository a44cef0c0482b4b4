"""The base of a published state: which rows changes are folded over, and what waits for them."""

import json
from contextlib import suppress
from dataclasses import dataclass

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import LakeError, NotReadyError
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.masking import masking_of, published_rules
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.iceberg.tables import CommitConflictError
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.state.schema_contract import pinned_types
from cdc_pipeline.settings.table import Table

TYPES, MAX_COLUMNS = "types", "max_columns"
"""Table properties: the column settings that the published columns follow."""


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


def published_base(table: TableLake) -> Base | None:
    """Return the base that readers see now; None before the first publication."""
    published = table.iceberg("current_state")
    if published is None:
        return None
    return Base(
        table=published,
        over=published,
        snapshot_id=None,
        generation=generation_of(published),
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
    if not is_masked_alike(table, current):
        # Published rows lack the exact values; the baseline and the landing zone have them.
        return _staged_base(table, state.baselines[current.generation], current)
    return current


def is_masked_alike(table: TableLake, current: Base) -> bool:
    """Whether the published rows are masked by the rules of the settings."""
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    tombstones = table.iceberg("tombstones")
    return all(masking.made(published_rules(t)) for t in (current.table, tombstones) if t)


def is_typed_alike(table: Table, current: Base) -> bool:
    """Whether the published columns were chosen by the settings of now."""
    published = json.loads(table_property(current.table, TYPES) or "{}")
    max_columns = table_property(current.table, MAX_COLUMNS) or ""
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


def has_unpublished_changes(base: Base, table: Table, state: LogState) -> bool:
    """Whether a publication over this base would have other rows or columns."""
    return (
        base.table is not base.over
        or bool(state.delta(generation=base.generation, after=base.after))
        or not is_typed_alike(table, base)
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


def generation_of(table: IcebergTable | None) -> int:
    """Return the generation of a published table's baseline; -1 without a table."""
    return int(table_property(table, "generation") or 0) if table else -1


def require_whole(table: Table, base: Base, rows: int) -> None:
    """Raise `LakeError` unless a base has the number of rows it was committed with.

    The snapshot's assertion does not detect commits of another engine in between.
    """
    if base.is_counted and rows != base.items:
        raise LakeError(
            f"table {'.'.join(base.table.name())} has {rows} rows and was committed with "
            f"{base.items}: another engine has changed it",
            fix=f"cdc-pipeline reconcile {table.safe_name} --full --repair"
            if base.over
            else f"materialise {table.safe_name}/pitr_export, which makes a new baseline",
        )


def watermarks(base: Base, state: LogState) -> dict[str, str]:
    """Return the table properties that say up to where a publication over the base is complete."""
    return {
        "generation": str(base.generation),
        "watermark": str(state.horizon(base.generation)),
        "watermark_us": str(state.complete_to_us(base.generation)),
    }
