"""Reading one shard from its checkpoint to its tip or its end."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cdc_pipeline.aws.shards import Page
from cdc_pipeline.capture.pending import Pending, moved
from cdc_pipeline.capture.reading import Reading
from cdc_pipeline.capture.source import ShardSource
from cdc_pipeline.core.changes import Change
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
    changes written since then have not been read by anyone. `before_us`: changes written then or
    later come another way and are left out, None: there is no other. `is_open`: more may be written
    to it; a closed one has an end, which its children wait for.
    """

    shard: ShardState
    starting: str | None
    unread_since_us: int
    before_us: int | None = None
    is_open: bool = True


def read_shard(
    source: ShardSource,
    reading: Reading,
    stream: StreamRef,
    start: Start,
    pending: Pending,
    options: ReadOptions,
    stop: threading.Event,
) -> ShardState:
    """Read until the tip, the end of the shard, the deadline or `stop`; returns where it stands.

    The tip is where `until_us` lies: what is written later is the next run's. Only a parsed answer
    without a next iterator ends a shard. Raises `HeadTrimmedError`, `TrimmedDataError`,
    `ShardGoneError`, `SourceError`.
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
        parsed = reading.parse(page, stream, shard)
        if page.records:
            empty.clear()
        else:
            empty.append(started_us)
        quiet_us = empty[0] if len(empty) == options.empty_polls else 0
        read_to = reading.read_to(page, parsed.changes, started_us, quiet_us)
        news = page.records or finished or read_to.written_us
        if news and (shard.sequence_number is None or reading.trims_silently):
            _check_whole(reading, stream, start, shard, page, int(options.clock() * 1_000_000))
        changes = _of_its_time(parsed.changes, stream, start)
        shard = moved(
            shard,
            last=reading.last(page),
            read_to_us=read_to.written_us,
            rows=len(changes),
            finished=finished,
        )
        if news:
            skipped = parsed.skipped + len(parsed.changes) - len(changes)
            size = page.size if page.records else 0
            pending.add(shard, changes, parsed.unreadable, size, skipped)
        at_tip = max(read_to.tip_us, shard.read_to_us) >= options.until_us
        if page.next_iterator is None or (at_tip and start.is_open):
            break
        iterator = page.next_iterator
        pause = reading.pause(page, options.poll_seconds)
        if pause is not None:
            options.sleep(pause)
    return shard


def _of_its_time(changes: list[Change], stream: StreamRef, start: Start) -> list[Change]:
    """Changes that no other transport has had, or will have."""
    if not stream.since_us and start.before_us is None:
        return changes
    end = start.before_us
    return [
        c
        for c in changes
        if c.write_time_us >= stream.since_us and (end is None or c.write_time_us < end)
    ]


def _iterator(source: ShardSource, stream: StreamRef, start: Start, now_us: int) -> str:
    """Where to read on. A checkpoint may be trimmed although nothing behind it was lost.

    That happens to a shard that nobody wrote to for a day: its last record is gone, and it was
    seen empty since. Everything it still holds is then new.
    """
    shard = start.shard
    try:
        return source.iterator(stream.arn, shard.shard_id, shard.sequence_number)
    except TrimmedDataError:
        if now_us - start.unread_since_us >= stream.retention_us:
            raise
        return source.iterator(stream.arn, shard.shard_id, None)


def _check_whole(
    reading: Reading, stream: StreamRef, start: Start, shard: ShardState, page: Page, now_us: int
) -> None:
    """Reading hides what was trimmed unread: a shard's head, or all of it.

    Nothing is missing if nothing unread can be older than the retention, or if the first record
    is known to be the shard's first.
    """
    unread_since_us = max(start.unread_since_us, shard.read_to_us)
    if now_us - unread_since_us < stream.retention_us:
        return
    if shard.sequence_number is not None:
        raise TrimmedDataError(f"shard {shard.shard_id}: unread for as long as it keeps records")
    if not reading.begins(page, start.starting):
        raise HeadTrimmedError(f"shard {shard.shard_id}: its oldest records were trimmed")
