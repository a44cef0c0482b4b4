"""Athena queries on a table: its tables in the catalogue, and a script with the queries."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime

from cdc_pipeline.core.clock import utc
from cdc_pipeline.core.errors import QueryError
from cdc_pipeline.core.items.attributes import to_json
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.erasure import typed_key
from cdc_pipeline.lake.engine.duckdb_session import connect_duckdb, landed_relation
from cdc_pipeline.lake.engine.item_table import prior_columns
from cdc_pipeline.lake.engine.live_rows import live_relation
from cdc_pipeline.lake.engine.masking import masking_of
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.state.base import Base, published_base
from cdc_pipeline.transform.athena import CataloguedTable, athena_statements

_HEADING = """\
-- Queries on {database}.{table}_* for Athena (Trino SQL). Athena charges for the bytes it reads.
-- There is no query for current_state merged with the changes that landed since: the valid objects
-- and their order are in the capture log, which Athena cannot read. `cdc-pipeline query` does this.
"""
_VALUE = "put the value here"


def athena_script(
    table: TableLake, names: Sequence[str] = (), key: str | None = None
) -> Iterator[str]:
    """Yield the parts of a script with the queries of these names; no names: all queries.

    `key`: JSON of an item's key, plain or typed, for the queries on one item. Raises `QueryError`
    for unknown names, `EraseRefusedError` for a key that does not fit the table, `LakeError`,
    `SettingsError`.
    """
    statements = {s.name: s for s in athena_statements(catalogued(table, key))}
    unknown = [name for name in names if name not in statements]
    if unknown:
        raise QueryError(
            f"there is no query {unknown[0]!r} for {table.safe_name}",
            fix=f"use one of: {', '.join(statements) or 'none yet, nothing has landed'}",
        )
    yield _HEADING.format(database=table.lake.database, table=table.safe_name)
    if not table.lake.settings.is_s3:
        yield "-- This lake is a local folder: Athena reads S3 only.\n"
    elif table.lake.settings.catalog_type == "s3tables":
        yield "-- Iceberg tables: choose the catalogue s3tablescatalog/<table bucket>.\n"
    elif not table.lake.settings.has_glue:
        yield "-- This lake's catalogue is not in AWS: Athena cannot read it.\n"
    if not statements:
        yield "-- The catalogue is still empty: run the job `capture`.\n"
    for statement in statements.values():
        if not names or statement.name in names:
            notes = statement.notes.replace("\n", "\n-- ")
            yield f"\n-- {statement.name}\n-- {notes}\n{statement.sql};\n"


def catalogued(table: TableLake, key: str | None = None) -> CataloguedTable:
    """Return the content of the catalogue for this table, as of now."""
    state, base = table.log.load(), published_base(table)
    cdc = table.iceberg("cdc")
    archive = table.iceberg("ttl_archive") if table.settings.ttl_archive else None
    baseline = state.baselines.get(base.generation) if base else state.staged
    landed = [date.fromisoformat(landed.day) for landed in state.objects.values()]
    return CataloguedTable(
        database=table.lake.database,
        table=table.safe_name,
        key=_key(table, state, base, key),
        columns=prior_columns(base.table) if base else (),
        published_at=_published_at(base),
        complete_to=_complete_to(base),
        cdc_day=max(table.lake.iceberg.days(cdc), default=None) if cdc else None,
        landed_day=max(landed, default=None),
        baseline=baseline.snapshot_id if baseline else None,
        has_ttl_archive=archive is not None,
        keep_snapshot_days=table.lake.settings.maintenance.keep_snapshot_days,
    )


def _published_at(base: Base | None) -> datetime | None:
    """Return the first whole second after the commit of the present snapshot."""
    snapshot = base.table.current_snapshot() if base else None
    return datetime.fromtimestamp(snapshot.timestamp_ms // 1000 + 1, UTC) if snapshot else None


def _complete_to(base: Base | None) -> datetime | None:
    watermark_us = int(table_property(base.table, "watermark_us") or 0) if base else 0
    return utc(watermark_us) if watermark_us else None


def _key(table: TableLake, state: LogState, base: Base | None, key: str | None) -> str:
    """Return `key` as stored in the tables; None: a template of the table's key."""
    example = _example_key(table.lake, state, base)
    if example is None:
        return to_json({_VALUE: {"S": ""}})
    types = {name: tag for name, value in json.loads(example).items() for tag in value}
    if key is None:
        return to_json({name: {tag: _VALUE} for name, tag in sorted(types.items())})
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    return masking.item(typed_key(key, types))


def _example_key(lake: Lake, state: LogState, base: Base | None) -> str | None:
    """Return any key of the table, an exact one if possible: a hash has another type."""
    newest = sorted(state.objects.values(), key=lambda landed: landed.entry)[-1:]
    with connect_duckdb(lake) as connection:
        landed = landed_relation(connection, lake, newest)
        sources = [f"SELECT keys FROM {landed} WHERE keys IS NOT NULL"]
        if base is not None:
            files = live_relation(connection, base.table)
            sources.append(f"SELECT _key FROM {files}")
        for source in sources:
            if row := connection.execute(f"{source} LIMIT 1").fetchone():
                return row[0]
    return None
