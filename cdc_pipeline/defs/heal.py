"""Gap healing in Dagster: the job `heal`, and the sensor that starts it when a gap is open."""

from typing import TYPE_CHECKING

import dagster as dg

from cdc_pipeline.core.errors import CdcPipelineError, NotReadyError
from cdc_pipeline.defs.checks import report_checks
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.shard_sensor import sensor_status
from cdc_pipeline.settings import Settings, Table

if TYPE_CHECKING:
    from cdc_pipeline.capture.snapshot import SnapshotResult

_TAG = "cdc_pipeline/heal"
_IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


class HealConfig(dg.Config):
    """The table whose open gaps are healed."""

    table: str


@dg.op(description="Heals what a table's stream lost, from incremental exports.")
def heal_gaps(context: dg.OpExecutionContext, config: HealConfig, lake: LakeResource) -> None:
    """Heal the table's open gaps, oldest first; where exports cannot, take a new baseline."""
    from cdc_pipeline.capture.heal import HealResult, close_gaps

    with readable_failures():
        opened = lake.open()
        table = opened.settings.table(config.table)
        try:
            for done in close_gaps(opened, table, progress=context.log.info):
                if not isinstance(done, HealResult):
                    _tell_baseline(context, table, done)
                    continue
                entries = ", ".join(map(str, done.gaps))
                context.log.info(
                    f"the gaps of entries {entries} are healed: {done.lines} changed items from "
                    f"{done.windows} exports, {done.reread} read again"
                )
        except NotReadyError as error:
            context.log.info(f"not yet: {error}")
        report_checks(context.instance, opened, table)


def _tell_baseline(context: dg.OpExecutionContext, table: Table, taken: "SnapshotResult") -> None:
    context.log_event(
        dg.AssetMaterialization(
            asset_key=[table.safe_name, "pitr_export"],
            description="a new baseline, because a gap could not be healed otherwise",
            metadata={"dagster/row_count": taken.items, "generation": taken.generation},
        )
    )


@dg.job(
    description="Heals gaps: lands what a stream lost from incremental exports.",
    executor_def=dg.in_process_executor,
)
def heal() -> None:
    """Started by `gap_sensor` where the table says `heal: auto`, by hand otherwise."""
    heal_gaps()


def build_gap_sensor(settings: Settings) -> dg.SensorDefinition:
    """Looks for open gaps; exports cost money, so tables may say `heal: ask`."""

    @dg.sensor(
        name="gap_sensor",
        job=heal,
        minimum_interval_seconds=60,
        default_status=sensor_status(settings),
        description="Starts the job `heal` for tables with an open gap, unless they say heal: ask.",
    )
    def gap_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        from cdc_pipeline.capture.heal import open_gaps, planned_heals

        opened = lake.open()
        requests, told = [], []
        for table in opened.settings.tables:
            try:
                gaps = open_gaps(opened, table)
                if gaps and table.heal == "ask":
                    plans = "; ".join(map(str, planned_heals(opened, table)))
                    told.append(f"cdc-pipeline heal {table.safe_name} ({plans})")
                    continue
            except CdcPipelineError as error:
                told.append(f"{table.label}: {error.message}")
                continue
            if gaps and not _is_running(context.instance, table):
                config = {"ops": {"heal_gaps": {"config": {"table": table.label}}}}
                tags = {_TAG: table.safe_name}
                requests.append(dg.RunRequest(run_config=config, tags=tags))
        if not requests:
            return dg.SkipReason("; ".join(told) or "no open gap")
        return dg.SensorResult(run_requests=requests)

    return gap_sensor


def _is_running(instance: dg.DagsterInstance, table: Table) -> bool:
    filters = dg.RunsFilter(tags={_TAG: table.safe_name}, statuses=_IN_PROGRESS)
    return bool(instance.get_run_records(filters, limit=1))
