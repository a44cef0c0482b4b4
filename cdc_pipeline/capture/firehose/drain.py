"""Capture of a table whose changes AWS writes to S3: new objects are read and landed.

Objects of Firehose and of Kinesis channels (`capture.sources.firehose_files`) are stored by the day
of arrival, in any order, with repeats; landing objects by the day of the write, with the identities
of their changes. The source objects stay as they are. A log entry lists the source objects it has
read; a large one lands in several entries, each with the number of records done, so after a kill
the next run continues in the middle. Folders that may still receive objects (`window_days`) are
listed each time, and the log keeps only objects of these folders.

The watermark is the time of a listing that has landed completely, less the time that a change needs
to arrive: as AWS's metrics report it, or the longest expected one (`lag_minutes`).
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache
from typing import Any, BinaryIO

from cdc_pipeline.capture.landing.gaps import open_capture, undelivered_gap
from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.replication_losses import record_losses
from cdc_pipeline.capture.landing.result import CaptureFailedError, CaptureResult
from cdc_pipeline.capture.landing.retries import Attempt, retry_when_overtaken
from cdc_pipeline.capture.sources.firehose_files import FileSource, LostRecord
from cdc_pipeline.capture.sources.firehose_listing import (
    ArrivedObject,
    is_empty,
    list_again,
)
from cdc_pipeline.capture.sources.firehose_objects import Record, download
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.capture.sources.source_choice import open_source
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import ShardGoneError, SourceError
from cdc_pipeline.core.log.entries import LandedObject, SourceFile
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.landing import DAY_US

_PARALLEL = 8
_GONE = "an object that was gone before it was read"
_COUNTED = "/2"
"""Suffix of the ETag of an object read in part: the rule by which its records are counted.

