"""What Dagster knows of runs: which are in flight, what failed in a row, and why.

Sensors keep a `History` in their cursor, so that a restarted daemon goes on where it was.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import msgspec

from cdc_pipeline.core.clock import utc
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.backoff import LONGEST_SECONDS, Failures, fail
from cdc_pipeline.core.plans.liveness import is_alive, is_by_run

CAPTURE, HEAL = "capture", "heal"
FAILED_TABLES = "failed_tables"
"""Metadata of a failed capture: why each table failed that did."""

_IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
_STARTED_BY_US = {"dagster/sensor_name", "dagster/schedule_name"}
_MOST_RUNS = 500
_OVERLAP_US = 10_000_000
"""Runs that ended at almost the same time may become visible in another order."""


@dataclass(frozen=True)
class Flight:
    """A run that Dagster counts as not ended. `signs_us`: when it was asked for, and began."""

    run_id: str
    works: list[str]
    queued: bool
    signs_us: list[int]


@dataclass(frozen=True)
class News:
    """Something failed that did not before, or (`cause` None) is well again."""

    work: str
    run_id: str
    cause: str | None


def capture_of(table: str) -> str:
    """What a run is about that captures a table (by its label)."""
    return f"{CAPTURE} {table}"


def heal_of(table: str) -> str:
    """What a run is about that heals a table (by its label)."""
    return f"{HEAL} {table}"


def works_of(run: dg.DagsterRun, all_tables: Sequence[str]) -> list[str]:
    """What a run is about: tables captured or healed, assets, or else its job."""
    config: Any = run.run_config or {}
    if run.job_name == CAPTURE:
        chosen = _config_of(config, "capture_streams").get("tables") or all_tables
        return [capture_of(table) for table in chosen]
    if run.job_name == HEAL:
        return [heal_of(_config_of(config, "heal_gaps").get("table", ""))]
    return sorted(key.to_user_string() for key in run.asset_selection or ()) or [run.job_name]


def _config_of(config: Any, op: str) -> Any:
    return config.get("ops", {}).get(op, {}).get("config", {})


def flights(
    instance: dg.DagsterInstance, all_tables: Sequence[str], job_name: str | None = None
) -> list[Flight]:
    """Every run that Dagster has not seen end, alive or not."""
    filters = dg.RunsFilter(job_name=job_name, statuses=_IN_FLIGHT)
    found = []
    for record in instance.get_run_records(filters):
        run = record.dagster_run
        signs = [record.create_timestamp.timestamp(), record.start_time or 0]
        queued = run.status == dg.DagsterRunStatus.QUEUED
        works = works_of(run, all_tables)
        found.append(Flight(run.run_id, works, queued, [int(s * 1_000_000) for s in signs]))
    return found


def is_at_work(flight: Flight, state: LogState, now_us: int, silence_seconds: float) -> bool:
    """Whether a run waits for its turn, or a table's log (or its beginning) shows that it lives."""
    wrote = [state.at_us] if is_by_run(state.last_owner, flight.run_id) else []
    signs = [*flight.signs_us, *wrote]
    return flight.queued or is_alive(signs_us=signs, now_us=now_us, silence_seconds=silence_seconds)


class History(msgspec.Struct):
    """Failures in a row by what failed; `after_us`, `taken`: which runs it has taken in."""

    after_us: int = 0
    taken: list[str] = []
    failures: dict[str, Failures] = {}

    def take_in(
        self, instance: dg.DagsterInstance, all_tables: Sequence[str], now_us: int
    ) -> list[News]:
        """Add the runs that ended since the last call."""
        # Longer ago than the longest pause nothing matters any more.
        start_us = max(self.after_us - _OVERLAP_US, now_us - LONGEST_SECONDS * 1_000_000)
        filters = dg.RunsFilter(statuses=_ENDED, updated_after=utc(start_us))
        records = instance.get_run_records(
            filters, limit=_MOST_RUNS, order_by="update_timestamp", ascending=True
        )
        news: list[News] = []
        recent: list[str] = []
        for record in records:
            run, ended_us = record.dagster_run, _micros(record.update_timestamp)
            self.after_us = max(self.after_us, ended_us)
            recent.append(run.run_id)
            if run.run_id not in self.taken:
                news += self._add(instance, run, ended_us, all_tables)
        self.taken = recent
        return news

    def _add(
        self, instance: dg.DagsterInstance, run: dg.DagsterRun, ended_us: int, tables: Sequence[str]
    ) -> Iterable[News]:
        failed = _failed(instance, run, tables) if run.is_failure else {}
        by_hand = not _STARTED_BY_US & run.tags.keys()
        for work in works_of(run, tables):
            before = self.failures.get(work)
            if work in failed:
                found = fail(before, ended_us, failed[work], by_hand=by_hand)
                self.failures[work] = found
                if before is None:
                    yield News(work, run.run_id, found.cause)
            elif before is not None and (run.is_success or failed):
                del self.failures[work]
                yield News(work, run.run_id, None)

    def forget(self, work: str) -> None:
        """It is well, though no run said so."""
        self.failures.pop(work, None)

    def pause_of(self, work: str, now_us: int) -> str | None:
        """Why something is left alone for now; None: it is not."""
        found = self.failures.get(work)
        return found.describe(now_us) if found and found.wait_seconds(now_us) else None


def parse_history(cursor: str | None) -> History:
    """The history in a sensor's cursor; none in one that a sensor of another kind has left."""
    try:
        return msgspec.json.decode(cursor, type=History) if cursor else History()
    except msgspec.MsgspecError:
        return History()


def _failed(
    instance: dg.DagsterInstance, run: dg.DagsterRun, tables: Sequence[str]
) -> dict[str, str | None]:
    """What of a failed run failed, and why (None: it ended without a word)."""
    works = works_of(run, tables)
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    steps = [entry.dagster_event for entry in events if entry.dagster_event is not None]
    if not steps:
        return dict.fromkeys(works)
    by_table = [_causes_by_table(step) for step in steps]
    if any(by_table):
        return {capture_of(table): why for found in by_table for table, why in found.items()}
    causes = {step.step_key or "": cause_of(step) for step in steps}
    by_asset = {work: causes[key] for work in works if (key := work.replace("/", "__")) in causes}
    return dict(by_asset or dict.fromkeys(works, "\n".join(causes.values())))


def _causes_by_table(step: dg.DagsterEvent) -> dict[str, str]:
    told = step.step_failure_data.user_failure_data
    found = told.metadata.get(FAILED_TABLES) if told else None
    return dict(found.value) if isinstance(found, dg.JsonMetadataValue) else {}  # type: ignore


def cause_of(event: dg.DagsterEvent) -> str:
    """What a failed step says of itself; of errors that are none of ours the kind alone.

    The text of such an error may quote what it stumbled over.
    """
    step = event.step_failure_data
    described = step.user_failure_data and step.user_failure_data.description
    if described:
        return f"{event.step_key}: {described}"
    error = step.error
    while error is not None and error.cause is not None:
        error = error.cause
    return f"{event.step_key}: {error.cls_name if error else 'unknown error'}; see the run's log"


def _micros(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1_000_000)
