"""Ties while landing: changes of one item and one time are put in order before they land.

Only for transports that order by time (`core.transports.BY_TIME`). `core.changes.ties` decides the
order of new changes and landed changes of the same times; this module collects both, and handles
ties without a decidable order: the item is read by its key, consistently, and the read item lands
directly after the tie (transport "read").

This is correct although the item may have changed since. The read item is at least as new as every
change of the tie: these were written before the first of them was delivered, so before the read. If
it is newer, the difference comes from changes with later times and so later positions; they land
sooner or later, and win. Until then readers see the item ahead of its changes, and history shows
the read version at the time of the tie. An item with a later change in the same batch is not read:
that change holds the result of the tie as its old image, and wins anyway.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.change import Change, from_read_item
from cdc_pipeline.core.changes.order import is_numbered
from cdc_pipeline.core.changes.ties import (
    end_of_tie,
    image_before,
    order_tie,
    slot_at,
    slot_of,
    ties_in,
)
from cdc_pipeline.core.log.generations import Generations
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import BY_TIME, READ
from cdc_pipeline.lake.storage.changes import Changes
from cdc_pipeline.lake.storage.landed_rows import LandedRows
from cdc_pipeline.lake.storage.store import Store


class Ties:
    """Puts the tied changes of one capture run in order."""

    def __init__(self, store: Store, source: Source) -> None:
        self.landed = LandedRows(store)
        self._source = source

    def settled(self, state: LogState, changes: Sequence[Change]) -> Sequence[Change]:
        """Return the rows to land for `changes`: in order, with moved rows and read rows.

        Only changes of the same generation are compared: generations order changes more reliably
        than images, and so do the numbers of a stream. Raises `LakeError`, and `SourceError` when
        an item cannot be read.
        """
        if not changes or changes[0].transport not in BY_TIME:
            return changes
        given = Changes.of(changes)
        numbered = [is_numbered(position) is not None for position in given.column("position")]
        if any(numbered):
            rows = given.where(pa.array(numbered))
            others = given.where(pa.array([not is_one for is_one in numbered]))
            return rows.extend(self.settled(state, others))
        times_us = given.column("write_time_us")
        pairs = zip(times_us, given.column("keys"), strict=True)
        slots = [slot_at(time_us, keys) for time_us, keys in pairs]
        generations = Generations(state)
        present = {generations.at(time_us) for time_us in times_us}
        objects = [o for o in state.objects.values() if o.generation in present]
        counts = Counter(slots)
        landed = _by_slot(self.landed.find(objects, counts.keys()))
        shared = {slot for slot, count in counts.items() if count > 1} | landed.keys()
        if not shared:
            return given
        rows = given.where(pa.array([slot not in shared for slot in slots]))
        tied = _by_slot(given.where(pa.array([slot in shared for slot in slots])))
        undecided: list[_Tie] = []
        for slot, new in tied.items():
            for tie in _ties(landed.get(slot, []), new):
                settled = order_tie(tie.known, tie.new)
                if settled.is_decided or tie.was_read:
                    rows = rows.extend(settled.rows)
                else:
                    undecided.append(tie)
        return rows.extend(self._decide(undecided, given)) if undecided else rows

    def _decide(self, ties: "list[_Tie]", changes: Changes) -> list[Change]:
        """Rows to land for ties whose images do not decide the order."""
        rows: list[Change] = []
        to_read: list[_Tie] = []
        keys = {tie.keys for tie in ties}
        candidates = changes.where(pa.array([key in keys for key in changes.column("keys")]))
        for tie in ties:
            later = [c for c in candidates if c.keys == tie.keys and c.write_time_us > tie.last_us]
            if later:
                following = min(later, key=lambda change: change.write_time_us)
                rows += order_tie(tie.known, tie.new, image_before(following)).rows
            else:
                to_read.append(tie)
        return rows + self._read(to_read)

    def _read(self, ties: "list[_Tie]") -> list[Change]:
        """Rows to land for ties whose items are read; without a reader, in order of arrival."""
        reader = self._source.reader
        if reader is None:
            return [row for tie in ties for row in order_tie(tie.known, tie.new).rows]
        rows: list[Change] = []
        items = reader.read([tie.keys for tie in ties])
        for tie in ties:
            item = items[tie.keys]
            read = from_read_item(self._source.table_id, tie.keys, item, tie.last_us, tie.end)
            settled = order_tie(tie.known, tie.new, read.new_image)
            # It names an event, like a completing row: nothing is missing before it.
            rows += [*settled.rows, read._replace(event_id=settled.last.event_id)]
        return rows


@dataclass(frozen=True)
class _Tie:
    """Changes of one item and time, landed (`known`) and new. `was_read`: a read row follows it."""

    known: list[Change]
    new: list[Change]
    keys: str
    last_us: int
    end: str
    was_read: bool


def _ties(landed: list[Change], new: list[Change]) -> Iterator[_Tie]:
    reads = [row.position for row in landed if row.transport == READ]
    known = [r for r in landed if r.transport in BY_TIME and not is_numbered(r.position)]
    for tie_known, tie_new in ties_in(known, new):
        changes = tie_known + tie_new
        end = end_of_tie(changes, READ)
        last_us = max(change.write_time_us for change in changes)
        was_read = any(place >= end for place in reads)
        yield _Tie(tie_known, tie_new, new[0].keys, last_us, end, was_read)


def _by_slot(changes: Iterable[Change]) -> dict[tuple[int, str], list[Change]]:
    slots: dict[tuple[int, str], list[Change]] = {}
    for change in changes:
        slots.setdefault(slot_of(change), []).append(change)
    return slots
