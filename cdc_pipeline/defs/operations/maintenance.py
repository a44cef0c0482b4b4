"""Maintenance as an asset with a schedule of its own: one run tidies up the whole lake."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.tables.table import schedule_status
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.model import Settings

if TYPE_CHECKING:
    from cdc_pipeline.lake.upkeep.maintenance import Upkeep

_DESCRIPTION = (
    "Merges small landing objects, expires old Iceberg snapshots and removes what nothing refers "
    "to. Content stays the same. Merged landing objects go `keep_replaced_minutes` after they were "
    "replaced, other files when they are older than `unreferenced_hours` (settings: maintenance); "
    "what the capture log names, and baselines, never."
)
_COLUMNS = "of", "merged", "into", "replaced removed", "snapshots expired", "files removed", "MB"


def build_maintenance_defs(settings: Settings) -> dg.Definitions:
    """The asset `maintenance` and the schedule that runs it."""

    @dg.asset(name="maintenance", group_name="lake", description=_DESCRIPTION, kinds={"iceberg"})
    def maintenance(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> Iterator[dg.MaterializeResult]:
        failed: list[str] = []
        lines = [
            "| of | merged | into | replaced removed | snapshots expired | files removed | MB |"
        ]
        lines.append("|---|---|---|---|---|---|---|")
        merged = files = freed = 0
        for name, maintain in _work(lake.open(), settings):
            try:
                done = maintain()
            except CdcPipelineError as error:
                failed.append(f"{name}: {error}")
                context.log.error(failed[-1])
                continue
            merged += done.compaction.before
            files += done.files + done.replaced_removed
            freed += done.bytes
            lines.append(
                f"| {name} | {done.compaction.before} | {done.compaction.after} "
                f"| {done.replaced_removed} | {done.snapshots_expired} | {done.files} "
                f"| {done.bytes / 1e6:.1f} |"
            )
            context.log.info(lines[-1].strip("| ").replace(" | ", ", "))
            if done.not_expired:
                kept = ", ".join(done.not_expired)
                context.log.warning(f"the catalogue does not expire earlier versions of {kept}")
        yield dg.MaterializeResult(
            metadata={
                "objects_merged": merged,
                "files_removed": files,
                "bytes_freed": freed,
                "done": dg.MetadataValue.md("\n".join(lines)),
            }
        )
        if failed:
            raise dg.Failure(description="maintenance failed for " + "; ".join(failed))

    schedule = dg.ScheduleDefinition(
        name="maintain",
        target=dg.AssetSelection.assets(maintenance),
        cron_schedule=settings.maintenance.schedule,
        execution_timezone="UTC",
        default_status=schedule_status(settings),
        description="Tidies up the lake.",
    )
    return dg.Definitions(assets=[maintenance], schedules=[schedule])


def _work(lake: Lake, settings: Settings) -> "Iterator[tuple[str, Callable[[], Upkeep]]]":
    from cdc_pipeline.lake.upkeep.maintenance import maintain_aggregate, maintain_table
    from cdc_pipeline.transform.aggregates import broken_aggregates, load_aggregates

    for table in settings.tables:
        yield table.safe_name, partial(maintain_table, lake.table(table))
    folder = settings.aggregates_folder
    for aggregate in (*load_aggregates(folder), *broken_aggregates(folder)):
        yield aggregate.table, partial(maintain_aggregate, lake, aggregate.table)
