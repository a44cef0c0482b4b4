"""A table's switch from one transport to another: a cut in time, and what counts on which side.

1. While both are on, a cut C is logged: a second that has not come yet by AWS's clock, however
   wrong ours is.
2. From then on, runs of the old transport leave out changes written at C or later. It is read
   until the watermark has surely come to C; until then the new one waits.
3. One entry makes the log follow the new transport, one generation later, from its oldest record
   on; changes written before C are left out. Nothing lies between, so it is no gap.

What the one leaves out the other one has: nothing is doubled, nothing lost. Each step is one entry,
so a run that was killed anywhere is followed by one that goes on from what is logged.
"""

from dataclasses import replace

from cdc_pipeline.capture.landing.gaps import beginnings, new_gap, unread_from_us
from cdc_pipeline.capture.landing.replication_losses import end_of_minute
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.entries import Cut, Gap
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.storage.log import CaptureLog, Parts

_SECOND_US = 1_000_000


def begin_cut(log: CaptureLog, state: LogState, source: Source) -> None:
    """Log the cut at which `source` takes over, unless one is on its way.

    Raises `SourceError` when the table does not write to it yet, or another switch is on its way.
    """
    if state.cut is not None and state.cut.transport != source.transport:
        raise SourceError(
            f"table {source.table}: it is being switched to {state.cut.transport}",
            fix=f"set `transport: {state.cut.transport}` until that is done (cdc-pipeline status)",
        )

    def begin(now: LogState) -> Parts | None:
        if now.cut is not None:
            return None
        listed = source.shards.describe(source.arn)
        if listed.status != "ENABLED":
            raise SourceError(
                f"table {source.table}: its new transport {source.transport} is {listed.status}, "
                f"so it stays with the one that its log follows",
                fix="wait until the table writes to it, then capture again",
            )
        return {"cut": Cut(source.transport, cut_us(now, log.not_yet_us()))}

    log.commit(state, begin)


def cut_us(state: LogState, now_us: int) -> int:
    """The first whole second behind `now_us` and behind all that has landed."""
    landed_us = state.last_change_us or 0
    return max(-(-now_us // _SECOND_US), landed_us // _SECOND_US + 1) * _SECOND_US


def switch(log: CaptureLog, source: Source, *, looked_us: int | None, ended: bool) -> bool:
    """Make the log follow `source` if its cut has been reached; whether it does now.

    `looked_us`: up to when it is known what the old transport has lost, None if it loses nothing.
    `ended`: nothing more can come of it. If it has not come to the cut, the rest is a gap.
    """

    def follow(now: LogState) -> Parts | None:
        if now.cut is None:
            return None
        at_us = now.cut.at_us
        known = looked_us is None or looked_us >= end_of_minute(at_us)
        reached = now.watermark_us - log.margin_us >= at_us and known
        return _switched(log, now, source, now.cut, reached) if reached or ended else None

    state = log.load()
    return log.commit(state, follow) or state.cut is None


def _switched(log: CaptureLog, state: LogState, source: Source, cut: Cut, reached: bool) -> Parts:
    assert state.stream is not None  # it is followed
    # Its deletion left no changes: what the old transport told to the end is not all.
    recreated = state.stream.table_id != source.table_id
    reached = reached and not recreated
    generation = state.generation + (1 if reached else 2)
    gap = Gap(
        cause="table recreated" if recreated else "new stream",
        shards=tuple(sorted(state.shards)),
        from_us=min(unread_from_us(log, state) - log.margin_us, cut.at_us),
        to_us=cut.at_us,
        heal_generation=state.generation + 1,
        margin_us=log.margin_us,
    )
    listed = source.shards.describe(source.arn)
    stream = source.ref(listed, generation, log.not_yet_us())
    return {
        "stream": replace(stream, since_us=cut.at_us),
        "forgotten": tuple(sorted(state.shards)),
        # What was written before came the other way.
        "shards": beginnings(listed, cut.at_us),
        "discovered_us": cut.at_us,
        "replicated_us": cut.at_us,
        "gap": None if reached else gap,
    }


def give_up_cut(log: CaptureLog, state: LogState) -> None:
    """Stay with the transport that the log follows, because the new one cannot be had.

    What was left out of it since the cut is a gap.
    """

    def give_up(now: LogState) -> Parts | None:
        if now.cut is None or now.stream is None:
            return None
        gap = new_gap(log, now, "new stream", (), min(now.cut.at_us, log.now_us()))
        stream = replace(now.stream, generation=now.generation + 2)
        return {"stream": stream, "cut": Cut(stream.transport, now.cut.at_us), "gap": gap}

    log.commit(state, give_up)
