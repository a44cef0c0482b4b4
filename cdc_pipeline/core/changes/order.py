"""Positions and order keys: plain strings that order the changes of one item.

`position` = `<shard lineage depth, 6 digits>.<40 digits>`, the digits being a zero-padded sequence
number (DynamoDB Streams) or write time in microseconds (other transports). `order_key` =
`<generation, 6 digits>.<position>`. Both compare correctly as strings. A position with a suffix
comes directly after the position without it: for a read (`.read`), a tie (`core.changes.ties`), a
backfill (`repair.placement`), a change with a sequence number but no shard (`numbered_position`).
"""

import re

_DEPTH_DIGITS = 6
_NUMBER_DIGITS = 40


def position(depth: int, number: int | str) -> str:
    """Return the position of a change in its generation.

    `number`: a sequence number (21 to 40 digits, botocore model) or a write time in µs. Sequence
    numbers grow only along a shard lineage, so the lineage depth comes first: a child shard's
    changes follow its parent's, regardless of their numbers.
    """
    value = int(number)
    if value < 0 or value >= 10**_NUMBER_DIGITS or not 0 <= depth < 10**_DEPTH_DIGITS:
        raise ValueError(f"no position for depth {depth}, number of {len(str(number))} digits")
    return f"{depth:0{_DEPTH_DIGITS}d}.{value:0{_NUMBER_DIGITS}d}"


def numbered_position(write_time_us: int, sequence_number: str) -> str:
    """Return the position of a stream's change without a shard: by its second, then its number.

    A child shard may number an item's changes lower than its parent did. If both hold changes of
    one item in one second, and come without their shards, their order can be wrong.
    """
    return f"{position(0, write_time_us)}.{int(sequence_number):0{_NUMBER_DIGITS}d}"


is_numbered = re.compile(rf"[0-9]{{6}}\.[0-9]{{40}}\.[0-9]{{{_NUMBER_DIGITS}}}").fullmatch
"""Whether a position is a `numbered_position`: no other order is known for such a change."""


SNAPSHOT_POSITION = position(0, 0)
"""Position of snapshot rows, before every change of their generation (no sequence number is 0)."""


def generation_prefix(generation: int) -> str:
    """Return the prefix of every order key of a generation, with its dot."""
    if not 0 <= generation < 10**_DEPTH_DIGITS:
        raise ValueError(f"no order key for generation {generation}")
    return f"{generation:0{_DEPTH_DIGITS}d}."


def order_key(generation: int, at: str) -> str:
    """Return the key of the total order of an item's changes; `at` is a `position`."""
    return generation_prefix(generation) + at
