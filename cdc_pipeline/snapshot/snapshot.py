"""Snapshots: a PITR export is requested, verified and staged as the baseline of a generation."""

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from cdc_pipeline.aws.client.session import cause_code
from cdc_pipeline.aws.export import (
    DataFile,
    ExportStatus,
    ExportTarget,
    Manifest,
    read_data_file,
    request_export,
)
from cdc_pipeline.aws.table import TableDescription, describe_backups
from cdc_pipeline.capture.landing.gaps import open_capture
from cdc_pipeline.capture.sources.source import require_backups
from cdc_pipeline.capture.sources.source_choice import described_table, open_source
from cdc_pipeline.core.changes.order import SNAPSHOT_POSITION, order_key
from cdc_pipeline.core.clock import utc
from cdc_pipeline.core.errors import ExportError, FailedExportError, NotReadyError
from cdc_pipeline.core.items.columns import Column
from cdc_pipeline.core.log.entries import FIRST_GENERATION, Baseline, Erasure
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.lake.engine.item_table import TypedResult, column_names
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import record_baseline, tag_baselines
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.settings.table import Table
from cdc_pipeline.snapshot.export import (
    export_manifest,
    export_target,
    export_token,
    wait_for_export,
)
from cdc_pipeline.snapshot.items import ExportedItems
from cdc_pipeline.snapshot.parts import baseline_properties, stage_by_workers, staging_prefix
from cdc_pipeline.snapshot.resumption import require_not_discarded, resume_baseline
from cdc_pipeline.snapshot.staging import ConvertedFile, Staging

# One for each core, at most the number that converts a 100 GB export in an hour; each takes
# about 60 MB, and as much again while it keeps a part.
_WORKERS = 4
_FEW_ITEMS = 50_000
_REFUSALS = 10
_INVALID_TIME = "InvalidExportTimeException"
_REQUEST_AGAIN = "remove the cause and materialise pitr_export again; it requests a new export"


@dataclass(frozen=True)
class SnapshotResult:
    """A staged baseline. `global_note`: see `aws.table.TableDescription`."""

    generation: int
    export_arn: str
    export_time_us: int
    items: int
    files: int
    bytes: int
    columns: list[Column]
    seconds: float
    global_note: str | None = None


def take_snapshot(
    table: TableLake,
    *,
    shadow: bool = False,
    described: TableDescription | None = None,
    context: RunContext = SILENT,
) -> SnapshotResult:
    """Export the table and stage the export as a baseline.

    An unfinished baseline is resumed if it is still usable (`snapshot.resumption`).

    Stream positions are recorded first, then the export is requested for a time at least the
    margin later, so the changes after those positions cover everything missing in the export.
    Nothing becomes visible before the checksum and count of every file are verified. `shadow`:
    stage it beside the live baseline, without publishing it (`snapshot.shadow`). `described`: the
    table, if it was described just now. Raises `SourceError`, `ExportError`, `LakeError`,
    `NotReadyError`.
    """
    started = time.monotonic()
    described = described_table(table, described=described)
    require_backups(table.source, table.name)
    target = export_target(table)
    log = table.log
    state = log.load()
    if state.stream is None:
        open_capture(log, state, open_source(table, described=described))
    _require_same_table(table.settings, state, described.table_id)
    baseline = None
    while baseline is None:
        baseline = resume_baseline(
            table, described.table_id, state, shadow=shadow, context=context
        ) or _begin(table.lake, log, state, shadow)
    if baseline.export_arn is None:
        _wait_until(log, baseline.export_time_us, context)
        arn = _request(table, described, target, baseline, context)
        baseline = require_not_discarded(
            table.settings, record_baseline(log, state, baseline, export_arn=arn)
        )
    export = (baseline.export_arn or "", described.table_id)
    try:
        status = wait_for_export(table, *export, context)
    except FailedExportError as error:
        _give_up(log, state, baseline)
        raise ExportError(error.message, fix=_REQUEST_AGAIN) from error
    try:
        manifest = export_manifest(table.lake, status, described.table_id)
        start_workers = table.start_workers(described.bytes)
        export = (table, status, manifest, baseline, described.key_names)
        erased = partial(_erased, table.settings, log, state, baseline)
        if start_workers is None:
            staged, size = _stage(*export, erased, context)
        else:
            with start_workers(f"{staging_prefix(table, status)}spark/") as workers:
                staged, size = stage_by_workers(*export, erased, context, workers)
    except ExportError as error:
        _give_up(log, state, baseline)
        raise ExportError(error.message, fix=_REQUEST_AGAIN) from error
    snapshot = staged.table.current_snapshot()
    assert snapshot is not None  # it was just committed
    finished = record_baseline(
        log,
        state,
        baseline,
        snapshot_id=snapshot.snapshot_id,
        items=staged.rows,
        bytes=size,
        staged_us=log.now_us(),
    )
    require_not_discarded(table.settings, finished)
    tag_baselines(table)
    table.lake.store.delete(list(table.lake.store.list(table.paths.staging)))
    return SnapshotResult(
        generation=baseline.generation,
        export_arn=status.arn,
        export_time_us=baseline.export_time_us,
        items=staged.rows,
        files=len(manifest.files),
        bytes=size,
        columns=staged.columns,
        seconds=time.monotonic() - started,
        global_note=described.global_note,
    )


