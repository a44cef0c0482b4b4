"""The asset `maintenance` and its schedule: one run maintains the whole lake."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.defs.metadata import grid
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.tables.table import schedule_status
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.model import Settings

if TYPE_CHECKING:
    from cdc_pipeline.lake.upkeep.maintenance import MaintenanceResult

_DESCRIPTION = (
    "Merges small landing objects, expires old Iceberg snapshots and removes unreferenced files. "
    "Data stays the same. Merged landing objects are removed `keep_replaced_minutes` after their "
    "replacement, other files when older than `unreferenced_hours` (settings: maintenance); files "
    "named in the capture log, and baselines, are never removed."
)
_COLUMNS = "of", "merged", "into", "replaced removed", "snapshots expired", "files removed", "MB"


def build_maintenance_defs(settings: Settings) -> dg.Definitions:
    """Build the asset `maintenance` and its schedule."""

    @dg.asset(name="maintenance", group_name="lake", description=_DESCRIPTION, kinds={"iceberg"})
    def maintenance(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> Iterator[dg.MaterializeResult]:
        failed: list[str] = []
        done: list[tuple[str, MaintenanceResult]] = []
        for name, maintain in _tasks(lake.open(), settings):
            try:
                done.append((name, maintain()))
            except CdcPipelineError as error:
                failed.append(f"{name}: {error}")
                context.log.error(failed[-1])
                continue
            _log_upkeep(context, *done[-1])
        yield dg.MaterializeResult(metadata=_metadata(done))
        if failed:
            raise dg.Failure(description="maintenance failed for " + "; ".join(failed))

    schedule = dg.ScheduleDefinition(
        name="maintain",
        target=dg.AssetSelection.assets(maintenance),
        cron_schedule=settings.maintenance.schedule,
        execution_timezone="UTC",
        default_status=schedule_status(settings),
        description="Maintains the whole lake.",
    )
    return dg.Definitions(assets=[maintenance], schedules=[schedule])


def _log_upkeep(context: dg.AssetExecutionContext, name: str, upkeep: "MaintenanceResult") -> None:
    context.log.info(", ".join(_cells(name, upkeep)))
    if upkeep.not_expired:
        kept = ", ".join(upkeep.not_expired)
        context.log.warning(f"the catalogue does not expire earlier versions of {kept}")


def _cells(name: str, upkeep: "MaintenanceResult") -> tuple[str, ...]:
    """Return the cells of `_COLUMNS` for one table."""
    return (
        name,
        str(upkeep.compaction.before),
        str(upkeep.compaction.after),
        str(upkeep.replaced_removed),
        str(upkeep.snapshots_expired),
        str(upkeep.files),
        f"{upkeep.bytes / 1e6:.1f}",
    )


def _metadata(done: "Sequence[tuple[str, MaintenanceResult]]") -> dict[str, Any]:
    return {
        "objects_merged": sum(upkeep.compaction.before for _, upkeep in done),
        "files_removed": sum(upkeep.files + upkeep.replaced_removed for _, upkeep in done),
        "bytes_freed": sum(upkeep.bytes for _, upkeep in done),
        "done": grid(_COLUMNS, [_cells(name, upkeep) for name, upkeep in done]),
    }


def _tasks(
    lake: Lake, settings: Settings
) -> "Iterator[tuple[str, Callable[[], MaintenanceResult]]]":
    from cdc_pipeline.lake.upkeep.maintenance import maintain_aggregate, maintain_table
    from cdc_pipeline.transform.aggregates import broken_aggregates, load_aggregates

    for table in settings.tables:
        yield table.safe_name, partial(maintain_table, lake.table(table))
    folder = settings.aggregates_folder
    for aggregate in (*load_aggregates(folder), *broken_aggregates(folder)):
        yield aggregate.table, partial(maintain_aggregate, lake, aggregate.table)
