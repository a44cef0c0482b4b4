"""Continuity of capture: recording the first positions, and every break as a gap.

A gap is one log entry. It reserves generation g+1 for what heals it and moves the table to g+2, so
that a late heal beats what landed before the gap and nothing that lands after it.

What was read of a quiet shard, when a list of shards was seen, when positions were recorded: these
are times of this machine's clock, and what they are compared with are AWS's. So a gap begins a
margin before the one (`CaptureLog.margin_us`) and ends a margin behind the other, and what may have
been trimmed is taken for trimmed two margins early: the clock may have been wrong one way when a
time was noted and the other way when it is looked at.
"""

from dataclasses import replace

from cdc_pipeline.aws.shards import StreamDescription
from cdc_pipeline.capture.sources.reading import Reading
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.log.entries import FIRST_GENERATION, Cause, Gap, ShardState, StreamRef
from cdc_pipeline.core.log.lineage import depths
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.lake.storage.log import CaptureLog, Parts


def open_capture(log: CaptureLog, state: LogState, source: Source) -> Gap | None:
    """Make the log follow the table's present stream; the first call records P.

    P, the positions that a snapshot hands over to, is every listed shard at its oldest record.
    When the stream or the table is another one than the log follows, the break is recorded as a
    gap, which is returned; what can still be read of the old stream should be landed before.
    """

    def follow(now: LogState) -> Parts | None:
        if now.stream is None:
            return _first(log, source)
        return None if source.is_followed(now.stream) else _renewed(log, now, source)

    return state.gaps.get(state.n) if log.commit(state, follow) else None


def shard_gap(
    log: CaptureLog, state: LogState, shard_id: str, cause: Cause, *, keeps_position: bool = False
) -> Parts:
    """The entry for one shard that lost changes: a lost shard ends, another begins anew.

    `keeps_position`: reading on behind its last record gives what is left of it.
    """
    assert state.stream is not None  # a shard was read
    shard = state.shards[shard_id]
    read_to_us = max(shard.read_to_us, 0) or noted_us(state.stream, log.margin_us)
    gap = new_gap(log, state, cause, (shard_id,), read_to_us)
    after = shard if keeps_position else replace(shard, sequence_number=None)
    if cause == "shard vanished":
        after = replace(shard, status="lost")
    stream = replace(state.stream, generation=state.generation + 2)
    return {"stream": stream, "shards": (after,), "gap": gap}


def new_gap(
    log: CaptureLog, state: LogState, cause: Cause, shards: tuple[str, ...], read_to_us: int
) -> Gap:
    """A gap from `read_to_us` (of this machine's clock) until now, and a margin to either side.

    It ends behind all that has landed, whose clock may be ahead of ours.
    """
    return Gap(
        cause=cause,
        shards=shards,
        from_us=max(read_to_us - log.margin_us, 0),
        to_us=max(log.not_yet_us(), (state.last_change_us or 0) + 1000),
        heal_generation=state.generation + 1,
        margin_us=log.margin_us,
    )


def losses_gap(log: CaptureLog, state: LogState, from_us: int, looked_us: int, lost: int) -> Parts:
    """The entry that says up to when losses are known, with a gap if there were any.

    The gap lasts until now because its heal beats all that has landed. A minute before the losses
    were counted they were written, at most; what was written before capture began is not missed.
    """
    assert state.stream is not None  # it was captured
    if not lost:
        return {"replicated_us": looked_us}
    began_us = max(from_us - 60_000_000, state.began_us)
    gap = new_gap(log, state, "not replicated", (), began_us)
    stream = replace(state.stream, generation=state.generation + 2)
    return {"replicated_us": looked_us, "stream": stream, "gap": gap}


def undelivered_gap(log: CaptureLog, state: LogState, from_us: int) -> Parts:
    """The entry for records that a channel gave up and nobody holds any more.

    They were written at `from_us` at the earliest; the gap lasts until now, as `losses_gap` says.
    """
    assert state.stream is not None  # it was captured
    gap = new_gap(log, state, "not delivered", (), from_us)
    return {"stream": replace(state.stream, generation=state.generation + 2), "gap": gap}


def vouched(
    state: LogState,
    listed_us: int,
    lag_us: int,
    margin_us: int = 0,
    childless_us: int | None = None,
) -> dict[str, int]:
    """What a listing of the stream's shards proves: the log's `discovered_us`, if it moves.

    A listing shows every shard that began `lag_us` before it or earlier and has not expired. One
    that has expired was in the listing before, if that is less than the retention ago. If it is
    not, shards may have come and gone unseen. Their descendants give them away, but the youngest
    of these may be hidden for `lag_us` more: the next listing behind that is the one that counts.
    Both times are of this machine's clock, either of which may be wrong by `margin_us`.

    `childless_us`: up to when the oldest shard that has ended and shows no child was surely the
    last of its line, None: there is no such shard. Its children are late, maybe by more than
    `lag_us`, but they hold nothing older.
    """
    assert state.stream is not None  # its shards were listed
    known_us = listed_us - lag_us
    if childless_us is not None and childless_us < known_us:
        if childless_us <= state.discovered_us:
            return {}
        known_us = childless_us
    moved = {"discovered_us": known_us}
    before_us = state.discovered_us or noted_us(state.stream, margin_us) - lag_us
    retention_us = state.stream.retention_us - 2 * margin_us
    if listed_us - before_us < retention_us:
        return moved
    if listed_us - state.resumed_us >= retention_us - lag_us:
        return {"resumed_us": listed_us}
    return moved if listed_us - state.resumed_us >= lag_us + 2 * margin_us else {}


