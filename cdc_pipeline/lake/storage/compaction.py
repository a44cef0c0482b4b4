"""Compaction of landing objects: many small ones into few, through the capture log."""

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
_LEAST_OBJECTS = 8
"""Of a day that may still get changes; a day that is over has its last two merged."""


@dataclass
class Compaction:
    """What was compacted: objects before and after, and their rows."""

    before: int = 0
    after: int = 0
    rows: int = 0


def compact_landing(log: CaptureLog, published: int) -> Compaction:
    """Merge small neighbours of one day and generation; what they hold stays the same.

    `published`: the log entry up to which the published state holds everything; objects behind it
    are kept apart from those before, so that nothing is folded again. Capture may go on meanwhile.
    Merged objects stay until `remove_replaced`. Raises `LakeError`.
    """
    state, done = log.load(), Compaction()
    for group in mergeable(state, day_of(log.now_us()), published):
        if _merge(log, state, group):
            done.before += len(group)
            done.after += 1
            done.rows += sum(landed.rows for landed in group)
    return done


def mergeable(state: LogState, today: date, published: int) -> Iterator[list[LandedObject]]:
    """Groups of objects that should be one, each in the order in which it was logged.

    Objects of a group have one generation, so no gap and no baseline lies between their entries,
    unless a backfill landed some behind an open gap; these stay apart. Events that wait for a read
    of their items are found by their entry and stay as they are.
    """
    horizon = state.horizon(0)

    def kind(landed: LandedObject) -> tuple[str, int, bool, bool]:
        is_behind = landed.entry > published, landed.entry > horizon
        return landed.day, landed.generation, *is_behind

    small = [
        landed
        for landed in state.objects.values()
        if landed.bytes < _TARGET_BYTES // 2 and landed.entry not in state.incomplete
    ]
    small.sort(key=lambda landed: (kind(landed), landed.entry))
    for (day, *_), alike in groupby(small, key=kind):
        least = 2 if day < today.isoformat() else _LEAST_OBJECTS
        group: list[LandedObject] = []
        size = 0
        for landed in alike:
            if size + landed.bytes > _TARGET_BYTES:
                yield group
                group, size = [], 0
            group.append(landed)
            size += landed.bytes
        if len(group) >= least:
            yield group


def _merge(log: CaptureLog, state: LogState, group: list[LandedObject]) -> bool:
    """Write the merged object and log it; False if another compaction was faster."""
    first, last = group[0], group[-1]
    key = log.paths.compacted(date.fromisoformat(first.day), first.entry, last.entry, new_nonce())
    merged = merge_landing(log.store, key, group)
    replaced = tuple(landed.key for landed in group)
    step = {"objects": (merged,), "replaced": replaced}
    if log.commit(state, lambda now: step if now.objects.keys() >= {*replaced} else None):
        return True
    log.store.delete([key])
    return False


def remove_replaced(log: CaptureLog, before_us: int) -> int:
    """Delete objects that were replaced before `before_us`; how many.

    Deleted first and logged then: a crash in between leaves them to be deleted once more.
    """
    old: tuple[str, ...] = ()

    def remove(state: LogState) -> Parts | None:
        nonlocal old
        old = tuple(key for key, at_us in state.replaced.items() if at_us < before_us)
        log.store.delete(old)
        return {"removed": old} if old else None

    log.commit(log.load(), remove)
    return len(old)
