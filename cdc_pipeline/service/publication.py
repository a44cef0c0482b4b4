"""One look at a table's published state by a server: publish, mark as complete, or wait."""

from dataclasses import dataclass

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.iceberg.tables import CommitConflictError
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.current_state import (
    PublishResult,
    is_publication_due,
    publish_current_state,
)
from cdc_pipeline.lake.publish.entity_notes import are_current, read_notes
from cdc_pipeline.lake.state.base import Base, advance_watermark, has_unpublished_changes, next_base

LEAST_QUIET_SECONDS = 60.0


@dataclass(frozen=True)
class Look:
    """What a look has found. `result`: of a publication, if there was one.

    `is_settled`: everything that can be published is; otherwise there is to be another look soon.
    """

    is_settled: bool
    result: PublishResult | None = None


def quiet_seconds(table: TableLake) -> float:
    """Pause between two marks of a quiet table's state as complete."""
    return max(LEAST_QUIET_SECONDS, table.lake.settings.current_state.derive_minutes * 60)


def look_after_state(table: TableLake) -> Look:
    """Publish changes if that is due; else mark a quiet state as complete up to the watermark.

    Raises the errors of `publish_current_state`, but for those that only mean to wait.
    """
    try:
        state = table.log.look()
        if state.staged is None:
            return Look(is_settled=True)
        base = next_base(table, state)
        if not has_unpublished_changes(base, table.settings, state) and _has_notes(table, base):
            _mark_complete(table, base, state)
            # A newer baseline waits for the changes that must land before it is published.
            return Look(is_settled=base.generation >= state.staged.generation)
        if base.over is not None and _has_notes(table, base) and not is_publication_due(table):
            return Look(is_settled=False)
        return Look(is_settled=True, result=publish_current_state(table))
    except (NotReadyError, CommitConflictError):
        return Look(is_settled=False)


def _has_notes(table: TableLake, base: Base) -> bool:
    """Whether the notes on entities are those of the published state, if it needs any."""
    published = base.over
    if not table.settings.entities or published is None:
        return True
    return are_current(read_notes(table), table.settings, published)


def _mark_complete(table: TableLake, base: Base, state: LogState) -> None:
    shown_us = int(table_property(base.table, "watermark_us") or 0)
    if state.watermark_us - shown_us >= quiet_seconds(table) * 1_000_000:
        advance_watermark(table.lake, base, state)
