"""Snapshots: a PITR export requested, verified and staged as the baseline of a generation."""

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from cdc_pipeline.aws.client.session import code_behind
from cdc_pipeline.aws.export import (
    DataFile,
    ExportStatus,
    Manifest,
    read_data_file,
    request_export,
)
from cdc_pipeline.aws.table import describe_backups
from cdc_pipeline.capture.landing.gaps import open_capture
from cdc_pipeline.capture.sources.source import require_backups
from cdc_pipeline.capture.sources.source_choice import described_table, open_source
from cdc_pipeline.core.changes.order import SNAPSHOT_POSITION, order_key
from cdc_pipeline.core.clock import utc
from cdc_pipeline.core.errors import ExportError, FailedExportError, NotReadyError
from cdc_pipeline.core.items.columns import Column
from cdc_pipeline.core.log.entries import FIRST_GENERATION, Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.lake.engine.duckdb_session import files_relation, open_duckdb
from cdc_pipeline.lake.engine.item_table import Seen, TypedResult, column_names, replace_typed
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import record_baseline, tag_baselines
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.settings.model import Table
from cdc_pipeline.snapshot.export import (
    export_manifest,
    export_target,
    export_token,
    wait_for_export,
)
from cdc_pipeline.snapshot.staging import Converted, Staging
from cdc_pipeline.snapshot.unfinished import require_wanted, take_up
from cdc_pipeline.transform.ranges import split_by_key
from cdc_pipeline.transform.shred import NARROW_SCHEMA, merge_stats

# One for each core, up to what an hour of a 100 GB export needs; each takes some 60 MB,
# and as much again while it keeps a part.
_WORKERS = 4
_FEW_ITEMS = 50_000
_SORT_PERCENT = 26
"""Of `memory_mb`; the rest is for Arrow, which types and writes what was sorted."""
_SORT_LEAST_MB = 256
"""With half of it DuckDB 2.0.0 fails to sort 260 MB of items (measured)."""
_SORT_BYTES = 1 << 30
"""Text that is sorted at once with 1000 MB of it: 256 MB sort 1.1 GB, 200 MB fail (measured)."""
_REFUSALS = 10
_INVALID_TIME = "InvalidExportTimeException"
_ASK_ANEW = "remove the cause and materialise pitr_export again; it asks for a new export"


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
    context: RunContext = SILENT,
) -> SnapshotResult:
    """Export the table and stage the export as a baseline.

    An unfinished one is taken up again if it can still become one (`snapshot.unfinished`).

    Stream positions are recorded first, then the export is requested for a time at least the
    margin later, so the changes that follow those positions cover everything the export lacks.
    Nothing becomes visible before every file's checksum and count has been verified. `shadow`: it
    is staged beside the live baseline and held there (`snapshot.shadow`). Raises `SourceError`,
    `ExportError`, `LakeError`, `NotReadyError`.
    """
    started = time.monotonic()
    described = described_table(table)
    require_backups(table.source, table.name)
    target = export_target(table)
    log = table.log
    state = log.load()
    if state.stream is None:
        open_capture(log, state, open_source(table))
    _require_known(table.settings, state, described.table_id)
    baseline = None
    while baseline is None:
        baseline = take_up(
            table, described.table_id, log, state, shadow=shadow, context=context
        ) or _begin(table.lake, log, state, shadow)
    if baseline.export_arn is None:
        _wait_until(log, baseline.export_time_us, context)
        # The same attempt at the same baseline asks for the same export, whoever asks.
        what = (baseline.generation, baseline.export_time_us, baseline.attempt)
        token = export_token(described.table_id, *what)

        def request(at: datetime) -> str:
            return request_export(table.source, described.arn, at, target, token)

        arn = _request(table, request, baseline, context)
        baseline = require_wanted(
            table.settings, record_baseline(log, state, baseline, export_arn=arn)
        )
    export = (baseline.export_arn or "", described.table_id)
    try:
        status = wait_for_export(table, *export, context)
    except FailedExportError as error:
        _give_up(log, state, baseline)
        raise ExportError(error.message, fix=_ASK_ANEW) from error
    try:
        manifest = export_manifest(table.lake, status, described.table_id)
        staged, size = _stage(
            table,
            status,
            manifest,
            baseline,
            described.key_names,
            context,
            lambda: _erased(table.settings, log, state, baseline),
        )
    except ExportError as error:
        _give_up(log, state, baseline)
        raise ExportError(error.message, fix=_ASK_ANEW) from error
    snapshot = staged.table.current_snapshot()
    assert snapshot is not None  # it was just committed
    done = record_baseline(
        log,
        state,
        baseline,
        snapshot_id=snapshot.snapshot_id,
        items=staged.rows,
        bytes=size,
        staged_us=log.now_us(),
    )
    require_wanted(table.settings, done)
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
    """A new baseline; all but the very first begin a generation. None: another run was faster.

    The log entry that begins a generation is what records its positions: every shard's position
    in the log at that entry. Changes captured from then on land in the new generation. The very
    first hands over to the positions that capture began with, if no gap lies behind them: what
    landed before a gap is not folded over a baseline of the generation behind it.
    """
    stream = state.stream
    assert stream is not None  # capture was opened
    if state.baselines or stream.generation != FIRST_GENERATION:
        # Behind all that has landed, by no slow clock: where order is by time, what comes late of
        # the time before belongs to the generation before, which the export has seen.
        recorded_us = max(log.not_yet_us(), (state.last_change_us or 0) + 1000)
        stream = replace(stream, generation=stream.generation + 1, recorded_us=recorded_us)
    margin = lake.settings.handover_margin_seconds
    export_time_s = math.ceil(stream.recorded_us / 1_000_000 + margin)
    export_time_us = export_time_s * 1_000_000
    baseline = Baseline(stream.generation, stream.recorded_us, export_time_us, shadow=shadow)
    begun = state.n
    step = {"stream": stream, "baseline": baseline}
    # What another run logged meanwhile may be of another stream, or another baseline.
    return baseline if log.commit(state, lambda now: step if now.n == begun else None) else None


