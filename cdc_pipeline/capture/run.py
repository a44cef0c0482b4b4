"""One capture run over a group of tables: they drain side by side, and fail alone."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from queue import SimpleQueue

from cdc_pipeline.capture.firehose.drain import FilesRun
from cdc_pipeline.capture.landing.cutover import give_up_cut
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.shards.drain import capture_table, drain_table
from cdc_pipeline.capture.sources.channel import note_off
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
from cdc_pipeline.settings.model import Table


@dataclass(frozen=True)
class Landed:
    """A batch that has landed: one object per write day, logged and registered in Glue."""

    table: Table
    objects: list[LandedObject]


@dataclass(frozen=True)
class Captured:
    """A table whose capture is done."""

    table: Table
    result: CaptureResult


@dataclass(frozen=True)
class Failed:
    """A table whose capture failed; what had landed before stays."""

    table: Table
    error: CdcPipelineError


@dataclass(frozen=True)
class Unregistered:
    """Landed days that Glue did not take; `glue_partition_sensor` tries again."""

    table: Table
    error: CdcPipelineError


Event = Landed | Captured | Failed | Unregistered


def capture_options(lake: Lake, linger_seconds: float | None = None) -> CaptureOptions:
    """The settings' capture section; `linger_seconds` overrides it."""
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
    """Capture the tables side by side and tell what happens as it happens.

    Each ends with one `Captured` or `Failed`. More tables than `tables_per_run` wait for a place,
    and then none lingers.
    """
    events: SimpleQueue[Event | BaseException] = SimpleQueue()
    places = lake.settings.capture.tables_per_run
    options = capture_options(lake, linger_seconds if len(tables) <= places else 0)

    def capture(table: Table) -> None:
        try:
            events.put(Captured(table, _capture(lake.table(table), options, events)))
        except CdcPipelineError as error:
            events.put(Failed(table, error))
        except BaseException as error:  # noqa: BLE001 - raised again by the reader of the queue
            events.put(error)

    with ThreadPoolExecutor(places) as pool:
        for table in tables:
            pool.submit(capture, table)
        remaining = len(tables)
        while remaining:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            remaining -= isinstance(event, Captured | Failed)
            yield event


def _capture(
    table: TableLake, options: CaptureOptions, events: "SimpleQueue[Event | BaseException]"
) -> CaptureResult:
    registered: set[date] = set()

    def landed(objects: list[LandedObject]) -> None:
        if not objects:
            return
        days = {date.fromisoformat(o.day) for o in objects} - registered
        try:
            register_days(table, days)
            registered.update(days)
        except LakeError as error:
            # The stream loses what is not read in time; the catalogue can wait.
            events.put(Unregistered(table.settings, error))
        events.put(Landed(table.settings, objects))

    log = table.log
    drain = partial(drain_table, log, options=options, report=landed)
    warnings: list[str] = []

    def measured(source: Source) -> Source:
        found, told = with_measured_lateness(table, source)
        warnings[:] = [*warnings, *(w for w in told if w not in warnings)]
        return found

    def opening() -> Source:
        return measured(_source(table, drain))

    result = capture_table(
        log,
        opening(),
        options,
        former=lambda stream: measured(followed_source(table, stream)),
        files=partial(FilesRun, table, report=landed),
        reopen=opening,
        report=landed,
    )
    result.warnings += warnings
    return result


def _source(table: TableLake, drain: Callable[[Source], object]) -> Source:
    """The stream to follow: where a switch is on its way, the one that it leads to.

    What the log follows is read although the other one cannot be had; only then is that an error.
    """
    log = table.log
    state = log.load()
    wanted = state.cut.transport if state.cut else table.settings.transport
    try:
        return open_source(table, wanted)
    except SourceError:
        stream = state.stream
        if state.cut and stream is not None and stream.transport == table.settings.transport:
            source = open_source(table)
            give_up_cut(log, state)
            return source
        if stream is not None and stream.transport == wanted == KINESIS_CHANNEL:
            note_off(table, log, state)
        # Objects stay, so nothing is in a hurry there.
        forgets = stream is not None and stream.transport not in IN_FILES
        if stream and forgets and {stream.transport, wanted} != {DYNAMODB_STREAMS}:
            with suppress(ShardGoneError):
                drain(followed_source(table, stream))
        raise
