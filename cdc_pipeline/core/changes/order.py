"""Positions and order keys: which of two changes of one item came later, as plain strings.

`position` = `<shard lineage depth, 6 digits>.<40 digits>`, the digits being a zero-padded sequence
number (DynamoDB Streams) or write time in microseconds (other transports). `order_key` =
`<generation, 6 digits>.<position>`. Both compare correctly as strings. A longer position stands
right behind the one that it begins with: of a read (`.read`), of a tie (`core.changes.ties`), of a
backfill (`repair.placing`), of a change that has a sequence number and no shard
(`numbered_position`).
"""

import re

_DEPTH_DIGITS = 6
_NUMBER_DIGITS = 40


def position(depth: int, number: int | str) -> str:
    """The place of a change in its generation.

    `number` is a sequence number (21 to 40 digits, botocore model) or a write time in µs.
    Sequence numbers grow only along a shard lineage, so the lineage depth comes first: a child
    shard's changes come after its parent's whatever their numbers say.
    """
    value = int(number)
    if value < 0 or value >= 10**_NUMBER_DIGITS or not 0 <= depth < 10**_DEPTH_DIGITS:
        raise ValueError(f"no position for depth {depth}, number of {len(str(number))} digits")
    return f"{depth:0{_DEPTH_DIGITS}d}.{value:0{_NUMBER_DIGITS}d}"


def numbered_position(write_time_us: int, sequence_number: str) -> str:
    """The place of a stream's change whose shard nobody knows: by its second, then by its number.

    A shard's child may number an item's changes lower than its parent did; that both hold changes
    of one item and one second, and are told without their shards, is not told apart.
    """
    return f"{position(0, write_time_us)}.{int(sequence_number):0{_NUMBER_DIGITS}d}"


is_numbered = re.compile(rf"[0-9]{{6}}\.[0-9]{{40}}\.[0-9]{{{_NUMBER_DIGITS}}}").fullmatch
"""Whether a position is a `numbered_position`: nothing else tells its order."""


SNAPSHOT_POSITION = position(0, 0)
"""Snapshot rows sort before every change of their generation (no sequence number is 0)."""


def generation_prefix(generation: int) -> str:
    """The first part of every order key of a generation, with its dot."""
    if not 0 <= generation < 10**_DEPTH_DIGITS:
        raise ValueError(f"no order key for generation {generation}")
    return f"{generation:0{_DEPTH_DIGITS}d}."


def order_key(generation: int, at: str) -> str:
    """The total order of the changes of one item; `at` is a `position`."""
    return generation_prefix(generation) + at
