"""Aggregates as assets: one per SQL file, its inputs found by parsing it."""

import time
from collections.abc import Sequence
from datetime import date

import dagster as dg

from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import arrow_columns
from cdc_pipeline.defs.partitions import daily
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.tables.checks import CURRENT_STATE
from cdc_pipeline.defs.tables.table import BACKFILL
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.transform.aggregates import (
    AGGREGATES,
    Aggregate,
    BrokenAggregate,
    broken_aggregates,
    load_aggregates,
)

_ASSET_OF_VIEW = {"history": "cdc"}


_VIEWS = ("pitr_export", "raw_stream", "cdc", "current_state", "history", "ttl_archive")


def usable_aggregates(settings: Settings) -> list[Aggregate]:
    """Those of the SQL files that can be built of the tables that the settings name."""
    found = load_aggregates(settings.aggregates_folder)
    return [
        a for a in found if _missing_table(a, settings) is None and _problem(a, settings) is None
    ]


def build_aggregate_defs(settings: Settings, usable: Sequence[Aggregate]) -> dg.Definitions:
    """An asset `aggregates/<name>` for every SQL file; one that cannot be built says why."""
    assets = [_aggregate(aggregate, settings) for aggregate in usable]
    broken = broken_aggregates(settings.aggregates_folder)
    for aggregate in load_aggregates(settings.aggregates_folder):
        problem = _missing_table(aggregate, settings) or _problem(aggregate, settings)
        if problem is not None:
            broken.append(BrokenAggregate(aggregate.name, problem))
    return dg.Definitions(assets=[*assets, *map(_broken, broken)])


def aggregate_errors(settings: Settings) -> dict[str, str | None]:
    """What is wrong with an aggregate, by asset, for those who wrote it; None: nothing.

    That the settings name no such table is not: in every checkout the examples wait for theirs.
    """
    folder = settings.aggregates_folder
    found = {a.name: _problem(a, settings) for a in load_aggregates(folder)}
    found |= {b.name: b.error for b in broken_aggregates(folder)}
    return {f"{AGGREGATES}/{name}": error for name, error in found.items()}


def _missing_table(aggregate: Aggregate, settings: Settings) -> str | None:
    names = [table.safe_name for table in settings.tables]
    for schema, view in aggregate.inputs:
        if schema not in (*names, AGGREGATES):
            return _said(
                aggregate,
                settings,
                f"reads {schema}.{view}, but the settings name no table {schema!r}; they name "
                f"{', '.join(names)}",
            )
    return None


def _problem(aggregate: Aggregate, settings: Settings) -> str | None:
    """Why it cannot be built of the tables that the settings name, if so."""
    tables = {table.safe_name: table for table in settings.tables}
    for name in tables:
        if aggregate.table.startswith(f"{name}_"):
            why = f"would be kept as {aggregate.table}, among the tables of {name!r}: rename it"
            return _said(aggregate, settings, why)
    for schema, view in aggregate.inputs:
        if schema not in tables:
            continue
        views = (*_VIEWS, *(rule.name for rule in tables[schema].entities))
        if view not in views:
            why = f"reads {schema}.{view}; the views of a table are {', '.join(views)}"
            return _said(aggregate, settings, why)
        if view == "ttl_archive" and not tables[schema].ttl_archive:
            why = f"reads {schema}.{view}, for which the table has to say ttl_archive: true"
            return _said(aggregate, settings, why)
    return None


def _said(aggregate: Aggregate, settings: Settings, problem: str) -> str:
    return f"{settings.aggregates_folder / aggregate.name}.sql: {problem}"


def _broken(aggregate: BrokenAggregate) -> dg.AssetsDefinition:
    @dg.asset(
        name=aggregate.name,
        key_prefix=AGGREGATES,
        group_name=AGGREGATES,
        description=f"This aggregate cannot be built.\n\n{aggregate.error}",
    )
    def broken() -> None:
        raise dg.Failure(description=aggregate.error, allow_retries=False)

    return broken


def _asset_of(schema: str, view: str, settings: Settings) -> str:
    """The asset that a view shows; views of entities show `current_state`."""
    entities = {(t.safe_name, rule.name) for t in settings.tables for rule in t.entities}
    return CURRENT_STATE if (schema, view) in entities else _ASSET_OF_VIEW.get(view, view)


def _aggregate(aggregate: Aggregate, settings: Settings) -> dg.AssetsDefinition:
    inputs = {(schema, _asset_of(schema, view, settings)) for schema, view in aggregate.inputs}

    @dg.asset(
        name=aggregate.name,
        key_prefix=AGGREGATES,
        group_name=AGGREGATES,
        deps=[dg.AssetKey(list(pair)) for pair in sorted(inputs)],
        kinds={"sql", "duckdb", "iceberg"},
        owners=[aggregate.owner] if aggregate.owner else None,
        partitions_def=daily(settings) if aggregate.daily else None,
        backfill_policy=BACKFILL if aggregate.daily else None,
        pool=aggregate.table,
        description=f"{aggregate.description}\n\n```sql\n{aggregate.sql.strip()}\n```",
    )
    def built(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        from cdc_pipeline.lake.query.aggregates import build_aggregate, build_days

        opened, rows, columns, started = lake.open(), 0, [], time.monotonic()
        with readable_failures():
            if not aggregate.daily:
                results = [build_aggregate(opened, aggregate)]
            else:
                days = map(date.fromisoformat, context.partition_keys)
                results = build_days(opened, aggregate, days)
            for result in results:
                rows, columns = rows + result.rows, result.columns
                if result.day:
                    numbers = {"dagster/partition_row_count": result.rows}
                    context.add_asset_metadata(numbers, partition_key=result.day.isoformat())
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": rows,
                "seconds": round(time.monotonic() - started, 2),
                "dagster/column_schema": arrow_columns(columns),
            }
        )

    return built
