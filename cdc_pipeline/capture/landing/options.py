"""Options of a capture run: limits, pace, and size of a batch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CaptureOptions:
    """See `settings.sections.Capture`. `linger_seconds`: time that a run stays at shards' tips.

    For the short runs of a process that stays: `empty_reads`, after which a run leaves a shard
    whose tip is not proven; the next run goes on. `relist_seconds`: least pause between listings of
    a stream's shards; children of shards that end are found at once.
    """

    max_run_seconds: float = 240
    empty_polls: int = 3
    poll_seconds: float = 1.0
    parallel_shards: int = 16
    flush_rows: int = 25_000
    flush_bytes: int = 64 << 20
    linger_seconds: float = 0
    flush_seconds: float = 1
    listing_lag_seconds: float = 300
    empty_reads: int | None = None
    relist_seconds: float = 0
