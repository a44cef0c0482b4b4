"""Retries of a capture run after another one landed first, from the new state of the log."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.core.errors import CaptureConflictError
from cdc_pipeline.lake.storage.log import CaptureLog

_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0


@dataclass
class Attempt:
    """One attempt at a table. `options`: with the remaining time; `is_again`: not the first one.

    `results`: one for each run of the attempt, added when the run begins, so that entries landed
    before a conflict count.
    """

    options: CaptureOptions
    is_again: bool = False
    results: list[CaptureResult] = field(default_factory=list)


def retry_when_overtaken(
    table: str,
    log: CaptureLog,
    options: CaptureOptions,
    sleep: Callable[[float], object],
    capture: Callable[[Attempt], CaptureResult],
) -> CaptureResult:
    """Call `capture` again after each conflict with another capture, within the time of `options`.

    Records read and not landed are dropped: the next attempt starts from the current log, so
    nothing is lost and nothing lands twice. Before it comes a random pause, longer after each
    conflict in a row until the run lands something, so that two lingering captures take turns.
    When the time is over, the result counts what has landed; the other capture or the next run
    lands the rest.
    """
    started, conflicts = log.clock(), 0
    before = CaptureResult(table)
    longest = max(options.max_run_seconds, options.linger_seconds)
    attempt = Attempt(options)
    while True:
        try:
            result = capture(attempt)
        except CaptureConflictError:
            conflicts = 1 if any(run.entries for run in attempt.results) else conflicts + 1
            # Shards that could not be read are tried again, and reported then.
            failed = {s: why for run in attempt.results for s, why in run.failed_shards.items()}
            for run in attempt.results:
                before.add(replace(run, failed_shards={}))
            pause = _pause_seconds(conflicts)
            spent = log.clock() - started + pause
            if spent >= longest:
                before.failed_shards = failed
                before.close(log.load(), log.clock() - started)
                return before
            sleep(pause)
            attempt = Attempt(
                replace(
                    options,
                    max_run_seconds=max(0.0, options.max_run_seconds - spent),
                    linger_seconds=max(0.0, options.linger_seconds - spent),
                ),
                is_again=True,
            )
        else:
            result.add(before)
            result.seconds = log.clock() - started
            return result


def _pause_seconds(conflicts: int) -> float:
    """Random part of a pause that doubles with each conflict in a row."""
    longest = min(_PAUSE_SECONDS * 2 ** min(conflicts - 1, 10), _LONGEST_PAUSE_SECONDS)
    return random.uniform(0.2, 1.0) * longest