def _begin(lake: Lake, log: CaptureLog, state: LogState, shadow: bool) -> Baseline | None:
    """Log a new baseline; all but the very first begin a generation. None: another run was faster.

    The log entry that begins a generation records its positions: every shard's position in the log
    at that entry. Changes captured after it land in the new generation. The very first baseline
    starts from the positions at which capture began, if there was no gap since: changes landed
    before a gap are not folded over a baseline of a generation after it.
    """
    stream = state.stream
    assert stream is not None  # capture was opened
    if state.baselines or stream.generation != FIRST_GENERATION:
        # After all landed changes, even by a slow clock: where order is by time, late changes of
        # the time before belong to the previous generation, which the export contains.
        recorded_us = max(log.not_yet_us(), (state.last_change_us or 0) + 1000)
        stream = replace(stream, generation=stream.generation + 1, recorded_us=recorded_us)
    margin = lake.settings.handover_margin_seconds
    export_time_s = math.ceil(stream.recorded_us / 1_000_000 + margin)
    export_time_us = export_time_s * 1_000_000
    baseline = Baseline(stream.generation, stream.recorded_us, export_time_us, shadow=shadow)
    expected_n = state.n
    parts = {"stream": stream, "baseline": baseline}
    # Entries logged meanwhile may be of another stream, or another baseline.
    committed = log.commit(state, lambda now: parts if now.n == expected_n else None)
    return baseline if committed else None


def _require_same_table(table: Table, state: LogState, table_id: str) -> None:
    """Raise `NotReadyError` if the log follows a former table of the same name.

    Capture will record that as a gap after the baseline, which would need another baseline.
    """
    if state.stream is not None and state.stream.table_id != table_id:
        raise NotReadyError(
            f"table {table.name} was deleted and created again, and capture follows the former one",
            fix=f"run the job `capture`, then materialise {table.safe_name}/pitr_export again",
        )


def _give_up(log: CaptureLog, state: LogState, baseline: Baseline) -> None:
    """Drop an unusable export, so that the next run requests another one."""
    record_baseline(log, state, baseline, export_arn=None, attempt=baseline.attempt + 1)


def _wait_until(log: CaptureLog, time_us: int, context: RunContext) -> None:
    """Wait until the export time has passed: DynamoDB exports only the past."""
    seconds = (time_us - log.now_us()) / 1_000_000
    if seconds > 0:
        context.progress(f"waiting {seconds:.0f} s until the export time (the handover margin)")
        while (left := (time_us - log.now_us()) / 1_000_000) > 0:
            context.sleep(min(left + 0.01, 5))


