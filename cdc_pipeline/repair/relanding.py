"""Landing again what a stream still holds, in place of objects that are gone from the lake."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cdc_pipeline.capture.shards.shard_reader import polls_needed
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import (
    ExpiredIteratorError,
    ShardGoneError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.log.entries import LandedObject, ShardState
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.lake.storage.landing import read_landing, write_days
from cdc_pipeline.lake.storage.log import CaptureLog, new_nonce
from cdc_pipeline.repair.incremental_export import BATCH_ROWS
from cdc_pipeline.settings.model import Capture


@dataclass
class Relanded:
    """Lost objects of one day and generation, and the objects that hold their rows again.

    No gap and no baseline lies between objects of one generation, so they may be one, as in
    compaction: it counts as of the last of their entries.
    """

    lost: list[LandedObject]
    objects: list[LandedObject] = field(default_factory=list)
    rows: int = 0
    waiting: list[Change] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the stream still held every row."""
        return self.rows == sum(landed.rows for landed in self.lost)

    def holds(self, change: Change) -> bool:
        """Whether one of the lost objects may have held a change."""
        return day_of(change.write_time_us).isoformat() == self.lost[0].day and any(
            change.shard_id in o.shards and o.min_position <= change.position <= o.max_position
            for o in self.lost
        )

    def land(self, log: CaptureLog) -> None:
        """Write what waits."""
        first = min(landed.entry for landed in self.lost)
        last = max(landed.entry for landed in self.lost)
        keys = partial(log.paths.compacted, first=first, last=last, nonce=new_nonce())
        generation = self.lost[0].generation
        written = write_days(log.store, self.waiting, keys, generation, log.now_us())
        self.objects += [replace(landed, through=last) for landed in written]
        self.rows += len(self.waiting)
        self.waiting = []


def reland(
    log: CaptureLog,
    state: LogState,
    lost: Sequence[LandedObject],
    source: Source,
    options: Capture,
    sleep: Callable[[float], object] = time.sleep,
) -> list[Relanded]:
    """Write the rows of lost objects anew, as far as the stream holds all of them.

    Rows keep identity, position and generation; ones that surviving objects hold are left out. A
    group whose rows are not all there, or whose generation cannot be told from another group's, is
    left for an export, and nothing of it stays. Nothing is logged here. Raises `SourceError`,
    `LakeError`.
    """
    groups = _groups(log, state, lost)
    if not groups:
        return []
    surviving = _survivors(log, state, groups, {o.key for o in lost})
    shards = sorted({shard for group in groups for o in group.lost for shard in o.shards})
    unclear: set[int] = set()
    erased = Suppressions(state.erasures.values())
    try:
        for shard_id in shards:
            for change in _read(source, state, state.shards[shard_id], options, sleep):
                if erased.drops(change.keys, change.write_time_us):
                    continue
                found = [group for group in groups if group.holds(change)]
                if len(found) > 1:
                    unclear |= {id(group) for group in found}
                elif found and change.uuid not in surviving:
                    found[0].waiting.append(change)
                    if len(found[0].waiting) >= BATCH_ROWS:
                        found[0].land(log)
    except (TrimmedDataError, ShardGoneError):
        unclear |= {id(group) for group in groups}
    for group in groups:
        group.land(log)
    whole = [g for g in groups if g.is_whole and id(g) not in unclear]
    log.store.delete(o.key for g in groups if g not in whole for o in g.objects)
    return whole


def _groups(log: CaptureLog, state: LogState, lost: Iterable[LandedObject]) -> list[Relanded]:
    groups: dict[tuple[str, int], list[LandedObject]] = {}
    for landed in lost:
        groups.setdefault((landed.day, landed.generation), []).append(landed)
    if state.stream is None or not state.stream.full_images:
        # Events without images were completed by reading their items; the stream lacks those rows.
        return []
    oldest_us = log.now_us() - state.stream.retention_us
    return [
        Relanded(of_it)
        for _, of_it in sorted(groups.items())
        # Shards of another stream, and rows that no shard ever held, are not in the log's list.
        if all(o.min_write_us >= oldest_us and state.shards.keys() >= {*o.shards} for o in of_it)
    ]


def _survivors(
    log: CaptureLog, state: LogState, groups: Sequence[Relanded], lost: set[str]
) -> set[str]:
    days = {group.lost[0].day for group in groups}
    kept = [o for o in state.objects.values() if o.day in days and o.key not in lost]
    return {
        change.uuid
        for landed in kept
        if any(set(landed.shards) & set(o.shards) for group in groups for o in group.lost)
        for change in read_landing(log.store, landed.key)
    }


def _read(
    source: Source,
    state: LogState,
    shard: ShardState,
    options: Capture,
    sleep: Callable[[float], object],
) -> Iterator[Change]:
    """What a shard holds from its oldest record up to where the log has landed it."""
    if shard.sequence_number is None or state.stream is None:
        return
    until = int(shard.sequence_number)
    iterator: str | None = source.shards.iterator(state.stream.arn, shard.shard_id, None)
    empty, most = 0, polls_needed(options.empty_polls, state.stream.retention_us)
    while iterator is not None and empty < most:
        try:
            page = source.shards.read(iterator)
        except ExpiredIteratorError as error:
            raise SourceError(f"shard {shard.shard_id}: its iterator has expired") from error
        changes = source.reading.parse(page, state.stream, shard).changes
        yield from (change for change in changes if int(change.sequence_number) <= until)
        last = source.reading.last(page)
        if last is not None and int(last) >= until:
            return
        # An empty page behind which there is more is none of those that tell of the end.
        empty = 0 if page.records or page.behind_ms else empty + 1
        iterator = page.next_iterator
        pause = source.reading.pause(page, options.poll_seconds)
        if pause is not None:
            sleep(pause)
