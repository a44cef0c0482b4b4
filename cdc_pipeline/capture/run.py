"""One capture run over a group of tables: they drain side by side, and fail alone."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from queue import SimpleQueue

from cdc_pipeline.capture.drain import (
    CaptureOptions,
    CaptureResult,
    capture_table,
    open_source,
)
from cdc_pipeline.core.capture_log import LandedObject
from cdc_pipeline.core.errors import CdcPipelineError, LakeError
from cdc_pipeline.lake.glue import register_days
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import Table

_TABLES_AT_ONCE = 8


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


def capture_options(lake: Lake) -> CaptureOptions:
    """The settings' capture section."""
    chosen = lake.settings.capture
    return CaptureOptions(
        max_run_seconds=chosen.max_run_seconds,
        empty_polls=chosen.empty_polls,
        poll_seconds=chosen.poll_seconds,
        parallel_shards=chosen.parallel_shards,
        flush_rows=chosen.flush_rows,
        flush_bytes=chosen.flush_mb << 20,
    )


def capture_tables(lake: Lake, tables: Sequence[Table]) -> Iterator[Event]:
    """Capture the tables and tell what happens as it happens, one `Captured` or `Failed` each."""
    events: SimpleQueue[Event | BaseException] = SimpleQueue()
    options = capture_options(lake)

    def capture(table: Table) -> None:
        try:
            events.put(Captured(table, _capture(lake, table, options, events)))
        except CdcPipelineError as error:
            events.put(Failed(table, error))
        except BaseException as error:  # noqa: BLE001 - raised again by the reader of the queue
            events.put(error)

    with ThreadPoolExecutor(_TABLES_AT_ONCE) as pool:
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
    lake: Lake, table: Table, options: CaptureOptions, events: "SimpleQueue[Event | BaseException]"
) -> CaptureResult:
    registered: set[date] = set()

    def landed(objects: list[LandedObject]) -> None:
        if not objects:
            return
        days = {date.fromisoformat(o.day) for o in objects} - registered
        try:
            register_days(lake, table, days)
            registered.update(days)
        except LakeError as error:
            # The stream loses what is not read in time; the catalogue can wait.
            events.put(Unregistered(table, error))
        events.put(Landed(table, objects))

    return capture_table(lake.log(table), open_source(lake, table), options, report=landed)
