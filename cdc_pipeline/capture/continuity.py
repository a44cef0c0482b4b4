"""Continuity of capture: recording the first positions, and every break as a gap.

A gap is one log entry. It reserves generation g+1 for what heals it and moves the table to g+2, so
that a late heal beats what landed before the gap and nothing that lands after it.
"""

from dataclasses import replace

from cdc_pipeline.aws.shards import StreamDescription
from cdc_pipeline.capture.source import Source
from cdc_pipeline.core.capture_log import Entry, LogState
from cdc_pipeline.core.changes import DYNAMODB_STREAMS
from cdc_pipeline.core.lineage import depths
from cdc_pipeline.core.log_parts import FIRST_GENERATION, Cause, Gap, ShardState
from cdc_pipeline.lake.log import CaptureLog, new_nonce, this_owner


def open_capture(log: CaptureLog, state: LogState, source: Source) -> Gap | None:
    """Make the log follow the table's present stream; the first call records P.

    P, the positions that a snapshot hands over to, is every listed shard at its oldest record.
    When the stream or the table is another one than the log follows, the break is recorded as a
    gap, which is returned; what can still be read of the old stream should be landed before.
    """
    while state.stream is None or not source.is_followed(state.stream):
        entry = _first(log, source) if state.stream is None else _renewed(log, state, source)
        if log.append(state, entry):
            return state.gaps.get(state.n)
        log.catch_up(state)
    return None


def shard_gap(
    state: LogState, shard_id: str, cause: Cause, now_us: int, *, keeps_position: bool = False
) -> Entry:
    """The entry for one shard that lost changes: a lost shard ends, another begins anew.

    `keeps_position`: reading on behind its last record gives what is left of it.
    """
    assert state.stream is not None  # a shard was read
    shard = state.shards[shard_id]
    gap = Gap(
        cause=cause,
        shards=(shard_id,),
        from_us=max(shard.read_to_us, 0) or state.stream.recorded_us,
        to_us=_behind_all(state, now_us),
        heal_generation=state.generation + 1,
    )
    after = shard if keeps_position else replace(shard, sequence_number=None)
    if cause == "shard vanished":
        after = replace(shard, status="lost")
    stream = replace(state.stream, generation=state.generation + 2)
    return new_entry(stream=stream, shards=(after,), gap=gap)


def losses_gap(state: LogState, from_us: int, looked_us: int, lost: int, now_us: int) -> Entry:
    """The entry that says up to when losses are known, with a gap if there were any.

    The gap lasts until now because its heal beats all that has landed. A minute before the losses
    were counted they were written, at most; what was written before capture began is not missed.
    """
    assert state.stream is not None  # it was captured
    if not lost:
        return new_entry(replicated_us=looked_us)
    from_us = max(from_us - 60_000_000, state.began_us)
    to_us = _behind_all(state, now_us)
    gap = Gap("not replicated", (), from_us, to_us, state.generation + 1)
    stream = replace(state.stream, generation=state.generation + 2)
    return new_entry(replicated_us=looked_us, stream=stream, gap=gap)


def vouched(state: LogState, listed_us: int, lag_us: int) -> dict[str, int]:
    """What a listing of the stream's shards proves: the log's `discovered_us`, if it moves.

    A listing shows every shard that began `lag_us` before it or earlier and has not expired. One
    that has expired was in the listing before, if that is less than the retention ago. If it is
    not, shards may have come and gone unseen. Their descendants give them away, but the youngest
    of these may be hidden for `lag_us` more: the next listing behind that is the one that counts.
    """
    assert state.stream is not None  # its shards were listed
    moved = {"discovered_us": listed_us - lag_us}
    known_us = state.discovered_us or state.stream.recorded_us - lag_us
    retention_us = state.stream.retention_us
    if listed_us - known_us < retention_us:
        return moved
    if listed_us - state.resumed_us >= retention_us - lag_us:
        return {"resumed_us": listed_us}
    return moved if listed_us - state.resumed_us >= lag_us else {}


def unread_since_us(state: LogState, shard: ShardState) -> int:
    """Since when nothing of the shard has been read: what is older than its retention may go."""
    gaps = [gap.to_us for gap in state.gaps.values() if shard.shard_id in gap.shards]
    recorded = state.stream.recorded_us if state.stream else 0
    return max([shard.read_to_us or recorded, *gaps])


def _first(log: CaptureLog, source: Source) -> Entry:
    recorded_us = log.now_us()
    listed = source.shards.describe(source.arn)
    stream = source.ref(listed, FIRST_GENERATION, recorded_us)
    return new_entry(stream=stream, shards=beginnings(listed))


def _renewed(log: CaptureLog, state: LogState, source: Source) -> Entry:
    """Another stream, or a new table of the same name: begin again behind a gap.

    A stream that was off goes on where it was read to. Of what such streams hold from earlier
    times, changes written before the gap have landed, and those of a table that is gone are not
    wanted; of one that was off nothing in the gap is, as it would come behind the gap's heal.
    """
    old = state.stream
    assert old is not None  # there was a stream to renew
    recorded_us = log.now_us()
    same_table = old.table_id == source.table_id
    gap = Gap(
        cause="new stream" if same_table else "table recreated",
        shards=tuple(sorted(state.shards)),
        from_us=unread_from_us(state),
        to_us=_behind_all(state, recorded_us),
        heal_generation=state.generation + 1,
    )
    listed = source.shards.describe(source.arn)
    stream = source.ref(listed, state.generation + 2, recorded_us)
    kept = set(state.shards) if source.is_same_stream(old) else set()
    if source.transport != DYNAMODB_STREAMS:
        since_us = gap.from_us if same_table and not kept else recorded_us
        stream = replace(stream, since_us=since_us)
    return new_entry(
        stream=stream,
        forgotten=tuple(sorted(state.shards.keys() - kept)),
        shards=tuple(s for s in beginnings(listed) if s.shard_id not in kept),
        gap=gap,
    )


def _behind_all(state: LogState, now_us: int) -> int:
    """The end of a gap: later than all that has landed, whose clock may be ahead of ours."""
    return max(now_us, (state.last_change_us or 0) + 1000)


def unread_from_us(state: LogState) -> int:
    """Since when changes may be missing if the stream that the log follows ends as it was read.

    It was the live one when its shards were last listed whole; beyond that, reading it to its end
    proves nothing.
    """
    old = state.stream
    assert old is not None  # it is followed
    unread = [s.read_to_us for s in state.shards.values() if s.status == "reading"]
    live_us = state.discovered_us or old.recorded_us
    return min([*(us or old.recorded_us for us in unread), live_us])


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


def new_entry(**parts: object) -> Entry:
    """An entry to append."""
    return Entry(n=0, nonce=new_nonce(), owner=this_owner(), at_us=0, **parts)  # type: ignore[arg-type]
