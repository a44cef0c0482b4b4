"""Continuity of capture: recording the first positions, and every break as a gap.

A gap is one log entry. It reserves generation g+1 for what heals it and moves the table to g+2, so
that a late heal beats what landed before the gap and nothing that lands after it.
"""

from dataclasses import replace

from cdc_pipeline.capture.source import Source
from cdc_pipeline.core.capture_log import Entry, LogState
from cdc_pipeline.core.lineage import depths
from cdc_pipeline.core.log_parts import FIRST_GENERATION, Cause, Gap, ShardState, StreamRef
from cdc_pipeline.lake.log import CaptureLog, new_nonce, this_owner

RETENTION_US = 24 * 3600 * 1_000_000
"""How long DynamoDB Streams keeps a record; older ones may vanish any moment."""


def open_capture(log: CaptureLog, state: LogState, source: Source) -> Gap | None:
    """Make the log follow the table's present stream; the first call records P.

    P, the positions that a snapshot hands over to, is every listed shard at its oldest record.
    When the stream or the table is another one than the log follows, the break is recorded as a
    gap, which is returned; what can still be read of the old stream should be landed before.
    """
    while state.stream is None or state.stream.arn != source.arn:
        entry = _first(log, source) if state.stream is None else _renewed(log, state, source)
        if log.append(state, entry):
            return state.gaps.get(state.n)
        log.catch_up(state)
    return None


def shard_gap(state: LogState, shard_id: str, cause: Cause, now_us: int) -> Entry:
    """The entry for one shard that lost changes: a lost shard ends, another begins anew."""
    assert state.stream is not None  # a shard was read
    shard = state.shards[shard_id]
    gap = Gap(
        cause=cause,
        shards=(shard_id,),
        from_us=max(shard.read_to_us, 0) or state.stream.recorded_us,
        to_us=now_us,
        heal_generation=state.generation + 1,
    )
    after = (
        replace(shard, status="lost")
        if cause == "shard vanished"
        else replace(shard, sequence_number=None)
    )
    stream = replace(state.stream, generation=state.generation + 2)
    return _entry(stream=stream, shards=(after,), gap=gap)


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
    if listed_us - known_us < RETENTION_US:
        return moved
    if listed_us - state.resumed_us >= RETENTION_US - lag_us:
        return {"resumed_us": listed_us}
    return moved if listed_us - state.resumed_us >= lag_us else {}


def unread_since_us(state: LogState, shard: ShardState) -> int:
    """Since when nothing of the shard has been read: what is older than 24 h may be gone."""
    gaps = [gap.to_us for gap in state.gaps.values() if shard.shard_id in gap.shards]
    recorded = state.stream.recorded_us if state.stream else 0
    return max([shard.read_to_us or recorded, *gaps])


def _first(log: CaptureLog, source: Source) -> Entry:
    recorded_us = log.now_us()
    return _entry(
        stream=StreamRef(
            source.table_id,
            source.arn,
            source.view_type,
            FIRST_GENERATION,
            recorded_us,
            source.transport,
        ),
        shards=_listed(source),
    )


def _renewed(log: CaptureLog, state: LogState, source: Source) -> Entry:
    """A new stream ARN, or a new table of the same name: begin again behind a gap."""
    old = state.stream
    assert old is not None  # there was a stream to renew
    recorded_us = log.now_us()
    unread = [s.read_to_us for s in state.shards.values() if s.status == "reading"]
    # The old stream was the live one when its shards were last listed whole; beyond that, reading
    # it to its end proves nothing.
    live_us = state.discovered_us or old.recorded_us
    gap = Gap(
        cause="new stream" if old.table_id == source.table_id else "table recreated",
        shards=tuple(sorted(state.shards)),
        from_us=min([*(us or old.recorded_us for us in unread), live_us]),
        to_us=recorded_us,
        heal_generation=state.generation + 1,
    )
    generation = state.generation + 2
    return _entry(
        stream=StreamRef(
            source.table_id,
            source.arn,
            source.view_type,
            generation,
            recorded_us,
            source.transport,
        ),
        forgotten=tuple(sorted(state.shards)),
        shards=_listed(source),
        gap=gap,
    )


def _listed(source: Source) -> tuple[ShardState, ...]:
    listed = source.shards.describe(source.arn).shards
    levels = depths(listed, {})
    return tuple(ShardState(s.shard_id, s.parent_id, levels[s.shard_id]) for s in listed)


def _entry(**parts: object) -> Entry:
    return Entry(n=0, nonce=new_nonce(), owner=this_owner(), at_us=0, **parts)  # type: ignore[arg-type]
