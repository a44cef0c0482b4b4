"""Results of raw_stream's checks as events of Dagster, for sensors and runs that are no asset runs.

An event that repeats the last one says nothing and costs more than the capture of an idle table. So
a capture that landed nothing reports a result only if the one that people see is another one, is
hidden, or is old.
"""

import time
from collections.abc import Iterable, Sequence

import dagster as dg

from cdc_pipeline.defs.tables.checks import checks_of, evaluation
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.table import Table

REPEAT_SECONDS = 6 * 3600
"""A result is reported again after this time: numbers that change all the time, such as hours
behind, are at most this old in the web interface."""

_ASSET = "raw_stream"
_Answer = tuple[bool, str, tuple[tuple[str, object], ...]]


class VisibleResults:
    """Results that people see at present of the checks of these tables' raw_stream."""

    def __init__(self, instance: dg.DagsterInstance, tables: Iterable[Table]) -> None:
        self._instance = instance
        self._tables = list(tables)
        self._seen: dict[dg.AssetCheckKey, _Answer] | None = None

    def shows(self, check: dg.AssetCheckEvaluation) -> bool:
        """Whether this result would say what people see already."""
        if self._seen is None:
            self._seen = self._read()
        return self._seen.get(check.asset_check_key) == _answer(check)

    def _read(self) -> dict[dg.AssetCheckKey, _Answer]:
        """Read them with one query for the results and one for the materialisations."""
        keys = [
            dg.AssetCheckKey(dg.AssetKey([table.safe_name, _ASSET]), name)
            for table in self._tables
            for name in checks_of(table)
        ]
        latest = self._instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
        landed = _materialized(self._instance, [key.asset_key for key in keys])
        seen: dict[dg.AssetCheckKey, _Answer] = {}
        oldest = time.time() - REPEAT_SECONDS
        for key, record in latest.items():
            # A planned check without a result, and a later materialisation, hide earlier results.
            result, at = record.evaluation, record.event.timestamp if record.event else 0.0
            is_seen = isinstance(result, dg.AssetCheckEvaluation)
            if is_seen and at > max(oldest, landed.get(key.asset_key, 0.0)):
                seen[key] = _answer(result)
        return seen


def report_checks(
    instance: dg.DagsterInstance, table: TableLake, *, unless: VisibleResults | None = None
) -> None:
    """Run raw_stream's checks now and record the results; `unless`: those not shown there."""
    state = table.log.look()
    for name, run_check in checks_of(table.settings).items():
        event = evaluation(table.settings, _ASSET, name, run_check(table, state))
        if unless is None or not unless.shows(event):
            instance.report_runless_asset_event(event)


def _answer(result: dg.AssetCheckEvaluation) -> _Answer:
    """Return what a result says: whether it passed, and its counts."""
    counts = (
        (name, value.value)
        for name, value in sorted(result.metadata.items())
        if isinstance(value, dg.IntMetadataValue)
    )
    return result.passed, result.severity.value, tuple(counts)


def _materialized(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetKey]
) -> dict[dg.AssetKey, float]:
    """Return when assets were last materialised, in seconds since the epoch."""
    entries = (record.asset_entry for record in instance.get_asset_records(sorted(set(keys))))
    return {
        entry.asset_key: entry.last_materialization_record.timestamp
        for entry in entries
        if entry.last_materialization_record is not None
    }
