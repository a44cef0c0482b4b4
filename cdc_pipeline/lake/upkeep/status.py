"""Status of each table, read from its log and the catalogue only."""

from dataclasses import dataclass

from cdc_pipeline.core.log.coverage import CoverageRange, coverage
from cdc_pipeline.core.log.entries import Cutover, Gap
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.heal import RECREATED
from cdc_pipeline.core.transports import IN_FILES
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.table import Table

_PUBLISHED = ("generation", "items", "watermark", "watermark_us")
"""Properties of the published current state."""


@dataclass(frozen=True)
class TableStatus:
    """Status of one table. Times in µs since the epoch; None or 0: not yet.

    `captured_to_us`: every change written before has been read. `state_to_us`: the same for the
    published current state (queries add later changes). `gaps`: ranges that the stream lost;
    `fixes`: the next step for each, by the entry of the gap. `coverage`: the ledger, see
    `core.log.coverage`. `transport`: the present one, None before the first capture; `cut`: the
    pending switch to another one. `retention_hours`: how long the stream keeps a change.
    `expires`: whether unread changes may be lost, as in a stream. `legacy_us`: newest row of an
    older Lambda, which omits deletes, 0: none. `clock_offset_us`: how far the clock of the last
    capture was ahead of AWS's, None: not measured. `late_changes`: number of changes that landed
    with a time before the watermark, the latest of them at `late_at_us`.
    """

    table: str
    items: int | None
    changes: int
    last_change_us: int | None
    captured_to_us: int
    state_to_us: int
    log_entry: int
    state_entry: int | None
    open_shards: int
    last_export_us: int | None
    quarantined: int
    gaps: list[Gap]
    fixes: dict[int, str]
    coverage: list[CoverageRange]
    transport: str | None = None
    cut: Cutover | None = None
    retention_hours: int = 24
    expires: bool = True
    legacy_us: int = 0
    clock_offset_us: int | None = None
    late_changes: int = 0
    late_at_us: int = 0


def table_status(table: TableLake) -> TableStatus:
    """Read the status of one table; raises `LakeError`."""
    log = table.log
    state = log.load()
    published = table.properties("current_state")
    numbers = {name: int((published or {}).get(name) or 0) for name in _PUBLISHED}
    gaps = state.open_gaps(numbers["generation"])
    exports = [b.export_time_us for b in state.baselines.values() if b.is_staged]
    return TableStatus(
        table=table.safe_name,
        items=None if published is None else numbers["items"],
        changes=sum(landed.rows for landed in state.objects.values()),
        last_change_us=state.last_change_us,
        captured_to_us=state.watermark_us,
        state_to_us=numbers["watermark_us"],
        log_entry=state.n,
        state_entry=None if published is None else numbers["watermark"],
        open_shards=sum(1 for shard in state.shards.values() if shard.status == "reading"),
        last_export_us=max(exports, default=None),
        quarantined=sum(state.quarantined_reasons.values()),
        gaps=gaps,
        fixes={gap.entry: _fix(state, table.settings, gap) for gap in gaps},
        coverage=coverage(state, log.now_us()),
        transport=state.stream.transport if state.stream else None,
        cut=state.cut,
        retention_hours=state.stream.retention_hours if state.stream else 24,
        expires=table.settings.transport not in IN_FILES,
        legacy_us=state.legacy_us,
        clock_offset_us=state.clock_offset_us,
        late_changes=state.late.rows,
        late_at_us=state.late_at_us,
    )


def _fix(state: LogState, table: Table, gap: Gap) -> str:
    """Return the next step to close an open gap, as text for people."""
    name, staged, heal = table.safe_name, state.staged, state.heal_of(gap.entry)
    if staged is not None and staged.generation > gap.heal_generation:
        return f"run the job `capture`, then materialise {name}/current_state: a new baseline waits"
    if gap.cause == RECREATED:
        return f"cdc-pipeline heal {name} (by a full export as the new baseline)"
    if heal is not None and all(window.done for window in heal.windows):
        return f"run the job `capture`, then cdc-pipeline heal {name}"
    return f"cdc-pipeline heal {name}"
