"""Glue partitions of the landing zone: a sensor finds missing ones, a job adds them."""

from datetime import date

import dagster as dg

from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.shard_sensor import sensor_status
from cdc_pipeline.settings import Settings


class PartitionsConfig(dg.Config):
    """Days to register, ISO dates by table name."""

    days: dict[str, list[str]]


@dg.op(description="Registers write days of the landing zone as partitions in Glue.")
def register_partitions(
    context: dg.OpExecutionContext, config: PartitionsConfig, lake: LakeResource
) -> None:
    """Register the days; ones that are registered already are fine."""
    from cdc_pipeline.lake.glue import register_days

    with readable_failures():
        opened = lake.open()
        for name, days in config.days.items():
            wanted = [date.fromisoformat(day) for day in days]
            added = register_days(opened, opened.settings.table(name), wanted)
            context.log.info(f"{name}: {len(added)} of {len(days)} partitions added")


@dg.job(
    description="Adds missing partitions of the landing zone in Glue.",
    executor_def=dg.in_process_executor,
)
def repair_glue_partitions() -> None:
    """Started by `glue_partition_sensor`."""
    register_partitions()


def build_glue_sensor(settings: Settings) -> dg.SensorDefinition:
    """Compares what has landed with what Glue lists."""

    @dg.sensor(
        name="glue_partition_sensor",
        job=repair_glue_partitions,
        minimum_interval_seconds=settings.schedules.glue_seconds,
        default_status=sensor_status(settings),
        description=(
            "Capture registers each day as it lands; this sensor finds days that are missing in "
            "Glue all the same and starts their repair."
        ),
    )
    def glue_partition_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        from cdc_pipeline.lake.glue import missing_days

        opened = lake.open()
        if not opened.settings.is_s3:
            return dg.SkipReason("the lake is a local folder; Glue lists S3 only")
        missing: dict[str, list[str]] = {}
        troubles: list[str] = []
        for table in opened.settings.tables:
            try:
                days = missing_days(opened, table)
            except CdcPipelineError as error:
                troubles.append(f"{table.label}: {error.message}")
                continue
            if days:
                missing[table.label] = [day.isoformat() for day in days]
        if not missing:
            found = "; ".join(troubles) or "0 missing"
            return dg.SkipReason(f"{len(opened.settings.tables)} tables looked at, {found}")
        config = {"ops": {"register_partitions": {"config": {"days": missing}}}}
        return dg.SensorResult(run_requests=[dg.RunRequest(run_config=config)])

    return glue_partition_sensor
