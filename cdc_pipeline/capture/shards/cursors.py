"""Where the readers of shards stopped, for the next pass of a process that stays.

A pass that goes on from there asks for no iterator, and the empty reads of the passes before count
towards the proof of the tip (`capture.shards.shard_reader`).
"""

import threading
from dataclasses import dataclass

_VALID_SECONDS = 240
"""Less than the five minutes after which Kinesis lets iterators expire."""


@dataclass(frozen=True)
class Cursor:
    """A position in a shard. `after`: the last sequence number before it, as in the log.

    `iterator`: reads what follows. `empty`: start times, in µs, of the last empty reads in a row.
    `at_us`: when the iterator was given.
    """

    after: str | None
    iterator: str
    empty: tuple[int, ...]
    at_us: int


class Cursors:
    """Positions by stream and shard; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Cursor] = {}

    def take(self, arn: str, shard_id: str, after: str | None, now_us: int) -> Cursor | None:
        """Remove and return the position after this record; None if it is unknown or old.

        Where the log says another record, the ones read before have not landed, or others have.
        """
        with self._lock:
            cursor = self._known.pop((arn, shard_id), None)
        if cursor is None or cursor.after != after:
            return None
        return cursor if 0 <= now_us - cursor.at_us < _VALID_SECONDS * 1_000_000 else None

    def keep(self, arn: str, shard_id: str, cursor: Cursor) -> None:
        """Remember where a reader has stopped."""
        with self._lock:
            self._known[arn, shard_id] = cursor
