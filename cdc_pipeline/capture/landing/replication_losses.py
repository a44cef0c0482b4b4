"""Records that DynamoDB failed to write to a stream: it only counts them."""

from cdc_pipeline.capture.landing.gaps import losses_gap, recorded_local_us
from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.storage.log import CaptureLog

_MINUTE_US = 60_000_000
_COUNT_EVERY_US = 5 * _MINUTE_US


def record_losses(
    log: CaptureLog, lander: Lander, state: LogState, source: Source, result: CaptureResult
) -> int | None:
    """Open a gap over the time in which records were lost; at most every five minutes.

    Only times before the watermark are counted: a gap's heal beats everything landed before it, so
    changes older than a loss must have landed. A missing permission is a warning in `result`.
    Returns the end of the counted time, None for a source without losses.
    """
    losses = source.losses
    if losses is None or state.stream is None:
        return None
    since_us = start_of_minute(
        state.replicated_us or recorded_local_us(state.stream, log.margin_us)
    )
    # The metric's minutes are AWS's; the local clock and the watermark may be ahead of them.
    known_us = start_of_minute(log.now_us() - log.margin_us - losses.late_us)
    passed_us = state.watermark_us - log.margin_us
    until_us, least_us = min(known_us, start_of_minute(passed_us)), _COUNT_EVERY_US
    if state.cut is not None and passed_us >= state.cut.at_us:
        # Before a switch to another transport: up to the end of the minute of the cutover time.
        until_us, least_us = min(known_us, end_of_minute(state.cut.at_us)), _MINUTE_US
    if until_us - since_us < least_us:
        return since_us
    try:
        lost = losses.count(since_us, until_us)
    except SourceError as error:
        result.warnings.append(f"table {source.table}: lost records cannot be counted: {error}")
        return until_us
    lander.append(lambda: losses_gap(log, state, since_us, until_us, lost))
    if lost:
        result.gaps.append(state.gaps[state.n])
    return until_us


def start_of_minute(time_us: int) -> int:
    """Start of the minute of a time, in µs."""
    return time_us // _MINUTE_US * _MINUTE_US


def end_of_minute(time_us: int) -> int:
    """First whole minute at or after a time, in µs."""
    return -(-time_us // _MINUTE_US) * _MINUTE_US
