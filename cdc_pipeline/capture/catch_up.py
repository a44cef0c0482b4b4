"""Capture up to a time, as whoever compares with the source needs it."""

from cdc_pipeline.capture.run import Failed, capture_tables
from cdc_pipeline.capture.sources.reading import KinesisReading, StreamsReading
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.core.transports import FIREHOSE, KINESIS, KINESIS_CHANNEL
from cdc_pipeline.lake.lake import TableLake

_LOOK_SECONDS = 5.0
"""Between two looks at the log, while something else is waited for."""
_LONGEST_PAUSE_SECONDS = 60.0
_PATIENCE_SECONDS = 1800


def capture_to(
    table: TableLake,
    until_us: int,
    *,
    context: RunContext = SILENT,
) -> LogState:
    """Capture until everything written before `until_us` has landed; returns the log then.

    What other captures land counts as well, and while they land this one waits for them. It
    captures itself only when nobody else has come closer for a while, not before a capture could
    prove that nothing is missing (`_proof_seconds`), and with pauses that grow. Raises
    `NotReadyError` when half an hour after that it is not there, and what a capture raises.
    """
    log = table.log
    state = log.load()
    due_us = until_us + int(_proof_seconds(table) * 1_000_000)
    patient_us = max(log.now_us(), due_us) + _PATIENCE_SECONDS * 1_000_000
    pause, not_before_us = _LOOK_SECONDS, due_us
    while state.watermark_us < until_us or state.incomplete:
        now_us, reached_us = log.now_us(), state.watermark_us
        if now_us > patient_us:
            raise NotReadyError(
                f"table {table.name} is captured to {time_text(state.watermark_us)} UTC only, "
                f"{time_text(until_us)} UTC is needed",
                fix="see what keeps the job `capture` from getting there, then again",
            )
        captured = f"captured to {time_text(reached_us)} UTC, {time_text(until_us)} UTC is needed"
        if now_us >= not_before_us:
            context.progress(f"{captured}: capturing")
            _capture(table)
            not_before_us = log.now_us() + int(pause * 1_000_000)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            log.catch_up(state)
        else:
            left = (not_before_us - now_us) / 1_000_000
            context.progress(f"{captured}: waiting, capturing in {left:.0f} s")
            context.sleep(min(left + 0.01, _LOOK_SECONDS))
            log.catch_up(state)
            if state.watermark_us > reached_us:
                # Somebody else captures: it gets there, too.
                not_before_us = max(not_before_us, log.now_us() + int(pause * 1_000_000))
    return state


def _proof_seconds(table: TableLake) -> float:
    """How long after a time a capture can say at the earliest that all written before has landed.

    By then a listing of shards, or of Firehose's objects, vouches for that time.
    """
    lag = table.lake.settings.capture.listing_lag_seconds
    if table.settings.transport == FIREHOSE:
        assert table.settings.firehose is not None  # the settings say so
        return table.settings.firehose.lag_minutes * 60
    if table.settings.transport == KINESIS_CHANNEL:
        return table.settings.kinesis_channel.lag_minutes * 60
    if table.settings.transport == KINESIS:
        late_seconds, nobody = table.settings.kinesis.late_seconds, Target(table.name, "", {})
        return KinesisReading(nobody, late_seconds=late_seconds).listing_lag_seconds(lag)
    return StreamsReading().listing_lag_seconds(lag)


def _capture(table: TableLake) -> None:
    for event in capture_tables(table.lake, [table.settings], linger_seconds=0):
        if isinstance(event, Failed):
            raise event.error
