"""Capture of one table: read every shard of its stream and land its records, exactly once."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Protocol

from cdc_pipeline.capture.landing.cutover import begin_cutover, complete_cutover
from cdc_pipeline.capture.landing.gaps import open_capture, shard_gap, unread_since_us
from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.replication_losses import record_losses
from cdc_pipeline.capture.landing.result import CaptureFailedError, CaptureResult
from cdc_pipeline.capture.landing.retries import Attempt, retry_when_overtaken
from cdc_pipeline.capture.shards.buffer import Batch, Buffer
from cdc_pipeline.capture.shards.cursors import Cursors
from cdc_pipeline.capture.shards.shard_reader import ReadOptions, Start, read_shard
from cdc_pipeline.capture.shards.shard_tracker import ShardTracker
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import (
    CaptureConflictError,
    HeadTrimmedError,
    ShardGoneError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.log.coverage import clock_warning
from cdc_pipeline.core.log.entries import Cause, LandedObject, ShardState, StreamRef
from cdc_pipeline.core.log.lineage import Shard
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import FIREHOSE, IN_FILES
from cdc_pipeline.lake.storage.log import CaptureLog

_FLUSH_WAIT_SECONDS = 0.2
_QUIET_SECONDS = 30


class Run(Protocol):
    """One run of one source. `losses_until_us`, `has_ended`: see `cutover.complete_cutover`."""

    result: CaptureResult
    losses_until_us: int | None
    has_ended: bool

    def run(self, *, is_followed: bool = False) -> CaptureResult:
        """Land all available records; `is_followed`: the log follows the source already."""
        ...


def capture_table(
    log: CaptureLog,
    source: Source,
    options: CaptureOptions,
    *,
    former: Callable[[StreamRef], Source] | None = None,
    files: "Callable[[Source, CaptureOptions], Run] | None" = None,
    reopen: Callable[[], Source] | None = None,
    cursors: Cursors | None = None,
    report: Callable[[list[LandedObject]], None] = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
) -> CaptureResult:
    """Land everything that the stream holds now; call `report` for each landed batch.

    `former`: opens the stream that the log follows, if it is another one; by default it is read
    like `source`. Its remaining records land first. If it has another transport, a cutover time is
    logged, and until the old stream has been read up to it, the new one is not read
    (`capture.landing.cutover`). `files`: makes the run that reads objects in S3. `reopen`: opens
    the source again after a conflict with another capture, which may have made the log follow
    another stream; by default the source stays. `cursors`: where readers stopped in earlier runs.

    Safe to kill at any moment and to run twice at once: after a conflict a run continues from the
    other one's entries. Raises `CaptureFailedError` if shards failed (after landing the others),
    `SourceError`, `LakeError`. A break in continuity is not an error but a gap.
    """

    def attempt(attempt: Attempt) -> CaptureResult:
        current = reopen() if reopen and attempt.is_again else source
        shards = partial(
            _Run, log, options=attempt.options, report=report, sleep=sleep, cursors=cursors
        )

        def new_run(source: Source) -> Run:
            file_run = files if source.transport in IN_FILES else None
            run = file_run(source, attempt.options) if file_run else shards(source=source)
            attempt.results.append(run.result)
            return run

        return _capture(log, current, new_run, former)

    return _require_no_failures(retry_when_overtaken(source.table, log, options, sleep, attempt))


def _capture(
    log: CaptureLog,
    source: Source,
    new_run: Callable[[Source], Run],
    former: Callable[[StreamRef], Source] | None,
) -> CaptureResult:
    """One attempt at `capture_table`."""
    state = log.look()
    followed = state.stream
    before: CaptureResult | None = None
    if followed is not None and _needs_draining(followed, source):
        old = former(followed) if former else _former_source(source, followed)
        is_switching = followed.transport != source.transport
        if is_switching:
            begin_cutover(log, state, source)
        drain = new_run(old)
        try:
            # A disabled stream stays readable for a while: land the rest of it.
            before = drain.run(is_followed=True)
        except ShardGoneError:
            drain.has_ended = True
        if is_switching and not complete_cutover(
            log, source, losses_until_us=drain.losses_until_us, has_ended=drain.has_ended
        ):
            before = before or CaptureResult(source.table)
            before.warnings.append(f"table {source.table}: {_switch_warning(log.load())}")
            return before
    try:
        result = new_run(source).run()
    except ShardGoneError as error:
        raise SourceError(f"table {source.table}: {error}") from error
    if before is not None:
        result.add(before)
    if (warning := clock_warning(source.clock_offset_us())) is not None:
        result.warnings.append(f"table {source.table}: {warning}")
    return result


def _needs_draining(followed: StreamRef, source: Source) -> bool:
    """Whether the log follows another stream, which must be read to its end.

    Firehose's objects of a table and of an earlier table of the same name are the same ones.
    """
    return not source.is_followed(followed) and not (
        source.transport == followed.transport == FIREHOSE
    )


def drain_table(
    log: CaptureLog,
    source: Source,
    options: CaptureOptions,
    *,
    report: Callable[[list[LandedObject]], None] = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
) -> CaptureResult:
    """Land the rest of the stream that the log follows, even if it is disabled by now.

    Raises the errors of `capture_table`, and `ShardGoneError` if the stream no longer exists.
    """

    def attempt(attempt: Attempt) -> CaptureResult:
        run = _Run(log, source=source, options=attempt.options, report=report, sleep=sleep)
        followed = log.look().stream
        if attempt.is_again and not (followed and source.is_same_stream(followed)):
            return run.result  # not followed any more: the other capture has read it to its end
        attempt.results.append(run.result)
        return run.run(is_followed=True)

    return _require_no_failures(retry_when_overtaken(source.table, log, options, sleep, attempt))


def _former_source(source: Source, stream: StreamRef) -> Source:
    is_same_table = stream.table_id == source.table_id
    return replace(
        source,
        arn=stream.arn,
        table_id=stream.table_id,
        created_us=stream.created_us,
        reading=source.reading if is_same_table else source.reading.of_former(stream.table_id),
    )


def _switch_warning(state: LogState) -> str:
    assert state.stream is not None
    assert state.cut is not None
    return (
        f"switching from {state.stream.transport} to {state.cut.transport}: changes written from "
        f"{time_text(state.cut.at_us)} UTC on wait until {state.stream.transport} has been read "
        "up to that time; keep both enabled"
    )


def _require_no_failures(result: CaptureResult) -> CaptureResult:
    if result.failed_shards:
        listed = "; ".join(f"{s}: {why}" for s, why in sorted(result.failed_shards.items()))
        raise CaptureFailedError(
            f"table {result.table}: {len(result.failed_shards)} shards could not be read "
            f"({result.rows} changes of the others landed): {listed}"
        )
    return result


class _Run:
    """One capture run of one table. Readers fill `pending`; only the thread of `run` lands."""

    def __init__(
        self,
        log: CaptureLog,
        *,
        source: Source,
        options: CaptureOptions,
        report: Callable[[list[LandedObject]], None],
        sleep: Callable[[float], object],
        cursors: Cursors | None = None,
    ) -> None:
        self.log = log
        self.source = source
        self.options = options
        self.report = report
        self.started = log.clock()
        self.reading = ReadOptions(
            empty_polls=options.empty_polls,
            poll_seconds=options.poll_seconds,
            until_us=int((self.started + options.linger_seconds) * 1_000_000),
            deadline=self.started + max(options.max_run_seconds, options.linger_seconds),
            clock=log.clock,
            sleep=sleep,
            margin_us=log.margin_us,
            empty_reads=options.empty_reads,
            cursors=cursors,
        )
        self.pending = Buffer(options.flush_rows, options.flush_bytes)
        self.stop = threading.Event()
        self.result = CaptureResult(source.table)
        self.state = LogState()
        self.stream: StreamRef
        self.lander: Lander
        # State of every shard, ahead of the log by the pending records.
        self.shards: dict[str, ShardState] = {}
        self.lineage: ShardTracker
        # End of the time with known losses; whether the stream gives no more records.
        self.losses_until_us: int | None = None
        self.has_ended = False
        self.at_tip: set[str] = set()
        self.running: dict[Future[ShardState], str] = {}
        self.flushed = time.monotonic()
        self.flush_pause = options.flush_seconds

    def run(self, *, is_followed: bool = False) -> CaptureResult:
        """Run once; `is_followed`: read the stream that the log follows, even if it is disabled."""
        self.state = self.log.look()
        gap = None if is_followed else open_capture(self.log, self.state, self.source)
        self.result.gaps += [gap] if gap else []
        assert self.state.stream is not None  # set by open_capture
        if not self.source.is_same_stream(self.state.stream):
            raise CaptureConflictError(
                f"table {self.source.table}: another capture made the log follow another stream"
            )
        self.stream = self.state.stream
        self.shards = dict(self.state.shards)
        lag = self.source.reading.listing_lag_seconds(self.options.listing_lag_seconds)
        lag_us = int(lag * 1_000_000)
        relist = self.options.relist_seconds
        self.lineage = ShardTracker(self.log, self.source, self.state, self.shards, lag_us, relist)
        self.lander = Lander(self.log, self.state, self.source, self.result, self.report)
        self.lander.remove_orphans()
        self.lander.complete()
        with ThreadPoolExecutor(self.options.parallel_shards) as pool:
            try:
                self.lineage.begin(is_on=not is_followed)
                self._read_all(pool)
            finally:
                self.stop.set()
                self.pending.close()
        self._land()
        self.losses_until_us = record_losses(
            self.log, self.lander, self.state, self.source, self.result
        )
        self.lander.finish(is_whole=self._is_in_time() and not self.result.failed_shards)
        self.has_ended = self._is_read_to_end()
        self.result.close(self.state, self.log.clock() - self.started)
        return self.result

    def _is_read_to_end(self) -> bool:
        """Whether no more records can come: the stream is disabled, and read to its end."""
        cut = self.state.cut
        reached_us = cut.at_us + self.log.margin_us if cut else self.reading.until_us
        reading = [s for s in self.state.shards.values() if s.status == "reading"]
        return not self.lineage.enabled and all(s.read_to_us >= reached_us for s in reading)

    def _read_all(self, pool: ThreadPoolExecutor) -> None:
        while True:
            self.lineage.follow_ended()
            self._submit(pool)
            if not self.running:
                if not self._is_in_time() or not self.lineage.wait(self.reading.sleep):
                    return
                continue
            done, _ = wait(self.running, timeout=_FLUSH_WAIT_SECONDS, return_when=FIRST_COMPLETED)
            self.lineage.note_ended(map(self._settle, done))
            if self.pending.is_full() or self._is_time_to_flush():
                self._land()
                self.lander.rest()
            if self.log.now_us() > self.lineage.next_listing_us:
                self.lineage.discover()

    def _is_time_to_flush(self) -> bool:
        """While lingering, land often enough to be fresh and rarely enough to be cheap.

        A read of a quiet stream is logged, too, else its watermark would fall behind.
        """
        pause = self.flush_pause
        if not self.pending.has_changes():
            pause = max(pause, _QUIET_SECONDS)
        return self.options.linger_seconds > 0 and time.monotonic() - self.flushed >= pause

    def _is_in_time(self) -> bool:
        return self.log.clock() < self.reading.deadline

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        """Start readers for shards that may be read, parents before children."""
        if not self._is_in_time():
            return
        busy = {*self.running.values(), *self.at_tip, *self.result.failed_shards}
        for listed in self.lineage.readable():
            if listed.shard_id not in busy:
                shard = self.shards[listed.shard_id]
                future = pool.submit(
                    read_shard,
                    self.source.shards,
                    self.source.reading,
                    self._stream(),
                    self._start(shard, listed),
                    self.pending,
                    self.reading,
                    self.stop,
                )
                self.running[future] = shard.shard_id

    def _stream(self) -> StreamRef:
        """The followed stream, with the shorter retention of log and last listing."""
        hours = min(self.stream.retention_hours, self.lineage.retention_hours)
        return replace(self.stream, retention_hours=hours)

    def _start(self, shard: ShardState, listed: Shard) -> Start:
        cut = self.state.cut
        unread_us = unread_since_us(self.state, shard, self.log.margin_us)
        before_us = cut.at_us if cut else None
        began_us = self.lineage.stream_began_us
        return Start(shard, listed.starting, unread_us, before_us, listed.is_open, began_us)

    def _settle(self, future: Future[ShardState]) -> str:
        """Take over the state of a finished reader. A failed one does not stop the others."""
        shard_id = self.running.pop(future)
        try:
            self.shards[shard_id] = future.result()
            self.at_tip.add(shard_id)
        except HeadTrimmedError:
            self._open_gap(shard_id, "head trimmed")
        except TrimmedDataError:
            self._open_gap(shard_id, "trimmed")
        except ShardGoneError:
            self._open_gap(shard_id, "shard vanished")
        except SourceError as error:
            self.result.failed_shards[shard_id] = error.message
        return shard_id

    def _open_gap(self, shard_id: str, cause: Cause) -> None:
        """Record a gap for the lost records of a shard, then go on with the remaining ones."""
        self._land()
        keeps = self.source.reading.trims_silently
        self.lander.append(
            lambda: shard_gap(self.log, self.state, shard_id, cause, keeps_position=keeps)
        )
        self.shards[shard_id] = self.state.shards[shard_id]
        self.result.gaps.append(self.state.gaps[self.state.n])

    def _land(self) -> None:
        """Land everything gathered, and complete events without images."""
        started = time.monotonic()
        batch = self.pending.take()
        self.lander.land(
            batch.changes,
            batch.unreadable,
            lambda: {
                "shards": tuple(self._changed_shards(batch)),
                "forgotten": tuple(self.lineage.forgotten()),
                **self.lineage.vouched(),
                **self._stream_update(),
            },
        )
        self.lander.complete()
        self.result.skipped += batch.skipped
        self.pending.landed()
        self.flushed = time.monotonic()
        # Landing takes at most a fifth of the time.
        self.flush_pause = max(self.options.flush_seconds, 4 * (self.flushed - started))

    def _stream_update(self) -> dict[str, StreamRef]:
        """Changed properties of the stream by the last listing, for the log.

        A longer retention helps only records that are younger than the shorter one.
        """
        stream, hours = self.state.stream, self.lineage.retention_hours
        assert stream is not None  # it is followed
        old_us = self.log.now_us() - stream.retention_us + 2 * self.log.margin_us
        if hours and (hours < stream.retention_hours or self.state.watermark_us > old_us):
            stream = replace(stream, retention_hours=hours)
        if self.source.reading.comes_back and not self.lineage.enabled:
            stream = replace(stream, off=True)
        return {} if stream == self.state.stream else {"stream": stream}

    def _changed_shards(self, batch: Batch) -> Iterable[ShardState]:
        """Shards that this entry moves, and new ones, which the log must list at once."""
        for shard_id, shard in self.shards.items():
            moved = batch.shards.get(shard_id)
            if moved is not None:
                yield moved
            elif shard_id not in self.state.shards:
                yield shard
