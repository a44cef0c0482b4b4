"""Damaged landing objects: their rows again from cdc where it still has them, or written off."""

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
from cdc_pipeline.lake.iceberg.tables import data_files, table_property
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.cdc import CDC_SCHEMA, ROWS
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA, write_object
from cdc_pipeline.lake.storage.log import new_nonce


@dataclass
class Restored:
    """Keys of landing objects whose rows are back in new ones, and of those written off."""

    restored: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def restore_landing(table: TableLake, damaged: list[str]) -> Restored:
    """Replace damaged landing objects through the capture log.

    `cdc` holds every change of a day that was built since it landed. Where it was not, or where it
    is masked, the object is written off: its changes are missing in `cdc` when that day is built
    again, and time travel to before the next baseline says so. Maintenance removes the files.
    """
    done, log = Restored(), table.log
    for key in damaged:
        state = log.load()
        if key not in state.objects:
            continue  # compaction or another repair was faster
        others = [o for o in state.objects_of_day(state.objects[key].day) if o.key not in damaged]
        made = _from_cdc(table, state, state.objects[key], others)
        found = made is not None
        parts = {"objects": made, "replaced": (key,)} if found else {"lost": (key,)}
        log.commit(state, lambda now, k=key, parts=parts: parts if k in now.objects else None)
        (done.restored if found else done.lost).append(key)
    return done


def _from_cdc(
    table: TableLake, state: LogState, landed: LandedObject, others: list[LandedObject]
) -> tuple[LandedObject, ...] | None:
    """New objects with the rows of `landed` that no other object has; None if cdc lacks some.

    Of what a heal landed cdc leaves out what captured records tell: nobody needs it.
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
        held = landed_relation(connection, table.lake, others)
        least, greatest = literal(landed.min_position), literal(landed.max_position)
        rows = arrow_table(
            connection,
            f"SELECT * FROM {built} WHERE day = {literal(landed.day)} "
            f"AND generation = {landed.generation} AND position BETWEEN {least} AND {greatest} "
            f"AND uuid NOT IN (SELECT uuid FROM {held}) ORDER BY shard_id, position",
        )
        told = landed.generation in heal_generations(state) and _is_whole(
            table.lake, cdc, landed.day
        )
        if rows.num_rows == landed.rows or told:
            exact = rows.select(LANDING_SCHEMA.names).cast(LANDING_SCHEMA)
            if rows.num_rows != landed.rows:
                exact = pa.concat_tables([exact, _told_lines(connection, built, landed)])
            return (_write(table, landed, exact),) if exact.num_rows else ()
    return None


def _told_lines(
    connection: duckdb.DuckDBPyConnection, built: str, landed: LandedObject
) -> pa.Table:
    """Lines that records of earlier generations tell, which stand in their places in `cdc`.

    `cdc` needs none of them, but states are made in the order of what landed.
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
    """Whether a day of cdc has all the rows that it was built with."""
    rows = lake.iceberg.rows_by_day(cdc).get(date.fromisoformat(day), 0)
    return table_property(cdc, f"{ROWS}.{day}") == str(rows)


def _write(table: TableLake, landed: LandedObject, rows: pa.Table) -> LandedObject:
    day, entry = date.fromisoformat(landed.day), landed.entry
    key = table.paths.compacted(day, entry, entry, new_nonce())
    return write_object(table.lake.store, key, [rows], landed.generation, through=entry)
