"""Buffer of records read and not landed yet, from all shards of a table."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.log.entries import ShardState
from cdc_pipeline.lake.storage.changes import Changes


@dataclass
class Batch:
    """Changes, unreadable records, and the states of their shards after them."""

    changes: Changes = field(default_factory=Changes)
    unreadable: list[tuple[str, bytes]] = field(default_factory=list)
    shards: dict[str, ShardState] = field(default_factory=dict)
    size: int = 0
    skipped: int = 0

    @property
    def rows(self) -> int:
        """Changes and unreadable records."""
        return len(self.changes) + len(self.unreadable)


class Buffer:
    """A bounded buffer between the shard readers and the one thread that lands.

    Records and the position after them go in together, so any batch taken out can be landed on
    its own. Readers wait while it holds the rows or bytes of two landing objects.
    """

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._batch = Batch()
        self._landing = Batch()
        self._changed = threading.Condition()
        self._closed = False

    def add(
        self,
        shard: ShardState,
        changes: Sequence[Change],
        unreadable: list[tuple[str, bytes]],
        size: int,
        skipped: int = 0,
    ) -> None:
        """Add the records of one page; `shard` is the shard's state after it.

        `skipped`: number of records left out.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._over(2))
            self._batch.changes.extend(changes)
            self._batch.unreadable += unreadable
            self._batch.shards[shard.shard_id] = shard
            self._batch.size += size
            self._batch.skipped += skipped
            self._changed.notify_all()

    def take(self) -> Batch:
        """Take out everything gathered; it counts against the bound until `landed` is called."""
        with self._changed:
            self._landing, self._batch = self._batch, Batch()
            return self._landing

    def landed(self) -> None:
        """Release the batch taken last: it has landed."""
        with self._changed:
            self._landing = Batch()
            self._changed.notify_all()

    def has_changes(self) -> bool:
        """Whether the buffer holds changes or unreadable records, not only positions."""
        with self._changed:
            return bool(self._batch.changes or self._batch.unreadable)

    def is_full(self) -> bool:
        """Whether the buffer holds enough for one landing object."""
        with self._changed:
            return self._batch.rows >= self._max_rows or self._batch.size >= self._max_bytes

    def close(self) -> None:
        """Release waiting readers; the run is ending."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _over(self, times: int) -> bool:
        batches = (self._batch, self._landing)
        rows, size = sum(b.rows for b in batches), sum(b.size for b in batches)
        return rows >= times * self._max_rows or size >= times * self._max_bytes


def after_page(
    shard: ShardState,
    *,
    last: str | None,
    read_to_us: int,
    rows: int,
    is_finished: bool,
    may_go_back: bool = False,
) -> ShardState:
    """Shard state after a page; the time it was read to goes back only with `may_go_back`."""
    return replace(
        shard,
        sequence_number=last or shard.sequence_number,
        read_to_us=read_to_us if may_go_back and read_to_us else max(shard.read_to_us, read_to_us),
        rows=shard.rows + rows,
        status="finished" if is_finished else "reading",
    )
