"""Capture up to a time, as whoever compares with the source needs it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from cdc_pipeline.capture.run import Failed, capture_tables
from cdc_pipeline.core.capture_log import LogState
from cdc_pipeline.core.errors import CaptureConflictError, NotReadyError
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import Table

_LONGEST_PAUSE = 5.0
_PATIENCE_SECONDS = 1800
Progress = Callable[[str], None]
Sleep = Callable[[float], object]


def capture_to(
    lake: Lake,
    table: Table,
    until_us: int,
    *,
    progress: Progress = lambda _: None,
    sleep: Sleep = time.sleep,
) -> LogState:
    """Capture until everything written before `until_us` has landed; returns the log then.

    Other captures may run at the same time: what they land counts as well. Raises
    `NotReadyError` after half an hour, and what a capture raises.
    """
    log = lake.log(table)
    started = log.clock()
    while True:
        state = log.load()
        if state.watermark_us >= until_us and not state.incomplete:
            return state
        if log.clock() - started > _PATIENCE_SECONDS:
            raise NotReadyError(
                f"table {table.name} is captured to {_time(state.watermark_us)} only, "
                f"{_time(until_us)} is needed",
                fix="see what keeps the job `capture` from getting there, then again",
            )
        wait = (until_us - log.now_us()) / 1_000_000
        if wait > 0:
            progress(f"waiting {wait:.0f} s, then capturing to {_time(until_us)}")
            sleep(min(wait + 0.01, _LONGEST_PAUSE))
        else:
            _capture(lake, table, sleep)


def _capture(lake: Lake, table: Table, sleep: Sleep) -> None:
    for event in capture_tables(lake, [table], linger_seconds=0):
        if isinstance(event, Failed):
            if not isinstance(event.error, CaptureConflictError):
                raise event.error
            sleep(1)  # another run captures; it gets there, too


def _time(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
