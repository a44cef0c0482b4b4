"""The job `capture`, and how landed changes appear as materialisations of raw_stream."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from cdc_pipeline.core.capture_log import Gap, LandedObject
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.names import day_of
from cdc_pipeline.defs.checks import report_checks
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import known, lag_seconds, moment
from cdc_pipeline.defs.partitions import today
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.settings import Table

if TYPE_CHECKING:
    from cdc_pipeline.capture.drain import CaptureResult
    from cdc_pipeline.lake.lake import Lake

_REPORT_SECONDS = 30
_STREAM_DAYS = 1  # a stream keeps changes for 24 hours


class CaptureConfig(dg.Config):
    """Which tables one run captures; all of them when none is named.

    `linger_seconds`: how long it goes on reading at the tip; None: as the settings say.
    """

    tables: list[str] = Field(default_factory=list)
    linger_seconds: float | None = Field(None, ge=0)


@dg.op(description="Reads every shard of the tables' streams and lands what they hold.")
def capture_streams(
    context: dg.OpExecutionContext, config: CaptureConfig, lake: LakeResource
) -> Iterator[dg.AssetMaterialization | dg.Output[None]]:
    """Capture the chosen tables; a table that fails does not stop the others.

    Yields what it tells: Dagster records yielded events at once, logged ones only if the op ends
    well.
    """
    from cdc_pipeline.capture.run import Captured, Failed, Landed, Unregistered, capture_tables

    failures: list[str] = []
    landings = Landings()
    with readable_failures():
        opened = lake.open()
        chosen = [opened.settings.table(name) for name in config.tables]
        for event in capture_tables(
            opened, chosen or opened.settings.tables, config.linger_seconds
        ):
            match event:
                case Landed(table, objects):
                    told = list(landings.add(table, objects))
                    yield from told
                    # A check counts while it is newer than what it checked.
                    for name in {materialization.asset_key.path[0] for materialization in told}:
                        report_checks(context.instance, opened, opened.settings.table(name))
                case Captured(table, result):
                    yield from landings.report(table)
                    context.log.info(describe_capture(result))
                    report_gaps(context.log.error, result)
                    report_checks(context.instance, opened, table)
                case Unregistered(table, error):
                    context.log.warning(f"{table.name}: {error}")
                case Failed(table, error):
                    yield from landings.report(table)  # what landed before it failed
                    context.log.error(f"{table.name}: {error}")
                    failures.append(str(error))
    if failures:
        raise dg.Failure(description="\n".join(failures))
    yield dg.Output(None)


@dg.job(
    description="Reads the tables' streams to their tips and lands every change exactly once.",
    executor_def=dg.in_process_executor,
)
def capture() -> None:
    """One run drains a group of tables, all their shards in parallel."""
    capture_streams()


class Landings:
    """Landed objects on their way to being materialisations of raw_stream, one per write day.

    A run that lingers lands every second or so; a materialisation of each would flood the event
    log, so they are gathered for a while.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], list[LandedObject]] = {}
        self._reported = time.monotonic()

    def add(
        self, table: Table, objects: Sequence[LandedObject]
    ) -> Iterator[dg.AssetMaterialization]:
        """Gather, and report what was gathered when it is time to."""
        for landed in objects:
            self._waiting.setdefault((table.safe_name, landed.day), []).append(landed)
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            for key in sorted(self._waiting):
                yield self._report(*key)
            self._reported = time.monotonic()

    def report(self, table: Table) -> Iterator[dg.AssetMaterialization]:
        """Report what is left of a table whose capture is done."""
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
    """One line about a capture for logs."""
    days = ", ".join(f"{day}: {rows}" for day, (rows, _) in sorted(result.days.items()))
    return (
        f"{result.table}: {result.rows} changes landed ({days or 'nothing new'}) in "
        f"{result.seconds:.1f} s, {result.shards_open} open shards, "
        f"{result.quarantined} unreadable, {result.orphans_removed} orphans removed"
    )


def report_capture(
    context: dg.AssetExecutionContext, lake: "Lake", table: Table, days: Sequence[date]
) -> dict[str, Any]:
    """Capture now if one of the days can still get changes; metadata for each day asked for."""
    from cdc_pipeline.capture.run import Captured, Failed, Landed, capture_tables

    landings = Landings()
    asked = {day.isoformat() for day in days}
    metadata: dict[str, Any] = {}
    if max(days) >= today() - timedelta(days=_STREAM_DAYS):
        for event in capture_tables(lake, [table], linger_seconds=0):
            match event:
                case Landed(_, objects):
                    # The days asked for are materialised by the run itself.
                    others = [landed for landed in objects if landed.day not in asked]
                    for materialization in landings.add(table, others):
                        context.log_event(materialization)
                case Captured(_, result):
                    for materialization in landings.report(table):
                        context.log_event(materialization)
                    context.log.info(describe_capture(result))
                    report_gaps(context.log.error, result)
                    metadata |= _capture_metadata(result)
                case Failed(_, error):
                    raise error
    state = lake.log(table).load()
    began = day_of(state.stream.recorded_us) if state.stream else today()
    for day in days:
        objects = state.objects_of_day(day.isoformat())
        # A stream opened today still holds yesterday's changes.
        if not objects and day < began - timedelta(days=_STREAM_DAYS):
            raise NotReadyError(
                f"{table.safe_name}/raw_stream {day}: capture began on {began}, and the stream "
                "kept nothing older than 24 h; nothing covers this day",
                fix="the baseline export holds the items as they were when capture began",
            )
        context.add_asset_metadata(
            known(
                {
                    "dagster/partition_row_count": sum(o.rows for o in objects),
                    "bytes": sum(o.bytes for o in objects),
                    "objects": len(objects),
                }
            ),
            partition_key=day.isoformat(),
        )
    return metadata


def _capture_metadata(result: "CaptureResult") -> dict[str, Any]:
    return known(
        {
            "rows_landed": result.rows,
            "seconds": round(result.seconds, 2),
            "shards": result.shards_open,
            "unreadable": result.quarantined,
            "lag_seconds": lag_seconds(result.watermark_us),
        }
    )


def report_gaps(log: Callable[[str], object], result: "CaptureResult") -> None:
    """Say what was lost; the check `no_open_gaps` keeps failing until it is made good."""
    for gap in result.gaps:
        log(f"{result.table}: {describe_gap(gap)}")


def describe_gap(gap: Gap) -> str:
    """One line about a gap."""
    begin, end = (datetime.fromtimestamp(us / 1e6, UTC) for us in (gap.from_us, gap.to_us))
    return (
        f"gap (entry {gap.entry}): {gap.cause}, {len(gap.shards)} shards; changes written from "
        f"{begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC may be missing"
    )
