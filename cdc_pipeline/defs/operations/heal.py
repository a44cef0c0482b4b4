"""Gap healing in Dagster: the job `heal`, and the sensor that starts it for open gaps."""

from typing import TYPE_CHECKING

import dagster as dg
import msgspec

from cdc_pipeline.core.clock import now_us
from cdc_pipeline.core.errors import CdcPipelineError, NotReadyError
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import (
    ActiveRun,
    History,
    active_runs,
    heal_subject,
    is_working,
    parse_history,
)
from cdc_pipeline.defs.tables.check_reports import report_checks
from cdc_pipeline.defs.tables.shard_sensor import sensor_status
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import TableLake
    from cdc_pipeline.repair.heal import HealResult
    from cdc_pipeline.snapshot.snapshot import SnapshotResult

_TAG = "cdc_pipeline/heal"
_SILENCE_SECONDS = 3600
"""A heal waits for exports (minutes to hours in AWS) and writes nothing to the log meanwhile."""


class HealConfig(dg.Config):
    """The table to heal, by its label."""

    table: str


@dg.op(description="Lands changes lost by a table's stream from incremental exports.")
def heal_gaps(context: dg.OpExecutionContext, config: HealConfig, lake: LakeResource) -> None:
    """Heal the table's open gaps, oldest first; if exports cannot, take a new baseline."""
    from cdc_pipeline.repair.heal import close_gaps

    with readable_failures():
        opened = lake.open(context)
        table = opened.table(opened.settings.table(config.table))
        try:
            for result in close_gaps(table, context=RunContext(context.log.info)):
                _report(context, table.settings, result)
        except NotReadyError as error:
            context.log.info(f"not yet: {error}")
        report_checks(context.instance, table)


def _report(
    context: dg.OpExecutionContext, table: Table, result: "HealResult | SnapshotResult"
) -> None:
    """Log healed gaps; report a baseline that was taken instead as a materialisation."""
    from cdc_pipeline.repair.heal import HealResult

    if isinstance(result, HealResult):
        entries = ", ".join(map(str, result.gaps))
        context.log.info(
            f"the gaps of entries {entries} are healed: {result.lines} changed items from "
            f"{result.windows} exports, {result.reread} read again"
        )
        return
    context.log_event(
        dg.AssetMaterialization(
            asset_key=[table.safe_name, "pitr_export"],
            description="a new baseline, because a gap could not be healed otherwise",
            metadata={"dagster/row_count": result.items, "generation": result.generation},
        )
    )


@dg.job(
    description="Heals gaps: lands changes lost by a stream from incremental exports.",
    executor_def=dg.in_process_executor,
)
def heal() -> None:
    """Heal one table; started by `gap_sensor` for tables with `heal: auto`, else by hand."""
    heal_gaps()


def build_gap_sensor(settings: Settings) -> dg.SensorDefinition:
    """Build the sensor for open gaps; exports cost money, so tables may set `heal: ask`."""

    @dg.sensor(
        name="gap_sensor",
        job=heal,
        minimum_interval_seconds=60,
        default_status=sensor_status(settings),
        description=(
            "Starts the job `heal` for tables with an open gap, except those with heal: ask. A "
            "failing heal is retried with growing pauses, at most an hour apart."
        ),
    )
    def gap_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        opened, history = lake.open(), parse_history(context.cursor)
        at_us = now_us()
        labels = [table.label for table in opened.settings.tables]
        history.update(context.instance, labels, at_us)
        running = active_runs(context.instance, labels, heal.name)
        requests, skipped = [], []
        for table in opened.settings.tables:
            reason = _skip_reason(opened.table(table), running, history, at_us)
            if reason is None:
                config = {"ops": {"heal_gaps": {"config": {"table": table.label}}}}
                tags = {_TAG: table.safe_name}
                requests.append(dg.RunRequest(run_config=config, tags=tags))
            elif reason:
                skipped.append(reason)
        context.update_cursor(msgspec.json.encode(history).decode())
        if not requests:
            return dg.SkipReason("; ".join(skipped) or "no open gap")
        return dg.SensorResult(run_requests=requests)

    return gap_sensor


def _skip_reason(
    table: "TableLake", running: list[ActiveRun], history: History, now_us: int
) -> str | None:
    """Return why a table is not healed now ('': it has no open gap); None: it is due."""
    from cdc_pipeline.repair.heal import planned_heals

    try:
        state = table.log.look()
        if not state.open_gaps(state.staged.generation if state.staged else 0):
            history.forget(heal_subject(table.settings.label))
            return ""
        if table.settings.heal == "ask":
            plans = "; ".join(map(str, planned_heals(table)))
            return f"cdc-pipeline heal {table.safe_name} ({plans})"
    except CdcPipelineError as error:
        return f"{table.settings.label}: {error.message}"
    subject = heal_subject(table.settings.label)
    for run in running:
        if subject in run.subjects and is_working(run, state, now_us, _SILENCE_SECONDS):
            return f"{table.settings.label}: in flight (run {run.run_id[:8]})"
    pause = history.pause_of(subject, now_us)
    return f"{table.settings.label}: {pause}" if pause else None
