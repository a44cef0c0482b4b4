"""Differences that only a later baseline shows, as rows of `cdc` on the day of its export.

A baseline taken after a break (a table recreated or restored, a gap older than the backups, a
repair) replaces the state before it. Without these rows `history` would keep the earlier versions
as current. They are derived from landing objects and baselines like all of `cdc`, so lakes of older
versions get them with the next build.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.changes.change import content_identity
from cdc_pipeline.core.changes.order import SNAPSHOT_POSITION, order_key
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.items.attributes import plain_json
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import Baseline, LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import BASELINE
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, files_relation, landed_relation
from cdc_pipeline.lake.engine.folding import create_base, create_effective, create_exact_winners
from cdc_pipeline.lake.engine.live_rows import placed_files
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.state.base import handover_us
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline.transform.sql import load_sql

COMPARED = "compared"
"""Table property, with the day as suffix: the baselines that were compared, and their rows."""

_BATCH_ROWS = 4_000  # two images of up to 400 kB each


@dataclass(frozen=True)
class BaselineComparison:
    """A baseline and the one before it (None: only changes are before it), to be compared.

    `until_us`: changes of the baseline's generation written up to this time explain differences.
    """

    baseline: Baseline
    before: Baseline | None
    until_us: int

    @property
    def day(self) -> date:
        """Day of `cdc` with the rows of this comparison."""
        return day_of(self.baseline.export_time_us)

    @property
    def name(self) -> str:
        """Id of the pair of baselines."""
        before = self.before.snapshot_id if self.before else 0
        return f"{self.baseline.generation}:{self.baseline.snapshot_id}:{before}"

    def older(self, state: LogState) -> list[LandedObject]:
        """Return the objects with changes between the baseline before and this one."""
        first = self.before.generation if self.before else 0
        objects = state.objects.values()
        return [o for o in objects if first <= o.generation < self.baseline.generation]

    def explaining(self, state: LogState) -> list[LandedObject]:
        """Return the objects whose changes may explain differences."""
        return [
            o
            for o in state.objects.values()
            if o.generation >= self.baseline.generation and o.min_write_us <= self.until_us
        ]


def comparisons(
    lake: Lake, built: IcebergTable | None, state: LogState
) -> list[BaselineComparison]:
    """Return the comparisons that are possible now, by generation.

    The newest baseline waits until every change that may explain it has landed, and waits once
    only: a later gap lowers the watermark again. The first baseline has no comparison unless
    changes of an earlier generation have landed.
    """
    staged = sorted((b for b in state.baselines.values() if b.is_staged), key=_generation)
    possible, before = [], None
    for baseline in staged:
        comparison = BaselineComparison(baseline, before, handover_us(lake, baseline))
        waits = baseline is staged[-1] and state.watermark_us < comparison.until_us
        if waits and comparison.name not in _property(built, comparison.day).get("baselines", ()):
            break
        if before or comparison.older(state):
            possible.append(comparison)
        before = baseline
    return possible


def days_to_compare(lake: Lake, built: IcebergTable | None, state: LogState) -> set[date]:
    """Return the days of `cdc` not compared yet, or compared before other changes landed."""
    by_day: dict[date, list[BaselineComparison]] = {}
    for comparison in comparisons(lake, built, state):
        by_day.setdefault(comparison.day, []).append(comparison)
    return {day for day, every in by_day.items() if not _is_compared(built, state, day, every)}


def compared_rows(built: IcebergTable, day: date) -> int:
    """Return the number of a day's rows from comparisons."""
    return _property(built, day).get("rows", 0)


def _generation(baseline: Baseline) -> int:
    return baseline.generation


def _property(built: IcebergTable | None, day: date) -> dict:
    text = table_property(built, f"{COMPARED}.{day}") if built else None
    return json.loads(text or "{}")


def _is_compared(
    built: IcebergTable | None, state: LogState, day: date, every: list[BaselineComparison]
) -> bool:
    compared = _property(built, day)
    if compared.get("baselines") != [comparison.name for comparison in every]:
        return False
    return not any(
        landed.entry > compared["watermark"]
        for comparison in every
        for landed in comparison.older(state) + comparison.explaining(state)
    )