def _require_known(table: Table, state: LogState, table_id: str) -> None:
    """A baseline of a table that was made again, below a log that follows the former one, is none.

    The break that capture will record comes behind it, and needs a new one.
    """
    if state.stream is not None and state.stream.table_id != table_id:
        raise NotReadyError(
            f"table {table.name} was deleted and made again, and capture follows the former one",
            fix=f"run the job `capture`, then materialise {table.safe_name}/pitr_export again",
        )


def _give_up(log: CaptureLog, state: LogState, baseline: Baseline) -> None:
    """Forget an export that is of no use, so that the next run asks for another one."""
    record_baseline(log, state, baseline, export_arn=None, attempt=baseline.attempt + 1)


def _wait_until(log: CaptureLog, time_us: int, context: RunContext) -> None:
    """DynamoDB exports the past only, so the export's own time must have come."""
    seconds = (time_us - log.now_us()) / 1_000_000
    if seconds > 0:
        context.progress(f"waiting {seconds:.0f} s until the export time (the handover margin)")
        while (left := (time_us - log.now_us()) / 1_000_000) > 0:
            context.sleep(min(left + 0.01, 5))


def _request(
    table: TableLake,
    request: Callable[[datetime], str],
    baseline: Baseline,
    context: RunContext,
) -> str:
    """Ask for the export; AWS may refuse a time that recovery has not come to yet: then again.

    LatestRestorableDateTime is typically five minutes behind (botocore model). It may have come
    there between the refusal and our look at it, so that alone is no reason to give up.
    """
    at = utc(baseline.export_time_us)
    refused = 0
    while True:
        try:
            return request(at)
        except ExportError as error:
            if code_behind(error) != _INVALID_TIME:
                raise
            window = describe_backups(table.source, table.name)
            if window.earliest is None or window.latest is None or window.earliest > at:
                raise ExportError(error.message, fix=error.fix or _ASK_ANEW) from error
            refused += window.latest >= at
            if refused > _REFUSALS:
                raise ExportError(error.message, fix=error.fix or _ASK_ANEW) from error
            latest = window.latest
        context.progress(f"waiting until recovery, now at {latest:%H:%M:%S}, reaches {at:%H:%M:%S}")
        context.sleep(table.lake.settings.export.poll_seconds)


