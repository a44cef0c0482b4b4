"""Ties: changes of one item with the same write time, ordered by their images.

Transports without sequence numbers order changes by write time, and an item may change more than
once in a µs, or in a ms where times are no finer. Then the chain of images decides: each change
begins with the image that the change before it ended with. Changes come late, twice and in any
order, so another change may prove an order wrong: changes placed too early then land again, at
later positions. Positions only ever move later, and the last position of a change counts.

Positions in a tie: the first change has the position of its time, the others have a numeric suffix,
`<position>.0001`; a read of the item, `<position>.read`, comes after all numbers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.order import SNAPSHOT_POSITION, position

UNKNOWN = "?"
"""An unknown image; known ones are JSON objects, or None for no item."""

_TIME_DIGITS = len(SNAPSHOT_POSITION)
_MS = 1000

Image = str | None


@dataclass(frozen=True)
class OrderedTie:
    """Rows of a tie to land: new changes at their positions, and landed ones with new positions.

    `last`: the last change of the tie. `is_decided`: this one is certainly the last.
    """

    rows: list[Change]
    last: Change
    is_decided: bool


def slot_of(change: Change) -> tuple[int, str]:
    """Return the slot of a change: its ms and its item. Ties are within one slot."""
    return slot_at(change.write_time_us, change.keys)


def slot_at(write_time_us: int, keys: str) -> tuple[int, str]:
    """Return the slot of a change with this write time and item."""
    return write_time_us // _MS, keys


def ties_in(
    known: Sequence[Change], new: Sequence[Change]
) -> list[tuple[list[Change], list[Change]]]:
    """Split known and new changes of one slot into ties: those that their times do not order.

    A time in whole ms may be any µs of it: such a change is in a tie with all others of that ms.
    Ties without new changes are left out.
    """
    if _is_coarse([*known, *new]):
        return [(list(known), list(new))]
    times = dict.fromkeys(change.write_time_us for change in new)
    return [
        ([c for c in known if c.write_time_us == time], [c for c in new if c.write_time_us == time])
        for time in times
    ]


def end_of_tie(changes: Sequence[Change], suffix: str) -> str:
    """Return a position after every change of a tie, including changes that may still arrive."""
    last = max(change.write_time_us for change in changes)
    return f"{position(0, last // _MS * _MS + _MS - 1 if _is_coarse(changes) else last)}.{suffix}"


def _is_coarse(changes: Iterable[Change]) -> bool:
    return any(change.write_time_us % _MS == 0 for change in changes)


def order_tie(known: Sequence[Change], new: Sequence[Change], end: Image = UNKNOWN) -> OrderedTie:
    """Order a tie and give its new changes, at least one, their positions.

    `known`: its landed rows, perhaps several of one change; `new`: changes to land, perhaps with
    repeats of either. `end`: the item's image after the tie, if known.
    """
    places = _last_places(known)
    changes = {change.uuid: change for change in [*known, *new]}
    if changes.keys() == places.keys():
        order, is_decided = sorted(changes.values(), key=lambda c: places[c.uuid]), True
    else:
        chain = in_order(list(changes.values()), end)
        order, is_decided = chain or _as_they_came(changes, places), chain is not None
    moved = _places(order, places, known)
    to_land = {change.uuid for change in new}
    again = [c for c in order if c.uuid not in to_land and moved[c.uuid] != places[c.uuid]]
    rows = [change._replace(position=moved[change.uuid]) for change in [*new, *again]]
    return OrderedTie(rows, order[-1], is_decided)


def _last_places(known: Iterable[Change]) -> dict[str, str]:
    places: dict[str, str] = {}
    for change in known:
        places[change.uuid] = max(change.position, places.get(change.uuid, ""))
    return places


def _as_they_came(changes: Mapping[str, Change], places: Mapping[str, str]) -> list[Change]:
    """Order by time, new changes after landed ones, which then keep their positions."""

    def place(change: Change) -> tuple[int, bool, str]:
        landed = places.get(change.uuid)
        return change.write_time_us, landed is None, landed or ""

    return sorted(changes.values(), key=place)


def _places(
    order: Sequence[Change], places: Mapping[str, str], known: Iterable[Change]
) -> dict[str, str]:
    """Give each change a position after that of the change before, and never before its own.

    A change that moves gets a number that no row has had yet.
    """
    numbers: dict[str, int] = {}
    for row in known:
        time, number = row.position[:_TIME_DIGITS], row.position[_TIME_DIGITS + 1 :]
        numbers[time] = max(numbers.get(time, 0), int(number or 0))
    positions: dict[str, str] = {}
    before = ""
    for change in order:
        place = places.get(change.uuid) or position(0, change.write_time_us)
        if place <= before:
            time = before[:_TIME_DIGITS]
            numbers[time] = numbers.get(time, 0) + 1
            place = f"{time}.{numbers[time]:04d}"
        positions[change.uuid] = before = place
    return positions


def in_order(changes: Sequence[Change], end: Image = UNKNOWN) -> list[Change] | None:
    """Order changes as a chain of images that uses each of them once; None: ambiguous.

    The chain must end in `end`, or else in an image that none of them begins with: the two changes
    of A→B→A also fit B→A→B, and equal changes are one, so A→B→A→B has the same two.
    """
    if len(changes) == 1:
        return list(changes)
    if any(
        image_before(change) == UNKNOWN or _image_after(change) == UNKNOWN for change in changes
    ):
        return None
    left: dict[Image, list[Change]] = {}
    surplus: Counter[Image] = Counter()
    for change in sorted(changes, key=lambda c: (c.position, c.uuid), reverse=True):
        left.setdefault(image_before(change), []).append(change)
        surplus[image_before(change)] += 1
        surplus[_image_after(change)] -= 1
    starts, ends = list((+surplus).elements()), list((-surplus).elements())
    if end == UNKNOWN:
        is_certain = len(ends) == 1 and ends[0] not in left
    else:
        is_certain = ends == [end] or (not ends and end in left)
    if not is_certain:
        return None
    trail = _trail(starts[0] if starts else end, left)
    return trail if len(trail) == len(changes) else None


def _trail(start: Image, left: dict[Image, list[Change]]) -> list[Change]:
    """Return a path of as many changes as possible from an image, each once.

    Hierholzer's algorithm: follow changes to a dead end, then insert the remaining ones as detours.
    """
    path: list[Change] = []
    stack: list[Change] = []
    at = start
    while True:
        if left.get(at):
            stack.append(left[at].pop())
            at = _image_after(stack[-1])
        elif stack:
            path.append(stack.pop())
            at = image_before(path[-1])
        else:
            return path[::-1]


def image_before(change: Change) -> Image:
    """Return the image before a change."""
    return UNKNOWN if change.old_image is None and change.op != "I" else change.old_image


def _image_after(change: Change) -> Image:
    return UNKNOWN if change.new_image is None and change.op != "D" else change.new_image
