"""Landing: objects first, then the log entry that makes them valid; conflicts of writers."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pyarrow as pa

from cdc_pipeline.capture.landing.late_changes import late_changes
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.landing.ties import Ties
from cdc_pipeline.capture.sources.item_reader import completing_rows
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import CaptureConflictError
from cdc_pipeline.core.log.entries import (
    LandedObject,
    LateChanges,
    QuarantinedObject,
    ShardState,
)
from cdc_pipeline.core.log.generations import Generations
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.names import TablePaths, day_folder, object_prefix
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.core.transports import BY_TIME
from cdc_pipeline.lake.storage.changes import Changes
from cdc_pipeline.lake.storage.landing import read_landing, write_landing, write_quarantine
from cdc_pipeline.lake.storage.log import CaptureLog, Parts, new_nonce, remove_orphans

_OFFSET_STEP_US = 1_000_000
"""AWS reports whole seconds; smaller changes of the offset are not logged."""


class Lander:
    """The only writer of a capture run. `state`: the log as read so far; each entry updates it."""

    def __init__(
        self,
        log: CaptureLog,
        state: LogState,
        source: Source,
        result: CaptureResult,
        report: Callable[[list[LandedObject]], None],
    ) -> None:
        self._log = log
        self._state = state
        self._source = source
        self._result = result
        self._report = report
        self._ties = Ties(log.store, source)
        self._began_n = state.n
        self._landed: set[str] = set()
        self._positions = _positions(state)
        self._was_left_clean = _was_left_clean(state, log.now_us())

    def land(
        self,
        changes: Sequence[Change],
        unreadable: Sequence[tuple[str, bytes]],
        parts: Callable[[], dict[str, Any]],
    ) -> None:
        """Write objects and the entry that names them; after a conflict, build both again.

        Changes of items erased since the write are left out; changes of one item and time are put
        in order (`capture.landing.ties`). `parts`: further fields of the entry, called at each
        attempt. Raises `CaptureConflictError`, `LakeError`, `SourceError`.
        """
        store, paths = self._log.store, self._log.paths
        objects: list[LandedObject] = []
        quarantined: list[QuarantinedObject] = []
        late: LateChanges | None = None

        def write(state: LogState) -> Parts:
            nonlocal objects, quarantined, late
            self._positions = _positions(state)
            n, nonce, now_us = state.n + 1, new_nonce(), self._log.now_us()
            # At each attempt: the other writer's entry may be an erasure, or a compaction.
            kept, kept_unreadable = _without_erased(state, changes, unreadable)
            objects = [
                landed
                for generation, group in self._by_generation(self._ties.settled(state, kept))
                for landed in write_landing(
                    store,
                    paths,
                    group,
                    n=n,
                    # Two generations of a day are two objects.
                    nonce=nonce if generation == state.generation else new_nonce(),
                    generation=generation,
                    landed_us=now_us,
                )
            ]
            late = late_changes(state, self._ties.landed, kept)
            quarantined = write_quarantine(
                store, paths, kept_unreadable, n=n, nonce=nonce, landed_us=now_us
            )
            return {
                "nonce": nonce,
                "objects": tuple(objects),
                "quarantined": tuple(quarantined),
                "late": late,
                "clock_offset_us": self._offset_us(),
                **parts(),
            }

        def remove(entries: list[Entry]) -> None:
            store.delete([o.key for o in objects] + [q.key for q in quarantined])
            self._require_no_capture(entries)

        before = self._state.n
        self._log.commit(self._state, write, overtaken=remove, may_rest=True)
        if self._state.n == before:
            return  # nothing happened, and only the heartbeat says so
        self._landed |= {part.key.rpartition("/")[0] for part in (*objects, *quarantined)}
        self._result.count(objects, sum(q.rows for q in quarantined))
        self._result.late += late.rows if late else 0
        self._report(objects)

    def _offset_us(self) -> int | None:
        """Lead of the local clock over AWS's, in µs; None: as in the log, or unknown."""
        offset_us, logged_us = self._source.clock_offset_us(), self._state.clock_offset_us
        if offset_us is None or logged_us is None:
            return offset_us
        return offset_us if abs(offset_us - logged_us) >= _OFFSET_STEP_US else None

    def _by_generation(self, changes: Sequence[Change]) -> Iterator[tuple[int, Sequence[Change]]]:
        """Group changes by generation: the current one, and earlier ones for late changes."""
        if self._source.transport not in BY_TIME:
            yield self._state.generation, changes
            return
        generations, given = Generations(self._state), Changes.of(changes)
        found = [generations.at(time_us) for time_us in given.column("write_time_us")]
        for generation in sorted(set(found)):
            yield generation, given.where(pa.array([at == generation for at in found]))

    def append(self, parts: Callable[[], Parts]) -> None:
        """Append an entry without objects; `parts` is called at each attempt."""

        def step(state: LogState) -> Parts:
            self._positions = _positions(state)
            return parts()

        self._log.commit(self._state, step, overtaken=self._require_no_capture, may_rest=True)

    def complete(self) -> None:
        """Read the items of landed events without images, and land them after the events."""
        reader, stream = self._source.reader, self._state.stream
        for n in list(self._state.incomplete):
            if reader is None or stream is None:
                return
            objects = [o for o in self._state.objects.values() if o.entry == n]
            events = [change for o in objects for change in read_landing(self._log.store, o.key)]
            rows = completing_rows(events, reader, stream.table_id)
            self.land(rows, [], lambda n=n: {"completes": (n,)})

    def rest(self) -> None:
        """Let readers see how far an unfinished run has read while it finds nothing."""
        if self._state.heartbeat is not None:
            self._log.rest(self._state, clean=False)

    def remove_orphans(self) -> None:
        """Remove unlogged objects of killed captures, if there may be any: it lists many folders.

        There is none where a capture of the same day has ended well and nothing was logged since,
        but for those of a capture killed before its first entry (`finish`).
        """
        if not self._was_left_clean:
            now_us = self._log.now_us()
            self._remove_orphans(_recent_folders(self._log.paths, self._state, now_us))

    def finish(self, *, is_whole: bool) -> None:
        """Remove what a capture left that was killed before its first entry; leave the heartbeat.

        Its objects have the number of this run's first entry. This run has landed the same records,
        so they lie in the folders of what it has landed. `is_whole`: nothing failed, and nothing is
        left for another run.
        """
        if self._landed and not (self._log.is_tidy() and not self._result.conflicts):
            first = object_prefix(self._began_n + 1)
            self._remove_orphans([f"{folder}/{first}" for folder in sorted(self._landed)])
        self._log.rest(self._state, clean=is_whole)

    def _remove_orphans(self, folders: list[str]) -> None:
        removed = remove_orphans(self._log.store, self._state, folders)
        self._result.orphans_removed += len(removed)

    def _require_no_capture(self, entries: list[Entry]) -> None:
        """Raise `CaptureConflictError` if another capture wrote one of the entries.

        The records of this run may have landed then, so it begins again from the new log
        (`capture.landing.retries`). An entry with shards where they were is no capture: it only has
        the progress of the heartbeat.
        """
        self._result.conflicts += 1
        positions = self._positions
        for entry in entries:
            is_same_stream = entry.stream is None or entry.stream.arn == self._source.arn
            landed = entry.objects and not (entry.replaced or entry.heal)
            has_read = any(positions.get(s.shard_id) != _position(s) for s in entry.shards)
            if has_read or entry.files or landed or entry.cut or not is_same_stream:
                raise CaptureConflictError(
                    f"table {self._source.table}: another capture ({entry.owner}) landed entry "
                    f"{entry.n} first"
                )


