"""Passes over a table by a process that stays: short captures, each going on where one stopped.

A pass reads each shard once or a few times and does not wait for the proof that it has reached the
tip: the passes after it prove that together.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date

from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.run import Landed, Unregistered, capture_one, capture_options
from cdc_pipeline.capture.shards.cursors import Cursors
from cdc_pipeline.capture.shards.shard_reader import polls_needed
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.transports import IN_FILES
from cdc_pipeline.lake.lake import TableLake

LONGEST_SECONDS = 5.0
"""A pass over a backlog ends after this time, so that the other tables get their turn."""

_PROOF_SECONDS = 240
"""Within this time passes prove a tip: less than the lag of listings, on which the watermark waits
anyway (`capture.listing_lag_seconds`)."""
_SOURCE_SECONDS = 60.0
"""How long an opened stream is used. A table made anew in between is noticed as much later; its old
stream stays readable for a day."""
_RELIST_SECONDS = 60.0
"""AWS allows ten listings a second in an account."""


class Passes:
    """The passes over one table, one at a time; what one of them learns is used by the next."""

    def __init__(
        self,
        table: TableLake,
        every_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        capture = capture_options(table.lake, linger_seconds=0)
        self._table = table
        self._clock = clock
        self._options = replace(
            capture,
            max_run_seconds=min(capture.max_run_seconds, LONGEST_SECONDS),
            empty_reads=reads_per_pass(capture.empty_polls, every_seconds),
            relist_seconds=_RELIST_SECONDS,
        )
        self._cursors = Cursors()
        self._registered: set[date] = set()
        self._source: Source | None = None
        self._opened = -math.inf

    def run(self, report: Callable[[Landed | Unregistered], object]) -> CaptureResult:
        """Make one pass; raises the errors of `capture_one`, after which the next begins anew."""
        try:
            return capture_one(
                self._table,
                self._options,
                report,
                source=self._kept_source(),
                opened=self._keep,
                cursors=self._cursors,
                registered=self._registered,
            )
        except BaseException:
            self._source = None
            self._registered.clear()
            self._table.log.doubt()
            raise

    def _kept_source(self) -> Source | None:
        source = self._source
        if source is None or self._clock() - self._opened >= _SOURCE_SECONDS:
            return None
        # A switch of transports decides anew which stream is read.
        return None if self._table.log.look().cut else source

    def _keep(self, source: Source) -> None:
        # Objects in S3 are listed anew by each run.
        self._source = None if source.transport in IN_FILES else source
        self._opened = self._clock()


def reads_per_pass(empty_polls: int, every_seconds: float) -> int:
    """Number of empty reads of a shard and pass, with which passes prove its tip in time."""
    needed = polls_needed(empty_polls, _PROOF_SECONDS * 1_000_000)
    return max(1, min(needed, math.ceil(needed * every_seconds / _PROOF_SECONDS)))
