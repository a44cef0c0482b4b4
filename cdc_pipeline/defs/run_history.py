"""Runs as Dagster records them: runs in flight, failures in a row and their causes.

Sensors keep a `History` in their cursor, so that a restarted daemon continues from there.
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
"""Metadata key of a failed capture: the cause of failure by table."""

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
"""Runs that end at almost the same time may become visible out of order."""


@dataclass(frozen=True)
class ActiveRun:
    """A run that Dagster counts as not ended.

    `subjects`: see `subjects_of`. `signs_us`: times of its request and its start.
    """

    run_id: str
    subjects: list[str]
    is_queued: bool
    signs_us: list[int]


@dataclass(frozen=True)
class Transition:
    """A subject that began to fail, or recovered (`cause` None)."""

    subject: str
    run_id: str
    cause: str | None


def capture_subject(table: str) -> str:
    """Return the subject of runs that capture a table (by its label)."""
    return f"{CAPTURE} {table}"


def heal_subject(table: str) -> str:
    """Return the subject of runs that heal a table (by its label)."""
    return f"{HEAL} {table}"


def subjects_of(run: dg.DagsterRun, all_tables: Sequence[str]) -> list[str]:
    """Return the subjects of a run: tables captured or healed, assets, or else its job."""
    config: Any = run.run_config or {}
    if run.job_name == CAPTURE:
        chosen = _config_of(config, "capture_streams").get("tables") or all_tables
        return [capture_subject(table) for table in chosen]
    if run.job_name == HEAL:
        return [heal_subject(_config_of(config, "heal_gaps").get("table", ""))]
    return sorted(key.to_user_string() for key in run.asset_selection or ()) or [run.job_name]


def _config_of(config: Any, op: str) -> Any:
    return config.get("ops", {}).get(op, {}).get("config", {})


def active_runs(
    instance: dg.DagsterInstance, all_tables: Sequence[str], job_name: str | None = None
) -> list[ActiveRun]:
    """List the runs without a recorded end in Dagster, alive or not."""
    filters = dg.RunsFilter(job_name=job_name, statuses=_IN_FLIGHT)
    runs = []
    for record in instance.get_run_records(filters):
        run = record.dagster_run
        signs = [record.create_timestamp.timestamp(), record.start_time or 0]
        is_queued = run.status == dg.DagsterRunStatus.QUEUED
        signs_us = [int(seconds * 1_000_000) for seconds in signs]
        runs.append(ActiveRun(run.run_id, subjects_of(run, all_tables), is_queued, signs_us))
    return runs


def is_working(run: ActiveRun, state: LogState, now_us: int, silence_seconds: float) -> bool:
    """Return whether a run is queued, or its start or a table's log shows recent work."""
    wrote = [state.at_us] if is_by_run(state.last_owner, run.run_id) else []
    signs = [*run.signs_us, *wrote]
    return run.is_queued or is_alive(signs_us=signs, now_us=now_us, silence_seconds=silence_seconds)


class History(msgspec.Struct):
    """Failures in a row by subject. `after_us`, `taken`: time and ids of the last runs added."""

    after_us: int = 0
    taken: list[str] = []
    failures: dict[str, Failures] = {}

    def update(
        self, instance: dg.DagsterInstance, all_tables: Sequence[str], now_us: int
    ) -> list[Transition]:
        """Add the runs that ended since the last call; return what began to fail or recovered."""
        # Failures older than the longest pause have no effect any more.
        start_us = max(self.after_us - _OVERLAP_US, now_us - LONGEST_SECONDS * 1_000_000)
        filters = dg.RunsFilter(statuses=_ENDED, updated_after=utc(start_us))
        records = instance.get_run_records(
            filters, limit=_MOST_RUNS, order_by="update_timestamp", ascending=True
        )
        transitions: list[Transition] = []
        recent: list[str] = []
        for record in records:
            run, ended_us = record.dagster_run, _micros(record.update_timestamp)
            self.after_us = max(self.after_us, ended_us)
            recent.append(run.run_id)
            if run.run_id not in self.taken:
                transitions += self._add(instance, run, ended_us, all_tables)
        self.taken = recent
        return transitions

    def _add(
        self, instance: dg.DagsterInstance, run: dg.DagsterRun, ended_us: int, tables: Sequence[str]
    ) -> Iterable[Transition]:
        failed = _failed(instance, run, tables) if run.is_failure else {}
        is_by_hand = not _STARTED_BY_US & run.tags.keys()
        for subject in subjects_of(run, tables):
            before = self.failures.get(subject)
            if subject in failed:
                failures = fail(before, ended_us, failed[subject], by_hand=is_by_hand)
                self.failures[subject] = failures
                if before is None:
                    yield Transition(subject, run.run_id, failures.cause)
            elif before is not None and (run.is_success or failed):
                del self.failures[subject]
                yield Transition(subject, run.run_id, None)

    def forget(self, subject: str) -> None:
        """Remove the failures of a subject that recovered without a run."""
        self.failures.pop(subject, None)

    def pause_of(self, subject: str, now_us: int) -> str | None:
        """Return the reason why a subject is paused now, None if it is not."""
        failures = self.failures.get(subject)
        return failures.describe(now_us) if failures and failures.wait_seconds(now_us) else None


def parse_history(cursor: str | None) -> History:
    """Decode the history in a sensor's cursor; empty for a cursor in another format."""
    try:
        return msgspec.json.decode(cursor, type=History) if cursor else History()
    except msgspec.MsgspecError:
        return History()


def _failed(
    instance: dg.DagsterInstance, run: dg.DagsterRun, tables: Sequence[str]
) -> dict[str, str | None]:
    """Return the failed subjects of a run with their causes (None: ended without an error)."""
    subjects = subjects_of(run, tables)
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    steps = [entry.dagster_event for entry in events if entry.dagster_event is not None]
    if not steps:
        return dict.fromkeys(subjects)
    by_table = [_causes_by_table(step) for step in steps]
    if any(by_table):
        return {capture_subject(table): why for causes in by_table for table, why in causes.items()}
    causes = {step.step_key or "": cause_of(step) for step in steps}
    keys = {subject: subject.replace("/", "__") for subject in subjects}
    by_asset = {subject: causes[key] for subject, key in keys.items() if key in causes}
    return dict(by_asset or dict.fromkeys(subjects, "\n".join(causes.values())))


def _causes_by_table(step: dg.DagsterEvent) -> dict[str, str]:
    failure = step.step_failure_data.user_failure_data
    causes = failure.metadata.get(FAILED_TABLES) if failure else None
    return dict(causes.value) if isinstance(causes, dg.JsonMetadataValue) else {}  # type: ignore


def cause_of(event: dg.DagsterEvent) -> str:
    """Describe the failure of a step; of a foreign error only the class name.

    The text of a foreign error may quote data.
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
