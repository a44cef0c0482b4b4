"""The loop of a server: which table's turn it is, who works, and what came of it.

One thread decides; a few capture, and one publishes, so that a long publication delays no capture.
Nothing is kept that the lake does not have: a server may be killed at any moment, and beside it
others may capture and publish the same tables. The log and the commits decide between them, as
between two runs.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.passes import LONGEST_SECONDS, Passes
from cdc_pipeline.capture.run import Captured, Event, Failed, Landed, Unregistered
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.core.plans.backoff import Failures, fail
from cdc_pipeline.core.plans.liveness import (
    SERVER_HEARTBEAT_SECONDS,
    promise_seconds,
    server_owner,
)
from cdc_pipeline.core.transports import FIREHOSE, KINESIS_CHANNEL
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.current_state import PublishResult
from cdc_pipeline.lake.storage.residence import Residence
from cdc_pipeline.service.publication import Look, look_after_state, quiet_seconds
from cdc_pipeline.settings.table import Table

WORKERS = 4
GRACE_SECONDS = LONGEST_SECONDS + 5
"""How long a server that was told to stop waits for the work at hand."""

_LOOK_AGAIN_SECONDS = 15.0
_LONGEST_LOOK_SECONDS = 60.0
_STOP = "stop"


@dataclass(frozen=True)
class Published:
    """A publication of current_state."""

    table: Table
    result: PublishResult


@dataclass(frozen=True)
class NotPublished:
    """A failed publication; captures go on."""

    table: Table
    error: CdcPipelineError


ServerEvent = Event | Published | NotPublished


@dataclass(frozen=True)
class _CaptureEnded:
    turn: "_Turn"
    result: CaptureResult | None
    entry: int
    error: CdcPipelineError | None


@dataclass(frozen=True)
class _LookEnded:
    turn: "_Turn"
    look: Look | None
    error: CdcPipelineError | None


@dataclass
class _Turn:
    """One table: when it is due, and how it went. Times are monotonic seconds.

    `entry`: the newest log entry that a pass has seen, 0: none yet. `settled_entry`: everything up
    to it that can be published is, -1: something waits. `looked_at`: the last look, 0: none yet.
    """

    table: Table
    passes: Passes
    every: float
    due: float
    look_due: float
    is_captured: bool = False
    is_looked_after: bool = False
    entry: int = 0
    settled_entry: int = -1
    looked_at: float = 0.0
    watermark_us: int = 0
    capture_failures: Failures | None = None
    publish_failures: Failures | None = None

    @property
    def failures(self) -> Failures | None:
        return self.capture_failures or self.publish_failures


@dataclass
class ServerStatus:
    """Sums since the server began, and how it stands now.

    `failing`: errors by table. `behind_seconds`: age of the oldest watermark of a table without
    errors, None: unknown. `late_seconds`: how long the table has waited whose turn is longest due.
    """

    tables: int
    passes: int = 0
    changes: int = 0
    publications: int = 0
    failing: dict[str, str] = field(default_factory=dict)
    behind_seconds: float | None = None
    late_seconds: float = 0.0


class Server:
    """Keeps the tables of a lake fresh until `stop`.

    `every_seconds`: pause between the begins of two passes of a table. `report` gets each event, in
    the thread of `run`; it must not take long. The lake is this server's from then on.
    """

    def __init__(
        self,
        lake: Lake,
        tables: Sequence[Table],
        every_seconds: float,
        report: Callable[[ServerEvent], object] = lambda _: None,
        *,
        workers: int = WORKERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lake = lake
        self._report = report
        self._workers = workers
        self._clock = clock
        self._queue: SimpleQueue[ServerEvent | _CaptureEnded | _LookEnded | str] = SimpleQueue()
        self._is_stopping = False
        lake.residence = Residence(
            server_owner(socket.gethostname(), os.getpid(), promise_seconds(every_seconds)),
            look_seconds=SERVER_HEARTBEAT_SECONDS,
            rest_seconds=SERVER_HEARTBEAT_SECONDS,
        )
        now = clock()
        self._turns = [
            _Turn(
                table,
                Passes(lake.table(table), every_seconds),
                max(every_seconds, _least_pause(table)),
                # Spread over one round, so that passes of many tables do not come in bursts.
                due=now + min(every_seconds, 60) * number / len(tables) / 2,
                look_due=now,
            )
            for number, table in enumerate(tables)
        ]
        self._status = ServerStatus(len(tables))

    def stop(self) -> None:
        """Begin nothing new; may be called from a signal handler."""
        self._is_stopping = True
        self._queue.put(_STOP)

    def status(self) -> ServerStatus:
        """How it stands; for the thread of `run`."""
        now, status = self._clock(), self._status
        waiting = [t.due for t in self._turns if not t.is_captured]
        status.late_seconds = max(0.0, now - min(waiting, default=now))
        known = [t.watermark_us for t in self._turns if t.watermark_us and not t.failures]
        status.behind_seconds = time.time() - min(known) / 1e6 if known else None
        status.failing = {
            turn.table.label: turn.failures.cause for turn in self._turns if turn.failures
        }
        return status

    def run(
        self,
        *,
        once: bool = False,
        tick: Callable[[], object] = lambda: None,
        tick_seconds: float = 60.0,
    ) -> bool:
        """Work until `stop`, or with `once` until each table had one pass and one look.

        Calls `tick` every so many seconds. Returns whether all work at hand has ended: after a
        stop it is waited for during `GRACE_SECONDS`, and may be abandoned then.
        """
        captures = ThreadPoolExecutor(self._workers, thread_name_prefix="capture")
        publisher = ThreadPoolExecutor(1, thread_name_prefix="publish")
        next_tick = self._clock() + tick_seconds
        stop_by: float | None = None
        while True:
            now = self._clock()
            if self._is_stopping and stop_by is None:
                stop_by = now + GRACE_SECONDS
            is_busy = any(turn.is_captured or turn.is_looked_after for turn in self._turns)
            if stop_by is not None and (not is_busy or now >= stop_by):
                break
            if once and not is_busy and all(map(_had_its_turn, self._turns)):
                break
            if now >= next_tick:
                tick()
                next_tick = now + tick_seconds
            soonest = next_tick if stop_by is None else stop_by
            if stop_by is None:
                soonest = min(soonest, self._begin_due(captures, publisher, now, once=once))
            self._take(max(0.0, soonest - now))
        captures.shutdown(wait=not is_busy, cancel_futures=True)
        publisher.shutdown(wait=not is_busy, cancel_futures=True)
        return not is_busy

    def _begin_due(
        self, captures: ThreadPoolExecutor, publisher: ThreadPoolExecutor, now: float, *, once: bool
    ) -> float:
        """Begin what is due and has a worker; return when the next work is due."""
        soonest = now + _LONGEST_LOOK_SECONDS
        free = self._workers - sum(turn.is_captured for turn in self._turns)
        for turn in sorted(self._turns, key=lambda turn: turn.due):
            if turn.is_captured or (once and _had_its_pass(turn)):
                continue
            if turn.due > now:
                soonest = min(soonest, turn.due)
                break
            if free <= 0:
                break  # the next one to end wakes the loop
            free -= 1
            turn.is_captured = True
            turn.due = now + turn.every
            captures.submit(self._capture, turn)
        if not any(turn.is_looked_after for turn in self._turns):
            # After its first pass, which may be what the state waits for.
            ready = [t for t in self._turns if _had_its_pass(t) and not (once and t.looked_at)]
            turn = min(ready, key=lambda turn: turn.look_due, default=None)
            if turn is not None and turn.look_due <= now:
                turn.is_looked_after = True
                publisher.submit(self._look_after, turn)
            elif turn is not None:
                soonest = min(soonest, turn.look_due)
        return soonest

    def _take(self, timeout: float) -> None:
        """Wait for the next event and settle all that are there."""
        try:
            event = self._queue.get(timeout=timeout)
            while True:
                self._settle(event)
                event = self._queue.get_nowait()
        except Empty:
            return

    def _settle(self, event: "ServerEvent | _CaptureEnded | _LookEnded | str") -> None:
        match event:
            case _CaptureEnded():
                self._settle_capture(event)
            case _LookEnded():
                self._settle_look(event)
            case str():
                return
            case _:
                self._report(event)

    def _settle_capture(self, ended: _CaptureEnded) -> None:
        turn, now = ended.turn, self._clock()
        turn.is_captured = False
        self._status.passes += 1
        if ended.error is not None or ended.result is None:
            turn.capture_failures = self._failed(turn.capture_failures, ended.error)
            turn.due = now + max(turn.every, turn.capture_failures.pause_seconds)
            turn.entry = max(turn.entry, 1)
            self._report(Failed(turn.table, ended.error or CdcPipelineError("no result")))
            return
        turn.capture_failures = None
        result = ended.result
        turn.watermark_us = result.watermark_us
        self._status.changes += result.rows
        if result.seconds >= LONGEST_SECONDS:
            turn.due = now  # there is more to read
        if ended.entry != turn.entry:
            turn.entry = ended.entry
            if turn.settled_entry != ended.entry and turn.settled_entry >= 0:
                turn.look_due = min(turn.look_due, max(now, turn.looked_at + self._look_seconds()))
        self._report(Captured(turn.table, result))

    def _settle_look(self, ended: _LookEnded) -> None:
        turn, now, look = ended.turn, self._clock(), ended.look
        turn.is_looked_after = False
        turn.looked_at = now
        if look is None:
            turn.publish_failures = self._failed(turn.publish_failures, ended.error)
            turn.look_due = now + turn.publish_failures.pause_seconds
            error = ended.error or CdcPipelineError("no result")
            self._report(NotPublished(turn.table, error))
            return
        turn.publish_failures = None
        if not look.is_settled:
            turn.settled_entry = -1
            turn.look_due = now + _LOOK_AGAIN_SECONDS
            return
        turn.settled_entry = turn.entry
        turn.look_due = now + quiet_seconds(self._lake.table(turn.table))
        if look.result is not None:
            self._status.publications += 1
            self._report(Published(turn.table, look.result))

    def _look_seconds(self) -> float:
        """Pause between publications of a table in which changes land all the time."""
        minutes = self._lake.settings.current_state.publish_minutes
        return max(_LOOK_AGAIN_SECONDS, min(minutes * 60, _LONGEST_LOOK_SECONDS))

    @staticmethod
    def _failed(before: Failures | None, error: CdcPipelineError | None) -> Failures:
        at_us = int(time.time() * 1_000_000)
        return fail(before, at_us, str(error), by_hand=False)

    def _capture(self, turn: _Turn) -> None:
        """Make a pass; in a worker's thread."""
        result, entry, error = None, 0, None

        def report(event: Landed | Unregistered) -> None:
            self._queue.put(event)

        try:
            result = turn.passes.run(report)
            entry = self._lake.table(turn.table).log.look().n
        except CdcPipelineError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - one table's fault stops no other
            error = _unexpected(turn.table, failure)
        self._queue.put(_CaptureEnded(turn, result, entry, error))

    def _look_after(self, turn: _Turn) -> None:
        """Look after the published state; in the publisher's thread."""
        look, error = None, None
        try:
            look = look_after_state(self._lake.table(turn.table))
        except CdcPipelineError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - one table's fault stops no other
            error = _unexpected(turn.table, failure)
        self._queue.put(_LookEnded(turn, look, error))


def _had_its_pass(turn: _Turn) -> bool:
    return turn.entry > 0


def _had_its_turn(turn: _Turn) -> bool:
    return _had_its_pass(turn) and (turn.looked_at > 0 or turn.capture_failures is not None)


def _least_pause(table: Table) -> float:
    """Objects in S3 come in intervals of minutes, and each pass lists their folders."""
    if table.transport == FIREHOSE and table.firehose is not None:
        return table.firehose.interval_seconds
    return table.kinesis_channel.interval_seconds if table.transport == KINESIS_CHANNEL else 0.0


def _unexpected(table: Table, error: Exception) -> CdcPipelineError:
    # The text of a foreign error may quote data.
    return CdcPipelineError(
        f"table {table.name}: unexpected {type(error).__name__}",
        fix="run `cdc-pipeline preflight`, or materialise its raw_stream: the run shows the whole "
        "error",
    )
