"""What healing would do and cost: open gaps, and the exports that fill them."""

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
from cdc_pipeline.settings.model import Table


@dataclass(frozen=True)
class PlannedHeal:
    """What a heal would do. `usd`: about what its exports cost, at the table's usual pace.

    Changes of [from_us, to_us) in `exports` exports; `gaps`: the entries that opened them.
    """

    gaps: tuple[int, ...]
    from_us: int
    to_us: int
    exports: int
    usd: float

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"gaps of entries {', '.join(map(str, self.gaps))}, changes from "
            f"{time_text(self.from_us)} to {time_text(self.to_us)} "
            f"UTC: {self.exports} incremental exports, about USD {self.usd:.3f} at the table's "
            "usual pace (list price of us-east-1)"
        )


def planned_heals(table: TableLake) -> list[PlannedHeal]:
    """The heals of all open gaps, the oldest first, without beginning any.

    Raises what `heal_gap` does for gaps that exports cannot heal.
    """
    state = table.log.load()
    found: dict[int, PlannedHeal] = {}
    for gap in _open(state):
        heal = state.heal_of(gap.entry) or plan_heal(table, state, gap)
        start, end = heal.windows[0].from_us, heal.windows[-1].to_us
        changed = _bytes_per_us(state) * (end - start)
        count = len(heal.windows)
        usd = max(changed, count * LEAST_EXPORT_BYTES) / 1e9 * EXPORT_USD_PER_GB
        found[heal.gap] = PlannedHeal((*heal.also, heal.gap), start, end, count, usd)
    return list(found.values())


def _bytes_per_us(state: LogState) -> float:
    """How much is written, from what has landed and how large an item of the baseline is."""
    objects, staged = state.objects.values(), state.staged
    if not objects or staged is None or not staged.items or not staged.bytes:
        return 0.0
    # A minute at least: what a young table's first seconds saw is no pace.
    captured_us = max(state.watermark_us - state.began_us, 60_000_000)
    return sum(o.rows for o in objects) * staged.bytes / staged.items / captured_us


def plan_heal(table: TableLake, state: LogState, gap: Gap) -> Heal:
    """The heal of a gap and of those that overlap it; raises what `windows_of` does."""
    waiting = [g for g in _open(state) if state.heal_of(g.entry) is None]
    group = overlapping(gap, waiting)
    windows = windows_of(table, group)
    return Heal(group[-1].entry, windows, also=tuple(g.entry for g in group[:-1]))


def windows_of(table: TableLake, group: list[Gap]) -> tuple[HealWindow, ...]:
    """Windows over a group of gaps; raises `CannotHealError`, `SourceError`."""
    least_us = int(table.lake.settings.export.least_window_minutes * 60_000_000)
    margin_us = int(table.lake.settings.handover_margin_seconds * 1_000_000)
    backups = Backups(earliest_us(table), least_us)
    try:
        return plan_windows(group, margin_us, backups, table.lake.settings.clock_margin_us)
    except CannotHealError as error:
        raise cannot_heal(table.settings, group[-1], error.message) from None


def earliest_us(table: TableLake) -> int:
    """The earliest time that recovery reaches; raises `SourceError` when it is off."""
    require_backups(table.source, table.name)
    earliest = describe_backups(table.source, table.name).earliest
    assert earliest is not None  # recovery is on
    return int(earliest.timestamp() * 1_000_000)


def cannot_heal(table: Table, gap: Gap, why: str) -> CannotHealError:
    """The error that says why only a new baseline helps."""
    return CannotHealError(
        f"table {table.name}: the gap of entry {gap.entry} cannot be healed from incremental "
        f"exports: {why}",
        fix=f"cdc-pipeline heal {table.safe_name}, or materialise {table.safe_name}/pitr_export: "
        "a new baseline behind it",
    )


def open_gaps(table: TableLake) -> list[Gap]:
    """Gaps that the newest baseline suffers from, oldest first."""
    return _open(table.log.load())


def _open(state: LogState) -> list[Gap]:
    return state.open_gaps(state.staged.generation if state.staged else 0)