def _position(shard: ShardState) -> tuple[str | None, str, int]:
    return shard.sequence_number, shard.status, shard.rows


def _positions(state: LogState) -> dict[str, tuple[str | None, str, int]]:
    return {shard.shard_id: _position(shard) for shard in state.shards.values()}


def _was_left_clean(state: LogState, now_us: int) -> bool:
    """Whether a capture of the same day left no unlogged objects, and nothing happened since."""
    beat = state.heartbeat
    return beat is not None and beat.clean and day_of(beat.at_us) == day_of(now_us)


def _without_erased(
    state: LogState, changes: Sequence[Change], unreadable: Sequence[tuple[str, bytes]]
) -> tuple[Sequence[Change], Sequence[tuple[str, bytes]]]:
    erased = Suppressions(state.erasures.values())
    if not erased:
        return changes, unreadable
    given = Changes.of(changes)
    written = zip(given.column("keys"), given.column("write_time_us"), strict=True)
    is_kept = [not erased.is_suppressed(keys, time_us) for keys, time_us in written]
    return given.where(pa.array(is_kept, pa.bool_())), [
        (why, record) for why, record in unreadable if not erased.is_suppressed_record(record)
    ]


def _recent_folders(paths: TablePaths, state: LogState, now_us: int) -> list[str]:
    """Folders in which a killed capture may have left objects, by the days it could read."""
    assert state.stream is not None  # it is followed
    today = day_of(now_us)
    oldest = day_of(max(now_us - state.stream.retention_us, state.watermark_us))
    first = min(oldest, today - timedelta(days=1)) - timedelta(days=1)
    days = [first + timedelta(days=n) for n in range((today - first).days + 2)]
    landing = [f"{paths.landing}{day_folder(day)}" for day in days]
    return landing + [f"{paths.quarantine}unreadable-record/{day_folder(d)}" for d in days[-4:]]
