"""Records that DynamoDB could not write to a stream: it counts them and goes on."""

from cdc_pipeline.capture.landing.gaps import losses_gap, noted_us
from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.storage.log import CaptureLog

_MINUTE_US = 60_000_000
_LOOK_EVERY_US = 5 * _MINUTE_US


def look_for_losses(
    log: CaptureLog, lander: Lander, state: LogState, source: Source, result: CaptureResult
) -> int | None:
    """Open a gap over the time in which records were lost; at most every five minutes.

    Only time that capture has passed is looked at: a gap's heal beats all that landed before it, so
    what is older than a loss must have landed. Not being allowed to ask is a warning in `result`.
    Returns up to when that is done, None for a source that loses nothing.
    """
    losses = source.losses
    if losses is None or state.stream is None:
        return None
    since_us = minute(state.replicated_us or noted_us(state.stream, log.margin_us))
    # The metric's minutes are AWS's; our clock may be ahead of them, and so may the watermark.
    known_us = minute(log.now_us() - log.margin_us - losses.late_us)
    passed_us = state.watermark_us - log.margin_us
    until_us, least_us = min(known_us, minute(passed_us)), _LOOK_EVERY_US
    if state.cut is not None and passed_us >= state.cut.at_us:
        # Before a switch to another transport, everything up to the end of the cut's minute.
        until_us, least_us = min(known_us, end_of_minute(state.cut.at_us)), _MINUTE_US
    if until_us - since_us < least_us:
        return since_us
    try:
        lost = losses.count(since_us, until_us)
    except SourceError as error:
        result.warnings.append(f"table {source.table}: unknown whether records are lost: {error}")
        return until_us
    lander.append(lambda: losses_gap(log, state, since_us, until_us, lost))
    if lost:
        result.gaps.append(state.gaps[state.n])
    return until_us


def minute(time_us: int) -> int:
    """The whole minute that a time is in."""
    return time_us // _MINUTE_US * _MINUTE_US


def end_of_minute(time_us: int) -> int:
    """The first whole minute that is not before a time."""
    return -(-time_us // _MINUTE_US) * _MINUTE_US
