"""cdc: one row per change, by write day: no repeats, no export line of a change that was captured.

What a heal landed need not be all that is known of its time: windows of exports reach past their
gap, and the stream's own records of that time may land after the heal. A captured record wins
(`transform/sql/told.sql` has the rule): it alone knows the TTL flag, the event id and the image
right before it. What nobody captured is there once per item and window. What a later baseline shows
and no change says is there, too, with the transport `baseline` (`lake.publish.rebased`).
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
    days_under_rules,
    masking_functions,
    masking_of,
    require_maskable_keys,
    require_rules,
)
from cdc_pipeline.lake.iceberg.tables import table_property
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.daily import build_groups, days_under_other_rules
from cdc_pipeline.lake.publish.rebased import Rebased, compared_rows, days_to_compare
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA
from cdc_pipeline.transform.sql import load_sql

_MICROS = pa.timestamp("us", "UTC")
CDC_SCHEMA = pa.schema(
    [
        # Iceberg v2 knows no milliseconds.
        *(f.with_type(_MICROS) if pa.types.is_timestamp(f.type) else f for f in LANDING_SCHEMA),
        pa.field("generation", pa.int32()),
        pa.field("order_key", pa.string()),
        pa.field("day", pa.date32()),
    ]
)
"""The landing columns, then what the log adds."""

ROWS = "rows"
"""The table property (with the day behind it) that says how many rows a day was built with."""

_RULES, _PRESENT_RULES = "rules", "3"
"""The table property that says by which rules a day was built, and the present ones.

Days without it (1): lines of exports stood beside and in place of captured records.
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
    """One day as it stands. `duplicates`: landed rows that repeated another one's change.

    `seconds`: what reading it took, 0 when it stood already.
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

    Always rewrites a day, so that an explicit run is never a silent no-op, unless `only_changed`
    says that days which nothing has landed for since are left as they are. Many days share a
    commit, each yielded once it stands; a killed run leaves what it had committed. A day without
    landing objects has no rows and is no error. Days that were built under other masking rules,
    those with rows of a heal that an older version built, and those that lack what a later baseline
    shows are rebuilt first. Overtaken by another commit it decides again; raises
    `CommitConflictError` when that happens again and again, `LakeError`, `SettingsError` for
    masking that cannot be.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    before = table.iceberg("cdc")
    state = table.log.load()
    asked = sorted({*days})
    stale = days_under_other_rules(before, masking)
    outdated = days_to_compare(table.lake, before, state)
    outdated |= outdated_days(before, state) if before else set()
    others = sorted((stale | outdated) - {*asked})
    if only_changed and before and not stale:
        unchanged = [day for day in asked if day not in outdated]
        current = _current_days(table.lake, before, state, unchanged)
        yield from current
        asked = [day for day in asked if day not in {kept.day for kept in current}]
    built = build_groups(
        lambda group: _build(table, group, masking),
        _groups(state, others),
        _groups(state, asked),
        lake=table.lake,
        forget=bool(stale),
    )
    for group in built:
        yield from group


def _groups(state: LogState, days: Iterable[date]) -> Iterator[list[date]]:
    """Neighbouring days that share a commit: many, and some million rows."""
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
    """Days that an older version built and that a heal landed something for.

    Backfills compare with what is there before they land.
    """
    healed = heal_generations(state)
    days = {o.day for o in state.objects.values() if o.generation in healed} if healed else set()
    return {
        date.fromisoformat(day)
        for day in days & days_under_rules(built).keys()
        if table_property(built, f"{_RULES}.{day}") != _PRESENT_RULES
    }


def _current_days(
    lake: Lake, built: IcebergTable, state: LogState, days: list[date]
) -> list[CdcDay]:
    """Days that were built after the last object of theirs was logged."""
    counts, found = lake.iceberg.rows_by_day(built), []
    for day in days:
        watermark = table_property(built, f"watermark.{day}")
        objects = state.objects_of_day(day.isoformat())
        if watermark is not None and all(o.entry <= int(watermark) for o in objects):
            rows = counts.get(day, 0)
            repeats = sum(o.rows for o in objects) - (rows - compared_rows(built, day))
            found.append(CdcDay(day, rows, repeats, len(objects), int(watermark), 0.0))
    return found


def require_rules_of_days(table: TableLake, built: IcebergTable, view: str = "cdc") -> None:
    """Raise `OtherRulesError` unless every day is masked as the settings say."""
    masking = masking_of(table.lake.settings, table.settings, writing=False)
    published = days_under_rules(built).values()
    name = table.safe_name
    require_rules(masking, published, f"{name}.{view}", f"any day of {name}/{view}")


def _build(
    table: TableLake, days: list[date], masking: Masking
) -> tuple[list[CdcDay], IcebergTable]:
    name = f"{table.safe_name}_cdc"
    # The table before the log: what is committed over it is then never older than it.
    before = table.lake.iceberg.load(name)
    state = table.log.load()
    rebased, rules = Rebased(table, before, state), days_under_rules(before) if before else {}
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
                of_day = rules.get(day.isoformat())
                for batch in rebased.rows(connection, day, masking, of_day, CDC_SCHEMA):
                    rows += batch.num_rows
                    yield pa.Table.from_batches([batch])
                properties.update(rebased.properties(day, rows - changes))
                seconds = time.monotonic() - started
                properties[f"{ROWS}.{day}"] = str(rows)  # read behind the last chunk
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
    """The changes in some objects, masked, each once, in batches."""
    landed = landed_relation(connection, table.lake, objects)
    require_maskable_keys(connection, table.settings, masking, f"SELECT keys FROM {landed}")
    # Before masking: images that differ in a masked attribute alone are of two changes.
    connection.execute(f"CREATE OR REPLACE TEMP VIEW landed AS SELECT * FROM {landed}")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE told AS {load_sql('told')}")
    columns = _MASKED if masking else "*"
    connection.execute(f"CREATE OR REPLACE TEMP VIEW landed AS SELECT {columns} FROM {landed}")
    for batch in arrow_batches(connection, load_sql("cdc"), _CHUNK_ROWS):
        yield pa.Table.from_batches([batch])


def _chunks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Small ones put together, whose files are then written side by side."""
    gathered: list[pa.Table] = []
    for found in tables:
        gathered.append(found)
        if sum(table.num_rows for table in gathered) >= _FILE_ROWS:
            yield pa.concat_tables(gathered)
            gathered = []
    if gathered:
        yield pa.concat_tables(gathered)
