"""Capture of a table whose changes AWS writes to S3: new objects are read and landed as ours.

Objects of Firehose and of Kinesis channels (`capture.sources.firehose_files`) lie by the day of
arrival, in any order, with repeats; ours by the day of the write, with the identities of their
changes. Theirs stay as they are. An entry of the log says which of them it took; a large one lands
in several entries, each telling how many records are done, so a run that was killed goes on in the
middle. Objects of the folders that may still get some are looked at each time (`window_days`), and
the log remembers no others.

The watermark is the time of a listing, all of which has landed, less the time that a change takes:
as AWS's metrics report it, or the longest that it should take (`lag_minutes`).
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

from cdc_pipeline.aws.table import describe_table
from cdc_pipeline.capture.landing.gaps import open_capture, undelivered_gap
from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.overtaken import Attempt, until_not_overtaken
from cdc_pipeline.capture.landing.replication_losses import look_for_losses
from cdc_pipeline.capture.landing.result import CaptureFailedError, CaptureResult
from cdc_pipeline.capture.sources.firehose_files import FileSource, Lost
from cdc_pipeline.capture.sources.firehose_listing import Arrived, find_again, is_empty, target_of
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
"""Behind the ETag of an object that was read in part: by which rule its records are counted.

Earlier versions counted commas and brackets, and a wrapper as one: they began with no such mark.
"""
Written = tuple[int, int]
"""Changes of which write times are to land: from, and before; µs since the epoch."""
ANY_TIME: Written = (0, 1 << 62)


@dataclass
class _Reading:
    """How far an object has been read."""

    arrived: Arrived
    rows: int = 0
    others: int = 0
    days: set[str] = field(default_factory=set)
    legacy_us: int = 0

    @staticmethod
    def of(arrived: Arrived, known: SourceFile | None) -> "_Reading":
        if known is None or known.etag != arrived.object.etag + _COUNTED:
            return _Reading(arrived)
        return _Reading(arrived, known.rows, known.others, set(known.days), known.legacy_us)

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
    """What has been read and not landed yet."""

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
    """Land what the log lacks of the objects that have arrived; `report` hears of each batch.

    `written`: changes of other times are left out. `day`: only objects of the folders that changes
    of this day can be in, however long ago; else those of the window, the first time all since
    `start_date`. Safe to kill at any moment and to run twice at once. Raises `CaptureFailedError`
    when objects could not be read (after landing the others), `SourceError`, `LakeError`.
    """

    def attempt(attempt: Attempt) -> CaptureResult:
        source = open_source(table)
        run = FilesRun(table, source, attempt.options, report, written)
        attempt.results.append(run.result)
        return run.run(day=day)

    return until_not_overtaken(table.name, table.log, options, time.sleep, attempt)


class FilesRun:
    """One capture run of one table; see `capture_files` and `capture.shards.drain.Run`."""

    looked_us: int | None = None
    ended = False

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
        self.target = target_of(describe_table(table.source, table.name))
        self.log = table.log
        self.started = self.log.clock()
        self.result = CaptureResult(table.name)
        self.state = self.log.load()
        self.lander = Lander(self.log, self.state, self.source, self.result, report)
        self.known: dict[str, SourceFile] = {}
        self.listed: set[str] = set()
        self.batch = _Batch()

    def run(self, *, opened: bool = False, day: date | None = None) -> CaptureResult:
        """See `capture_files`; `opened`: the log follows these objects already.

        Raises `ShardGoneError` for those of a channel that is gone: nobody knows where they are.
        """
        if self._files is None:
            raise ShardGoneError(f"{self.source.arn} is gone")
        if not opened:
            gap = open_capture(self.log, self.state, self.source)
            self.result.gaps += [gap] if gap else []
        self.lander.remove_orphans()
        listed_us = self.log.now_us()
        self.known = dict(self.state.files)
        if day is not None:
            self.known |= self._logged_since(day)
        wanted = self._wanted(day, listed_us)
        tried = self._take_all(wanted) and day is None
        silent = self._silent() if tried else []
        self.result.warnings += silent
        vouched = self._vouched(wanted, listed_us) if tried and not silent else {}
        self._land(lambda: vouched)
        if day is None:
            self.looked_us = look_for_losses(
                self.log, self.lander, self.state, self.source, self.result
            )
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
        """Where the objects are; a run without them has not begun."""
        assert self._files is not None
        return self._files

    # Which objects

    def _wanted(self, day: date | None, now_us: int) -> list[Arrived]:
        since, until = self._first_day(), date.max
        if day is not None:
            # Folders may be named in another time zone than UTC.
            since, until = day - timedelta(1), day + timedelta(self.files.window_days + 1)
        found = self.files.arrived(since, now_us)
        wanted = [f for f in found if f.day <= until and not self._is_done(f)]
        self.listed = {f.uri for f in found}
        left = [f for f in self.state.files.values() if f.unread and f.uri not in self.listed]
        return wanted if day is not None else [*find_again(self.table.lake.aws, left), *wanted]

    def _first_day(self) -> date:
        found, first = self.state.files_from, self.table.lake.settings.start_date
        if found:
            return date.fromisoformat(found)
        # Behind a switch nothing older counts; a folder may be a day off in its time zone.
        since_us = self.state.stream.since_us if self.state.stream else 0
        return max(first, day_of(since_us) - timedelta(1)) if since_us else first

    def _is_done(self, found: Arrived) -> bool:
        known = self.known.get(found.uri)
        return known is not None and known.whole and known.etag == found.object.etag

    def _logged_since(self, day: date) -> dict[str, SourceFile]:
        """Objects that the log took since a day, also those that its state has forgotten."""
        entries = self.log.entries_since(self.state, day)
        return {file.uri: file for entry in entries for file in entry.files}

    # Reading

    def _take_all(self, wanted: list[Arrived]) -> bool:
        """Try them one after the other; False if some are left for another run."""
        with closing(self._downloaded(wanted)) as files:
            for found, file in files:
                try:
                    if not self._take(found, file.result()):
                        return False
                except SourceError as error:
                    # One that cannot be read does not stop the others.
                    why = error.message + (f" ({error.fix})" if error.fix else "")
                    self.result.failed_shards[found.uri] = why
        return True

    def _downloaded(
        self, wanted: Iterable[Arrived]
    ) -> "Generator[tuple[Arrived, Future[BinaryIO | None]], None, None]":
        """Some are fetched ahead of the one that is read."""
        ahead: deque[tuple[Arrived, Future[BinaryIO | None]]] = deque()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            try:
                for found in wanted:
                    ahead.append((found, pool.submit(download, found.bucket, found.object)))
                    if len(ahead) > _PARALLEL:
                        yield ahead.popleft()
                while ahead:
                    yield ahead.popleft()
            finally:
                for _, file in ahead:
                    if not file.cancel():
                        file.add_done_callback(_close)

    def _take(self, found: Arrived, file: BinaryIO | None) -> bool:
        """Read one object; False if the run's time is over, before its end or behind it."""
        reading = _Reading.of(found, self.known.get(found.uri))
        if file is None:
            self.batch.unreadable.append((_GONE, found.uri.encode()))
        else:
            with file:
                try:
                    if not self._take_records(reading, found, file):
                        return False
                except SourceError:
                    # Of a dead letter whose record cannot be asked for: what came before it stays.
                    if reading.rows:
                        self.batch.files[found.uri] = reading.as_file(whole=False)
                    raise
        self.batch.files[found.uri] = reading.as_file(whole=True)
        return not self._is_over()

    def _take_records(self, reading: _Reading, found: Arrived, file: BinaryIO) -> bool:
        """Read what has not been read of it; False if the run's time is over before its end."""
        done = reading.rows
        for number, record in enumerate(self.files.records(found, file, self.target), 1):
            if number <= done:
                continue
            self._add(reading, record)
            if self._is_full():
                self.batch.files[found.uri] = reading.as_file(whole=False)
                self._land()
                if self._is_over():
                    return False
        return True

    def _add(self, reading: _Reading, record: Record | Lost) -> None:
        reading.rows += 1
        if isinstance(record, Lost):
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
            if self._counts(change):
                self.batch.changes.append(change)

    def _counts(self, change: Change) -> bool:
        """Whether it is for this run; around a switch of transports each has its side."""
        assert self.state.stream is not None  # it was opened
        cut = self.state.cut
        until = cut.at_us if cut else self.written[1]
        since = max(self.state.stream.since_us, self.written[0])
        return since <= change.write_time_us < min(until, self.written[1])

    def _is_full(self) -> bool:
        rows = len(self.batch.changes) + len(self.batch.unreadable)
        return rows >= self.options.flush_rows or self.batch.size >= self.options.flush_bytes

    def _is_over(self) -> bool:
        return self.log.clock() - self.started >= self.options.max_run_seconds

    # Landing

    def _land(self, more: Callable[[], dict[str, Any]] = dict) -> None:
        """Make a log entry of what has been read."""
        batch, self.batch = self.batch, _Batch()
        if batch.lost:
            # Before the entry that calls them read: killed between, they are looked for again.
            lost_us = max(min(batch.lost), self.state.began_us)
            self.lander.append(lambda: undelivered_gap(self.log, self.state, lost_us))
            self.result.gaps.append(self.state.gaps[self.state.n])

        def parts() -> dict[str, Any]:
            said = more()
            return {"files": (*batch.files.values(), *said.pop("unread", ())), **said}

        self.lander.land(batch.changes, batch.unreadable, parts)
        self.known |= batch.files

    def _silent(self) -> list[str]:
        """Why a listing proves nothing: what there must be of some prefix was never seen.

        A prefix that is mistyped looks like one to which nothing was written. Until the lake
        counted as complete for the first time, something of each must have been read, too.
        """
        files = (self.known | self.batch.files).values()
        found: list[str] = []
        empty: list[str] = []
        for prefix in self.files.named_prefixes:
            here = [file for file in files if file.uri.startswith(prefix)]
            if not here and not any(uri.startswith(prefix) for uri in self.listed):
                empty += [prefix] if is_empty(self.table.lake.aws, prefix) else []
            elif not self.state.discovered_us and here and not any(map(_says_something, here)):
                found.append(f"nothing of {here[0].uri} could be read, nor of others beside it")
        if empty:
            found.append(f"nothing was ever found under {', '.join(empty)}")
        return [
            f"table {self.result.table}: {why}; until then nothing counts as complete "
            f"(cdc-pipeline preflight {self.result.table} tells more)"
            for why in found
        ]

    def _vouched(self, wanted: list[Arrived], listed_us: int) -> dict[str, Any]:
        """What a listing proves of which all was tried.

        What cannot be read any more is no reason to remember every object since: it is kept by
        name. The watermark stays where it is until it has landed.
        """
        first = day_of(listed_us) - timedelta(self.files.window_days)
        files_from = max(self.state.files_from, first.isoformat())
        failed = self.result.failed_shards
        if not failed:
            reached = self.files.reached(listed_us)
            self.result.warnings += reached.warnings
            reached_us = max(self.state.discovered_us, reached.us)
            return {"discovered_us": reached_us, "files_from": files_from}
        left = (f for f in wanted if f.uri in failed and f.day.isoformat() < files_from)
        files = (_Reading.of(f, self.known.get(f.uri)).as_file(whole=False) for f in left)
        fresh = tuple(
            replace(file, unread=True)
            for file in files
            if not (known := self.state.files.get(file.uri)) or not known.unread
        )
        return {"files_from": files_from, "unread": fresh}


def _says_something(file: SourceFile) -> bool:
    return bool(file.days or file.others or not file.rows)


def _close(file: "Future[BinaryIO | None]") -> None:
    opened = None if file.exception() else file.result()
    if opened is not None:
        opened.close()


@cache
def _day_name(number: int) -> str:
    """The day of so many days since the epoch."""
    return day_of(number * DAY_US).isoformat()
