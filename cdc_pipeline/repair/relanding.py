"""Lost landing objects, written again from the records still in the stream."""

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
from cdc_pipeline.settings.sections import Capture


@dataclass
class RelandedGroup:
    """Lost objects of one day and generation, and the new objects with their rows.

    There is no gap or baseline between objects of one generation, so they may become one, as in
    compaction: it counts from the last of their entries.
    """

    lost: list[LandedObject]
    objects: list[LandedObject] = field(default_factory=list)
    rows: int = 0
    waiting: list[Change] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the stream still contained every row."""
        return self.rows == sum(landed.rows for landed in self.lost)

    def holds(self, change: Change) -> bool:
        """Whether one of the lost objects may have contained a change."""
        return day_of(change.write_time_us).isoformat() == self.lost[0].day and any(
            change.shard_id in o.shards and o.min_position <= change.position <= o.max_position
            for o in self.lost
        )

    def land(self, log: CaptureLog) -> None:
        """Write the waiting changes."""
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
) -> list[RelandedGroup]:
    """Write the rows of lost objects again, for groups that the stream still contains completely.

    Rows keep identity, position and generation; rows in surviving objects are left out. A group
    with missing rows, or with rows that fit another group too, is left for an export, and its new
    objects are removed. The caller logs the result. Raises `SourceError`, `LakeError`.
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
                if erased.is_suppressed(change.keys, change.write_time_us):
                    continue
                holders = [group for group in groups if group.holds(change)]
                if len(holders) > 1:
                    unclear |= {id(group) for group in holders}
                elif holders and change.uuid not in surviving:
                    holders[0].waiting.append(change)
                    if len(holders[0].waiting) >= BATCH_ROWS:
                        holders[0].land(log)
    except (TrimmedDataError, ShardGoneError):
        unclear |= {id(group) for group in groups}
    for group in groups:
        group.land(log)
    whole = [g for g in groups if g.is_whole and id(g) not in unclear]
    log.store.delete(o.key for g in groups if g not in whole for o in g.objects)
    return whole


def _groups(log: CaptureLog, state: LogState, lost: Iterable[LandedObject]) -> list[RelandedGroup]:
    groups: dict[tuple[str, int], list[LandedObject]] = {}
    for landed in lost:
        groups.setdefault((landed.day, landed.generation), []).append(landed)
    if state.stream is None or not state.stream.full_images:
        # Events without images were completed by reads; the stream does not contain those rows.
        return []
    oldest_us = log.now_us() - state.stream.retention_us
    return [
        RelandedGroup(objects)
        for _, objects in sorted(groups.items())
        # The log does not list shards of another stream, nor rows that came from no shard.
        if all(o.min_write_us >= oldest_us and state.shards.keys() >= {*o.shards} for o in objects)
    ]


def _survivors(
    log: CaptureLog, state: LogState, groups: Sequence[RelandedGroup], lost: set[str]
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
    """Changes of a shard from its oldest record up to its position in the log."""
    if shard.sequence_number is None or state.stream is None:
        return
    last_landed = int(shard.sequence_number)
    iterator: str | None = source.shards.iterator(state.stream.arn, shard.shard_id, None)
    empty, needed = 0, polls_needed(options.empty_polls, state.stream.retention_us)
    while iterator is not None and empty < needed:
        try:
            page = source.shards.read(iterator)
        except ExpiredIteratorError as error:
            raise SourceError(f"shard {shard.shard_id}: its iterator has expired") from error
        changes = source.reading.parse(page, state.stream, shard).changes
        yield from (change for change in changes if int(change.sequence_number) <= last_landed)
        last = source.reading.last(page)
        if last is not None and int(last) >= last_landed:
            return
        # An empty page with more records after it does not count towards the end.
        empty = 0 if page.records or page.behind_ms else empty + 1
        iterator = page.next_iterator
        pause = source.reading.pause(page, options.poll_seconds)
        if pause is not None:
            sleep(pause)
