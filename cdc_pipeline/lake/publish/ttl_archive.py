"""ttl_archive: items that DynamoDB's TTL deleted, with their last image, by the day they went.

Made from `cdc`, a day from the same day. A delete says itself what it deleted where the stream has
old images; elsewhere the item's change before it does, or the baseline that it was in. Deletes by
users are not in it, nor those of which nobody knows whose they are (from exports).
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
from cdc_pipeline.lake.engine.masking import PUBLISHED, masked, masking_functions, masking_of
from cdc_pipeline.lake.iceberg.tables import data_files, table_property
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
"""`_item`, exact typed JSON, and `data`, plain JSON, are null where the last image is not known."""

_CHUNK_ROWS = 20_000


@dataclass(frozen=True)
class ArchiveDay:
    """One built day. `unknown`: items of which no image is known."""

    day: date
    rows: int
    unknown: int
    watermark: int
    seconds: float


def build_archive_day(table: TableLake, day: date) -> ArchiveDay:
    """Rebuild one day of `<table>_ttl_archive` from `<table>_cdc` and the baselines.

    Days that were built under other masking rules are rebuilt first. Raises `NotReadyError` where
    `cdc` was never built, `OtherRulesError` where it was under other rules, `CommitConflictError`
    when it is overtaken again and again, `LakeError`, `SettingsError`.
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
    # The table before what it is made from: what is committed over it is never older than it.
    before = table.lake.iceberg.load(name)
    cdc = table.iceberg("cdc")
    if cdc is None:
        raise NotReadyError(
            f"{table.safe_name}/ttl_archive: there is no cdc of table {table.name} yet",
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
                baselines = _baselines(connection, table, masked(masking, "_key"))
                items = masked(masking, "_item")
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
    """Table `expired`: the day's deletes by TTL; whether any lacks its old image."""
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
    """Table `images`: what changes and baselines say of the items whose deletes do not say it.

    An event without a new image makes the item unknown, until the read behind it says what it is.
    """
    changes = files_relation(connection, data_files(cdc), CDC_SCHEMA)
    wanted = "keys IN (SELECT keys FROM expired WHERE old_image IS NULL)"
    connection.execute(
        "CREATE TEMP TABLE images AS "
        f"SELECT keys, order_key, new_image AS item FROM {changes} "
        f"WHERE {wanted} "
        f"UNION ALL SELECT keys, _order_key AS order_key, {item} AS item "
        f"FROM ({baselines}) WHERE {wanted}"
    )


def _baselines(connection: duckdb.DuckDBPyConnection, table: TableLake, key: str) -> str:
    """SQL for the items of every baseline."""
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
