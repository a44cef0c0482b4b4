"""Unfinished baselines of earlier runs: resumed if they are still usable, else discarded.

A logged export may have become unusable: recovery was turned off and on, the table was created
again, its files are gone, weeks have passed. Such a baseline cannot be finished, so the next export
or erasure records in the log that it is discarded, and continues.
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
from cdc_pipeline.settings.table import Table
from cdc_pipeline.snapshot.export import describe_own_export

_FARTHEST_US = 3_600_000_000
"""An export time further ahead than this, in µs, comes from a wrong clock: do not wait for it."""


def require_not_discarded(table: Table, baseline: Baseline) -> Baseline:
    """Return the baseline; raises `CaptureConflictError` if another run discarded it."""
    if baseline.discarded:
        raise CaptureConflictError(
            f"table {table.name}: the export for generation {baseline.generation} was discarded by "
            "another run meanwhile, such as an erasure of an item that it may contain",
            fix="run it again: it requests a new export",
        )
    return baseline


def unfinished_baselines(state: LogState) -> list[Baseline]:
    """List baselines that are neither staged nor discarded, oldest first."""
    pending = (b for b in state.baselines.values() if b.snapshot_id is None and not b.discarded)
    return sorted(pending, key=lambda baseline: baseline.generation)


def resume_baseline(
    table: TableLake, table_id: str, state: LogState, *, shadow: bool, context: RunContext
) -> Baseline | None:
    """Resume the unfinished baseline of an earlier run; None if there is no usable one.

    Raises `NotReadyError` for a shadow if another baseline is in progress, and `SourceError` or
    `ExportError` if AWS cannot be asked.
    """
    log = table.log
    for baseline in unfinished_baselines(state):
        reason = why_unusable(table, table_id, state, baseline)
        if reason is not None:
            context.progress(discard_baseline(log, state, baseline, reason))
        elif shadow and not baseline.shadow:
            raise NotReadyError(
                f"table {table.name}: an export for a new baseline is in progress already",
                fix=f"let it finish, or materialise {table.safe_name}/pitr_export, then again",
            )
        else:
            # A request for a baseline also uses an export that was begun for a comparison.
            return record_baseline(log, state, baseline, shadow=shadow)
    return None


def discard_baseline(log: CaptureLog, state: LogState, baseline: Baseline, why: str) -> str:
    """Discard an unfinished baseline; return a message for the log."""
    record_baseline(log, state, baseline, discarded=True)
    return f"the export begun for generation {baseline.generation} is discarded: {why}"


def why_unusable(
    table: TableLake, table_id: str, state: LogState, baseline: Baseline
) -> str | None:
    """Return why an unfinished baseline is not usable any more; None: it is usable.

    `table_id`: of the current table. Raises `SourceError` and `ExportError` if AWS cannot be asked.
    """
    if baseline.generation != max(state.baselines):
        return "a later one was begun"
    if any(
        gap.cause == "table recreated" and gap.heal_generation >= baseline.generation
        for gap in state.gaps.values()
    ):
        return "the table was deleted and created again since"
    if baseline.export_arn is not None:
        try:
            status = describe_own_export(table, baseline.export_arn, table_id)
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
    return _why_not_exportable(table, baseline)


def _why_not_exportable(table: TableLake, baseline: Baseline) -> str | None:
    """Why AWS cannot export the table as of the baseline's time; None: it can."""
    if baseline.export_time_us > table.log.now_us() + _FARTHEST_US:
        return "its export time is far in the future"
    backups = describe_backups(table.source, table.name)
    if backups.earliest is None:
        return "point-in-time recovery is off"
    if backups.earliest.timestamp() * 1_000_000 > baseline.export_time_us:
        return f"recovery reaches back only to {backups.earliest:%Y-%m-%d %H:%M:%S}"
    return None
