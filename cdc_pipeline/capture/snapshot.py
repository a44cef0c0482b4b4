"""Snapshots: a PITR export requested, verified and staged as the baseline of a generation."""

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from cdc_pipeline.aws.export import (
    DataFile,
    ExportStatus,
    ExportTarget,
    Manifest,
    describe_export,
    lines,
    read_data_file,
    read_manifest,
    request_export,
)
from cdc_pipeline.capture.continuity import open_capture
from cdc_pipeline.capture.drain import open_source
from cdc_pipeline.capture.source import require_backups, table_with_stream
from cdc_pipeline.core.attributes import TOO_DEEP
from cdc_pipeline.core.capture_log import Baseline, Entry, LogState
from cdc_pipeline.core.changes import export_item
from cdc_pipeline.core.columns import Column
from cdc_pipeline.core.errors import ExportError, SettingsError, UnreadableError
from cdc_pipeline.core.order import SNAPSHOT_POSITION, order_key
from cdc_pipeline.lake.duck import files_relation, open_duckdb
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.log import CaptureLog, new_nonce, this_owner
from cdc_pipeline.lake.typed import TypedResult, replace_typed
from cdc_pipeline.settings import Table
from cdc_pipeline.transform.shred import NARROW_SCHEMA

_BATCH_ROWS = 10_000
_ASK_ANEW = "remove the cause and materialise pitr_export again; it asks for a new export"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class SnapshotResult:
    """A staged baseline."""

    generation: int
    export_arn: str
    export_time_us: int
    items: int
    files: int
    bytes: int
    columns: list[Column]
    seconds: float


def take_snapshot(
    lake: Lake,
    table: Table,
    *,
    progress: Progress = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
) -> SnapshotResult:
    """Export the table and stage the export as a baseline; an unfinished one is taken up again.

    Stream positions are recorded first, then the export is requested for a time at least the
    margin later, so the changes that follow those positions cover everything the export lacks.
    Nothing becomes visible before every file's checksum and count has been verified. Raises
    `SourceError`, `ExportError`, `LakeError`.
    """
    started = time.monotonic()
    described = table_with_stream(lake.aws, table.name, complete_by_read=table.complete_by_read)
    require_backups(lake.aws, table.name)
    target = export_target(lake, table)
    log = lake.log(table)
    state = log.load()
    if state.stream is None:
        open_capture(log, state, open_source(lake, table))
    baseline = _begin(lake, log, state)
    if baseline.export_arn is None:
        _wait_until(log, baseline.export_time_us, progress, sleep)
        arn = request_export(
            lake.aws,
            described.arn,
            datetime.fromtimestamp(baseline.export_time_us / 1_000_000, UTC),
            target,
            _token(described.table_id, baseline),
        )
        baseline = _record(log, state, replace(baseline, export_arn=arn))
    status = _wait_for(lake, log, state, baseline, progress, sleep)
    try:
        manifest = read_manifest(lake.aws, status)
        if manifest.table_id and manifest.table_id != described.table_id:
            raise ExportError(f"export {status.arn} is of another table ({manifest.table_id})")
        staged, size = _stage(
            lake, table, status, manifest, baseline, described.key_names, progress
        )
    except ExportError as error:
        _give_up(log, state, baseline)
        raise ExportError(error.message, fix=_ASK_ANEW) from error
    snapshot = staged.table.current_snapshot()
    assert snapshot is not None  # it was just committed
    _record(
        log,
        state,
        replace(
            baseline,
            snapshot_id=snapshot.snapshot_id,
            items=staged.rows,
            bytes=size,
            staged_us=log.now_us(),
        ),
    )
    return SnapshotResult(
        generation=baseline.generation,
        export_arn=status.arn,
        export_time_us=baseline.export_time_us,
        items=staged.rows,
        files=len(manifest.files),
        bytes=size,
        columns=staged.columns,
        seconds=time.monotonic() - started,
    )


