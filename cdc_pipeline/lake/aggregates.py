"""Aggregates as Iceberg tables: run one's query, commit its result whole or day by day."""

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.errors import NotReadyError, QueryError
from cdc_pipeline.lake.connection import connect_lake
from cdc_pipeline.lake.duck import arrow_table, explain
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.masked import (
    PUBLISHED,
    fingerprints,
    forget_earlier,
    masking_of,
    published_rules,
    sources_of,
)
from cdc_pipeline.lake.tables import CommitConflictError
from cdc_pipeline.transform.aggregates import AGGREGATES, Aggregate, load_aggregates

_ATTEMPTS = 5


@dataclass(frozen=True)
class AggregateResult:
    """A committed aggregate. `columns`: name and Arrow type."""

    rows: int
    columns: list[tuple[str, str]]
    seconds: float


def build_aggregate(lake: Lake, aggregate: Aggregate, day: date | None = None) -> AggregateResult:
    """Run the query and commit its result; a daily one replaces just `day`.

    Days that were built under other masking rules are rebuilt first. Overtaken by another commit
    it runs again.

    Raises `NotReadyError` when an input does not exist yet, `QueryError` for SQL that fails or
    reads what masking keeps from readers, `CommitConflictError`, `LakeError`, `SettingsError`.
    """
    _refuse_exact_inputs(lake, aggregate)
    every = load_aggregates(lake.settings.aggregates_folder)
    rules = fingerprints(lake, sources_of(lake, aggregate, every))
    before = lake.tables.load(aggregate.table)
    days: list[date | None] = [*lake.tables.days(before)] if before and day else [None]
    stale = [d for d in days if published_rules(before, d) != rules] if before else []
    for other in stale:
        if other != day:
            _build_at_last(lake, aggregate, other, rules)
    result, committed = _build_at_last(lake, aggregate, day, rules)
    if stale:
        forget_earlier(lake, committed)
    return result


def _refuse_exact_inputs(lake: Lake, aggregate: Aggregate) -> None:
    for schema, view in aggregate.inputs:
        if view not in ("raw_stream", "pitr_export") or schema == AGGREGATES:
            continue
        if masking_of(lake.settings, lake.settings.table(schema), writing=False):
            raise QueryError(
                f"aggregate {aggregate.name}: {schema}.{view} has the exact values of columns that "
                "the settings mask, and an aggregate would show them",
                fix=f"read {schema}.current_state, {schema}.cdc or {schema}.history",
            )


def _build_at_last(
    lake: Lake, aggregate: Aggregate, day: date | None, rules: str
) -> tuple[AggregateResult, IcebergTable]:
    for _ in range(_ATTEMPTS - 1):
        with suppress(CommitConflictError):
            return _build(lake, aggregate, day, rules)
    return _build(lake, aggregate, day, rules)


def _build(
    lake: Lake, aggregate: Aggregate, day: date | None, rules: str
) -> tuple[AggregateResult, IcebergTable]:
    started = time.monotonic()
    before = lake.tables.load(aggregate.table)
    known = {table.safe_name for table in lake.settings.tables}
    schemas = {schema for schema, _ in aggregate.inputs}
    with connect_lake(
        lake, sorted(schemas & known), aggregates=AGGREGATES in schemas
    ) as connection:
        try:
            parameters = {"day": day} if aggregate.daily else None
            rows = arrow_table(connection, aggregate.sql, parameters)
        except duckdb.CatalogException as error:
            named = ", ".join(".".join(pair) for pair in aggregate.inputs)
            raise NotReadyError(
                f"aggregate {aggregate.name}: {explain(error).splitlines()[0]}",
                fix=f"materialise its inputs first: {named}",
            ) from None
        except duckdb.Error as error:
            raise QueryError(f"aggregate {aggregate.name}: {explain(error)}") from None
    name, rows = aggregate.table, _storable(rows)
    if day is None:
        properties = {PUBLISHED: rules}
        committed = lake.tables.replace(name, rows.to_reader(), properties, over=before)
    else:
        rows, properties = _with_day(rows, day), {f"{PUBLISHED}.{day}": rules}
        committed = lake.tables.replace_day(name, day, rows.schema, [rows], properties, over=before)
    columns = [(field.name, str(field.type)) for field in rows.schema]
    return AggregateResult(rows.num_rows, columns, time.monotonic() - started), committed


def _with_day(rows: pa.Table, day: date) -> pa.Table:
    days = pa.array([day] * rows.num_rows, pa.date32())
    if "day" in rows.column_names:
        return rows.set_column(rows.column_names.index("day"), "day", days)
    return rows.append_column("day", days)


def _storable(rows: pa.Table) -> pa.Table:
    """Types that Iceberg lacks in the nearest exact ones: sums of integers are 128 bits wide."""
    fields = [pa.field(f.name, _iceberg_type(f.type)) for f in rows.schema]
    return rows.cast(pa.schema(fields))


def _iceberg_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_unsigned_integer(kind):
        return pa.int64() if kind.bit_width < 64 else pa.decimal128(38, 0)
    if pa.types.is_integer(kind) and kind.bit_width < 32:
        return pa.int32()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return kind
