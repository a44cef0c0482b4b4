"""Capture of one table: read every shard of its stream and land what they hold, exactly once."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta

from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.pending import Batch, Pending
from cdc_pipeline.capture.shard_reader import ReadOptions, read_shard
from cdc_pipeline.capture.source import ShardSource, table_with_stream
from cdc_pipeline.core.capture_log import Entry, LandedObject, LogState, ShardState, StreamRef
from cdc_pipeline.core.errors import (
    CaptureConflictError,
    CdcPipelineError,
    ContinuityError,
    ShardGoneError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.lineage import Shard, depths, readable
from cdc_pipeline.core.names import TablePaths, day_folder, day_of
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.landing import write_landing, write_quarantine
from cdc_pipeline.lake.log import CaptureLog, new_nonce, remove_orphans, this_owner
from cdc_pipeline.settings import Table

_DISCOVERY_SECONDS = 60
_FLUSH_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Source:
    """A table's stream as it is now: which table, which stream, and how to read it."""

    table: str
    table_id: str
    arn: str
    view_type: str
    shards: ShardSource


@dataclass(frozen=True)
class CaptureOptions:
    """See `settings.Capture`."""

    max_run_seconds: float = 240
    empty_polls: int = 3
    poll_seconds: float = 1.0
    parallel_shards: int = 16
    flush_rows: int = 50_000
    flush_bytes: int = 64 << 20


@dataclass
class CaptureResult:
    """What one capture run did. `days`: rows and bytes landed, by write day."""

    table: str
    rows: int = 0
    quarantined: int = 0
    days: dict[str, tuple[int, int]] = field(default_factory=dict)
    entries: int = 0
    conflicts: int = 0
    orphans_removed: int = 0
    shards_open: int = 0
    shards_finished: int = 0
    watermark_us: int = 0
    seconds: float = 0.0
    failed_shards: dict[str, str] = field(default_factory=dict)


class CaptureFailedError(CdcPipelineError):
    """Some shards could not be read; what the others held has landed."""


def open_source(lake: Lake, table: Table) -> Source:
    """The stream of a table, checked to be one that can be mirrored; raises `SourceError`."""
    found = table_with_stream(lake.aws, table.name)
    assert found.stream_arn  # table_with_stream saw to it
    streams = DynamoDBStreams(lake.aws)
    return Source(table.name, found.table_id, found.stream_arn, found.view_type or "", streams)


def open_capture(log: CaptureLog, state: LogState, source: Source) -> None:
    """Make sure that the log follows the table's present stream; the first call records P.

    P, the positions that a snapshot hands over to, is every listed shard at its oldest record.
    Raises `ContinuityError` when the stream or the table is not the one the log follows.
    """
    known = state.stream
    if known is not None:
        if known.table_id != source.table_id:
            raise ContinuityError(
                f"table {source.table} was deleted and created again (table id "
                f"{source.table_id}, the lake holds {known.table_id})",
                fix="use a new lake root or database for the new table",
            )
        if known.arn != source.arn:
            raise ContinuityError(
                f"table {source.table}: its stream was turned off and on; the lake follows "
                f"{known.arn}, the table now has {source.arn}; changes between them are not in it",
                fix="use a new lake root or database, or restore the old stream within 24 h",
            )
        return
    recorded_us = log.now_us()
    listed = source.shards.describe(source.arn).shards
    levels = depths(listed, {})
    entry = Entry(
        n=0,
        nonce=new_nonce(),
        owner=this_owner(),
        at_us=0,
        stream=StreamRef(source.table_id, source.arn, source.view_type, 0, recorded_us),
        shards=tuple(ShardState(s.shard_id, s.parent_id, levels[s.shard_id]) for s in listed),
    )
    if not log.append(state, entry):
        log.catch_up(state)
        open_capture(log, state, source)


def capture_table(
    log: CaptureLog,
    source: Source,
    options: CaptureOptions,
    *,
    report: Callable[[list[LandedObject]], None] = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
) -> CaptureResult:
    """Land everything that the stream holds now; `report` hears of each landed batch.

    Safe to kill at any moment and to run twice at once. Raises `CaptureConflictError` when
    another capture of the table was faster, `CaptureFailedError` when shards failed (after
    landing the others), `ContinuityError`, `SourceError`, `LakeError`.
    """
    return _Run(log, source, options, report, sleep).run()