def export_target(lake: Lake, table: Table) -> ExportTarget:
    """Where exports of a table go: the lake's own bucket unless the settings say otherwise."""
    settings, folder = lake.settings, lake.paths(table).exports
    if settings.export.bucket:
        prefix = settings.export.prefix.strip("/")
        return ExportTarget(settings.export.bucket, f"{prefix}/{folder}" if prefix else folder)
    if not settings.is_s3:
        raise SettingsError(
            "the lake is a local folder, and DynamoDB exports only to S3",
            fix="name a bucket in the settings: export: {bucket: my-bucket}",
        )
    bucket, _, prefix = settings.lake.removeprefix("s3://").partition("/")
    return ExportTarget(bucket, f"{prefix.strip('/')}/{folder}" if prefix.strip("/") else folder)


def _begin(lake: Lake, log: CaptureLog, state: LogState) -> Baseline:
    """The unfinished baseline, or a new one; a second and later one begins a generation.

    The log entry that begins a generation is what records its positions: every shard's position
    in the log at that entry. Changes captured from then on land in the new generation.
    """
    newest = max(state.baselines, default=None)
    if newest is not None and state.baselines[newest].snapshot_id is None:
        return state.baselines[newest]
    while True:
        stream = state.stream
        assert stream is not None  # capture was opened
        if newest is not None:
            stream = replace(stream, generation=stream.generation + 1, recorded_us=log.now_us())
        margin = lake.settings.handover_margin_seconds
        export_time_s = math.ceil(stream.recorded_us / 1_000_000 + margin)
        baseline = Baseline(stream.generation, stream.recorded_us, export_time_s * 1_000_000)
        if log.append(state, _entry(stream=stream, baseline=baseline)):
            return baseline
        log.catch_up(state)


def _record(log: CaptureLog, state: LogState, baseline: Baseline) -> Baseline:
    while not log.append(state, _entry(baseline=baseline)):
        log.catch_up(state)
    return baseline


def _give_up(log: CaptureLog, state: LogState, baseline: Baseline) -> None:
    """Forget an export that is of no use, so that the next run asks for another one."""
    _record(log, state, replace(baseline, export_arn=None, attempt=baseline.attempt + 1))


def _entry(**parts: object) -> Entry:
    return Entry(n=0, nonce=new_nonce(), owner=this_owner(), at_us=0, **parts)  # type: ignore[arg-type]


def _token(table_id: str, baseline: Baseline) -> str:
    """The same attempt at the same baseline asks for the same export, whoever asks."""
    what = f"{table_id}/{baseline.generation}/{baseline.export_time_us}/{baseline.attempt}"
    return hashlib.sha256(what.encode()).hexdigest()[:32]


def _wait_until(
    log: CaptureLog, time_us: int, progress: Progress, sleep: Callable[[float], object]
) -> None:
    """DynamoDB exports the past only, so the export's own time must have come."""
    seconds = (time_us - log.now_us()) / 1_000_000
    if seconds > 0:
        progress(f"waiting {seconds:.0f} s until the export time (the handover margin)")
        while (left := (time_us - log.now_us()) / 1_000_000) > 0:
            sleep(min(left + 0.01, 5))


def _wait_for(
    lake: Lake,
    log: CaptureLog,
    state: LogState,
    baseline: Baseline,
    progress: Progress,
    sleep: Callable[[float], object],
) -> ExportStatus:
    """Poll until the export is complete. A failed one is given up, so a rerun asks anew."""
    assert baseline.export_arn is not None
    options = lake.settings.export
    started = log.clock()
    while True:
        status = describe_export(lake.aws, baseline.export_arn)
        if status.status == "COMPLETED":
            return status
        waited = log.clock() - started
        if status.status == "FAILED":
            _give_up(log, state, baseline)
            raise ExportError(f"export {status.arn} failed: {status.failure}", fix=_ASK_ANEW)
        if waited > options.timeout_minutes * 60:
            raise ExportError(
                f"export {status.arn} is still {status.status} after {waited / 60:.0f} minutes",
                fix="materialise pitr_export again: it goes on waiting for the same export",
            )
        progress(f"export {status.arn.rpartition('/')[2]} is {status.status} ({waited:.0f} s)")
        sleep(options.poll_seconds)


