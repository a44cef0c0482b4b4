"""Glue partitions of the landing zone: a sensor finds wrong partitions, a job repairs them."""

import hashlib
from datetime import UTC, datetime

import dagster as dg

from cdc_pipeline.core.errors import CdcPipelineError, LakeError
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.tables.shard_sensor import sensor_status
from cdc_pipeline.settings.model import Settings


class PartitionsConfig(dg.Config):
    """Tables to repair, by their names in the lake."""

    tables: list[str]


@dg.op(description="Corrects the landing zone's tables and partitions in Glue.")
def register_partitions(
    context: dg.OpExecutionContext, config: PartitionsConfig, lake: LakeResource
) -> None:
    """Compare again and repair; an error in one table does not stop the others."""
    from cdc_pipeline.lake.glue_partitions import repair

    with readable_failures():
        opened = lake.open()
        errors: list[str] = []
        for name in config.tables:
            try:
                repairs = repair(opened.table(opened.settings.table(name)))
            except CdcPipelineError as error:
                errors.append(f"{name}: {error.message}")
            else:
                context.log.info(f"{name}: repaired: {repairs}")
        if errors:
            raise LakeError("; ".join(errors), fix="wait: the sensor retries within an hour")


@dg.job(
    description="Adds, updates and removes partitions of the landing zone in Glue.",
    executor_def=dg.in_process_executor,
)
def repair_glue_partitions() -> None:
    """Started by `glue_partition_sensor`."""
    register_partitions()


def build_glue_sensor(settings: Settings) -> dg.SensorDefinition:
    """Build the sensor that compares landed days with the partitions in Glue."""

    @dg.sensor(
        name="glue_partition_sensor",
        job=repair_glue_partitions,
        minimum_interval_seconds=settings.schedules.glue_seconds,
        default_status=sensor_status(settings),
        description=(
            "Capture registers each day when it lands; this sensor finds days still missing in "
            "Glue, outdated partitions and empty ones, and starts their repair."
        ),
    )
    def glue_partition_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        from cdc_pipeline.lake.glue_partitions import find_repairs

        opened = lake.open()
        if not opened.settings.is_s3:
            return dg.SkipReason("the lake is a local folder; Glue lists S3 only")
        if not opened.settings.has_glue:
            return dg.SkipReason(
                f"the lake's catalogue is not Glue: {opened.settings.catalog_type}"
            )
        repairs: dict[str, str] = {}
        errors: list[str] = []
        for table in opened.settings.tables:
            try:
                needed = find_repairs(opened.table(table))
            except CdcPipelineError as error:
                errors.append(f"{table.safe_name}: {error.message}")
                continue
            if needed:
                repairs[table.safe_name] = repr(needed)
        if not repairs:
            return dg.SkipReason(_skip_reason(opened.settings, errors))
        config = {"ops": {"register_partitions": {"config": {"tables": list(repairs)}}}}
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=_run_key(repairs), run_config=config)]
        )

    return glue_partition_sensor


def _skip_reason(settings: Settings, errors: list[str]) -> str:
    result = "; ".join(errors) or "0 missing"
    if settings.glue.projection and not errors:
        result = "none are registered: Athena projects them (`glue: {projection: true}`)"
    return f"{len(settings.tables)} tables checked, {result}"


def _run_key(repairs: dict[str, str]) -> str:
    """Return a key for one run per hour for the same repairs: failing repairs must not flood."""
    digest = hashlib.sha256(repr(sorted(repairs.items())).encode()).hexdigest()
    return f"{datetime.now(UTC):%Y-%m-%dT%H}-{digest[:16]}"