class BaselineChanges:
    """Source of these rows while days of `cdc` are built over `built` at the log's `state`."""

    def __init__(self, table: TableLake, built: IcebergTable | None, state: LogState) -> None:
        self._table, self._built, self._state = table, built, state
        self._every = comparisons(table.lake, built, state)

    def rows(
        self,
        connection: duckdb.DuckDBPyConnection,
        day: date,
        masking: Masking,
        rules: str | None,
        schema: pa.Schema,
    ) -> Iterator[pa.RecordBatch]:
        """Yield a day's rows in `schema`. `rules`: masking rules of the day as built before.

        A comparison reads two whole baselines, so rows that are still valid are copied.
        """
        every = [comparison for comparison in self._every if comparison.day == day]
        if not every:
            return
        is_same = rules is not None and masking.fingerprint == rules
        if is_same and self._built and _is_compared(self._built, self._state, day, every):
            files = files_relation(connection, data_files(self._built), schema)
            sql = f"SELECT * FROM {files} WHERE day = DATE '{day}' AND transport = '{BASELINE}'"
            for batch in arrow_batches(connection, sql, _BATCH_ROWS):
                yield batch.select(schema.names).cast(schema)
            return
        for comparison in every:
            self._compare(connection, comparison)
            for batch in arrow_batches(connection, load_sql("baseline_changes"), _BATCH_ROWS):
                yield _as_changes(batch, comparison, masking, self._table_id, schema)

    def properties(self, day: date, rows: int) -> dict[str, str]:
        """Return the table property of a day with this number of rows; {} if it needs none."""
        names = [comparison.name for comparison in self._every if comparison.day == day]
        compared = {"baselines": names, "watermark": self._state.n, "rows": rows}
        is_needed = bool(names or _property(self._built, day))
        return {f"{COMPARED}.{day}": json.dumps(compared)} if is_needed else {}

    @property
    def _table_id(self) -> str:
        return self._state.stream.table_id if self._state.stream else ""

    def _compare(
        self, connection: duckdb.DuckDBPyConnection, comparison: BaselineComparison
    ) -> None:
        """Create the inputs of `baseline_changes.sql`, unmasked: masking can make items equal."""
        snapshot = self._table.iceberg("snapshot")
        assert snapshot is not None  # baselines were committed, by the log
        before = comparison.before
        files = data_files(snapshot, before.snapshot_id) if before else []
        create_base(connection, self._table.settings, placed_files(connection, files), Masking())
        create_exact_winners(connection, self._table.lake, comparison.older(self._state))
        create_effective(connection)
        left = f"SELECT item_key, item FROM ({load_sql('fold')})"
        connection.execute(f"CREATE OR REPLACE TEMP VIEW earlier AS {left}")
        files = data_files(snapshot, comparison.baseline.snapshot_id)
        items = files_relation(connection, files, typed_schema([]))
        # History begins with capture: items without any change are not in it.
        touched = "" if before else "WHERE _key IN (SELECT item_key FROM changes)"
        connection.execute(
            "CREATE OR REPLACE TEMP VIEW baseline AS "
            f"SELECT _key AS item_key, _item AS item FROM {items} {touched}"
        )
        landed = landed_relation(connection, self._table.lake, comparison.explaining(self._state))
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE explained AS SELECT DISTINCT keys AS item_key "
            f"FROM {landed} WHERE write_time_us <= {comparison.until_us}"
        )


def _as_changes(
    batch: pa.RecordBatch,
    comparison: BaselineComparison,
    masking: Masking,
    table_id: str,
    schema: pa.Schema,
) -> pa.RecordBatch:
    baseline, time_us = comparison.baseline, comparison.baseline.export_time_us
    rows = batch.to_pylist()
    for row in rows:
        exact = (row["op"], row["new_image"], row["old_image"])
        row["uuid"] = content_identity(table_id, row["keys"], time_us, *exact)
        for name in ("keys", "new_image", "old_image"):
            row[name] = masking.item(row[name]) if row[name] is not None else None
        new = row["new_image"]
        row["data"] = plain_json(json.loads(new)) if new is not None else None
        row |= {
            "time_stamp": time_us,
            "write_time_us": time_us,
            "position": SNAPSHOT_POSITION,
            "sequence_number": "",
            "shard_id": "",
            "event_id": "",
            "is_ttl_delete": None if row["op"] == "D" else False,
            "transport": BASELINE,
            "landed_at": baseline.staged_us or time_us,
            "generation": baseline.generation,
            "order_key": order_key(baseline.generation, SNAPSHOT_POSITION),
            "day": comparison.day,
        }
    columns = [_column([row[field.name] for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(values: list, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array(values, pa.int64()).cast(kind)
    return pa.array(values, kind)
