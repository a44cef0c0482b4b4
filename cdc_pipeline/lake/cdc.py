"""cdc: one row per change, by write day, repeats of an identity removed."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa

from cdc_pipeline.lake.duck import arrow_batches, landed_relation, open_duckdb
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.landing import LANDING_SCHEMA
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
    landing objects has no rows and is no error. Overtaken by another commit it decides again;
    raises `CommitConflictError` when that happens again and again, `LakeError`.
    """
    for _ in range(_ATTEMPTS - 1):
        with suppress(CommitConflictError):
            return _build(lake, table, day)
    return _build(lake, table, day)


def _build(lake: Lake, table: Table, day: date) -> CdcDay:
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
        ):
            landed = landed_relation(connection, lake, objects)
            connection.execute(f"CREATE TEMP VIEW landed AS SELECT * FROM {landed}")
            for batch in arrow_batches(connection, load_sql("cdc"), _CHUNK_ROWS):
                rows += batch.num_rows
                chunk = pa.Table.from_batches([batch])
                days = pa.array([day] * batch.num_rows, pa.date32())
                yield chunk.append_column("day", days).cast(CDC_SCHEMA)

    properties = {f"watermark.{day.isoformat()}": str(state.n)}
    lake.tables.replace_day(name, day, CDC_SCHEMA, chunks(), properties, over=before)
    return CdcDay(
        day=day,
        rows=rows,
        duplicates=sum(landed.rows for landed in objects) - rows,
        objects=len(objects),
        watermark=state.n,
        seconds=time.monotonic() - started,
    )