class _Run:
    """One capture run of one table. Readers fill `pending`; only `run`'s thread lands."""

    def __init__(
        self,
        log: CaptureLog,
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
            until_us=int(self.started * 1_000_000),
            deadline=self.started + options.max_run_seconds,
            clock=log.clock,
            sleep=sleep,
        )
        self.pending = Pending(options.flush_rows, options.flush_bytes)
        self.stop = threading.Event()
        self.result = CaptureResult(source.table)
        self.state = LogState()
        self.stream: StreamRef
        # Where every shard stands, ahead of the log by what is pending.
        self.shards: dict[str, ShardState] = {}
        self.listed: list[Shard] = []
        self.discovered_us: int | None = None
        self.at_tip: set[str] = set()
        self.running: dict[Future[ShardState], str] = {}

    def run(self) -> CaptureResult:
        self.state = self.log.load()
        open_capture(self.log, self.state, self.source)
        assert self.state.stream is not None  # open_capture saw to it
        self.stream = self.state.stream
        self.shards = dict(self.state.shards)
        self._remove_orphans()
        with ThreadPoolExecutor(self.options.parallel_shards) as pool:
            try:
                self._read_all(pool)
            finally:
                self.stop.set()
                self.pending.close()
        self._land()
        return self._finish()

    def _read_all(self, pool: ThreadPoolExecutor) -> None:
        self._discover()
        while True:
            self._submit(pool)
            if not self.running:
                return
            done, _ = wait(self.running, timeout=_FLUSH_WAIT_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                self._settle(future)
            if self.pending.is_full():
                self._land()
            due = (self.discovered_us or 0) + _DISCOVERY_SECONDS * 1_000_000
            if any(self._is_finished(s) for s in self._just_done(done)) or self.log.now_us() > due:
                self._discover()

    def _just_done(self, done: Iterable[Future[ShardState]]) -> list[str]:
        return [f.result().shard_id for f in done if f.exception() is None]

    def _is_finished(self, shard_id: str) -> bool:
        shard = self.shards.get(shard_id)
        return shard is not None and shard.status == "finished"

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        """Start readers for shards that may be read, parents before children."""
        if self.log.clock() >= self.reading.deadline:
            return
        busy = {*self.running.values(), *self.at_tip, *self.result.failed_shards}
        for shard in readable(self.listed, self._is_finished, self.shards.__contains__):
            if shard.shard_id not in busy:
                future = pool.submit(
                    read_shard,
                    self.source.shards,
                    self.stream,
                    self.shards[shard.shard_id],
                    self.pending,
                    self.reading,
                    self.stop,
                )
                self.running[future] = shard.shard_id

    def _settle(self, future: Future[ShardState]) -> None:
        """Take over where a reader stopped. One that failed does not stop the others."""
        shard_id = self.running.pop(future)
        try:
            shard = future.result()
        except TrimmedDataError:
            self.result.failed_shards[shard_id] = (
                "changes behind the checkpoint are older than 24 h and were trimmed unread"
            )
        except ShardGoneError:
            self.result.failed_shards[shard_id] = "the shard vanished before it was read to its end"
        except SourceError as error:
            self.result.failed_shards[shard_id] = error.message
        else:
            self.shards[shard_id] = shard
            self.at_tip.add(shard_id)

    def _discover(self) -> None:
        """List the stream's shards and take up new ones.

        The time of a listing counts towards the watermark only if the listing was whole: every
        closed shard that was read must show its children (listings can lag behind).
        """
        started_us = self.log.now_us()
        try:
            found = self.source.shards.describe(self.source.arn)
        except ShardGoneError:
            raise ContinuityError(f"stream {self.source.arn} no longer exists") from None
        self.listed = found.shards
        levels = depths(found.shards, {s.shard_id: s.depth for s in self.shards.values()})
        for shard in found.shards:
            if shard.shard_id not in self.shards:
                parent = self.shards.get(shard.parent_id or "")
                self.shards[shard.shard_id] = ShardState(
                    shard.shard_id,
                    shard.parent_id,
                    levels[shard.shard_id],
                    read_to_us=parent.read_to_us if parent else 0,
                )
        listed = {shard.shard_id for shard in found.shards}
        for shard_id, shard in self.shards.items():
            if shard_id not in listed and shard.status != "finished":
                self.result.failed_shards[shard_id] = (
                    "the shard vanished before it was read to its end"
                )
        parents = {shard.parent_id for shard in found.shards}
        childless = [s for s in listed if self._is_finished(s) and s not in parents]
        if not childless or found.status != "ENABLED":
            self.discovered_us = started_us

    def _land(self) -> None:
        """Make one log entry of everything gathered; on a lost race decide again."""
        batch = self.pending.take()
        while True:
            n, nonce, now_us = self.state.n + 1, new_nonce(), self.log.now_us()
            store, paths = self.log.store, self.log.paths
            generation = self.state.generation
            objects = write_landing(
                store,
                paths,
                batch.changes,
                n=n,
                nonce=nonce,
                generation=generation,
                landed_us=now_us,
            )
            quarantined = write_quarantine(
                store, paths, batch.unreadable, n=n, nonce=nonce, landed_us=now_us
            )
            entry = Entry(
                n=n,
                nonce=nonce,
                owner=this_owner(),
                at_us=now_us,
                shards=tuple(self._changed_shards(batch)),
                forgotten=tuple(self._forgotten()),
                objects=tuple(objects),
                quarantined=tuple(quarantined),
                discovered_us=self.discovered_us,
            )
            if self.log.append(self.state, entry):
                self._count(objects, len(batch.unreadable))
                self.report(objects)
                return
            store.delete([o.key for o in objects] + [q.key for q in quarantined])
            self._give_way()

    def _give_way(self) -> None:
        """Another writer took our entry's number. If it captured too, what we read is its now."""
        self.result.conflicts += 1
        for entry in self.log.catch_up(self.state):
            same = entry.stream is None or entry.stream.arn == self.stream.arn
            if entry.shards or entry.objects or not same:
                raise CaptureConflictError(
                    f"table {self.source.table}: another capture ({entry.owner}) landed entry "
                    f"{entry.n} first; this one stops, nothing is lost and nothing doubled",
                    fix="run one capture per table at a time",
                )

    def _changed_shards(self, batch: Batch) -> Iterable[ShardState]:
        """Shards that this entry moves, and new ones, which the log must know of at once."""
        for shard_id, shard in self.shards.items():
            now = batch.shards.get(shard_id)
            if now is not None:
                yield now
            elif shard_id not in self.state.shards:
                yield shard

    def _forgotten(self) -> Iterable[str]:
        """Finished shards that the stream no longer lists; their children carry their depth."""
        listed = {shard.shard_id for shard in self.listed}
        return [s for s in self.state.shards if self._is_finished(s) and s not in listed]

    def _count(self, objects: list[LandedObject], unreadable: int) -> None:
        result = self.result
        result.entries += 1
        result.quarantined += unreadable
        for landed in objects:
            rows, size = result.days.get(landed.day, (0, 0))
            result.days[landed.day] = (rows + landed.rows, size + landed.bytes)
            result.rows += landed.rows

    def _finish(self) -> CaptureResult:
        result, shards = self.result, self.state.shards.values()
        result.shards_open = sum(1 for s in shards if s.status == "reading")
        result.shards_finished = sum(1 for s in shards if s.status == "finished")
        result.watermark_us = self.state.watermark_us
        result.seconds = self.log.clock() - self.started
        if result.failed_shards:
            listed = "; ".join(f"{s}: {why}" for s, why in sorted(result.failed_shards.items()))
            raise CaptureFailedError(
                f"table {result.table}: {len(result.failed_shards)} shards could not be read "
                f"({result.rows} changes of the others landed): {listed}"
            )
        return result

    def _remove_orphans(self) -> None:
        folders = _recent_folders(self.log.paths, self.log.now_us())
        self.result.orphans_removed = len(remove_orphans(self.log.store, self.state, folders))


def _recent_folders(paths: TablePaths, now_us: int) -> list[str]:
    """Folders in which a killed capture can have left objects: a stream holds 24 hours."""
    today = day_of(now_us)
    days = [today + timedelta(days=offset) for offset in (-2, -1, 0, 1)]
    zones = (paths.landing, f"{paths.quarantine}unreadable-record/")
    return [f"{zone}{day_folder(day)}" for zone in zones for day in days]