def _stage(
    lake: Lake,
    table: Table,
    status: ExportStatus,
    manifest: Manifest,
    baseline: Baseline,
    key_names: tuple[str, ...],
    progress: Progress,
) -> tuple[TypedResult, int]:
    """Verify and convert every file, then commit them together as `<table>_snapshot`."""
    with tempfile.TemporaryDirectory() as folder, open_duckdb(lake, Path(folder)) as connection:
        scratch, paths, size, items = Path(folder), [], 0, 0
        for number, file in enumerate(manifest.files, start=1):
            path = scratch / f"narrow-{number:06d}.parquet"
            convert = _FileConverter(path, baseline, key_names, f"data file {file.key}")
            size += convert.run(lake, status, file)
            items += file.items
            paths.append(str(path))
            progress(f"file {number} of {len(manifest.files)}: {items} of {manifest.items} items")
        narrow = f"SELECT * FROM {files_relation(connection, paths, NARROW_SCHEMA)}"
        counts = connection.execute(f"SELECT count(DISTINCT item_key) FROM ({narrow})").fetchall()
        if counts[0][0] != manifest.items:
            raise ExportError(
                f"export {status.arn} holds {manifest.items} items but {counts[0][0]} keys"
            )
        name = f"{table.safe_name}_snapshot"
        properties = {
            "generation": str(baseline.generation),
            "export_arn": status.arn,
            "export_time_us": str(baseline.export_time_us),
        }
        over = lake.tables.load(name)
        staged = replace_typed(
            lake.tables, name, connection, narrow, properties, over=over, scratch=scratch
        )
        return staged, size


class _FileConverter:
    """One data file of an export to narrow Parquet, a batch of items in memory at a time."""

    def __init__(
        self, path: Path, baseline: Baseline, key_names: tuple[str, ...], where: str
    ) -> None:
        self._path = path
        self._order_key = order_key(baseline.generation, SNAPSHOT_POSITION)
        self._write_time_us = baseline.export_time_us
        self._key_names = key_names
        self._where = where
        self._line = 0
        self._keys: list[str] = []
        self._items: list[str] = []

    def run(self, lake: Lake, status: ExportStatus, file: DataFile) -> int:
        """Convert and verify; returns the decompressed size in bytes. Raises `ExportError`."""
        size = 0

        def measured() -> Iterator[bytes]:
            nonlocal size
            for piece in read_data_file(lake.aws, status, file):
                size += len(piece)
                yield piece

        with pq.ParquetWriter(self._path, NARROW_SCHEMA, compression="zstd") as writer:
            count = lines(measured(), lambda line: self._add(writer, line))
            self._flush(writer)
        if count != file.items:
            raise ExportError(
                f"{self._where} holds {count} items, its manifest promises {file.items}"
            )
        return size

    def _add(self, writer: pq.ParquetWriter, line: bytes) -> None:
        self._line += 1
        try:
            keys, item = export_item(msgspec.json.decode(line), self._key_names)
        except msgspec.DecodeError:
            raise ExportError(f"{self._where}, line {self._line}: not JSON") from None
        except (UnreadableError, RecursionError) as error:
            reason = getattr(error, "reason", TOO_DEEP)
            raise ExportError(f"{self._where}, line {self._line}: {reason}") from None
        self._keys.append(keys)
        self._items.append(item)
        if len(self._keys) >= _BATCH_ROWS:
            self._flush(writer)

    def _flush(self, writer: pq.ParquetWriter) -> None:
        count = len(self._keys)
        rows = {
            "item_key": self._keys,
            "order_key": [self._order_key] * count,
            "item": self._items,
            "write_time_us": [self._write_time_us] * count,
        }
        writer.write_batch(pa.RecordBatch.from_pydict(rows, schema=NARROW_SCHEMA))
        self._keys, self._items = [], []
