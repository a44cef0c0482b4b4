"""Baselines that a run left unfinished: taken up if they can still become one, else discarded.

What has been logged of an export may have become useless since: recovery was turned off and on,
the table was made again, its files are gone, weeks have passed. Nobody can finish such a baseline,
so whoever comes across it (the next export, an erasure) says so in the log and goes on.
"""

from cdc_pipeline.aws.export import read_manifest
from cdc_pipeline.aws.table import describe_backups
from cdc_pipeline.core.errors import (
    CaptureConflictError,
    ExportError,
    NotReadyError,
    UnusableExportError,
)
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.baselines import record_baseline
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.settings.model import Table
from cdc_pipeline.snapshot.export import exported

_FARTHEST_US = 3_600_000_000
"""An export time this far ahead is of a clock that was wrong: nobody waits for it."""


def require_wanted(table: Table, baseline: Baseline) -> Baseline:
    """The same baseline; raises `CaptureConflictError` if another run decided against it."""
    if baseline.discarded:
        raise CaptureConflictError(
            f"table {table.name}: the export for generation {baseline.generation} was given up by "
            "another run meanwhile, such as an erasure of an item that it may hold",
            fix="run it again: it takes a new export",
        )
    return baseline


def unfinished(state: LogState) -> list[Baseline]:
    """Baselines that are neither staged nor discarded, oldest first."""
    found = (b for b in state.baselines.values() if b.snapshot_id is None and not b.discarded)
    return sorted(found, key=lambda baseline: baseline.generation)


def take_up(
    table: TableLake,
    table_id: str,
    log: CaptureLog,
    state: LogState,
    *,
    shadow: bool,
    context: RunContext,
) -> Baseline | None:
    """The unfinished baseline of an earlier run, None if there is none that can still become one.

    Raises `NotReadyError` for a shadow where another baseline is on its way, and what AWS says when
    it cannot be asked.
    """
    for baseline in unfinished(state):
        useless = why_useless(table, table_id, log, state, baseline)
        if useless is not None:
            context.progress(discarded(log, state, baseline, useless))
        elif shadow and not baseline.shadow:
            raise NotReadyError(
                f"table {table.name}: an export for a new baseline is under way already",
                fix=f"let it finish, or materialise {table.safe_name}/pitr_export, then again",
            )
        else:
            # Who asks for a baseline gets one, also where an export for a comparison was begun.
            return record_baseline(log, state, baseline, shadow=shadow)
    return None


def discarded(log: CaptureLog, state: LogState, baseline: Baseline, why: str) -> str:
    """Discard an unfinished baseline; what to tell of that."""
    record_baseline(log, state, baseline, discarded=True)
    return f"the export begun for generation {baseline.generation} is given up: {why}"


def why_useless(
    table: TableLake,
    table_id: str,
    log: CaptureLog,
    state: LogState,
    baseline: Baseline,
) -> str | None:
    """Why an unfinished baseline cannot become one any more; None: it can.

    `table_id`: of the table as it is now. Raises `SourceError` and `ExportError` when AWS cannot be
    asked.
    """
    if baseline.generation != max(state.baselines):
        return "a later one was begun"
    if any(
        gap.cause == "table recreated" and gap.heal_generation >= baseline.generation
        for gap in state.gaps.values()
    ):
        return "the table was deleted and made again since"
    if baseline.export_arn is not None:
        try:
            status = exported(table, baseline.export_arn, table_id)
            if status.status == "COMPLETED":
                read_manifest(table.lake.aws, status)
        except UnusableExportError as error:
            return error.message
        except ExportError as error:
            if error.__cause__ is not None:
                raise  # AWS could not be asked
            return error.message
        if status.status != "FAILED":
            return None
    return _why_not_askable(table, log, baseline)


def _why_not_askable(table: TableLake, log: CaptureLog, baseline: Baseline) -> str | None:
    """Why AWS would never export the table as of the baseline's time."""
    if baseline.export_time_us > log.now_us() + _FARTHEST_US:
        return "its export time lies far ahead"
    backups = describe_backups(table.source, table.name)
    if backups.earliest is None:
        return "point-in-time recovery is off"
    if backups.earliest.timestamp() * 1_000_000 > baseline.export_time_us:
        return f"recovery reaches back to {backups.earliest:%Y-%m-%d %H:%M:%S} only"
    return None