def is_listed_lately(state: LogState, reading: Reading, lag_us: int, now_us: int) -> bool:
    """Whether the last whole listing serves still: since then, shards come of known ones.

    DynamoDB's documents do not say so of roots, but the order of an item's changes hangs on it:
    whatever range of keys a new shard holds was a known shard's, which must end first. What a
    listing proved stands in the log as `discovered_us`, `lag_us` before it; where that was held
    back, by a shard without children, the stream counts as listed longer ago than it was.
    """
    age_us = now_us - lag_us - state.discovered_us
    return 0 <= age_us < reading.listing_seconds(len(state.shards)) * 1_000_000


def is_lineage_known(state: LogState, margin_us: int, now_us: int) -> bool:
    """Whether the log alone tells which shards to read, besides children of those that end.

    Not of a stream that was new when it was listed, because a root may have been hidden, which no
    children lead to; nor where a shard was unread for long: only a listing gives the number of its
    first record.
    """
    stream = state.stream
    if stream is None or state.discovered_us < stream.recorded_us + margin_us:
        return False
    oldest_us = now_us - stream.retention_us // 2
    reading = (s for s in state.shards.values() if s.status == "reading")
    return all(unread_since_us(state, s, margin_us) > oldest_us for s in reading)


def unread_since_us(state: LogState, shard: ShardState, margin_us: int) -> int:
    """Since when nothing of the shard has been read: what is older than its retention may go."""
    gaps = [g.to_us - g.margin_us for g in state.gaps.values() if shard.shard_id in g.shards]
    noted = noted_us(state.stream, margin_us) if state.stream else 0
    return max([shard.read_to_us or noted, *gaps])


def noted_us(stream: StreamRef, margin_us: int) -> int:
    """When a stream's positions were recorded, by the clock of who did it.

    In logs of older versions that is `recorded_us` itself, and this a margin earlier.
    """
    return stream.recorded_us - margin_us


def _first(log: CaptureLog, source: Source) -> Parts:
    listed = source.shards.describe(source.arn)
    # Behind the listing and by no slow clock: what was written before comes with the baseline.
    stream = source.ref(listed, FIRST_GENERATION, log.not_yet_us())
    return {"stream": stream, "shards": beginnings(listed)}


def _renewed(log: CaptureLog, state: LogState, source: Source) -> Parts:
    """Another stream, or a new table of the same name: begin again behind a gap.

    A stream that was off goes on where it was read to. Of what such streams hold from earlier
    times, changes written before the gap have landed, and those of a table that is gone are not
    wanted; of one that was off nothing in the gap is, as it would come behind the gap's heal.
    """
    old = state.stream
    assert old is not None  # there was a stream to renew
    recorded_us = log.now_us()
    same_table = old.table_id == source.table_id
    listed = source.shards.describe(source.arn)
    cause: Cause = "new stream" if same_table else "table recreated"
    gap = new_gap(log, state, cause, tuple(sorted(state.shards)), unread_from_us(log, state))
    stream = source.ref(listed, state.generation + 2, log.not_yet_us())
    kept = set(state.shards) if source.is_same_stream(old) else set()
    if source.transport != DYNAMODB_STREAMS:
        since_us = gap.from_us if same_table and not kept else recorded_us
        stream = replace(stream, since_us=since_us)
    return {
        "stream": stream,
        "forgotten": tuple(sorted(state.shards.keys() - kept)),
        "shards": tuple(s for s in beginnings(listed) if s.shard_id not in kept),
        "gap": gap,
    }


def unread_from_us(log: CaptureLog, state: LogState) -> int:
    """Since when changes may be missing if the stream that the log follows ends as it was read.

    It was the live one when its shards were last listed whole; beyond that, reading it to its end
    proves nothing.
    """
    old = state.stream
    assert old is not None  # it is followed
    unread = [s.read_to_us for s in state.shards.values() if s.status == "reading"]
    began_us = noted_us(old, log.margin_us)
    return min([*(us or began_us for us in unread), state.discovered_us or began_us])


def beginnings(listed: StreamDescription, read_to_us: int = 0) -> tuple[ShardState, ...]:
    """Every listed shard at its oldest record."""
    levels = depths(listed.shards, {})
    return tuple(
        ShardState(
            s.shard_id,
            s.parent_id,
            levels[s.shard_id],
            read_to_us=read_to_us,
            adjacent_id=s.adjacent_id,
        )
        for s in listed.shards
    )
