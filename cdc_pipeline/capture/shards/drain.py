"""Capture of one table: read every shard of its stream and land what they hold, exactly once."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Protocol

from cdc_pipeline.capture.landing.cutover import begin_cut, switch
from cdc_pipeline.capture.landing.gaps import open_capture, shard_gap, unread_since_us
from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.overtaken import Attempt, until_not_overtaken
from cdc_pipeline.capture.landing.replication_losses import look_for_losses
from cdc_pipeline.capture.landing.result import CaptureFailedError, CaptureResult
from cdc_pipeline.capture.shards.buffer import Batch, Pending
from cdc_pipeline.capture.shards.shard_reader import ReadOptions, Start, read_shard
from cdc_pipeline.capture.shards.shard_tracker import Lineage
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
    """One capture run of one source. `looked_us`, `ended`: see `capture.landing.cutover.switch`."""

    result: CaptureResult
    looked_us: int | None
    ended: bool

    def run(self, *, opened: bool = False) -> CaptureResult:
        """Land what there is; `opened`: the log follows the source already."""
        ...


def capture_table(
    log: CaptureLog,
    source: Source,
    options: CaptureOptions,
    *,
    former: Callable[[StreamRef], Source] | None = None,
    files: "Callable[[Source, CaptureOptions], Run] | None" = None,
    reopen: Callable[[], Source] | None = None,
    report: Callable[[list[LandedObject]], None] = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
) -> CaptureResult:
    """Land everything that the stream holds now; `report` hears of each landed batch.

    `former`: how the stream is read that the log follows, if that is another one; by default as
    `source` is. What is left of it lands first. If it is of another transport, a cut is logged, and
    as long as it has not been read up to that, it alone is read (`capture.landing.cutover`).
    `files`: how Firehose's objects are read. `reopen`: gives the source as it is by then when
    another capture was faster, which may have made the log follow another stream; by default it
    stays.

    Safe to kill at any moment and to run twice at once: who is overtaken reads on from what the
    other one logged. Raises `CaptureFailedError` when shards failed (after landing the others),
    `SourceError`, `LakeError`. A break in continuity is no error but a gap.
    """

    def attempt(attempt: Attempt) -> CaptureResult:
        current = reopen() if reopen and attempt.is_again else source
        shards = partial(_Run, log, options=attempt.options, report=report, sleep=sleep)

        def run(source: Source) -> Run:
            of_files = files if source.transport in IN_FILES else None
            begun = of_files(source, attempt.options) if of_files else shards(source=source)
            attempt.results.append(begun.result)
            return begun

        return _capture(log, current, run, former)

    return _without_failures(until_not_overtaken(source.table, log, options, sleep, attempt))


def _capture(
    log: CaptureLog,
    source: Source,
    run: Callable[[Source], Run],
    former: Callable[[StreamRef], Source] | None,
) -> CaptureResult:
    """One attempt at `capture_table`."""
    state = log.load()
    followed = state.stream
    before: CaptureResult | None = None
    if followed is not None and _leaves_something(followed, source):
        old = former(followed) if former else _as_followed(source, followed)
        switching = followed.transport != source.transport
        if switching:
            begin_cut(log, state, source)
        last = run(old)
        try:
            # A stream that was turned off is readable for a while: take what is left of it.
            before = last.run(opened=True)
        except ShardGoneError:
            last.ended = True
        if switching and not switch(log, source, looked_us=last.looked_us, ended=last.ended):
            before = before or CaptureResult(source.table)
            before.warnings.append(f"table {source.table}: {_waiting(log.load())}")
            return before
    try:
        result = run(source).run()
    except ShardGoneError as error:
        raise SourceError(f"table {source.table}: {error}") from error
    if before is not None:
        result.add(before)
    if (warning := clock_warning(source.clock_offset_us())) is not None:
        result.warnings.append(f"table {source.table}: {warning}")
    return result


def _leaves_something(followed: StreamRef, source: Source) -> bool:
    """Whether the log follows another stream, which is to be read to its end.

    Firehose's objects of a table and of its namesake before it are the same ones.
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
    """Land what is left of the stream that the log follows, even if the table has turned it off.

    Raises what `capture_table` does, and `ShardGoneError` when the stream no longer exists.
    """

    def attempt(attempt: Attempt) -> CaptureResult:
        run = _Run(log, source=source, options=attempt.options, report=report, sleep=sleep)
        followed = log.load().stream
        if attempt.is_again and not (followed and source.is_same_stream(followed)):
            return run.result  # it is followed no more: whoever was faster has read it to its end
        attempt.results.append(run.result)
        return run.run(opened=True)

    return _without_failures(until_not_overtaken(source.table, log, options, sleep, attempt))


def _as_followed(source: Source, stream: StreamRef) -> Source:
    same = stream.table_id == source.table_id
    return replace(
        source,
        arn=stream.arn,
        table_id=stream.table_id,
        created_us=stream.created_us,
        reading=source.reading if same else source.reading.of_former(stream.table_id),
    )


def _waiting(state: LogState) -> str:
    assert state.stream is not None
    assert state.cut is not None
    return (
        f"switching from {state.stream.transport} to {state.cut.transport}: what was written from "
        f"{time_text(state.cut.at_us)} UTC on waits until {state.stream.transport} has been read "
        "up to then; leave both on"
    )


