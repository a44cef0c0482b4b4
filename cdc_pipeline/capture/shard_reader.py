"""Reading one shard from its checkpoint to its tip or its end."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cdc_pipeline.aws.streams import Page
from cdc_pipeline.capture.continuity import RETENTION_US
from cdc_pipeline.capture.pending import Pending, moved
from cdc_pipeline.capture.records import parse_records, sequence_number
from cdc_pipeline.capture.source import ShardSource
from cdc_pipeline.core.errors import (
    ExpiredIteratorError,
    HeadTrimmedError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.log_parts import ShardState, StreamRef

_ITERATORS_TRIED = 5


@dataclass(frozen=True)
class ReadOptions:
    """How shards are read; see `settings.Capture`.

    `until_us`: a shard that was read up to this time counts as read to its tip, so that a run
    ends under traffic that never does. `deadline`: stop here, wherever that is.
    """

    empty_polls: int
    poll_seconds: float
    until_us: int
    deadline: float
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep


@dataclass(frozen=True)
class Start:
    """A shard to read and what is known of its beginning.

    `starting`: the shard's first sequence number as listed, None if unknown. `unread_since_us`:
    changes written since then have not been read by anyone.
    """

    shard: ShardState
    starting: str | None
    unread_since_us: int


def read_shard(
    source: ShardSource,
    stream: StreamRef,
    start: Start,
    pending: Pending,
    options: ReadOptions,
    stop: threading.Event,
) -> ShardState:
    """Read until the tip, the end of the shard, the deadline or `stop`; returns where it stands.

    The tip is where `until_us` lies: what is written later is the next run's. A quiet shard is
    read up to the time at which the first of the last `empty_polls` reads in a row began, all of
    them empty; a single empty page means nothing (AWS returns them in the middle of a shard).
    Only a parsed answer without a next iterator ends a shard. Raises `HeadTrimmedError`,
    `TrimmedDataError`, `ShardGoneError`, `SourceError`.
    """
    shard = start.shard
    iterator = _iterator(source, stream, start, int(options.clock() * 1_000_000))
    empty: deque[int] = deque(maxlen=options.empty_polls)
    expired = 0
    while not stop.is_set() and options.clock() < options.deadline:
        started_us = int(options.clock() * 1_000_000)
        try:
            page = source.read(iterator)
            expired = 0
        except ExpiredIteratorError as error:
            expired += 1
            if expired > _ITERATORS_TRIED:
                raise SourceError(f"shard {shard.shard_id}: every iterator is expired") from error
            iterator = source.iterator(stream.arn, shard.shard_id, shard.sequence_number)
            continue
        finished = page.next_iterator is None
        changes, unreadable = parse_records(page.records, stream, shard)
        last = _checkpoint(page)
        if page.records:
            empty.clear()
            read_to_us = changes[-1].write_time_us if changes else 0
        else:
            empty.append(started_us)
            read_to_us = empty[0] if len(empty) == options.empty_polls else 0
        if shard.sequence_number is None and (page.records or finished or read_to_us):
            _check_head(start, page, started_us)
        shard = moved(shard, last=last, read_to_us=read_to_us, rows=len(changes), finished=finished)
        if page.records or finished or read_to_us:
            pending.add(shard, changes, unreadable, page.size if page.records else 0)
        if page.next_iterator is None or shard.read_to_us >= options.until_us:
            break
        iterator = page.next_iterator
        if not page.records:
            options.sleep(options.poll_seconds)
    return shard


def _iterator(source: ShardSource, stream: StreamRef, start: Start, now_us: int) -> str:
    """Where to read on. A checkpoint may be trimmed although nothing behind it was lost.

    That happens to a shard that nobody wrote to for a day: its last record is gone, and it was
    seen empty since. Everything it still holds is then new.
    """
    shard = start.shard
    try:
        return source.iterator(stream.arn, shard.shard_id, shard.sequence_number)
    except TrimmedDataError:
        if now_us - start.unread_since_us >= RETENTION_US:
            raise
        return source.iterator(stream.arn, shard.shard_id, None)


def _check_head(start: Start, page: Page, now_us: int) -> None:
    """Reading from a shard's beginning hides a head, or all of it, that was trimmed unread.

    It is whole if nothing unread can be older than the retention, or if the first record is the
    one that the listing calls the shard's first.
    """
    if now_us - start.unread_since_us < RETENTION_US:
        return
    first = next((n for raw in page.records if (n := sequence_number(raw))), None)
    if first is None or first != start.starting:
        raise HeadTrimmedError(f"shard {start.shard.shard_id}: its oldest records were trimmed")


def _checkpoint(page: Page) -> str | None:
    """The last sequence number of the page; None for an empty one, or if no record has one.

    Then the position stays where it was: the same records are read, and quarantined, again.
    """
    numbers = map(sequence_number, reversed(page.records))
    return next((number for number in numbers if number is not None), None)
