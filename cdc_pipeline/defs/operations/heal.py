"""Gap healing in Dagster: the job `heal`, and the sensor that starts it when a gap is open."""

from typing import TYPE_CHECKING

import dagster as dg
import msgspec

from cdc_pipeline.core.clock import now_us
from cdc_pipeline.core.errors import CdcPipelineError, NotReadyError
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import (
    Flight,
    History,
    flights,
    heal_of,
    is_at_work,
    parse_history,
)
from cdc_pipeline.defs.tables.checks import report_checks
from cdc_pipeline.defs.tables.shard_sensor import sensor_status
from cdc_pipeline.settings.model import Settings, Table

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import TableLake
    from cdc_pipeline.snapshot.snapshot import SnapshotResult

_TAG = "cdc_pipeline/heal"
_SILENCE_SECONDS = 3600
"""A heal waits for exports, which take AWS minutes to hours, and logs nothing meanwhile."""


class HealConfig(dg.Config):
    """The table whose open gaps are healed."""

    table: str


@dg.op(description="Heals what a table's stream lost, from incremental exports.")
def heal_gaps(context: dg.OpExecutionContext, config: HealConfig, lake: LakeResource) -> None:
    """Heal the table's open gaps, oldest first; where exports cannot, take a new baseline."""
    from cdc_pipeline.repair.heal import HealResult, close_gaps

    with readable_failures():
        opened = lake.open()
        table = opened.settings.table(config.table)
        try:
            for done in close_gaps(opened.table(table), context=RunContext(context.log.info)):
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
        report_checks(context.instance, opened.table(table))


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
        description=(
            "Starts the job `heal` for tables with an open gap, unless they say heal: ask. A heal "
            "that fails again and again is tried ever more seldom, an hour apart at most."
        ),
    )
    def gap_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        opened, memory = lake.open(), parse_history(context.cursor)
        at_us = now_us()
        labels = [table.label for table in opened.settings.tables]
        memory.take_in(context.instance, labels, at_us)
        running = flights(context.instance, labels, heal.name)
        requests, told = [], []
        for table in opened.settings.tables:
            why = _why_not(opened.table(table), running, memory, at_us)
            if why is None:
                config = {"ops": {"heal_gaps": {"config": {"table": table.label}}}}
                tags = {_TAG: table.safe_name}
                requests.append(dg.RunRequest(run_config=config, tags=tags))
            elif why:
                told.append(why)
        context.update_cursor(msgspec.json.encode(memory).decode())
        if not requests:
            return dg.SkipReason("; ".join(told) or "no open gap")
        return dg.SensorResult(run_requests=requests)

    return gap_sensor


def _why_not(
    table: "TableLake", running: list[Flight], history: History, now_us: int
) -> str | None:
    """Why a table is not healed now ('': nothing is lost); None: it is due."""
    from cdc_pipeline.repair.heal import planned_heals

    try:
        state = table.log.load()
        if not state.open_gaps(state.staged.generation if state.staged else 0):
            history.forget(heal_of(table.settings.label))
            return ""
        if table.settings.heal == "ask":
            plans = "; ".join(map(str, planned_heals(table)))
            return f"cdc-pipeline heal {table.safe_name} ({plans})"
    except CdcPipelineError as error:
        return f"{table.settings.label}: {error.message}"
    for flight in running:
        at_work = heal_of(table.settings.label) in flight.works
        if at_work and is_at_work(flight, state, now_us, _SILENCE_SECONDS):
            return f"{table.settings.label}: in flight (run {flight.run_id[:8]})"
    pause = history.pause_of(heal_of(table.settings.label), now_us)
    return f"{table.settings.label}: {pause}" if pause else None