def _without_failures(result: CaptureResult) -> CaptureResult:
    if result.failed_shards:
        listed = "; ".join(f"{s}: {why}" for s, why in sorted(result.failed_shards.items()))
        raise CaptureFailedError(
            f"table {result.table}: {len(result.failed_shards)} shards could not be read "
            f"({result.rows} changes of the others landed): {listed}"
        )
    return result


class _Run:
    """One capture run of one table. Readers fill `pending`; only `run`'s thread lands."""

    def __init__(
        self,
        log: CaptureLog,
        *,
        source: Source,
        options: CaptureOptions,
        report: Callable[[list[LandedObject]], None],
        sleep: Callable[[float], object],
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
        )
        self.pending = Pending(options.flush_rows, options.flush_bytes)
        self.stop = threading.Event()
        self.result = CaptureResult(source.table)
        self.state = LogState()
        self.stream: StreamRef
        self.lander: Lander
        # Where every shard stands, ahead of the log by what is pending.
        self.shards: dict[str, ShardState] = {}
        self.lineage: Lineage
        # Up to when losses are known; whether nothing more can come of the stream.
        self.looked_us: int | None = None
        self.ended = False
        self.at_tip: set[str] = set()
        self.running: dict[Future[ShardState], str] = {}
        self.flushed = time.monotonic()
        self.flush_pause = options.flush_seconds

    def run(self, *, opened: bool = False) -> CaptureResult:
        """One run; `opened`: of the stream that the log follows, whatever has become of it."""
        self.state = self.log.load()
        gap = None if opened else open_capture(self.log, self.state, self.source)
        self.result.gaps += [gap] if gap else []
        assert self.state.stream is not None  # open_capture saw to it
        if not self.source.is_same_stream(self.state.stream):
            raise CaptureConflictError(
                f"table {self.source.table}: another capture made the log follow another stream"
            )
        self.stream = self.state.stream
        self.shards = dict(self.state.shards)
        lag = self.source.reading.listing_lag_seconds(self.options.listing_lag_seconds)
        lag_us = int(lag * 1_000_000)
        self.lineage = Lineage(self.log, self.source, self.state, self.shards, lag_us)
        self.lander = Lander(self.log, self.state, self.source, self.result, self.report)
        self.lander.remove_orphans()
        self.lander.complete()
        with ThreadPoolExecutor(self.options.parallel_shards) as pool:
            try:
                self.lineage.begin(is_on=not opened)
                self._read_all(pool)
            finally:
                self.stop.set()
                self.pending.close()
        self._land()
        self.looked_us = look_for_losses(
            self.log, self.lander, self.state, self.source, self.result
        )
        self.ended = self._has_ended()
        self.result.close(self.state, self.log.clock() - self.started)
        return self.result

    def _has_ended(self) -> bool:
        """Whether nothing more can come: the stream is off, and read to its end."""
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
            if self.log.now_us() > self.lineage.next_listing_us:
                self.lineage.discover()

    def _is_time_to_flush(self) -> bool:
        """While lingering, land often enough to be fresh and seldom enough to be cheap.

        Of a quiet stream, too, the log must learn that it was read, else it looks left behind.
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
        """With the shorter one of the retentions that the log and the last listing know."""
        hours = min(self.stream.retention_hours, self.lineage.retention_hours)
        return replace(self.stream, retention_hours=hours)

    def _start(self, shard: ShardState, listed: Shard) -> Start:
        cut = self.state.cut
        unread_us = unread_since_us(self.state, shard, self.log.margin_us)
        before_us = cut.at_us if cut else None
        began_us = self.lineage.stream_began_us
        return Start(shard, listed.starting, unread_us, before_us, listed.is_open, began_us)

    def _settle(self, future: Future[ShardState]) -> str:
        """Take over where a reader stopped. One that failed does not stop the others."""
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
        """Record what can no longer be read, then go on with what can."""
        self._land()
        keeps = self.source.reading.trims_silently
        self.lander.append(
            lambda: shard_gap(self.log, self.state, shard_id, cause, keeps_position=keeps)
        )
        self.shards[shard_id] = self.state.shards[shard_id]
        self.result.gaps.append(self.state.gaps[self.state.n])

    def _land(self) -> None:
        """Make log entries of everything gathered, and complete events that lack their images."""
        started = time.monotonic()
        batch = self.pending.take()
        self.lander.land(
            batch.changes,
            batch.unreadable,
            lambda: {
                "shards": tuple(self._changed_shards(batch)),
                "forgotten": tuple(self.lineage.forgotten()),
                **self.lineage.vouched(),
                **self._news_of_stream(),
            },
        )
        self.lander.complete()
        self.result.skipped += batch.skipped
        self.pending.landed()
        self.flushed = time.monotonic()
        # At most a fifth of the time goes into landing.
        self.flush_pause = max(self.options.flush_seconds, 4 * (self.flushed - started))

    def _news_of_stream(self) -> dict[str, StreamRef]:
        """What the listing says of the stream itself and the log must know.

        Of a longer retention only what is younger than the shorter one profits.
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
        """Shards that this entry moves, and new ones, which the log must know of at once."""
        for shard_id, shard in self.shards.items():
            now = batch.shards.get(shard_id)
            if now is not None:
                yield now
            elif shard_id not in self.state.shards:
                yield shard
