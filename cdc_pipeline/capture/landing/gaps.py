"""Continuity of capture: recording the first positions, and every break as a gap.

A gap is one log entry. It reserves generation g+1 for what heals it and moves the table to g+2, so
that a late heal beats changes landed before the gap and none that land after it.

The last read of a quiet shard, the last listing and the recording of positions are times of this
machine's clock; they are compared with times of AWS. So a gap begins one margin
(`CaptureLog.margin_us`) before its first time and ends one margin after its last, and records that
may have been trimmed count as trimmed two margins early: the clock may have been wrong in one
direction when a time was recorded and in the other when it is compared.
"""

from dataclasses import replace

from cdc_pipeline.aws.shards import StreamDescription
from cdc_pipeline.capture.sources.reading import StreamProtocol
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.log.entries import FIRST_GENERATION, Cause, Gap, ShardState, StreamRef
from cdc_pipeline.core.log.lineage import depths
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.lake.storage.log import CaptureLog, Parts


def open_capture(log: CaptureLog, state: LogState, source: Source) -> Gap | None:
    """Make the log follow the table's current stream; return the gap if one was opened.

    The first call records P, the positions at which capture takes over from a snapshot: every
    listed shard at its oldest record. If the stream or the table differs from the one that the log
    follows, the break is a gap; land the rest of the old stream before the call.
    """

    def follow(now: LogState) -> Parts | None:
        if now.stream is None:
            return _first(log, source)
        return None if source.is_followed(now.stream) else _renewed(log, now, source)

    return state.gaps.get(state.n) if log.commit(state, follow) else None


def shard_gap(
    log: CaptureLog, state: LogState, shard_id: str, cause: Cause, *, keeps_position: bool = False
) -> Parts:
    """Parts of the entry for one shard that lost changes: a vanished shard ends, others start over.

    `keeps_position`: reading after its last record gives the remaining records.
    """
    assert state.stream is not None  # a shard was read
    shard = state.shards[shard_id]
    read_to_us = max(shard.read_to_us, 0) or recorded_local_us(state.stream, log.margin_us)
    gap = new_gap(log, state, cause, (shard_id,), read_to_us)
    after = shard if keeps_position else replace(shard, sequence_number=None)
    if cause == "shard vanished":
        after = replace(shard, status="lost")
    stream = replace(state.stream, generation=state.generation + 2)
    return {"stream": stream, "shards": (after,), "gap": gap}


def new_gap(
    log: CaptureLog, state: LogState, cause: Cause, shards: tuple[str, ...], read_to_us: int
) -> Gap:
    """Gap from `read_to_us` (this machine's clock) until now, plus a margin at both ends.

    It ends after all landed changes, because AWS's clock may be ahead of this one.
    """
    return Gap(
        cause=cause,
        shards=shards,
        from_us=max(read_to_us - log.margin_us, 0),
        to_us=max(log.not_yet_us(), (state.last_change_us or 0) + 1000),
        heal_generation=state.generation + 1,
        margin_us=log.margin_us,
    )


def losses_gap(
    log: CaptureLog, state: LogState, from_us: int, counted_until_us: int, lost: int
) -> Parts:
    """Parts of the entry that records the end of counted losses, with a gap if `lost` is not 0.

    The gap lasts until now because its heal beats everything landed. Lost records were written at
    most a minute before they were counted; those from before capture began do not matter.
    """
    assert state.stream is not None  # it was captured
    if not lost:
        return {"replicated_us": counted_until_us}
    began_us = max(from_us - 60_000_000, state.began_us)
    gap = new_gap(log, state, "not replicated", (), began_us)
    stream = replace(state.stream, generation=state.generation + 2)
    return {"replicated_us": counted_until_us, "stream": stream, "gap": gap}


def undelivered_gap(log: CaptureLog, state: LogState, from_us: int) -> Parts:
    """Parts of the entry for records that a channel gave up and that no stream holds any more.

    They were written at `from_us` at the earliest; the gap lasts until now, as in `losses_gap`.
    """
    assert state.stream is not None  # it was captured
    gap = new_gap(log, state, "not delivered", (), from_us)
    return {"stream": replace(state.stream, generation=state.generation + 2), "gap": gap}


def proven_times(
    state: LogState,
    listed_us: int,
    lag_us: int,
    margin_us: int = 0,
    childless_us: int | None = None,
) -> dict[str, int]:
    """Return what a listing of the stream's shards proves: the new `discovered_us`, if it moves.

    A listing shows every unexpired shard that began at least `lag_us` before it. An expired shard
    was in the previous listing, if that is less than the retention ago. Otherwise shards may have
    begun and expired unseen. Their descendants reveal them, but the youngest of these may be hidden
    for another `lag_us`: the first listing after that time counts. Both times are of this machine's
    clock, and each may be wrong by `margin_us`.

    `childless_us`: a time until which the oldest ended shard without a listed child was certainly
    the last of its line; None: there is no such shard. Its children are late, perhaps by more than
    `lag_us`, but hold no older records.
    """
    assert state.stream is not None  # its shards were listed
    known_us = listed_us - lag_us
    if childless_us is not None and childless_us < known_us:
        if childless_us <= state.discovered_us:
            return {}
        known_us = childless_us
    moved = {"discovered_us": known_us}
    before_us = state.discovered_us or recorded_local_us(state.stream, margin_us) - lag_us
    retention_us = state.stream.retention_us - 2 * margin_us
    if listed_us - before_us < retention_us:
        return moved
    if listed_us - state.resumed_us >= retention_us - lag_us:
        return {"resumed_us": listed_us}
    return moved if listed_us - state.resumed_us >= lag_us + 2 * margin_us else {}


