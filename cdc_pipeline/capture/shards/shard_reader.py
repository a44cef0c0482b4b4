"""Reading one shard from its checkpoint to its tip or its end.

**Where the tip is.** A page without records does not prove the tip: AWS returns empty pages in the
middle of a shard and documents no limit of their number (API reference of GetRecords). Only empty
reads in a row, spread over time, make it likely. The required number grows with the age of the
position before them (`polls_needed`), as does the cost of a mistake. If each page of a stretch is
empty with probability 1/2, the tip is assumed wrongly in at most one of 2^empty_polls x (1 + age in
seconds) cases; with `empty_polls: 3` that is an eighth of a second falsely counted as read, on
average and at any age. If it happens nevertheless, the next record sets the shard back to its own
time (`capture.landing.late_changes`).
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from cdc_pipeline.aws.shards import Page
from cdc_pipeline.capture.shards.buffer import Buffer, after_page
from cdc_pipeline.capture.shards.cursors import Cursor, Cursors
from cdc_pipeline.capture.sources.reading import StreamProtocol
from cdc_pipeline.capture.sources.source import ShardSource
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.errors import (
    ExpiredIteratorError,
    HeadTrimmedError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.log.entries import ShardState, StreamRef
from cdc_pipeline.lake.storage.changes import Changes

_ITERATORS_TRIED = 5
_OLD_STEP_SECONDS = 600
_OLD_STEPS = 60
_LONG_US = 365 * 24 * 3600 * 1_000_000
_MORE_IF_OLD = 7
"""Further empty reads of a run that does not wait for the proof of the tip, at an old position."""
_LEAST_PAUSE_SECONDS = 0.25
"""AWS allows five reads a second and shard (observed: aws-sdk-java-v2 issue 470)."""


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading shards; see `settings.sections.Capture`.

    `until_us`: a shard read up to this time counts as read to its tip, so that a run ends under
    continuous traffic. `deadline`: time in seconds at which every read stops. `margin_us`: largest
    error of `clock` against AWS's. `empty_reads`: after so many empty reads a shard is left to the
    next run, None: when its tip is proven. `cursors`: where the run before has stopped.
    """

    empty_polls: int
    poll_seconds: float
    until_us: int
    deadline: float
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep
    margin_us: int = 0
    empty_reads: int | None = None
    cursors: Cursors | None = None


@dataclass(frozen=True)
class Start:
    """A shard to read and facts about its beginning.

    `starting`: the shard's first sequence number as listed, None if unknown. `unread_since_us`:
    changes written since then have not been read. `before_us`: changes written at this time or
    later come by another transport and are left out, None: there is no other. `is_open`: more may
    be written to it; a closed shard has an end, which its children wait for. `stream_began_us`: no
    record of the stream is older, 0: unknown.
    """

    shard: ShardState
    starting: str | None
    unread_since_us: int
    before_us: int | None = None
    is_open: bool = True
    stream_began_us: int = 0


def polls_needed(empty_polls: int, age_us: int) -> int:
    """Number of empty reads in a row after which a position of this age counts as the tip.

    `empty_polls` at the tip; one more for each doubling of the age in seconds, and one for each ten
    minutes of it, because the next record may be many empty pages away: 8 for half a minute, 21 for
    an hour, 80 for a day.
    """
    age = max(age_us, 0) / 1_000_000
    old = min(int(age / _OLD_STEP_SECONDS), _OLD_STEPS)
    return empty_polls + math.ceil(math.log2(1 + age)) + old


