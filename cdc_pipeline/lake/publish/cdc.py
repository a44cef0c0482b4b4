"""cdc: one row per change, by write day: no repeats, no export line of a captured change.

Changes of one time can land by a heal and by the stream: windows of exports extend past their gap,
and the stream's records may land after the heal. The captured record wins (rule in
`transform/sql/redundant_heals.sql`): only it has the TTL flag, the event id and the image before
the change. A change that was not captured has one row per item and window. Differences that only a
later baseline shows are rows with the transport `baseline` (`lake.publish.baseline_changes`).
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.generations import heal_generations
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, landed_relation, open_duckdb
from cdc_pipeline.lake.engine.masking import (
    PUBLISHED,
    masking_functions,
    masking_of,
    require_maskable_keys,
    require_rules,
    rules_by_day,
)
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baseline_changes import (
    BaselineChanges,
    compared_rows,
    days_to_compare,
)
from cdc_pipeline.lake.publish.daily import build_groups, days_under_other_rules
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA
from cdc_pipeline.transform.sql import load_sql

_MICROS = pa.timestamp("us", "UTC")
CDC_SCHEMA = pa.schema(
    [
        # Iceberg v2 has no timestamps in milliseconds.
        *(f.with_type(_MICROS) if pa.types.is_timestamp(f.type) else f for f in LANDING_SCHEMA),
        pa.field("generation", pa.int32()),
        pa.field("order_key", pa.string()),
        pa.field("day", pa.date32()),
    ]
)
"""The landing columns, then those from the log."""

ROWS = "rows"
"""Table property, with the day as suffix: the number of rows the day was built with."""

_RULES, _PRESENT_RULES = "rules", "3"
"""Table property with the version of the rules a day was built by, and the present version.

Days without it (version 1) have export lines beside and in place of captured records.
"""

_MASKED = (
    "* REPLACE (mask_item(keys) AS keys, mask_plain(new_image) AS data, "
    "mask_item(new_image) AS new_image, mask_item(old_image) AS old_image)"
)
_CHUNK_ROWS = 100_000
_FILE_ROWS = 20_000
_COMMIT_ROWS = 1_000_000


@dataclass(frozen=True)
class CdcDay:
    """One committed day. `duplicates`: landed rows that repeat another row's change.

    `seconds`: time to read it, 0 if the day was up to date already.
    """

    day: date
    rows: int
    duplicates: int
    objects: int
    watermark: int
    seconds: float


def build_cdc_day(table: TableLake, day: date) -> CdcDay:
    """Rebuild one write day; see `build_cdc_days`."""
    (built,) = build_cdc_days(table, [day])
    return built


def build_cdc_days(
    table: TableLake, days: Iterable[date], *, only_changed: bool = False
) -> Iterator[CdcDay]:
    """Rebuild write days of `<table>_cdc` from every landing object logged for them.

    Rewrites every given day, so that an explicit run is never a silent no-op. With `only_changed`,
    days without new landing objects stay as they are. Many days share a commit; each is yielded
    after its commit, and a killed run leaves what it had committed. A day without landing objects
    has no rows and is no error. Rebuilt first: days built under other masking rules, days with rows
    of a heal built by an older version, days without the differences of a later baseline. Retries
    after a commit conflict. Raises `CommitConflictError` after repeated conflicts, `LakeError`,
    `SettingsError` for masking that is not possible.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    before = table.iceberg("cdc")
    state = table.log.load()
    requested = sorted({*days})
    stale = days_under_other_rules(before, masking)
    outdated = days_to_compare(table.lake, before, state)
    outdated |= outdated_days(before, state) if before else set()
    others = sorted((stale | outdated) - {*requested})
    if only_changed and before and not stale:
        unchanged = [day for day in requested if day not in outdated]
        current = _current_days(table.lake, before, state, unchanged)
        yield from current
        requested = [day for day in requested if day not in {kept.day for kept in current}]
    built = build_groups(
        lambda group: _build(table, group, masking),
        _groups(state, others),
        _groups(state, requested),
        lake=table.lake,
        forget=bool(stale),
    )
    for group in built:
        yield from group


def _groups(state: LogState, days: Iterable[date]) -> Iterator[list[date]]:
    """Yield groups of neighbouring days that share a commit of some million rows."""
    counts: dict[str, int] = {}
    for landed in state.objects.values():
        counts[landed.day] = counts.get(landed.day, 0) + landed.rows
    group: list[date] = []
    rows = 0
    for day in days:
        group.append(day)
        rows += counts.get(day.isoformat(), 0)
        if rows >= _COMMIT_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def outdated_days(built: IcebergTable, state: LogState) -> set[date]:
    """Return days that an older version built and that have objects of a heal.

    Days of backfills need no rebuild: a backfill lands only changes that are not there yet.
    """
    healed = heal_generations(state)
    days = {o.day for o in state.objects.values() if o.generation in healed} if healed else set()
    return {
        date.fromisoformat(day)
        for day in days & rules_by_day(built).keys()
        if table_property(built, f"{_RULES}.{day}") != _PRESENT_RULES
    }


