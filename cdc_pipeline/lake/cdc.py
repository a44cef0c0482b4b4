"""cdc: one row per change, by write day, repeats of an identity removed."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.masking import Masking
from cdc_pipeline.lake.duck import arrow_batches, landed_relation, open_duckdb
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.landing import LANDING_SCHEMA
from cdc_pipeline.lake.masked import (
    PUBLISHED,
    days_under_rules,
    forget_earlier,
    masking_functions,
    masking_of,
    require_maskable_keys,
    require_rules,
)
from cdc_pipeline.lake.tables import CommitConflictError
from cdc_pipeline.settings import Table
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

_MASKED = (
    "* REPLACE (mask_item(keys) AS keys, mask_plain(new_image) AS data, "
    "mask_item(new_image) AS new_image, mask_item(old_image) AS old_image)"
)
_CHUNK_ROWS = 100_000
_ATTEMPTS = 5


@dataclass(frozen=True)
class CdcDay:
    """One built day. `duplicates`: landed rows that repeated another one's identity."""

    day: date
    rows: int
    duplicates: int
    objects: int
    watermark: int
    seconds: float


def build_cdc_day(lake: Lake, table: Table, day: date) -> CdcDay:
    """Rebuild one write day of `<table>_cdc` from every landing object logged for it.

    Always rewrites the day, so that an explicit run is never a silent no-op. A day without
    landing objects has no rows and is no error. Days that were built under other masking rules
    are rebuilt first. Overtaken by another commit it decides again; raises `CommitConflictError`
    when that happens again and again, `LakeError`, `SettingsError` for masking that cannot be.
    """
    masking = masking_of(lake.settings, table, writing=True)
    before = lake.tables.load(f"{table.safe_name}_cdc")
    published = days_under_rules(before) if before else {}
    stale = [date.fromisoformat(d) for d, rules in published.items() if not masking.made(rules)]
    for other in sorted({*stale} - {day}):
        _build_at_last(lake, table, other, masking)
    built, committed = _build_at_last(lake, table, day, masking)
    if stale:
        forget_earlier(lake, committed)
    return built


def require_rules_of_days(lake: Lake, table: Table, built: IcebergTable) -> None:
    """Raise `OtherRulesError` unless every day is masked as the settings say."""
    masking = masking_of(lake.settings, table, writing=False)
    published = days_under_rules(built).values()
    name = table.safe_name
    require_rules(masking, published, f"{name}.cdc", f"any day of {name}/cdc")


def _build_at_last(
    lake: Lake, table: Table, day: date, masking: Masking
) -> tuple[CdcDay, IcebergTable]:
    for _ in range(_ATTEMPTS - 1):
        with suppress(CommitConflictError):
            return _build(lake, table, day, masking)
    return _build(lake, table, day, masking)


def _build(lake: Lake, table: Table, day: date, masking: Masking) -> tuple[CdcDay, IcebergTable]:
    started = time.monotonic()
    name = f"{table.safe_name}_cdc"
    # The table before the log: what is committed over it is then never older than it.
    before = lake.tables.load(name)
    state = lake.log(table).load()
    objects = state.objects_of_day(day.isoformat())
    rows = 0

    def chunks() -> Iterator[pa.Table]:
        nonlocal rows
        with (
            tempfile.TemporaryDirectory() as folder,
            open_duckdb(lake, Path(folder)) as connection,
            masking_functions(connection, masking),
        ):
            landed = landed_relation(connection, lake, objects)
            require_maskable_keys(connection, table, masking, f"SELECT keys FROM {landed}")
            columns = _MASKED if masking else "*"
            connection.execute(f"CREATE TEMP VIEW landed AS SELECT {columns} FROM {landed}")
            for batch in arrow_batches(connection, load_sql("cdc"), _CHUNK_ROWS):
                rows += batch.num_rows
                chunk = pa.Table.from_batches([batch])
                days = pa.array([day] * batch.num_rows, pa.date32())
                yield chunk.append_column("day", days).cast(CDC_SCHEMA)

    properties = {f"watermark.{day}": str(state.n), f"{PUBLISHED}.{day}": masking.fingerprint}
    committed = lake.tables.replace_day(name, day, CDC_SCHEMA, chunks(), properties, over=before)
    built = CdcDay(
        day=day,
        rows=rows,
        duplicates=sum(landed.rows for landed in objects) - rows,
        objects=len(objects),
        watermark=state.n,
        seconds=time.monotonic() - started,
    )
    return built, committed