Earlier versions counted commas and brackets, and a wrapper as one record; they wrote no suffix.
"""
Written = tuple[int, int]
"""Half-open interval of write times to land, µs since the epoch."""
ANY_TIME: Written = (0, 1 << 62)


@dataclass
class _Reading:
    """Progress of reading one object."""

    arrived: ArrivedObject
    rows: int = 0
    others: int = 0
    days: set[str] = field(default_factory=set)
    legacy_us: int = 0

    @staticmethod
    def of(arrived: ArrivedObject, logged: SourceFile | None) -> "_Reading":
        if logged is None or logged.etag != arrived.object.etag + _COUNTED:
            return _Reading(arrived)
        return _Reading(arrived, logged.rows, logged.others, set(logged.days), logged.legacy_us)

    def as_file(self, whole: bool) -> SourceFile:
        return SourceFile(
            uri=self.arrived.uri,
            etag=self.arrived.object.etag + ("" if whole else _COUNTED),
            bytes=self.arrived.object.bytes,
            arrived=self.arrived.day.isoformat(),
            rows=self.rows,
            others=self.others,
            days=tuple(sorted(self.days)),
            legacy_us=self.legacy_us,
            whole=whole,
        )


@dataclass
class _Batch:
    """Records read and not landed yet."""

    changes: list[Change] = field(default_factory=list)
    unreadable: list[tuple[str, bytes]] = field(default_factory=list)
    files: dict[str, SourceFile] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    size: int = 0


def capture_files(
    table: TableLake,
    options: CaptureOptions,
    *,
    report: Callable[[list[LandedObject]], None] = lambda _: None,
    written: Written = ANY_TIME,
    day: date | None = None,
) -> CaptureResult:
    """Land the arrived objects that the log lacks; call `report` for each batch.

    `written`: changes of other times are left out. `day`: read only objects of folders that may
    hold changes of this day, of any age; otherwise those of the window, the first time all since
    `start_date`. Safe to kill at any moment and to run twice at once. Raises `CaptureFailedError`
    if objects could not be read (after landing the others), `SourceError`, `LakeError`.
    """

    def attempt(attempt: Attempt) -> CaptureResult:
        source = open_source(table)
        run = FileRun(table, source, attempt.options, report, written)
        attempt.results.append(run.result)
        return run.run(day=day)

    return retry_when_overtaken(table.name, table.log, options, time.sleep, attempt)


class FileRun:
    """One capture run of one table; see `capture_files` and `capture.shards.drain.Run`."""

    losses_until_us: int | None = None
    has_ended = False

    def __init__(
        self,
        table: TableLake,
        source: Source,
        options: CaptureOptions,
        report: Callable[[list[LandedObject]], None],
        written: Written = ANY_TIME,
    ) -> None:
        self.table = table
        self._files = source.files
        self.options = options
        self.written = written
        self.source = source
        self.log = table.log
        self.started = self.log.clock()
        self.result = CaptureResult(table.name)
        self.state = self.log.look()
        self.lander = Lander(self.log, self.state, self.source, self.result, report)
        self.known: dict[str, SourceFile] = {}
        self.listed: set[str] = set()
        self.batch = _Batch()

    def run(self, *, is_followed: bool = False, day: date | None = None) -> CaptureResult:
        """See `capture_files`; `is_followed`: the log follows these objects already.

        Raises `ShardGoneError` for a channel that is gone: its folders are unknown then.
        """
        if self._files is None:
            raise ShardGoneError(f"{self.source.arn} is gone")
        if not is_followed:
            gap = open_capture(self.log, self.state, self.source)
            self.result.gaps += [gap] if gap else []
        self.lander.remove_orphans()
        listed_us = self.log.now_us()
        self.known = dict(self.state.files)
        if day is not None:
            self.known |= self._logged_since(day)
        wanted = self._wanted(day, listed_us)
        is_complete = self._take_all(wanted) and day is None
        warnings = self._prefix_warnings() if is_complete else []
        self.result.warnings += warnings
        proof = self._proof(wanted, listed_us) if is_complete and not warnings else {}
        self._land(lambda: proof)
        if day is None:
            self.losses_until_us = record_losses(
                self.log, self.lander, self.state, self.source, self.result
            )
        self.lander.finish(is_whole=is_complete and not self.result.failed_shards)
        self.result.close(self.state, self.log.clock() - self.started)
        self._raise_failures()
        return self.result

    def _raise_failures(self) -> None:
        failed = self.result.failed_shards
        if failed:
            listed = "; ".join(f"{uri}: {why}" for uri, why in sorted(failed.items()))
            raise CaptureFailedError(
                f"table {self.result.table}: {len(failed)} objects could not be read "
                f"({self.result.rows} changes of the others landed): {listed}"
            )

    @property
    def files(self) -> FileSource:
        """Source of the objects; set once `run` has begun."""
        assert self._files is not None
        return self._files

    # Selection of objects

    def _wanted(self, day: date | None, now_us: int) -> list[ArrivedObject]:
        since, until = self._first_day(), date.max
        if day is not None:
            # Folders may be named in another time zone than UTC.
            since, until = day - timedelta(1), day + timedelta(self.files.window_days + 1)
        arrived = self.files.arrived(since, now_us)
        wanted = [f for f in arrived if f.day <= until and not self._is_done(f)]
        self.listed = {f.uri for f in arrived}
        unread = [f for f in self.state.files.values() if f.unread and f.uri not in self.listed]
        return wanted if day is not None else [*list_again(self.table.lake.aws, unread), *wanted]

    def _first_day(self) -> date:
        logged, first = self.state.files_from, self.table.lake.settings.start_date
        if logged:
            return date.fromisoformat(logged)
        # Changes before a switch do not count; a folder may be a day off in its time zone.
        since_us = self.state.stream.since_us if self.state.stream else 0
        return max(first, day_of(since_us) - timedelta(1)) if since_us else first

    def _is_done(self, arrived: ArrivedObject) -> bool:
        logged = self.known.get(arrived.uri)
        return logged is not None and logged.whole and logged.etag == arrived.object.etag

    def _logged_since(self, day: date) -> dict[str, SourceFile]:
        """Objects in log entries since a day, also those that the log's state does not keep."""
        entries = self.log.entries_since(self.state, day)
        return {file.uri: file for entry in entries for file in entry.files}

    # Reading

    def _take_all(self, wanted: list[ArrivedObject]) -> bool:
        """Read objects in order; return False if some are left for another run."""
        with closing(self._downloaded(wanted)) as files:
            for arrived, file in files:
                try:
                    if not self._take(arrived, file.result()):
                        return False
                except SourceError as error:
                    # An unreadable object does not stop the others.
                    why = error.message + (f" ({error.fix})" if error.fix else "")
                    self.result.failed_shards[arrived.uri] = why
        return True

    def _downloaded(
        self, wanted: Iterable[ArrivedObject]
    ) -> "Generator[tuple[ArrivedObject, Future[BinaryIO | None]], None, None]":
        """Objects with their downloads, some of them started ahead of the current one."""
        ahead: deque[tuple[ArrivedObject, Future[BinaryIO | None]]] = deque()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            try:
                for arrived in wanted:
                    future = pool.submit(download, arrived.bucket, arrived.object)
                    ahead.append((arrived, future))
                    if len(ahead) > _PARALLEL:
                        yield ahead.popleft()
                while ahead:
                    yield ahead.popleft()
            finally:
                for _, file in ahead:
                    if not file.cancel():
                        file.add_done_callback(_close)

    def _take(self, arrived: ArrivedObject, file: BinaryIO | None) -> bool:
        """Read one object; return False if the run's time is over, before or after its end."""
        reading = _Reading.of(arrived, self.known.get(arrived.uri))
        if file is None:
            self.batch.unreadable.append((_GONE, arrived.uri.encode()))
        else:
            with file:
                try:
                    if not self._take_records(reading, arrived, file):
                        return False
                except SourceError:
                    # The record of a dead letter cannot be requested: records before it stay.
                    if reading.rows:
                        self.batch.files[arrived.uri] = reading.as_file(whole=False)
                    raise
        self.batch.files[arrived.uri] = reading.as_file(whole=True)
        return not self._is_over()

    def _take_records(self, reading: _Reading, arrived: ArrivedObject, file: BinaryIO) -> bool:
        """Read the unread records; return False if the run's time is over before the end."""
        done, target = reading.rows, self.source.target
        assert target is not None  # the source has files
        for number, record in enumerate(self.files.records(arrived, file, target), 1):
            if number <= done:
                continue
            self._add(reading, record)
            if self._is_full():
                self.batch.files[arrived.uri] = reading.as_file(whole=False)
                self._land()
                if self._is_over():
                    return False
        return True

    def _add(self, reading: _Reading, record: Record | LostRecord) -> None:
        reading.rows += 1
        if isinstance(record, LostRecord):
            self.batch.lost.append(record.from_us)
            return
        change = record.change
        self.batch.size += record.size
        if record.unreadable is not None:
            self.batch.unreadable.append(record.unreadable)
        elif change is None:
            reading.others += 1
        else:
            reading.days.add(_day_name(change.write_time_us // DAY_US))
            if record.legacy:
                reading.legacy_us = max(reading.legacy_us, change.write_time_us)
            if self._is_in_time_span(change):
                self.batch.changes.append(change)

    def _is_in_time_span(self, change: Change) -> bool:
        """Whether a change is for this run and, around a switch, for this transport."""
        assert self.state.stream is not None  # it was opened
        cut = self.state.cut
        until_us = cut.at_us if cut else self.written[1]
        since_us = max(self.state.stream.since_us, self.written[0])
        return since_us <= change.write_time_us < min(until_us, self.written[1])

    def _is_full(self) -> bool:
        rows = len(self.batch.changes) + len(self.batch.unreadable)
        return rows >= self.options.flush_rows or self.batch.size >= self.options.flush_bytes

    def _is_over(self) -> bool:
        return self.log.clock() - self.started >= self.options.max_run_seconds

    # Landing

    def _land(self, more: Callable[[], dict[str, Any]] = dict) -> None:
        """Land the batch; `more`: further fields of the entry."""
        batch, self.batch = self.batch, _Batch()
        if batch.lost:
            # Before the entry that marks them as read: a kill in between leaves them unread.
            lost_us = max(min(batch.lost), self.state.began_us)
            self.lander.append(lambda: undelivered_gap(self.log, self.state, lost_us))
            self.result.gaps.append(self.state.gaps[self.state.n])

        def parts() -> dict[str, Any]:
            fields = more()
            return {"files": (*batch.files.values(), *fields.pop("unread", ())), **fields}

        self.lander.land(batch.changes, batch.unreadable, parts)
        self.known |= batch.files

    def _prefix_warnings(self) -> list[str]:
        """Warnings for prefixes without any object: a listing proves nothing then.

        A mistyped prefix cannot be told apart from one without writes. Until the lake is complete
        for the first time, a record of each prefix must also have been read.
        """
        files = (self.known | self.batch.files).values()
        reasons: list[str] = []
        empty: list[str] = []
        for prefix in self.files.named_prefixes:
            logged = [file for file in files if file.uri.startswith(prefix)]
            if not logged and not any(uri.startswith(prefix) for uri in self.listed):
                empty += [prefix] if is_empty(self.table.lake.aws, prefix) else []
            elif not self.state.discovered_us and logged and not any(map(_is_readable, logged)):
                reasons.append(f"neither {logged[0].uri} nor objects beside it could be read")
        if empty:
            reasons.append(f"no object was ever found under {', '.join(empty)}")
        return [
            f"table {self.result.table}: {reason}; until then nothing counts as complete "
            f"(for details: cdc-pipeline preflight {self.result.table})"
            for reason in reasons
        ]

    def _proof(self, wanted: list[ArrivedObject], listed_us: int) -> dict[str, Any]:
        """Fields of the log entry proven by a listing whose objects were all tried.

        The log keeps objects that could not be read by name, instead of all objects since then. The
        watermark does not move until they have landed.
        """
        first = day_of(listed_us) - timedelta(self.files.window_days)
        files_from = max(self.state.files_from, first.isoformat())
        failed = self.result.failed_shards
        if not failed:
            reached = self.files.reached(listed_us)
            self.result.warnings += reached.warnings
            reached_us = max(self.state.discovered_us, reached.us)
            return {"discovered_us": reached_us, "files_from": files_from}
        leaving = (f for f in wanted if f.uri in failed and f.day.isoformat() < files_from)
        files = (_Reading.of(f, self.known.get(f.uri)).as_file(whole=False) for f in leaving)
        unread = tuple(
            replace(file, unread=True)
            for file in files
            if not (logged := self.state.files.get(file.uri)) or not logged.unread
        )
        return {"files_from": files_from, "unread": unread}


def _is_readable(file: SourceFile) -> bool:
    return bool(file.days or file.others or not file.rows)


def _close(file: "Future[BinaryIO | None]") -> None:
    opened = None if file.exception() else file.result()
    if opened is not None:
        opened.close()


@cache
def _day_name(number: int) -> str:
    """ISO date of a number of days since the epoch."""
    return day_of(number * DAY_US).isoformat()
