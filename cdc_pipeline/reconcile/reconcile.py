"""Reconciliation of the lake with its source: samples, full differences, and repair."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from cdc_pipeline.aws.table import TableDescription, describe_table
from cdc_pipeline.capture.catch_up import capture_to
from cdc_pipeline.core.errors import LakeError, NotReadyError
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.plans.prices import EXPORT_USD_PER_GB
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.lake.iceberg.tables import retry_on_conflict
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.baselines import discard_baselines
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.state.base import Base, handover_us, published_base
from cdc_pipeline.lake.state.tombstones import forget_tombstones
from cdc_pipeline.lake.upkeep.restore import RestoreResult, restore_landing
from cdc_pipeline.lake.upkeep.verify import (
    LANDING,
    TOMBSTONES,
    Damage,
    VerificationResult,
    verify_files,
)
from cdc_pipeline.reconcile.full_difference import FullDifference, compare_with_export
from cdc_pipeline.reconcile.sample import (
    Difference,
    Sample,
    SampleCost,
    compare_sample,
    compare_until_settled,
    require_comparable,
    sample_cost,
)
from cdc_pipeline.snapshot.shadow import discard_shadow, release_shadow, staged_shadow
from cdc_pipeline.snapshot.snapshot import take_snapshot
from cdc_pipeline.snapshot.verify_export import VerifiedExport, verify_export


@dataclass(frozen=True)
class Cost:
    """Approximate cost of a reconciliation. `gigabytes` and `usd`: of a full export.

    `described`: the table that it was estimated from.
    """

    sample: SampleCost
    gigabytes: float
    usd: float
    described: TableDescription


@dataclass
class ReconcileReport:
    """Result of a reconciliation.

    `counts`: differences by kind; `differences`: the first of them, of a sample all. `unreadable`:
    why items could not be compared; None: they were. `compared`: number of items. `unsettled`:
    number of items that changed each time they were read.
    """

    table: str
    export: VerifiedExport | None = None
    files: VerificationResult = field(default_factory=VerificationResult)
    compared: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    unsettled: int = 0
    unreadable: str | None = None
    export_arn: str | None = None
    ranges: int = 0
    ranges_joined: int = 0
    repaired: bool = False
    restored: RestoreResult = field(default_factory=RestoreResult)
    seconds: float = 0

    @property
    def is_sound(self) -> bool:
        """Whether no check found a problem."""
        problems = self.export.problems if self.export else []
        return not (problems or self.files.damages or self.counts or self.unreadable)


def estimate(table: TableLake, items: int) -> Cost:
    """Estimate the cost of a sample of `items` items, and of a full export."""
    described = describe_table(table.source, table.name)
    gigabytes = described.bytes / 1e9
    usd = gigabytes * EXPORT_USD_PER_GB
    return Cost(sample_cost(described, items), gigabytes, usd, described)


def reconcile_sample(
    table: TableLake,
    items: int,
    *,
    export: bool = True,
    described: TableDescription | None = None,
    context: RunContext = SILENT,
) -> ReconcileReport:
    """Verify all file sizes and, with `export`, the baseline's export; compare a sample of items.

    `described`: the table, if it was described before. Raises `NotReadyError`, `SourceError`,
    `LakeError`.
    """
    started = time.monotonic()
    report = _verified(table, context, content=False, export=export)
    try:
        sample = compare_sample(table, items, described=described, context=context)
        report.compared += sample.compared
        _add_sample(report, sample)
    except LakeError as error:
        report.unreadable = str(error)
    report.seconds = time.monotonic() - started
    return report


def reconcile_full(
    table: TableLake,
    *,
    repair: bool = False,
    context: RunContext = SILENT,
) -> ReconcileReport:
    """Compare all items with a new export, and every file with its recorded checksum or rows.

    The export is staged as a shadow baseline. Without problems it is discarded. With problems and
    `repair`, it replaces the live baseline in one commit, damaged landing objects and days of cdc
    are restored as far as possible, and damaged baselines are discarded. Without `repair` it is
    kept for a later repair. Safe to kill at any time and to run again. Raises `NotReadyError`,
    `SourceError`, `ExportError`, `LakeError`.
    """
    started = time.monotonic()
    # Load the base before the export, so that it has no changes written after the export.
    base = published_base(table)
    if base is None:
        raise NotReadyError(
            f"{table.safe_name}/current_state was not published yet",
            fix=f"materialise {table.safe_name}/current_state first",
        )
    report = _verified(table, context, content=True)
    shadow, described = _shadow(table, report, repair, context)
    report.export_arn = shadow.export_arn
    moving = _compare(table, base, shadow, report, context)
    if moving:
        sample, described = Sample(), described or describe_table(table.source, table.name)
        compare_until_settled(table, described, moving, sample, context)
        _add_sample(report, sample)
    if report.is_sound:
        discard_shadow(table, shadow)
    elif repair:
        _repair(table, shadow, report, context)
    report.seconds = time.monotonic() - started
    return report


def _verified(
    table: TableLake, context: RunContext, *, content: bool, export: bool = True
) -> ReconcileReport:
    report = ReconcileReport(table.safe_name)
    context.progress("verifying files of the lake")
    report.files = verify_files(table, content=content)
    try:
        if export:
            report.export = verify_export(table, context=context)
    except LakeError as error:
        report.unreadable = str(error)
    return report


def _add_sample(report: ReconcileReport, sample: Sample) -> None:
    report.differences += sample.differences
    _count(report, Counter(difference.kind for difference in sample.differences))
    report.unsettled += sample.unsettled


def _count(report: ReconcileReport, kinds: Mapping[str, int]) -> None:
    for kind, count in kinds.items():
        report.counts[kind] = report.counts.get(kind, 0) + count


def _shadow(
    table: TableLake, report: ReconcileReport, repair: bool, context: RunContext
) -> tuple[Baseline, TableDescription | None]:
    """Return a staged shadow: the one held for this repair, or a new one and its table."""
    held = staged_shadow(table)
    if held and repair and not _has_damaged_changes(table, held, report.files.damages):
        context.progress("using the export of the last comparison")
        return held, None
    if held:
        discard_shadow(table, held)
    described = describe_table(table.source, table.name)
    taken = take_snapshot(table, shadow=True, described=described, context=context)
    return table.log.load().baselines[taken.generation], described


def _has_damaged_changes(table: TableLake, held: Baseline, damages: list[Damage]) -> bool:
    """Whether a damaged landing object has changes that follow the held baseline."""
    objects = table.log.load().objects
    names = (damage.name for damage in damages if damage.kind == LANDING)
    return any(objects[name].generation >= held.generation for name in names if name in objects)


def _compare(
    table: TableLake,
    base: Base,
    shadow: Baseline,
    report: ReconcileReport,
    context: RunContext,
) -> list[str]:
    """Compare with the staged export; return the keys of items that it does not decide."""
    state = capture_to(table, handover_us(table.lake, shadow), context=context)
    try:
        require_comparable(table, state)
        context.progress("comparing all items with the export")
        difference = compare_with_export(table, base, shadow, state)
    except (LakeError, NotReadyError) as error:
        report.unreadable = str(error)
        return []
    _add_difference(report, difference)
    return difference.moving


def _add_difference(report: ReconcileReport, difference: FullDifference) -> None:
    report.compared = difference.items
    report.differences += difference.differences
    _count(report, difference.counts)
    report.ranges, report.ranges_joined = difference.ranges, difference.ranges_joined


def _repair(
    table: TableLake, shadow: Baseline, report: ReconcileReport, context: RunContext
) -> None:
    landed = [damage.name for damage in report.files.damages if damage.kind == LANDING]
    report.restored = restore_landing(table, landed)
    context.progress("publishing the export as the new baseline")
    release_shadow(table, shadow)
    if any(damage.kind == TOMBSTONES for damage in report.files.damages):
        # After the release, no state is made from the old baseline, which needs the tombstones.
        forget_tombstones(table)
    retry_on_conflict(lambda: publish_current_state(table))
    for day in sorted({damage.day for damage in report.files.damages if damage.day}):
        context.progress(f"building cdc of {day} again")
        build_cdc_day(table, date.fromisoformat(day))
    damaged = {damage.generation for damage in report.files.damages}
    discard_baselines(table, {g for g in damaged if g is not None})
    report.repaired = True