def is_listed_lately(
    state: LogState,
    reading: StreamProtocol,
    lag_us: int,
    now_us: int,
    least_seconds: float = 0,
) -> bool:
    """Whether the last whole listing is recent enough: new shards descend from known ones.

    DynamoDB's documents do not state this for roots, but the order of an item's changes depends on
    it: the key range of a new shard belonged to a known shard, which must end first. The log holds
    the proof of a listing as `discovered_us`, `lag_us` before the listing; where a shard without
    children held that back, the stream counts as listed longer ago than it was. `least_seconds`:
    recent enough at least for so long.
    """
    age_us = now_us - lag_us - state.discovered_us
    seconds = max(reading.listing_seconds(len(state.shards)), least_seconds)
    return 0 <= age_us < seconds * 1_000_000


def is_lineage_known(state: LogState, margin_us: int, now_us: int) -> bool:
    """Whether the log names all shards to read, besides children of shards that end.

    False for a stream that was new when it was listed: a root may have been hidden, and no parent
    leads to it. False also if a shard was unread for long: only a listing gives the number of its
    first record.
    """
    stream = state.stream
    if stream is None or state.discovered_us < stream.recorded_us + margin_us:
        return False
    return is_read_lately(state, margin_us, now_us)


def is_read_lately(state: LogState, margin_us: int, now_us: int) -> bool:
    """Whether no shard was unread for as long as half of the retention."""
    stream = state.stream
    if stream is None:
        return False
    oldest_us = now_us - stream.retention_us // 2
    reading = (s for s in state.shards.values() if s.status == "reading")
    return all(unread_since_us(state, s, margin_us) > oldest_us for s in reading)


def unread_since_us(state: LogState, shard: ShardState, margin_us: int) -> int:
    """Start of the time in which the shard was not read, in µs; unread records may expire."""
    gaps = [g.to_us - g.margin_us for g in state.gaps.values() if shard.shard_id in g.shards]
    recorded_us = recorded_local_us(state.stream, margin_us) if state.stream else 0
    return max([shard.read_to_us or recorded_us, *gaps])


def recorded_local_us(stream: StreamRef, margin_us: int) -> int:
    """Time at which a stream's positions were recorded, by the clock of the recording machine.

    In logs of older versions that time is `recorded_us` itself, and the result is one margin early.
    """
    return stream.recorded_us - margin_us


def _first(log: CaptureLog, source: Source) -> Parts:
    listed = source.shards.describe(source.arn)
    # After the listing, even by a slow clock: earlier changes come with the baseline.
    stream = source.ref(listed, FIRST_GENERATION, log.not_yet_us())
    return {"stream": stream, "shards": initial_shards(listed)}


def _renewed(log: CaptureLog, state: LogState, source: Source) -> Parts:
    """Parts of the entry for another stream, or a new table of the same name: start after a gap.

    A stream that was disabled continues at its last position. Older records of these streams are
    left out: changes written before the gap have landed; changes of a deleted table are not wanted;
    changes written in the gap, for a stream that was disabled, would land after the gap's heal.
    """
    old = state.stream
    assert old is not None  # there was a stream to renew
    recorded_us = log.now_us()
    is_same_table = old.table_id == source.table_id
    listed = source.shards.describe(source.arn)
    cause: Cause = "new stream" if is_same_table else "table recreated"
    gap = new_gap(log, state, cause, tuple(sorted(state.shards)), unread_from_us(log, state))
    stream = source.ref(listed, state.generation + 2, log.not_yet_us())
    kept = set(state.shards) if source.is_same_stream(old) else set()
    if source.transport != DYNAMODB_STREAMS:
        since_us = gap.from_us if is_same_table and not kept else recorded_us
        stream = replace(stream, since_us=since_us)
    return {
        "stream": stream,
        "forgotten": tuple(sorted(state.shards.keys() - kept)),
        "shards": tuple(s for s in initial_shards(listed) if s.shard_id not in kept),
        "gap": gap,
    }


def unread_from_us(log: CaptureLog, state: LogState) -> int:
    """Time after which changes may be missing if the followed stream ends where it was read to.

    The stream was the current one when its shards were last listed whole; for later times, reading
    it to its end proves nothing.
    """
    old = state.stream
    assert old is not None  # it is followed
    read_to = [s.read_to_us for s in state.shards.values() if s.status == "reading"]
    began_us = recorded_local_us(old, log.margin_us)
    return min([*(us or began_us for us in read_to), state.discovered_us or began_us])


def initial_shards(listed: StreamDescription, read_to_us: int = 0) -> tuple[ShardState, ...]:
    """States of all listed shards, each at its oldest record."""
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
