"""A table's switch from one transport to another at a cutover time.

1. While both transports are enabled, a cutover time C is logged: a whole second in the future by
   AWS's clock, for any error of the local clock within the margin.
2. From then on, runs of the old transport leave out changes written at C or later. The old
   transport is read until the watermark has certainly reached C; until then the new one waits.
3. One entry makes the log follow the new transport, one generation later, from its oldest record;
   changes written before C are left out. No time lies between the two, so there is no gap.

Each change comes from exactly one of the two transports. Each step is one entry, so after a kill
the next run continues from the log.
"""

from dataclasses import replace

from cdc_pipeline.capture.landing.gaps import initial_shards, new_gap, unread_from_us
from cdc_pipeline.capture.landing.replication_losses import end_of_minute
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.entries import Cutover, Gap
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.storage.log import CaptureLog, Parts

_SECOND_US = 1_000_000


def begin_cutover(log: CaptureLog, state: LogState, source: Source) -> None:
    """Log the cutover time to `source`, unless it is logged already.

    Raises `SourceError` if the table does not write to `source` yet, or is being switched to
    another transport.
    """
    if state.cut is not None and state.cut.transport != source.transport:
        raise SourceError(
            f"table {source.table}: a switch to {state.cut.transport} is in progress",
            fix=f"set `transport: {state.cut.transport}` until it is done (cdc-pipeline status)",
        )

    def begin(now: LogState) -> Parts | None:
        if now.cut is not None:
            return None
        listed = source.shards.describe(source.arn)
        if listed.status != "ENABLED":
            raise SourceError(
                f"table {source.table}: its new transport {source.transport} is {listed.status}, "
                "so its log stays with the current transport",
                fix="wait until the table writes to the new transport, then capture again",
            )
        return {"cut": Cutover(source.transport, cutover_us(now, log.not_yet_us()))}

    log.commit(state, begin)


def cutover_us(state: LogState, now_us: int) -> int:
    """First whole second, in µs, after `now_us` and after all landed changes."""
    landed_us = state.last_change_us or 0
    return max(-(-now_us // _SECOND_US), landed_us // _SECOND_US + 1) * _SECOND_US


def complete_cutover(
    log: CaptureLog, source: Source, *, losses_until_us: int | None, has_ended: bool
) -> bool:
    """Make the log follow `source` once its cutover time is reached; return whether it does now.

    `losses_until_us`: end of the time whose losses on the old transport are known, None if it loses
    nothing. `has_ended`: the old transport gives no more records. If it ended before the cutover
    time, the rest is a gap.
    """

    def follow(now: LogState) -> Parts | None:
        if now.cut is None:
            return None
        at_us = now.cut.at_us
        has_loss_counts = losses_until_us is None or losses_until_us >= end_of_minute(at_us)
        is_reached = now.watermark_us - log.margin_us >= at_us and has_loss_counts
        return _switched(log, now, source, now.cut, is_reached) if is_reached or has_ended else None

    state = log.load()
    return log.commit(state, follow) or state.cut is None


def _switched(
    log: CaptureLog, state: LogState, source: Source, cut: Cutover, is_reached: bool
) -> Parts:
    assert state.stream is not None  # it is followed
    # Deleting a table writes no changes: the old transport is incomplete even at its end.
    is_recreated = state.stream.table_id != source.table_id
    is_reached = is_reached and not is_recreated
    generation = state.generation + (1 if is_reached else 2)
    gap = Gap(
        cause="table recreated" if is_recreated else "new stream",
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
        # Earlier changes came by the old transport.
        "shards": initial_shards(listed, cut.at_us),
        "discovered_us": cut.at_us,
        "replicated_us": cut.at_us,
        "gap": None if is_reached else gap,
    }


def abandon_cutover(log: CaptureLog, state: LogState) -> None:
    """Stay with the transport that the log follows, because the new one is not available.

    Changes left out since the cutover time are a gap.
    """

    def give_up(now: LogState) -> Parts | None:
        if now.cut is None or now.stream is None:
            return None
        gap = new_gap(log, now, "new stream", (), min(now.cut.at_us, log.now_us()))
        stream = replace(now.stream, generation=now.generation + 2)
        return {"stream": stream, "cut": Cutover(stream.transport, now.cut.at_us), "gap": gap}

    log.commit(state, give_up)
