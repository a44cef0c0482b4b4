"""Capture up to a given time, for comparisons with the source."""

from cdc_pipeline.capture.run import Failed, capture_tables
from cdc_pipeline.capture.sources.reading import KinesisProtocol, StreamsProtocol
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.core.transports import FIREHOSE, KINESIS, KINESIS_CHANNEL
from cdc_pipeline.lake.lake import TableLake

_POLL_SECONDS = 5.0
"""Pause between two reads of the log while waiting."""
_LONGEST_PAUSE_SECONDS = 60.0
_TIMEOUT_SECONDS = 1800


def capture_to(
    table: TableLake,
    until_us: int,
    *,
    context: RunContext = SILENT,
) -> LogState:
    """Capture until everything written before `until_us` has landed; return the log state then.

    Entries of other captures count, and while they make progress this one waits. It captures
    itself only after a while without progress, not before a capture can prove completeness
    (`_proof_seconds`), and with growing pauses. Raises `NotReadyError` half an hour after that
    time, and the errors of a capture.
    """
    log = table.log
    state = log.load()
    due_us = until_us + int(_proof_seconds(table) * 1_000_000)
    give_up_us = max(log.now_us(), due_us) + _TIMEOUT_SECONDS * 1_000_000
    pause, not_before_us = _POLL_SECONDS, due_us
    while state.watermark_us < until_us or state.incomplete:
        now_us, reached_us = log.now_us(), state.watermark_us
        if now_us > give_up_us:
            raise NotReadyError(
                f"table {table.name} is captured only to {time_text(state.watermark_us)} UTC, "
                f"{time_text(until_us)} UTC is needed",
                fix="find out why the job `capture` makes no progress, then run this again",
            )
        status = f"captured to {time_text(reached_us)} UTC, {time_text(until_us)} UTC is needed"
        if now_us >= not_before_us:
            context.progress(f"{status}: capturing")
            _capture(table)
            not_before_us = log.now_us() + int(pause * 1_000_000)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            log.catch_up(state)
        else:
            wait_seconds = (not_before_us - now_us) / 1_000_000
            context.progress(f"{status}: waiting, capturing in {wait_seconds:.0f} s")
            context.sleep(min(wait_seconds + 0.01, _POLL_SECONDS))
            log.catch_up(state)
            if state.watermark_us > reached_us:
                # Another capture makes progress: wait for it.
                not_before_us = max(not_before_us, log.now_us() + int(pause * 1_000_000))
    return state


def _proof_seconds(table: TableLake) -> float:
    """Shortest delay, in seconds, after which a capture can prove a time complete.

    By then a listing of shards, or of Firehose's objects, covers that time.
    """
    lag = table.lake.settings.capture.listing_lag_seconds
    if table.settings.transport == FIREHOSE:
        assert table.settings.firehose is not None  # the settings require it
        return table.settings.firehose.lag_minutes * 60
    if table.settings.transport == KINESIS_CHANNEL:
        return table.settings.kinesis_channel.lag_minutes * 60
    if table.settings.transport == KINESIS:
        late_seconds, unused = table.settings.kinesis.late_seconds, Target(table.name, "", {})
        return KinesisProtocol(unused, late_seconds=late_seconds).listing_lag_seconds(lag)
    return StreamsProtocol().listing_lag_seconds(lag)


def _capture(table: TableLake) -> None:
    for event in capture_tables(table.lake, [table.settings], linger_seconds=0):
        if isinstance(event, Failed):
            raise event.error