def _stage(
    table: TableLake,
    status: ExportStatus,
    manifest: Manifest,
    baseline: Baseline,
    key_names: tuple[str, ...],
    context: RunContext,
    erased: Callable[[], Suppressions],
) -> tuple[TypedResult, int]:
    """Verify and convert every file, then commit them together as `<table>_snapshot`.

    Items that are `erased` are left out behind the verification.
    """
    name = f"{table.safe_name}_snapshot"
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
    ):
        memory_mb = table.lake.settings.memory_mb
        sort_mb = max(memory_mb * _SORT_PERCENT // 100, _SORT_LEAST_MB)
        connection.execute(f"SET memory_limit = '{sort_mb}MB'")
        connection.execute("SET threads = 1")  # each takes its share of that
        root = table.paths.staging
        staging = Staging(
            table.lake.store,
            f"{root}{status.arn.rpartition('/')[2]}/",
            Path(folder),
            key_names,
            order_key(baseline.generation, SNAPSHOT_POSITION),
            baseline.export_time_us,
        )
        staging.open(root)
        files = _convert_all(table.lake, status, manifest, staging, context)
        at_once = _SORT_BYTES * memory_mb // 1000
        narrow = _narrow_ranges(connection, files, Path(folder), at_once)
        # Arrow keeps what was freed so far, up to 170 MB, and sorting and typing come on top.
        pa.default_memory_pool().release_unused()
        count = sum(_count_keys(connection, sql) for sql in narrow)
        if count != manifest.items:
            raise ExportError(f"export {status.arn} holds {manifest.items} items but {count} keys")
        # The table first: what is erased behind this look at the log makes the commit fail.
        over = table.lake.iceberg.load(name)
        narrow, items = _without_erased(connection, narrow, manifest.items, erased())
        context.progress(f"sorting and typing {items} items")
        properties = {
            "generation": str(baseline.generation),
            "export_arn": status.arn,
            "export_time_us": str(baseline.export_time_us),
        }
        staged = replace_typed(
            table.lake.iceberg,
            name,
            connection,
            narrow,
            properties,
            over=over,
            scratch=Path(folder),
            seen=Seen(items, merge_stats(*(file.stats for file in files))),
            limit=table.settings.max_columns,
            names=column_names(table.lake.iceberg, table.safe_name),
        )
        return staged, sum(file.bytes for file in files)


def _narrow_ranges(
    connection: duckdb.DuckDBPyConnection, files: list[Converted], scratch: Path, at_once: int
) -> list[str]:
    """SQL for the rows of all files, in ranges of keys of about `at_once` bytes of text."""
    paths = [path for file in files for path in file.paths]
    ranges = sum(file.bytes for file in files) // at_once + 1
    groups = [[path] for path in split_by_key(paths, scratch, ranges)] if ranges > 1 else [paths]
    return [
        f"SELECT * FROM {files_relation(connection, [str(p) for p in group], NARROW_SCHEMA)}"
        for group in groups
    ]


def _erased(table: Table, log: CaptureLog, state: LogState, baseline: Baseline) -> Suppressions:
    """Items that an export of the past may still show, as the log says by now.

    Whatever was written since the baseline's positions were recorded comes with the stream, so
    nothing is missed of an item that was put again.
    """
    log.catch_up(state)
    require_wanted(table, state.baselines[baseline.generation])
    erasures = state.erasures.values()
    return Suppressions(e for e in erasures if e.until_us >= baseline.recorded_us)


def _without_erased(
    connection: duckdb.DuckDBPyConnection, narrow: list[str], items: int, erased: Suppressions
) -> tuple[list[str], int]:
    if not erased:
        return narrow, items
    connection.create_function(
        "is_erased",
        lambda key: erased.drops(key, 0),
        ["VARCHAR"],  # type: ignore[arg-type]
        "BOOLEAN",  # type: ignore[arg-type]
    )
    kept = [f"SELECT * FROM ({sql}) WHERE NOT is_erased(item_key)" for sql in narrow]
    return kept, sum(_count_keys(connection, sql) for sql in kept)


def _count_keys(connection: duckdb.DuckDBPyConnection, narrow: str) -> int:
    sql = f"SELECT count(*) FROM (SELECT DISTINCT item_key FROM ({narrow}))"
    return connection.execute(sql).fetchall()[0][0]


def _convert_all(
    lake: Lake,
    status: ExportStatus,
    manifest: Manifest,
    staging: Staging,
    context: RunContext,
) -> list[Converted]:
    """Convert the data files, several at once; the first failure stops the rest."""
    stop = threading.Event()

    def convert(file: DataFile) -> Converted:
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
