"""Glue partitions of the landing zone: a sensor finds what is amiss, a job repairs it."""

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


@dg.op(description="Makes the landing zone's tables and partitions in Glue as they should be.")
def register_partitions(
    context: dg.OpExecutionContext, config: PartitionsConfig, lake: LakeResource
) -> None:
    """Look again and repair; trouble with one table does not keep the others from it."""
    from cdc_pipeline.lake.glue_partitions import repair

    with readable_failures():
        opened = lake.open()
        troubles: list[str] = []
        for name in config.tables:
            try:
                found = repair(opened.table(opened.settings.table(name)))
            except CdcPipelineError as error:
                troubles.append(f"{name}: {error.message}")
            else:
                context.log.info(f"{name}: repaired: {found}")
        if troubles:
            raise LakeError("; ".join(troubles), fix="the sensor starts this again within the hour")


@dg.job(
    description="Adds, updates and removes partitions of the landing zone in Glue.",
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
            "Glue all the same, outdated ones and empty ones, and starts their repair."
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
            return dg.SkipReason(f"the lake's catalogue is no Glue: {opened.settings.catalog_type}")
        repairs: dict[str, str] = {}
        troubles: list[str] = []
        for table in opened.settings.tables:
            try:
                found = find_repairs(opened.table(table))
            except CdcPipelineError as error:
                troubles.append(f"{table.safe_name}: {error.message}")
                continue
            if found:
                repairs[table.safe_name] = repr(found)
        if not repairs:
            return dg.SkipReason(_nothing_amiss(opened.settings, troubles))
        config = {"ops": {"register_partitions": {"config": {"tables": list(repairs)}}}}
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=_run_key(repairs), run_config=config)]
        )

    return glue_partition_sensor


def _nothing_amiss(settings: Settings, troubles: list[str]) -> str:
    found = "; ".join(troubles) or "0 missing"
    if settings.glue.projection and not troubles:
        found = "none are registered: Athena projects them (`glue: {projection: true}`)"
    return f"{len(settings.tables)} tables looked at, {found}"


def _run_key(repairs: dict[str, str]) -> str:
    """One run for the same findings within an hour: what cannot be repaired must not flood."""
    digest = hashlib.sha256(repr(sorted(repairs.items())).encode()).hexdigest()
    return f"{datetime.now(UTC):%Y-%m-%dT%H}-{digest[:16]}"
