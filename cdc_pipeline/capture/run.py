"""One capture run over a group of tables, in parallel; a failed table does not stop the others."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from queue import SimpleQueue

from cdc_pipeline.capture.firehose.drain import FileRun
from cdc_pipeline.capture.landing.cutover import abandon_cutover
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.shards.cursors import Cursors
from cdc_pipeline.capture.shards.drain import capture_table, drain_table
from cdc_pipeline.capture.sources.kinesis_channel import record_disabled
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.capture.sources.source_choice import (
    followed_source,
    open_source,
    with_measured_lateness,
)
from cdc_pipeline.core.errors import CdcPipelineError, LakeError, ShardGoneError, SourceError
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, IN_FILES, KINESIS_CHANNEL
from cdc_pipeline.lake.glue_partitions import register_days
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.table import Table


@dataclass(frozen=True)
class Landed:
    """A landed batch: one object per write day, logged and registered in Glue."""

    table: Table
    objects: list[LandedObject]


@dataclass(frozen=True)
class Captured:
    """A table whose capture has succeeded."""

    table: Table
    result: CaptureResult


@dataclass(frozen=True)
class Failed:
    """A table whose capture has failed; batches landed before stay."""

    table: Table
    error: CdcPipelineError


@dataclass(frozen=True)
class Unregistered:
    """Landed days not registered in Glue; `glue_partition_sensor` tries again."""

    table: Table
    error: CdcPipelineError


Event = Landed | Captured | Failed | Unregistered


def capture_options(lake: Lake, linger_seconds: float | None = None) -> CaptureOptions:
    """Options from the `capture` section of the settings; `linger_seconds` overrides it."""
    chosen = lake.settings.capture
    return CaptureOptions(
        max_run_seconds=chosen.max_run_seconds,
        empty_polls=chosen.empty_polls,
        poll_seconds=chosen.poll_seconds,
        parallel_shards=chosen.parallel_shards,
        flush_rows=chosen.flush_rows,
        flush_bytes=chosen.flush_mb << 20,
        linger_seconds=chosen.linger_seconds if linger_seconds is None else linger_seconds,
        flush_seconds=chosen.flush_seconds,
        listing_lag_seconds=chosen.listing_lag_seconds,
    )


def capture_tables(
    lake: Lake, tables: Sequence[Table], linger_seconds: float | None = None
) -> Iterator[Event]:
    """Capture the tables in parallel; yield an event for each batch, table and failure.

    The last event of a table is `Captured` or `Failed`. With more tables than `tables_per_run`,
    the others wait for a worker, and none lingers.
    """
    events: SimpleQueue[Event | BaseException] = SimpleQueue()
    workers = lake.settings.capture.tables_per_run
    options = capture_options(lake, linger_seconds if len(tables) <= workers else 0)

    def capture(table: Table) -> None:
        try:
            events.put(Captured(table, capture_one(lake.table(table), options, events.put)))
        except CdcPipelineError as error:
            events.put(Failed(table, error))
        except BaseException as error:  # noqa: BLE001 - raised again by the reader of the queue
            events.put(error)

    with ThreadPoolExecutor(workers) as pool:
        for table in tables:
            pool.submit(capture, table)
        remaining = len(tables)
        while remaining:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            remaining -= isinstance(event, Captured | Failed)
            yield event


def capture_one(
    table: TableLake,
    options: CaptureOptions,
    report: Callable[[Landed | Unregistered], object],
    *,
    source: Source | None = None,
    opened: Callable[[Source], object] = lambda _: None,
    cursors: Cursors | None = None,
    registered: set[date] | None = None,
) -> CaptureResult:
    """Capture one table. `source`: opened lately; others that the run opens go to `opened`.

    `cursors`: where readers stopped in earlier runs. `registered`: days that are in Glue already.
    Raises the errors of `capture_table`.
    """
    registered = set() if registered is None else registered

    def landed(objects: list[LandedObject]) -> None:
        if not objects:
            return
        days = {date.fromisoformat(o.day) for o in objects} - registered
        try:
            register_days(table, days)
            registered.update(days)
        except LakeError as error:
            # Unread records expire in the stream; the catalogue can wait.
            report(Unregistered(table.settings, error))
        report(Landed(table.settings, objects))

    log = table.log
    drain = partial(drain_table, log, options=options, report=landed)
    warnings: list[str] = []

    def measure(source: Source) -> Source:
        measured, messages = with_measured_lateness(table, source)
        warnings[:] = [*warnings, *(m for m in messages if m not in warnings)]
        return measured

    def open_current() -> Source:
        current = measure(_current_source(table, drain))
        opened(current)
        return current

    result = capture_table(
        log,
        source or open_current(),
        options,
        former=lambda stream: measure(followed_source(table, stream)),
        files=partial(FileRun, table, report=landed),
        reopen=open_current,
        cursors=cursors,
        report=landed,
    )
    result.warnings += warnings
    return result


def _current_source(table: TableLake, drain: Callable[[Source], object]) -> Source:
    """Open the stream to follow; during a switch of transports, the new one.

    If it cannot be opened, but the settings name the transport that the log follows, the switch is
    abandoned. Otherwise the stream that the log follows is drained before the error is raised.
    """
    log = table.log
    state = log.look()
    wanted = state.cut.transport if state.cut else table.settings.transport
    try:
        return open_source(table, wanted)
    except SourceError:
        stream = state.stream
        if state.cut and stream is not None and stream.transport == table.settings.transport:
            source = open_source(table)
            abandon_cutover(log, state)
            return source
        if stream is not None and stream.transport == wanted == KINESIS_CHANNEL:
            record_disabled(table, log, state)
        # Objects in S3 do not expire, so there is no hurry with them.
        has_retention = stream is not None and stream.transport not in IN_FILES
        if stream and has_retention and {stream.transport, wanted} != {DYNAMODB_STREAMS}:
            with suppress(ShardGoneError):
                drain(followed_source(table, stream))
        raise
