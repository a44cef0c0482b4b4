"""Restoration of damaged landing objects: rows come from cdc if it has them, or are written off."""

import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.changes.order import generation_prefix
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.generations import heal_generations
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import EXPORT
from cdc_pipeline.lake.engine.duckdb_session import (
    arrow_table,
    files_relation,
    landed_relation,
    literal,
    open_duckdb,
)
from cdc_pipeline.lake.engine.masking import masking_of
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.cdc import CDC_SCHEMA, ROWS
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA, write_object
from cdc_pipeline.lake.storage.log import new_nonce


@dataclass
class RestoreResult:
    """Keys of landing objects whose rows were restored, and of those written off."""

    restored: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def restore_landing(table: TableLake, damaged: list[str]) -> RestoreResult:
    """Replace damaged landing objects through the capture log.

    `cdc` has every change of a day that was built since it landed. If the day was not built since,
    or is masked, the object is written off: its changes are missing when that day of `cdc` is built
    again, and time travel to times before the next baseline warns. Maintenance removes the files.
    """
    result, log = RestoreResult(), table.log
    for key in damaged:
        state = log.load()
        if key not in state.objects:
            continue  # replaced meanwhile by compaction or another repair
        others = [o for o in state.objects_of_day(state.objects[key].day) if o.key not in damaged]
        written = _from_cdc(table, state, state.objects[key], others)
        is_restored = written is not None
        parts = {"objects": written, "replaced": (key,)} if is_restored else {"lost": (key,)}
        log.commit(state, lambda now, k=key, parts=parts: parts if k in now.objects else None)
        (result.restored if is_restored else result.lost).append(key)
    return result


def _from_cdc(
    table: TableLake, state: LogState, landed: LandedObject, others: list[LandedObject]
) -> tuple[LandedObject, ...] | None:
    """Write new objects with the rows of `landed` that no other object has; None: cdc lacks some.

    Of rows that a heal landed, cdc omits changes with a captured record; they are not needed.
    """
    cdc = table.iceberg("cdc")
    if cdc is None or masking_of(table.lake.settings, table.settings, writing=True):
        return None
    if int(table_property(cdc, f"watermark.{landed.day}") or 0) < landed.entry:
        return None
    with (
        suppress(duckdb.Error),  # cdc is damaged as well
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
    ):
        built = files_relation(connection, data_files(cdc), CDC_SCHEMA)
        landed_elsewhere = landed_relation(connection, table.lake, others)
        first, last = literal(landed.min_position), literal(landed.max_position)
        rows = arrow_table(
            connection,
            f"SELECT * FROM {built} WHERE day = {literal(landed.day)} "
            f"AND generation = {landed.generation} AND position BETWEEN {first} AND {last} "
            f"AND uuid NOT IN (SELECT uuid FROM {landed_elsewhere}) ORDER BY shard_id, position",
        )
        is_healed = landed.generation in heal_generations(state)
        if rows.num_rows == landed.rows or (is_healed and _is_whole(table.lake, cdc, landed.day)):
            exact = rows.select(LANDING_SCHEMA.names).cast(LANDING_SCHEMA)
            if rows.num_rows != landed.rows:
                exact = pa.concat_tables([exact, _captured_lines(connection, built, landed)])
            return (_write(table, landed, exact),) if exact.num_rows else ()
    return None


def _captured_lines(
    connection: duckdb.DuckDBPyConnection, built: str, landed: LandedObject
) -> pa.Table:
    """Return export lines of changes that `cdc` has as captured records of earlier generations.

    `cdc` has these records at the positions of the lines and does not need the lines, but states
    are made in landing order.
    """
    prefix = generation_prefix(landed.generation)
    place = f"substr(order_key, {len(prefix) + 1})"
    names = ", ".join(LANDING_SCHEMA.names)
    return arrow_table(
        connection,
        f"SELECT {names} FROM (SELECT * REPLACE ('{EXPORT}' AS transport, '' AS event_id, "
        f"'' AS sequence_number, '' AS shard_id, {place} AS position) FROM {built} "
        f"WHERE day = {literal(landed.day)} AND generation < {landed.generation} "
        f"AND starts_with(order_key, {literal(prefix)}) AND {place} BETWEEN "
        f"{literal(landed.min_position)} AND {literal(landed.max_position)})",
    ).cast(LANDING_SCHEMA)


def _is_whole(lake: Lake, cdc: IcebergTable, day: str) -> bool:
    """Whether a day of cdc has all rows it was built with."""
    rows = lake.iceberg.rows_by_day(cdc).get(date.fromisoformat(day), 0)
    return table_property(cdc, f"{ROWS}.{day}") == str(rows)


def _write(table: TableLake, landed: LandedObject, rows: pa.Table) -> LandedObject:
    day, entry = date.fromisoformat(landed.day), landed.entry
    key = table.paths.compacted(day, entry, entry, new_nonce())
    return write_object(table.lake.store, key, [rows], landed.generation, through=entry)
