"""Builds of aggregates: run the query, commit the result to Iceberg, whole or day by day."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.errors import NotReadyError, QueryError
from cdc_pipeline.lake.engine.duckdb_session import explain, statement
from cdc_pipeline.lake.engine.duckdb_types import storable_table
from cdc_pipeline.lake.engine.masking import (
    PUBLISHED,
    fingerprints,
    masking_of,
    published_rules,
    sources_of,
)
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.daily import build_groups
from cdc_pipeline.lake.publish.staleness import Staleness, inputs_property
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.transform.aggregates import AGGREGATES, Aggregate, load_aggregates

_COMMIT_DAYS = 100


@dataclass(frozen=True)
class AggregateResult:
    """A committed aggregate, or one day of it. `columns`: name and Arrow type."""

    day: date | None
    rows: int
    columns: list[tuple[str, str]]
    seconds: float


def build_aggregate(lake: Lake, aggregate: Aggregate, day: date | None = None) -> AggregateResult:
    """Run the query and commit its result; a daily one replaces `day` only. See `build_days`."""
    (result,) = _build_parts(lake, aggregate, [day])
    return result


def build_days(lake: Lake, aggregate: Aggregate, days: Iterable[date]) -> Iterator[AggregateResult]:
    """Run a daily aggregate's query for each day and commit the results, many days per commit.

    Each day is yielded after its commit; a killed run leaves what it had committed. Days built
    under other masking rules are rebuilt first. After a commit conflict it runs again.

    Raises `NotReadyError` if an input does not exist yet, `QueryError` for SQL that fails or reads
    values hidden by masking, `CommitConflictError`, `LakeError`, `SettingsError`.
    """
    yield from _build_parts(lake, aggregate, sorted({*days}))


def _build_parts(
    lake: Lake, aggregate: Aggregate, days: Sequence[date | None]
) -> Iterator[AggregateResult]:
    _refuse_exact_inputs(lake, aggregate)
    every = load_aggregates(lake.settings.aggregates_folder)
    rules = fingerprints(lake, sources_of(lake, aggregate, every))
    before = lake.iceberg.load(aggregate.table)
    existing: list[date | None] = [*lake.iceberg.days(before)] if before and any(days) else [None]
    stale = [d for d in existing if published_rules(before, d) != rules] if before else []
    others = [day for day in stale if day not in days]
    built = build_groups(
        lambda group: _build(lake, aggregate, group, rules),
        _groups(others),
        _groups(days),
        lake=lake,
        forget=bool(stale),
    )
    for results in built:
        yield from results


def _groups(days: Sequence[date | None]) -> Iterator[Sequence[date | None]]:
    """Yield days that share a connection and a commit; their results are in memory together."""
    for start in range(0, len(days), _COMMIT_DAYS):
        yield days[start : start + _COMMIT_DAYS]


def _refuse_exact_inputs(lake: Lake, aggregate: Aggregate) -> None:
    for schema, view in aggregate.inputs:
        if view not in ("raw_stream", "pitr_export") or schema == AGGREGATES:
            continue
        if masking_of(lake.settings, lake.settings.table(schema), writing=False):
            raise QueryError(
                f"aggregate {aggregate.name}: {schema}.{view} has the exact values of columns that "
                "the settings mask, and the aggregate would show them",
                fix=f"read {schema}.current_state, {schema}.cdc or {schema}.history",
            )


def _build(
    lake: Lake, aggregate: Aggregate, days: Sequence[date | None], rules: str
) -> tuple[list[AggregateResult], IcebergTable]:
    before = lake.iceberg.load(aggregate.table)
    # Read the inputs' versions before the inputs: rows are never older than their recorded version.
    staleness = Staleness(lake)
    made_of = {
        inputs_property(day): json.dumps(staleness.versions(aggregate, day and day.isoformat()))
        for day in days
    }
    known = {table.safe_name for table in lake.settings.tables}
    schemas = {schema for schema, _ in aggregate.inputs}
    results, parts = [], []
    with connect_lake(
        lake, sorted(schemas & known), aggregates=AGGREGATES in schemas
    ) as connection:
        for day in days:
            started = time.monotonic()
            rows = _run(connection, aggregate, day)
            columns = [(field.name, str(field.type)) for field in rows.schema]
            seconds = time.monotonic() - started
            results.append(AggregateResult(day, rows.num_rows, columns, seconds))
            parts.append(rows)
    name, rows = aggregate.table, pa.concat_tables(parts)
    written = [day for day in days if day is not None]
    if not written:
        properties = {PUBLISHED: rules, **made_of}
        committed = lake.iceberg.replace(name, rows.to_reader(), properties, over=before)
    else:
        properties = {f"{PUBLISHED}.{day}": rules for day in written} | made_of
        chunks = [rows] if rows.num_rows else []
        committed = lake.iceberg.replace_days(
            name, written, rows.schema, chunks, properties, over=before
        )
    return results, committed


def _run(connection: duckdb.DuckDBPyConnection, aggregate: Aggregate, day: date | None) -> pa.Table:
    try:
        parameters = {"day": day} if aggregate.daily else None
        relation = connection.sql(statement(aggregate.sql), params=parameters)
        if relation is None:
            raise QueryError(f"aggregate {aggregate.name}: the SQL returns no result")
        rows = storable_table(relation, f"aggregate {aggregate.name}")
    except duckdb.CatalogException as error:
        inputs = ", ".join(".".join(pair) for pair in aggregate.inputs)
        raise NotReadyError(
            f"aggregate {aggregate.name}: {explain(error).splitlines()[0]}",
            fix=f"materialise its inputs first: {inputs}",
        ) from None
    except duckdb.Error as error:
        raise QueryError(f"aggregate {aggregate.name}: {explain(error)}") from None
    return rows if day is None else _with_day(rows, day)


def _with_day(rows: pa.Table, day: date) -> pa.Table:
    days = pa.array([day] * rows.num_rows, pa.date32())
    if "day" in rows.column_names:
        return rows.set_column(rows.column_names.index("day"), "day", days)
    return rows.append_column("day", days)
