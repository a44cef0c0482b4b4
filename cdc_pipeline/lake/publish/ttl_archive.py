"""ttl_archive: items deleted by DynamoDB's TTL, with their last image, by day of deletion.

Each day is made from the same day of `cdc`. The last image is the delete's old image if the stream
has one, else the image of the item's change before it or of its baseline. Not included: deletes by
users, and deletes of unknown cause (from exports).
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.items.attributes import plain_json
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, files_relation, open_duckdb
from cdc_pipeline.lake.engine.masking import PUBLISHED, masked_column, masking_functions, masking_of
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.baselines import kept_baselines
from cdc_pipeline.lake.publish.cdc import CDC_SCHEMA, require_rules_of_days
from cdc_pipeline.lake.publish.daily import build_groups, days_under_other_rules
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline.transform.sql import load_sql

ARCHIVE_SCHEMA = pa.schema(
    [
        pa.field("keys", pa.string()),
        pa.field("expired_at", pa.timestamp("us", "UTC")),
        pa.field("order_key", pa.string()),
        pa.field("day", pa.date32()),
        pa.field("_item", pa.string()),
        pa.field("data", pa.string()),
        pa.field("is_ttl_delete", pa.bool_()),
    ]
)
"""`_item` (exact typed JSON) and `data` (plain JSON) are null if the last image is unknown."""

_CHUNK_ROWS = 20_000


@dataclass(frozen=True)
class ArchiveDay:
    """One built day. `unknown`: number of items without a known image."""

    day: date
    rows: int
    unknown: int
    watermark: int
    seconds: float


def build_archive_day(table: TableLake, day: date) -> ArchiveDay:
    """Rebuild one day of `<table>_ttl_archive` from `<table>_cdc` and the baselines.

    Days built under other masking rules are rebuilt first. Raises `NotReadyError` if `cdc` was
    never built, `OtherRulesError` if it was built under other rules, `CommitConflictError` after
    repeated conflicts, `LakeError`, `SettingsError`.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    before = table.iceberg("ttl_archive")
    stale = days_under_other_rules(before, masking)
    (built,) = build_groups(
        lambda day: _build(table, day),
        sorted(stale - {day}),
        [day],
        lake=table.lake,
        forget=bool(stale),
    )
    return built


def _build(table: TableLake, day: date) -> tuple[ArchiveDay, IcebergTable]:
    started = time.monotonic()
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    name = f"{table.safe_name}_ttl_archive"
    # Load the table before its input, so that a commit never replaces it with an older state.
    before = table.lake.iceberg.load(name)
    cdc = table.iceberg("cdc")
    if cdc is None:
        raise NotReadyError(
            f"{table.safe_name}/ttl_archive: table {table.name} has no cdc yet",
            fix=f"materialise {table.safe_name}/cdc first",
        )
    require_rules_of_days(table, cdc)
    watermark = table_property(cdc, f"watermark.{day}") or "0"
    rows = unknown = 0

    def chunks() -> Iterator[pa.Table]:
        nonlocal rows, unknown
        with (
            tempfile.TemporaryDirectory() as folder,
            open_duckdb(table.lake, Path(folder)) as connection,
            masking_functions(connection, masking),
        ):
            images = _create_expired(connection, cdc, day)
            if images:
                baselines = _baselines(connection, table, masked_column(masking, "_key"))
                items = masked_column(masking, "_item")
                _create_images(connection, cdc, baselines, items)
            else:
                connection.execute(f"CREATE TEMP VIEW images AS {_NO_IMAGES}")
            for batch in arrow_batches(connection, load_sql("ttl_archive"), _CHUNK_ROWS):
                chunk = _archived(batch, day)
                rows, unknown = rows + chunk.num_rows, unknown + chunk["_item"].null_count
                yield chunk

    properties = {f"watermark.{day}": watermark, f"{PUBLISHED}.{day}": masking.fingerprint}
    committed = table.lake.iceberg.replace_days(
        name, [day], ARCHIVE_SCHEMA, chunks(), properties, over=before, key="keys"
    )
    seconds = time.monotonic() - started
    return ArchiveDay(day, rows, unknown, int(watermark), seconds), committed


_NO_IMAGES = "SELECT keys, order_key, CAST(NULL AS VARCHAR) AS item FROM expired WHERE false"


def _create_expired(connection: duckdb.DuckDBPyConnection, cdc: IcebergTable, day: date) -> bool:
    """Create table `expired`, the day's deletes by TTL; return whether any has no old image."""
    changes = files_relation(connection, data_files(cdc), CDC_SCHEMA)
    connection.execute(
        "CREATE TEMP TABLE expired AS SELECT keys, time_stamp, order_key, old_image "
        f"FROM {changes} WHERE day = DATE '{day}' AND op = 'D' AND is_ttl_delete"
    )
    sql = "SELECT count(*) FROM expired WHERE old_image IS NULL"
    return connection.execute(sql).fetchall()[0][0] > 0


def _create_images(
    connection: duckdb.DuckDBPyConnection, cdc: IcebergTable, baselines: str, item: str
) -> None:
    """Create table `images`: images from changes and baselines, for deletes without an old image.

    After an event without a new image the item is unknown until the read that follows it.
    """
    changes = files_relation(connection, data_files(cdc), CDC_SCHEMA)
    lacks_image = "keys IN (SELECT keys FROM expired WHERE old_image IS NULL)"
    connection.execute(
        "CREATE TEMP TABLE images AS "
        f"SELECT keys, order_key, new_image AS item FROM {changes} "
        f"WHERE {lacks_image} "
        f"UNION ALL SELECT keys, _order_key AS order_key, {item} AS item "
        f"FROM ({baselines}) WHERE {lacks_image}"
    )


def _baselines(connection: duckdb.DuckDBPyConnection, table: TableLake, key: str) -> str:
    """Return SQL for the items of every baseline."""
    snapshot = table.iceberg("snapshot")
    relations = [
        files_relation(connection, data_files(snapshot, baseline.snapshot_id), typed_schema([]))
        for baseline in kept_baselines(table.log.load())
        if snapshot is not None
    ] or [files_relation(connection, [], typed_schema([]))]
    return " UNION ALL ".join(
        f"SELECT {key} AS keys, _order_key, _item FROM {relation}" for relation in relations
    )


def _archived(batch: pa.RecordBatch, day: date) -> pa.Table:
    items = batch.column("item").to_pylist()
    columns = {
        "keys": batch.column("keys"),
        "expired_at": batch.column("expired_at"),
        "order_key": batch.column("order_key"),
        "day": pa.array([day] * len(items), pa.date32()),
        "_item": batch.column("item"),
        "data": pa.array([item and plain_json(json.loads(item)) for item in items], pa.string()),
        "is_ttl_delete": pa.array([True] * len(items)),
    }
    return pa.table(columns).cast(ARCHIVE_SCHEMA)
