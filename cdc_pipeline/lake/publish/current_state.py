"""Publication of current_state: when one is due, and which way it takes."""

import time
from dataclasses import dataclass

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.columns import Column, ColumnChange, column_changes
from cdc_pipeline.lake.engine.item_table import prior_columns
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.entity_notes import note_entities
from cdc_pipeline.lake.state.base import (
    advance_watermark,
    generation_of,
    has_unpublished_changes,
    is_masked_alike,
    is_typed_alike,
    next_base,
    published_base,
)
from cdc_pipeline.lake.state.columns import seen_rules
from cdc_pipeline.lake.state.fold import publish_fold
from cdc_pipeline.lake.state.row_delta import publish_row_delta


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


def is_publication_due(table: TableLake) -> bool:
    """Whether the changes are many enough or the last publication old enough for the next one.

    Readers with DuckDB merge the changes themselves and do not wait for it.
    """
    base, state = published_base(table), table.log.load()
    if base is None or (state.staged and state.staged.generation > base.generation):
        return True
    if not (is_typed_alike(table.settings, base) and is_masked_alike(table, base)):
        return True
    options = table.lake.settings.current_state
    changes = sum(o.rows for o in state.delta(generation=base.generation, after=base.after))
    if changes * 100 >= base.items * options.fold_percent:
        return True
    snapshot = base.table.current_snapshot()
    assert snapshot is not None  # a published table has one
    age_us = table.log.now_us() - snapshot.timestamp_ms * 1000
    minutes = options.publish_minutes
    if table.settings.entities:
        # The notes on entities read every item, however few have changed.
        minutes = max(minutes, options.derive_minutes)
    return age_us >= minutes * 60_000_000


def publish_current_state(table: TableLake) -> PublishResult:
    """Bring the published rows up to everything that landed; commit them with their watermark.

    A row delta where it is possible, else a fold of the whole state. Without new changes the rows
    stay as they are. Tombstones are committed first: after a crash in
    between, readers have the old base, and the next fold has tombstones that its own delta
    explains. Raises `NotReadyError`, `CommitConflictError`, `LakeError`, `SchemaContractError`, and
    `SettingsError` for masking that is not possible.
    """
    started = time.monotonic()
    state = table.log.load()
    base = next_base(table, state)
    # Read before the commit, which refreshes the table objects.
    is_new, before = base.table is not base.over, prior_columns(base.over)
    is_first, new_baseline = base.over is None, generation_of(base.over) != base.generation
    delta = state.delta(generation=base.generation, after=base.after)
    if has_unpublished_changes(base, table.settings, state):
        published = publish_row_delta(table, state, base, delta)
        if published is None:
            published = publish_fold(table, state, base, delta)
        columns, items, committed = published.columns, published.rows, published.table
    else:
        columns, items, committed = before, base.items, advance_watermark(table.lake, base, state)
    seen = seen_rules(committed)
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