def _current_days(
    lake: Lake, built: IcebergTable, state: LogState, days: list[date]
) -> list[CdcDay]:
    """Return the days that were built after their last object was logged."""
    counts, current = lake.iceberg.rows_by_day(built), []
    for day in days:
        watermark = table_property(built, f"watermark.{day}")
        objects = state.objects_of_day(day.isoformat())
        if watermark is not None and all(o.entry <= int(watermark) for o in objects):
            rows = counts.get(day, 0)
            repeats = sum(o.rows for o in objects) - (rows - compared_rows(built, day))
            current.append(CdcDay(day, rows, repeats, len(objects), int(watermark), 0.0))
    return current


def require_rules_of_days(table: TableLake, built: IcebergTable, view: str = "cdc") -> None:
    """Raise `OtherRulesError` unless every day is masked by the rules of the settings."""
    masking = masking_of(table.lake.settings, table.settings, writing=False)
    published = rules_by_day(built).values()
    name = table.safe_name
    require_rules(masking, published, f"{name}.{view}", f"any day of {name}/{view}")


def _build(
    table: TableLake, days: list[date], masking: Masking
) -> tuple[list[CdcDay], IcebergTable]:
    name = f"{table.safe_name}_cdc"
    # Load the table before the log, so that a commit never replaces a table with an older state.
    before = table.lake.iceberg.load(name)
    state = table.log.load()
    from_baselines = BaselineChanges(table, before, state)
    rules = rules_by_day(before) if before else {}
    built: list[CdcDay] = []
    properties = {f"watermark.{day}": str(state.n) for day in days}
    properties |= {f"{PUBLISHED}.{day}": masking.fingerprint for day in days}
    properties |= {f"{_RULES}.{day}": _PRESENT_RULES for day in days}

    def batches() -> Iterator[pa.Table]:
        with (
            tempfile.TemporaryDirectory() as folder,
            open_duckdb(table.lake, Path(folder)) as connection,
            masking_functions(connection, masking),
        ):
            for day in days:
                started, rows = time.monotonic(), 0
                objects = state.objects_of_day(day.isoformat())
                for batch in _rows(connection, table, objects, masking) if objects else ():
                    rows += batch.num_rows
                    column = pa.array([day] * batch.num_rows, pa.date32())
                    yield batch.append_column("day", column).cast(CDC_SCHEMA)
                repeats, changes = sum(landed.rows for landed in objects) - rows, rows
                day_rules = rules.get(day.isoformat())
                for batch in from_baselines.rows(connection, day, masking, day_rules, CDC_SCHEMA):
                    rows += batch.num_rows
                    yield pa.Table.from_batches([batch])
                properties.update(from_baselines.properties(day, rows - changes))
                seconds = time.monotonic() - started
                properties[f"{ROWS}.{day}"] = str(rows)  # read after the last chunk
                built.append(CdcDay(day, rows, repeats, len(objects), state.n, seconds))

    chunks = _chunks(batches())
    committed = table.lake.iceberg.replace_days(
        name, days, CDC_SCHEMA, chunks, properties, over=before, key="keys"
    )
    return built, committed


def _rows(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    objects: list[LandedObject],
    masking: Masking,
) -> Iterator[pa.Table]:
    """Yield batches of the changes in these objects, masked, each change once."""
    landed = landed_relation(connection, table.lake, objects)
    require_maskable_keys(connection, table.settings, masking, f"SELECT keys FROM {landed}")
    # Before masking: images that differ only in a masked attribute are two changes.
    connection.execute(f"CREATE OR REPLACE TEMP VIEW landed AS SELECT * FROM {landed}")
    redundant = load_sql("redundant_heals")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE redundant_heals AS {redundant}")
    columns = _MASKED if masking else "*"
    connection.execute(f"CREATE OR REPLACE TEMP VIEW landed AS SELECT {columns} FROM {landed}")
    for batch in arrow_batches(connection, load_sql("cdc"), _CHUNK_ROWS):
        yield pa.Table.from_batches([batch])


def _chunks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the tables, small ones concatenated; files of a chunk are written in parallel."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(part.num_rows for part in pending) >= _FILE_ROWS:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)
