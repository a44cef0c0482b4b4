"""The schedule of yesterday's partitions; maintenance and reconciliation have their own."""

from datetime import timedelta

import dagster as dg

from cdc_pipeline.defs.tables.table import schedule_status
from cdc_pipeline.settings.model import Settings


def build_schedules(settings: Settings, daily_assets: list[dg.AssetKey]) -> dg.Definitions:
    """Build the job `refresh_yesterday` and its schedule."""
    job = dg.define_asset_job(
        "refresh_yesterday",
        selection=dg.AssetSelection.assets(*daily_assets),
        description="Rebuilds one day of every daily asset, late changes included.",
    )

    @dg.schedule(
        name="yesterday",
        job=job,
        cron_schedule=settings.schedules.yesterday,
        execution_timezone="UTC",
        default_status=schedule_status(settings),
        description="After midnight: rebuilds yesterday, with its last changes.",
    )
    def yesterday(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        day = (context.scheduled_execution_time - timedelta(days=1)).date()
        if day < settings.start_date:
            return dg.SkipReason(f"{day} is before start_date, {settings.start_date}")
        return dg.RunRequest(run_key=day.isoformat(), partition_key=day.isoformat())

    return dg.Definitions(jobs=[job], schedules=[yesterday])
