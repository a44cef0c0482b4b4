"""What becomes of a capture run when another one lands first: it reads on from the new log."""

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
    """One go at a table. `options`: with what is left of the time; `is_again`: it is not the first.

    `results`: of its runs, put in as they begin, so that what they landed before they were
    overtaken counts.
    """

    options: CaptureOptions
    is_again: bool = False
    results: list[CaptureResult] = field(default_factory=list)


def until_not_overtaken(
    table: str,
    log: CaptureLog,
    options: CaptureOptions,
    sleep: Callable[[float], object],
    capture: Callable[[Attempt], CaptureResult],
) -> CaptureResult:
    """Attempt `capture` again whenever another capture was faster, for as long as `options` say.

    What the loser had read and not landed is forgotten: it begins again from what the log says
    now, so nothing is lost and nothing lands twice. Whoever loses pauses first, by chance and
    longer each time until it lands something, so that two that linger take turns. When the time is
    over the result is what was landed until then: the rest is the other one's, or the next run's.
    """
    started, losses = log.clock(), 0
    before = CaptureResult(table)
    longest = max(options.max_run_seconds, options.linger_seconds)
    attempt = Attempt(options)
    while True:
        try:
            result = capture(attempt)
        except CaptureConflictError:
            losses = 1 if any(lost.entries for lost in attempt.results) else losses + 1
            # Shards that could not be read are tried again, and told then.
            failed = {s: why for lost in attempt.results for s, why in lost.failed_shards.items()}
            for lost in attempt.results:
                before.add(replace(lost, failed_shards={}))
            pause = _pause_seconds(losses)
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


def _pause_seconds(losses: int) -> float:
    """Some part of a pause that doubles with each loss in a row."""
    longest = min(_PAUSE_SECONDS * 2 ** min(losses - 1, 10), _LONGEST_PAUSE_SECONDS)
    return random.uniform(0.2, 1.0) * longest
