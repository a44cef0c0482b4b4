"""The job `capture`, and landed changes as materialisations of raw_stream."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.log.entries import Gap, LandedObject
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import known, lag_seconds, moment
from cdc_pipeline.defs.partitions import today
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.run_history import FAILED_TABLES
from cdc_pipeline.defs.tables.check_reports import VisibleResults, report_checks
from cdc_pipeline.settings.table import Table

if TYPE_CHECKING:
    from cdc_pipeline.capture.landing.result import CaptureResult
    from cdc_pipeline.capture.run import Event
    from cdc_pipeline.lake.lake import Lake, TableLake
    from cdc_pipeline.repair.backfill import BackfilledDay

_REPORT_SECONDS = 30
_STREAM_DAYS = 1  # a stream keeps changes for 24 hours


class CaptureConfig(dg.Config):
    """Tables that one run captures; empty: all.

    `linger_seconds`: time to continue reading at the tip of the streams; None: from the settings.
    """

    tables: list[str] = Field(default_factory=list)
    linger_seconds: float | None = Field(None, ge=0)


@dg.op(description="Reads every shard of the tables' streams and lands its changes.")
def capture_streams(
    context: dg.OpExecutionContext, config: CaptureConfig, lake: LakeResource
) -> Iterator[dg.AssetMaterialization | dg.Output[None]]:
    """Capture the chosen tables; a failed table does not stop the others.

    Materialisations are yielded: Dagster records yielded events at once, logged ones only if the
    op succeeds.
    """
    from cdc_pipeline.capture.run import capture_tables

    with readable_failures():
        opened = lake.open()
        chosen = [opened.settings.table(name) for name in config.tables]
        tables = chosen or opened.settings.tables
        report = CaptureReport(context, opened, tables)
        for event in capture_tables(opened, tables, config.linger_seconds):
            yield from report.events(event)
    report.finish()
    yield dg.Output(None)


@dg.job(
    description="Reads the tables' streams to the tip and lands every change exactly once.",
    executor_def=dg.in_process_executor,
)
def capture() -> None:
    """Drain a group of tables, all their shards in parallel."""
    capture_streams()


class CaptureReport:
    """What a run of the job reports: materialisations, log lines, checks, and failed tables.

    Of a table in which nothing happened, only its name, and what people do not see already.
    """

    def __init__(
        self, context: dg.OpExecutionContext, lake: "Lake", tables: Sequence[Table]
    ) -> None:
        self._context = context
        self._lake = lake
        self._landings = Landings()
        self._visible = VisibleResults(context.instance, tables)
        self._materialized: set[str] = set()
        self._idle: list[str] = []
        self._failures: dict[str, str] = {}

    def events(self, event: "Event") -> Iterator[dg.AssetMaterialization]:
        """Yield the materialisations of an event of capture, and report the rest of it."""
        from cdc_pipeline.capture.run import Captured, Failed, Landed, Unregistered

        log = self._context.log
        match event:
            case Landed(table, objects):
                reported = list(self._landings.add(table, objects))
                yield from reported
                # A check result counts only while newer than its asset's materialisation.
                names = {event.asset_key.path[0] for event in reported}
                self._materialized |= names
                for name in names:
                    self._report_checks(self._lake.settings.table(name))
            case Captured(table, result):
                reported = list(self._landings.report(table))
                yield from reported
                has_landed = bool(reported) or table.safe_name in self._materialized
                if has_landed or result.entries:
                    log.info(describe_capture(result))
                else:
                    self._idle.append(table.label)
                report_gaps(log.error, result)
                report_warnings(log.warning, result)
                self._report_checks(table, unless=None if has_landed else self._visible)
            case Unregistered(table, error):
                log.warning(f"{table.label}: {error}")
            case Failed(table, error):
                yield from self._landings.report(table)  # objects landed before the failure
                log.error(f"{table.label}: {error}")
                self._failures[table.label] = str(error)

    def _report_checks(self, table: Table, unless: VisibleResults | None = None) -> None:
        report_checks(self._context.instance, self._lake.table(table), unless=unless)

    def finish(self) -> None:
        """Name the idle tables; raise `dg.Failure` if tables failed, with their names."""
        if self._idle:
            tables = f"{len(self._idle)} tables" if len(self._idle) > 1 else "the table"
            self._context.log.info(f"nothing new in {tables}: {', '.join(self._idle)}")
        if self._failures:
            # For sensors, which pause only these tables.
            metadata = {FAILED_TABLES: dg.MetadataValue.json(self._failures)}
            raise dg.Failure(description="\n".join(self._failures.values()), metadata=metadata)


class Landings:
    """Landed objects not yet reported as materialisations of raw_stream, by table and write day.

    A lingering run lands about every second; a materialisation for each object would flood the
    event log, so objects are collected for `seconds`.
    """

    def __init__(self, seconds: float = _REPORT_SECONDS) -> None:
        self._seconds = seconds
        self._waiting: dict[tuple[str, str], list[LandedObject]] = {}
        self._reported = time.monotonic()

    def add(
        self, table: Table, objects: Sequence[LandedObject]
    ) -> Iterator[dg.AssetMaterialization]:
        """Collect the objects; report all collected ones if the last report is long ago."""
        for landed in objects:
            self._waiting.setdefault((table.safe_name, landed.day), []).append(landed)
        if time.monotonic() - self._reported >= self._seconds:
            yield from self.report_all()

    def report_all(self) -> Iterator[dg.AssetMaterialization]:
        """Report all collected objects."""
        for key in sorted(self._waiting):
            yield self._report(*key)
        self._reported = time.monotonic()

    def report(self, table: Table) -> Iterator[dg.AssetMaterialization]:
        """Report the remaining objects of a table whose capture has ended."""
        for key in sorted(key for key in self._waiting if key[0] == table.safe_name):
            yield self._report(*key)

    def _report(self, name: str, day: str) -> dg.AssetMaterialization:
        objects = self._waiting.pop((name, day))
        newest = max(landed.max_write_us for landed in objects)
        return dg.AssetMaterialization(
            asset_key=dg.AssetKey([name, "raw_stream"]),
            partition=day,
            metadata={
                "rows_landed": sum(landed.rows for landed in objects),
                "bytes": sum(landed.bytes for landed in objects),
                "objects": len(objects),
                "shards": len({shard for landed in objects for shard in landed.shards}),
                "newest_change": moment(newest),
                "lag_seconds": lag_seconds(newest),
                "entry": max(landed.entry for landed in objects),
            },
        )


def describe_capture(result: "CaptureResult") -> str:
    """Describe a capture in one log line."""
    days = ", ".join(f"{day}: {rows}" for day, (rows, _) in sorted(result.days.items()))
    return (
        f"{result.table}: {result.rows} changes landed ({days or 'nothing new'}) in "
        f"{result.seconds:.1f} s, {result.shards_open} open shards, "
        f"{result.quarantined} unreadable, {result.orphans_removed} orphans removed"
    )


def capture_now(
    context: dg.AssetExecutionContext, table: "TableLake", days: Sequence[date]
) -> dict[str, Any]:
    """Capture one table and return metadata. Days other than `days` are reported at once."""
    from cdc_pipeline.capture.run import Captured, Failed, Landed, capture_tables

    landings, keys = Landings(), {day.isoformat() for day in days}
    metadata: dict[str, Any] = {}
    for event in capture_tables(table.lake, [table.settings], linger_seconds=0):
        match event:
            case Landed(_, objects):
                # The run itself materialises the requested days.
                others = [landed for landed in objects if landed.day not in keys]
                for materialization in landings.add(table.settings, others):
                    context.log_event(materialization)
            case Captured(_, result):
                for materialization in landings.report(table.settings):
                    context.log_event(materialization)
                context.log.info(describe_capture(result))
                report_gaps(context.log.error, result)
                report_warnings(context.log.warning, result)
                metadata = _capture_metadata(result)
            case Failed(_, error):
                raise error
    return metadata


def must_capture(table: "TableLake", days: Sequence[date]) -> bool:
    """Return whether some of the days can still get changes, or capture has not passed them."""
    if max(days) >= today() - timedelta(days=_STREAM_DAYS):
        return True
    log = table.log
    state = log.load()
    end = datetime.combine(max(days) + timedelta(days=1), datetime.min.time(), UTC)
    passed_us = state.watermark_us - log.margin_us
    return state.stream is not None and passed_us < end.timestamp() * 1_000_000


def land_days(
    context: dg.AssetExecutionContext, table: "TableLake", days: Sequence[date]
) -> Iterator[dg.AssetMaterialization | dg.MaterializeResult]:
    """Capture if it can add changes, reland changes missing in past days, report each day.

    A day that fails does not stop the others: they are materialised, and the run fails at its end,
    listing the failed days.
    """
    from cdc_pipeline.repair.backfill import backfill_days

    done: list[BackfilledDay] = []
    with readable_failures():
        metadata = capture_now(context, table, days) if must_capture(table, days) else {}
        for filled in backfill_days(table, days, context=RunContext(context.log.info)):
            if filled.added:
                sources = ", ".join(filled.sources)
                context.log.info(f"{filled.day}: {filled.added} rows added ({sources})")
            for note in filled.notes:
                context.log.warning(f"{filled.day}: {note}")
            done.append(filled)
    failed = [filled for filled in done if filled.error is not None]
    if not failed:
        for filled in done:
            context.add_asset_metadata(_day_metadata(filled), partition_key=filled.day.isoformat())
        yield dg.MaterializeResult(metadata=metadata)
        return
    key = dg.AssetKey([table.safe_name, "raw_stream"])
    for filled in done:
        if filled.error is None:
            yield dg.AssetMaterialization(
                asset_key=key, partition=filled.day.isoformat(), metadata=_day_metadata(filled)
            )
    raise dg.Failure(
        description="\n".join(
            f"{table.safe_name}/raw_stream {filled.day}: {filled.error}" for filled in failed
        ),
        metadata={"days_failed": len(failed), "days_done": len(done) - len(failed)},
        allow_retries=False,
    )


def _day_metadata(filled: "BackfilledDay") -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": filled.rows,
        "bytes": filled.bytes,
        "objects": filled.objects,
        "rows_added": filled.added,
    }
    if filled.sources:
        metadata["added_from"] = ", ".join(sorted({*filled.sources}))
    if filled.notes:
        metadata["notes"] = "\n".join(filled.notes)
    return metadata


def _capture_metadata(result: "CaptureResult") -> dict[str, Any]:
    return known(
        {
            "rows_landed": result.rows,
            "seconds": round(result.seconds, 2),
            "shards": result.shards_open,
            "unreadable": result.quarantined,
            "skipped": result.skipped or None,
            "lag_seconds": lag_seconds(result.watermark_us),
        }
    )


def report_gaps(log: Callable[[str], object], result: "CaptureResult") -> None:
    """Log the lost intervals; the check `no_open_gaps` fails until they are healed."""
    for gap in result.gaps:
        log(f"{result.table}: {describe_gap(gap)}")


def report_warnings(log: Callable[[str], object], result: "CaptureResult") -> None:
    """Log the warnings of a capture that did not fail."""
    for warning in result.warnings:
        log(warning)


def describe_gap(gap: Gap) -> str:
    """Describe a gap in one line."""
    return (
        f"gap (entry {gap.entry}): {gap}; changes written from "
        f"{time_text(gap.from_us)} to {time_text(gap.to_us)} UTC may be missing"
    )
