"""Compaction: merges small landing objects into larger ones, through the capture log."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import groupby

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.storage.landing import merge_landing
from cdc_pipeline.lake.storage.log import CaptureLog, Parts, new_nonce

_TARGET_BYTES = 64 << 20
_MIN_OBJECTS = 8
"""Minimum of a group on a day that may still get changes; 2 on a past day."""


@dataclass
class Compaction:
    """Result of a compaction: number of objects before and after, and their rows."""

    before: int = 0
    after: int = 0
    rows: int = 0


def compact_landing(log: CaptureLog, published: int) -> Compaction:
    """Merge small neighbouring objects of one day and generation; the rows stay the same.

    `published`: last log entry that the published state includes. Objects after it are not merged
    with objects before it, or changes would be folded twice. Capture may run at the same time.
    The originals stay until `remove_replaced`. Raises `LakeError`.
    """
    state, result = log.load(), Compaction()
    for group in mergeable(state, day_of(log.now_us()), published):
        if _merge(log, state, group):
            result.before += len(group)
            result.after += 1
            result.rows += sum(landed.rows for landed in group)
    return result


def mergeable(state: LogState, today: date, published: int) -> Iterator[list[LandedObject]]:
    """Yield groups of objects to merge, each in log order.

    Objects of a group have one generation, so no gap and no baseline lies between their entries.
    The exception, objects that a backfill landed after an open gap, form groups of their own.
    Objects with events that wait for a read of their items are found by their entry: not merged.
    """
    horizon = state.horizon(0)

    def group_key(landed: LandedObject) -> tuple[str, int, bool, bool]:
        is_after = landed.entry > published, landed.entry > horizon
        return landed.day, landed.generation, *is_after

    small = [
        landed
        for landed in state.objects.values()
        if landed.bytes < _TARGET_BYTES // 2 and landed.entry not in state.incomplete
    ]
    small.sort(key=lambda landed: (group_key(landed), landed.entry))
    for (day, *_), candidates in groupby(small, key=group_key):
        min_objects = 2 if day < today.isoformat() else _MIN_OBJECTS
        group: list[LandedObject] = []
        size = 0
        for landed in candidates:
            if size + landed.bytes > _TARGET_BYTES:
                yield group
                group, size = [], 0
            group.append(landed)
            size += landed.bytes
        if len(group) >= min_objects:
            yield group


def _merge(log: CaptureLog, state: LogState, group: list[LandedObject]) -> bool:
    """Write the merged object and log it; False if another compaction logged first."""
    first, last = group[0], group[-1]
    key = log.paths.compacted(date.fromisoformat(first.day), first.entry, last.entry, new_nonce())
    merged = merge_landing(log.store, key, group)
    replaced = tuple(landed.key for landed in group)
    parts = {"objects": (merged,), "replaced": replaced}
    if log.commit(state, lambda now: parts if now.objects.keys() >= {*replaced} else None):
        return True
    log.store.delete([key])
    return False


def remove_replaced(log: CaptureLog, before_us: int) -> int:
    """Delete objects that were replaced before `before_us`; return their number.

    Deletes first, then logs: after a crash in between, the next call deletes them once more.
    """
    old: tuple[str, ...] = ()

    def remove(state: LogState) -> Parts | None:
        nonlocal old
        old = tuple(key for key, at_us in state.replaced.items() if at_us < before_us)
        log.store.delete(old)
        return {"removed": old} if old else None

    log.commit(log.load(), remove)
    return len(old)