def _request(
    table: TableLake,
    described: TableDescription,
    target: ExportTarget,
    baseline: Baseline,
    context: RunContext,
) -> str:
    """Request the export, again while AWS refuses a time that recovery has not reached yet.

    LatestRestorableDateTime is typically five minutes behind (botocore model). It may reach the
    time between the refusal and the next DescribeContinuousBackups, so only `_REFUSALS` refusals
    with a reached time are an error.
    """
    at = utc(baseline.export_time_us)
    # All runs request the same export for the same attempt at the same baseline.
    attempt = (baseline.generation, baseline.export_time_us, baseline.attempt)
    token = export_token(described.table_id, *attempt)
    refusals = 0
    while True:
        try:
            return request_export(table.source, described.arn, at, target, token)
        except ExportError as error:
            if cause_code(error) != _INVALID_TIME:
                raise
            window = describe_backups(table.source, table.name)
            if window.earliest is None or window.latest is None or window.earliest > at:
                raise ExportError(error.message, fix=error.fix or _REQUEST_AGAIN) from error
            refusals += window.latest >= at
            if refusals > _REFUSALS:
                raise ExportError(error.message, fix=error.fix or _REQUEST_AGAIN) from error
            latest = window.latest
        context.progress(f"waiting until recovery, now at {latest:%H:%M:%S}, reaches {at:%H:%M:%S}")
        context.sleep(table.lake.settings.export.poll_seconds)


def _stage(
    table: TableLake,
    status: ExportStatus,
    manifest: Manifest,
    baseline: Baseline,
    key_names: tuple[str, ...],
    erased: Callable[[], list[Erasure]],
    context: RunContext,
) -> tuple[TypedResult, int]:
    """Verify and convert every file, then commit them together as `<table>_snapshot`.

    After the verification, `erased` items are left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch, prefix = Path(folder), staging_prefix(table, status)
        staging = Staging(table.lake.store, prefix, scratch, key_names, items=manifest.items)
        staging.open(table.paths.staging)
        files = _convert_all(table.lake, status, manifest, staging, context)
        # Arrow keeps freed memory, up to 170 MB, and sorting and typing need more.
        pa.default_memory_pool().release_unused()
        # The table before the log: an erasure after the call of `erased` makes the commit fail.
        over = table.iceberg("snapshot")
        items = ExportedItems(
            files,
            order_key(baseline.generation, SNAPSHOT_POSITION),
            baseline.export_time_us,
            scratch,
            f"export {status.arn}",
            Suppressions(erased()),
        )
        context.progress(f"sorting and typing {items.count()} items")
        properties = baseline_properties(baseline, status)
        staged = items.commit(
            table.lake.iceberg,
            f"{table.safe_name}_snapshot",
            properties,
            over=over,
            memory_mb=table.lake.settings.memory_mb,
            limit=table.settings.max_columns,
            names=column_names(table.lake.iceberg, table.safe_name),
        )
        return staged, sum(file.bytes for file in files)


def _erased(table: Table, log: CaptureLog, state: LogState, baseline: Baseline) -> list[Erasure]:
    """Erased items that an export of the past may still contain, by the current log.

    Changes written after the baseline's positions come with the stream, so an item that was put
    again is not lost.
    """
    log.catch_up(state)
    require_not_discarded(table, state.baselines[baseline.generation])
    erasures = state.erasures.values()
    return [erasure for erasure in erasures if erasure.until_us >= baseline.recorded_us]


def _convert_all(
    lake: Lake,
    status: ExportStatus,
    manifest: Manifest,
    staging: Staging,
    context: RunContext,
) -> list[ConvertedFile]:
    """Convert the data files, several at once; the first failure stops the rest."""
    stop = threading.Event()

    def convert(file: DataFile) -> ConvertedFile:
        def pieces() -> Iterator[bytes]:
            for piece in read_data_file(lake.aws, status, file):
                if stop.is_set():
                    raise CancelledError
                yield piece

        return staging.kept(file) or staging.convert(file, pieces(), f"data file {file.key}")

    workers = min(os.cpu_count() or 1, _WORKERS) if manifest.items > _FEW_ITEMS else 1
    done, items = 0, 0
    with ThreadPoolExecutor(workers, "convert") as pool:
        running = [pool.submit(convert, file) for file in manifest.files]
        try:
            for future in as_completed(running):
                items += future.result().items
                done += 1
                context.progress(
                    f"file {done} of {len(running)}: {items} of {manifest.items} items converted"
                )
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in running]