def read_shard(
    source: ShardSource,
    reading: StreamProtocol,
    stream: StreamRef,
    start: Start,
    pending: Buffer,
    options: ReadOptions,
    stop: threading.Event,
) -> ShardState:
    """Read until the tip, the end of the shard, the deadline or `stop`; return the shard's state.

    The tip is the position of `until_us`: later changes are for the next run. Only a parsed answer
    without a next iterator ends a shard. Raises `HeadTrimmedError`, `TrimmedDataError`,
    `ShardGoneError`, `SourceError`.
    """
    shard = start.shard
    began_us = int(options.clock() * 1_000_000)
    cursors = options.cursors
    cursor = (
        cursors.take(stream.arn, shard.shard_id, shard.sequence_number, began_us)
        if cursors
        else None
    )
    iterator = (
        cursor.iterator if cursor else _iterator(source, stream, start, began_us, options.margin_us)
    )
    # Start times of the last empty reads in a row, in µs.
    empty = deque(
        cursor.empty if cursor else (), maxlen=polls_needed(options.empty_polls, _LONG_US)
    )
    oldest_us = max(began_us - stream.retention_us, start.stream_began_us)
    expired = fruitless = 0
    # Whether everything before the iterator is in the log once `shard` is.
    is_exact = True
    while not stop.is_set() and options.clock() < options.deadline:
        started_us = int(options.clock() * 1_000_000)
        try:
            page = source.read(iterator)
            expired = 0
        except ExpiredIteratorError as error:
            expired += 1
            if expired > _ITERATORS_TRIED:
                raise SourceError(
                    f"shard {shard.shard_id}: {expired} iterators in a row had expired"
                ) from error
            here = replace(start, shard=shard)
            iterator = _iterator(source, stream, here, started_us, options.margin_us)
            continue
        is_finished = page.next_iterator is None
        parsed = reading.parse(page, stream, shard)
        last = reading.last(page)
        if page.records:
            empty.clear()
            is_exact, fruitless = last is not None, 0
        else:
            empty.append(started_us)
            fruitless += 1
        age_us = started_us - (shard.read_to_us or oldest_us)
        needed = polls_needed(options.empty_polls, age_us)
        # Empty reads of an ended shard do not give its end time, at which its children begin.
        is_tip = len(empty) >= needed and start.is_open and not is_finished
        quiet_us = empty[-needed] if is_tip else 0
        read_to = reading.read_to(page, parsed.changes, started_us, quiet_us)
        has_progress = page.records or is_finished or read_to.written_us
        if has_progress and (shard.sequence_number is None or reading.trims_silently):
            now_us = int(options.clock() * 1_000_000)
            _require_untrimmed(reading, stream, start, shard, page, now_us, options.margin_us)
        changes = _of_this_transport(parsed.changes, stream, start)
        shard = after_page(
            shard,
            last=last,
            read_to_us=max(read_to.written_us, stream.since_us) if read_to.written_us else 0,
            rows=len(changes),
            is_finished=is_finished,
            may_go_back=bool(page.records) and reading.in_order,
        )
        if has_progress:
            skipped = parsed.skipped + len(parsed.changes) - len(changes)
            size = page.size if page.records else 0
            pending.add(shard, changes, parsed.unreadable, size, skipped)
        if page.next_iterator is None:
            return shard
        iterator = page.next_iterator
        if cursors and is_exact:
            cursor = Cursor(shard.sequence_number, iterator, tuple(empty), started_us)
            cursors.keep(stream.arn, shard.shard_id, cursor)
        is_at_tip = max(read_to.tip_us, shard.read_to_us) >= options.until_us
        if is_at_tip and start.is_open:
            break
        if options.empty_reads is not None and start.is_open:
            more = 0 if age_us < _OLD_STEP_SECONDS * 1_000_000 else _MORE_IF_OLD
            if fruitless >= options.empty_reads + more:
                break
        pause = reading.pause(page, options.poll_seconds)
        if pause is not None:
            if reading.in_order:
                # More reads in the same time, as far as AWS allows.
                share = pause * options.empty_polls / needed
                pause = min(pause, max(share, _LEAST_PAUSE_SECONDS))
            options.sleep(pause)
    return shard


def _of_this_transport(
    changes: Sequence[Change], stream: StreamRef, start: Start
) -> Sequence[Change]:
    """Changes of the time span of this transport; the others come by another one."""
    if not stream.since_us and start.before_us is None:
        return changes
    chosen = Changes.of(changes)
    end_us = math.inf if start.before_us is None else start.before_us
    times_us = chosen.column("write_time_us")
    is_in_time = [stream.since_us <= us < end_us for us in times_us]
    return chosen.where(pa.array(is_in_time, pa.bool_()))


def _may_be_trimmed(stream: StreamRef, unread_since_us: int, now_us: int, margin_us: int) -> bool:
    """Whether records unread since `unread_since_us` may have reached the stream's retention.

    Both times may be of this machine's clock, each wrong by up to `margin_us` in either direction.
    """
    return now_us - unread_since_us >= stream.retention_us - 2 * margin_us


def _iterator(
    source: ShardSource, stream: StreamRef, start: Start, now_us: int, margin_us: int
) -> str:
    """Iterator at the checkpoint, which may be trimmed although no record after it was lost.

    That happens to a shard without writes for a day: its last record has expired, and later reads
    were empty. Everything it still holds is new then.
    """
    shard = start.shard
    try:
        return source.iterator(stream.arn, shard.shard_id, shard.sequence_number)
    except TrimmedDataError:
        if _may_be_trimmed(stream, start.unread_since_us, now_us, margin_us):
            raise
        return source.iterator(stream.arn, shard.shard_id, None)


def _require_untrimmed(
    reading: StreamProtocol,
    stream: StreamRef,
    start: Start,
    shard: ShardState,
    page: Page,
    now_us: int,
    margin_us: int,
) -> None:
    """Raise `TrimmedDataError` if unread records may have been trimmed: reading hides that.

    Nothing is missing if no unread record can be older than the retention, or if the page's first
    record is known to be the shard's first.
    """
    unread_since_us = max(start.unread_since_us, shard.read_to_us)
    if not _may_be_trimmed(stream, unread_since_us, now_us, margin_us):
        return
    if shard.sequence_number is not None:
        raise TrimmedDataError(f"shard {shard.shard_id}: not read for as long as its retention")
    if not reading.begins(page, start.starting):
        raise HeadTrimmedError(f"shard {shard.shard_id}: its oldest records were trimmed")
