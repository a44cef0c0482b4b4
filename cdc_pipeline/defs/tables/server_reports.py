"""What `cdc-pipeline serve` tells Dagster: asset events without a run, and only news.

A thread of its own writes them, so that a slow database of Dagster delays no capture. What cannot
be written is missing in Dagster until the next news of its table; the lake does not depend on it.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue

import dagster as dg

from cdc_pipeline.capture.run import Failed, Landed
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.defs.metadata import state_metadata
from cdc_pipeline.defs.tables.capture import Landings
from cdc_pipeline.defs.tables.check_reports import VisibleResults, report_checks
from cdc_pipeline.defs.tables.checks import state_checks
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.service.server import NotPublished, Published, ServerEvent
from cdc_pipeline.settings.table import Table

NEWS_SECONDS = 300.0
"""Pause between two reports: events of every landing and publication would flood the event log."""
_STOP_SECONDS = 10.0


@contextmanager
def dagster_reports(
    lake: Lake, tables: Sequence[Table], say: Callable[[str], object]
) -> Iterator["ServerReports"]:
    """Open reports to the instance of DAGSTER_HOME; the rest is told at the end."""
    with dg.DagsterInstance.get() as instance:
        reports = ServerReports(instance, lake, tables, say)
        try:
            yield reports
        finally:
            reports.close()


class ServerReports:
    """Events of a server for a Dagster instance. `say` gets a line when Dagster cannot be told.

    Landed changes become materialisations of raw_stream by day, publications those of
    current_state, the last one of a pause; the checks of both follow. Errors become observations
    when they change.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        lake: Lake,
        tables: Sequence[Table],
        say: Callable[[str], object],
        seconds: float = NEWS_SECONDS,
    ) -> None:
        self._instance = instance
        self._lake = lake
        self._tables = list(tables)
        self._say = say
        self._seconds = seconds
        self._landings = Landings(float("inf"))
        self._landed: set[str] = set()
        self._published: dict[str, Published] = {}
        self._errors: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._queue: SimpleQueue[ServerEvent | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="dagster", daemon=True)
        self._thread.start()

    def add(self, event: ServerEvent) -> None:
        """Take an event; returns at once."""
        self._queue.put(event)

    def close(self) -> None:
        """Tell Dagster the rest, if that does not take long."""
        self._queue.put(None)
        self._thread.join(_STOP_SECONDS)

    def _work(self) -> None:
        # The first checks soon after the start, when most tables had their first pass.
        due = time.monotonic() + min(self._seconds, 10.0)
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except Empty:
                self._tell()
                due = time.monotonic() + self._seconds
                continue
            if event is None:
                self._tell()
                return
            self._note(event)

    def _note(self, event: ServerEvent) -> None:
        match event:
            case Landed(table, objects):
                list(self._landings.add(table, objects))
                self._landed.add(table.safe_name)
            case Published(table, _):
                self._published[table.safe_name] = event
                self._errors.pop(f"{table.safe_name}/current_state", None)
            case NotPublished(table, error):
                self._errors[f"{table.safe_name}/current_state"] = str(error)
            case Failed(table, error):
                self._errors[f"{table.safe_name}/raw_stream"] = str(error)
            case _:
                self._errors.pop(f"{event.table.safe_name}/raw_stream", None)

    def _tell(self) -> None:
        try:
            self._report(self._landings.report_all())
            landed, self._landed = self._landed, set()
            visible = VisibleResults(self._instance, self._tables)
            for table in self._tables:
                is_new = table.safe_name in landed
                self._check(table, unless=None if is_new else visible)
            self._tell_published()
            self._tell_errors()
        except Exception as error:  # noqa: BLE001 - Dagster's databases have errors of their own
            self._say(
                f"Dagster could not be told the news: {type(error).__name__}; captures go on. "
                "Fix: check DAGSTER_HOME and its database"
            )

    def _check(self, table: Table, unless: VisibleResults | None) -> None:
        try:
            report_checks(self._instance, self._lake.table(table), unless=unless)
        except CdcPipelineError:
            return  # the server says why the table cannot be read

    def _tell_published(self) -> None:
        while self._published:
            _, published = self._published.popitem()
            table = published.table
            key = dg.AssetKey([table.safe_name, "current_state"])
            metadata = state_metadata(table, published.result)
            self._report([dg.AssetMaterialization(asset_key=key, metadata=metadata)])
            try:
                self._report(state_checks(self._lake.table(table)))
            except CdcPipelineError:
                continue

    def _tell_errors(self) -> None:
        told, self._told = self._told, dict(self._errors)
        self._report(
            dg.AssetObservation(
                asset_key=dg.AssetKey(asset.split("/")),
                description=text,
                metadata={"error": text},
            )
            for asset, text in self._told.items()
            if told.get(asset) != text
        )

    def _report(
        self,
        events: Iterable[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation],
    ) -> None:
        for event in events:
            self._instance.report_runless_asset_event(event)
