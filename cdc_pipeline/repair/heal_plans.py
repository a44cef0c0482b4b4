"""Plans and costs of heals: open gaps, and the exports that fill them."""

from dataclasses import dataclass

from cdc_pipeline.aws.table import describe_backups
from cdc_pipeline.capture.sources.source import require_backups
from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import CannotHealError
from cdc_pipeline.core.log.entries import Gap, Heal, HealWindow
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.heal import Backups, overlapping, plan_windows
from cdc_pipeline.core.plans.prices import EXPORT_USD_PER_GB, LEAST_EXPORT_BYTES
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.table import Table


@dataclass(frozen=True)
class PlannedHeal:
    """A planned heal: changes of [from_us, to_us) in `exports` exports.

    `gaps`: the entries that opened them. `usd`: approximate cost of the exports, at the table's
    usual rate of writes.
    """

    gaps: tuple[int, ...]
    from_us: int
    to_us: int
    exports: int
    usd: float

    def __str__(self) -> str:
        """Summary in one line."""
        return (
            f"gaps of entries {', '.join(map(str, self.gaps))}, changes from "
            f"{time_text(self.from_us)} to {time_text(self.to_us)} "
            f"UTC: {self.exports} incremental exports, about USD {self.usd:.3f} at the table's "
            "usual rate of writes (list price of us-east-1)"
        )


def planned_heals(table: TableLake) -> list[PlannedHeal]:
    """Plan the heals of all open gaps, oldest first, without beginning any.

    Raises `CannotHealError` for gaps that exports cannot heal, `SourceError`.
    """
    state = table.log.load()
    plans: dict[int, PlannedHeal] = {}
    for gap in _open(state):
        heal = state.heal_of(gap.entry) or plan_heal(table, state, gap)
        start, end = heal.windows[0].from_us, heal.windows[-1].to_us
        written_bytes = _bytes_per_us(state) * (end - start)
        count = len(heal.windows)
        usd = max(written_bytes, count * LEAST_EXPORT_BYTES) / 1e9 * EXPORT_USD_PER_GB
        plans[heal.gap] = PlannedHeal((*heal.also, heal.gap), start, end, count, usd)
    return list(plans.values())


def _bytes_per_us(state: LogState) -> float:
    """Rate of writes, from the landed rows and the mean size of the baseline's items."""
    objects, staged = state.objects.values(), state.staged
    if not objects or staged is None or not staged.items or not staged.bytes:
        return 0.0
    # At least a minute: the first seconds of capture do not give a rate.
    captured_us = max(state.watermark_us - state.began_us, 60_000_000)
    return sum(o.rows for o in objects) * staged.bytes / staged.items / captured_us


def plan_heal(table: TableLake, state: LogState, gap: Gap) -> Heal:
    """Plan the heal of a gap and the gaps that overlap it; raises the errors of `windows_of`."""
    unplanned = [g for g in _open(state) if state.heal_of(g.entry) is None]
    group = overlapping(gap, unplanned)
    windows = windows_of(table, group)
    return Heal(group[-1].entry, windows, also=tuple(g.entry for g in group[:-1]))


def windows_of(table: TableLake, group: list[Gap]) -> tuple[HealWindow, ...]:
    """Plan the windows of a group of gaps; raises `CannotHealError`, `SourceError`."""
    least_us = int(table.lake.settings.export.least_window_minutes * 60_000_000)
    margin_us = int(table.lake.settings.handover_margin_seconds * 1_000_000)
    backups = Backups(earliest_us(table), least_us)
    try:
        return plan_windows(group, margin_us, backups, table.lake.settings.clock_margin_us)
    except CannotHealError as error:
        raise cannot_heal_error(table.settings, group[-1], error.message) from None


def earliest_us(table: TableLake) -> int:
    """Return the earliest time of recovery, in µs; raises `SourceError` if it is off."""
    require_backups(table.source, table.name)
    earliest = describe_backups(table.source, table.name).earliest
    assert earliest is not None  # recovery is on
    return int(earliest.timestamp() * 1_000_000)


def cannot_heal_error(table: Table, gap: Gap, why: str) -> CannotHealError:
    """Return the error for a gap that needs a new baseline."""
    return CannotHealError(
        f"table {table.name}: the gap of entry {gap.entry} cannot be healed from incremental "
        f"exports: {why}",
        fix=f"cdc-pipeline heal {table.safe_name}, or materialise {table.safe_name}/pitr_export: "
        "a new baseline after the gap",
    )


def open_gaps(table: TableLake) -> list[Gap]:
    """List the open gaps after the newest baseline, oldest first."""
    return _open(table.log.load())


def _open(state: LogState) -> list[Gap]:
    return state.open_gaps(state.staged.generation if state.staged else 0)
