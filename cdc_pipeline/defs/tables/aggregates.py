"""Aggregates as assets: one per SQL file; its inputs come from parsing the SQL."""

import time
from collections.abc import Sequence
from datetime import date

import dagster as dg

from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import aggregate_metadata
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
    """Return the aggregates whose SQL can be built from the tables of the settings."""
    return [
        aggregate
        for aggregate in load_aggregates(settings.aggregates_folder)
        if _missing_table(aggregate, settings) is None and _problem(aggregate, settings) is None
    ]


def build_aggregate_defs(settings: Settings, usable: Sequence[Aggregate]) -> dg.Definitions:
    """Build an asset `aggregates/<name>` per SQL file; a broken one fails with its reason."""
    assets = [_aggregate(aggregate, settings) for aggregate in usable]
    broken = broken_aggregates(settings.aggregates_folder)
    for aggregate in load_aggregates(settings.aggregates_folder):
        problem = _missing_table(aggregate, settings) or _problem(aggregate, settings)
        if problem is not None:
            broken.append(BrokenAggregate(aggregate.name, problem))
    return dg.Definitions(assets=[*assets, *map(_broken, broken)])


def aggregate_errors(settings: Settings) -> dict[str, str | None]:
    """Return the error in each aggregate's SQL by asset, None where there is none.

    A table missing in the settings is no error: every checkout has examples without their tables.
    """
    folder = settings.aggregates_folder
    errors = {a.name: _problem(a, settings) for a in load_aggregates(folder)}
    errors |= {b.name: b.error for b in broken_aggregates(folder)}
    return {f"{AGGREGATES}/{name}": error for name, error in errors.items()}


def _missing_table(aggregate: Aggregate, settings: Settings) -> str | None:
    names = [table.safe_name for table in settings.tables]
    for schema, view in aggregate.inputs:
        if schema not in (*names, AGGREGATES):
            reason = (
                f"reads {schema}.{view}, but the settings name no table {schema!r}; they name "
                f"{', '.join(names)}"
            )
            return _with_path(aggregate, settings, reason)
    return None


def _problem(aggregate: Aggregate, settings: Settings) -> str | None:
    """Return why the aggregate cannot be built, None if it can; missing tables aside."""
    tables = {table.safe_name: table for table in settings.tables}
    for name in tables:
        if aggregate.table.startswith(f"{name}_"):
            reason = f"would be stored as {aggregate.table}, a name of table {name!r}: rename it"
            return _with_path(aggregate, settings, reason)
    for schema, view in aggregate.inputs:
        if schema not in tables:
            continue
        views = (*_VIEWS, *(rule.name for rule in tables[schema].entities))
        if view not in views:
            reason = f"reads {schema}.{view}; the views of a table are {', '.join(views)}"
            return _with_path(aggregate, settings, reason)
        if view == "ttl_archive" and not tables[schema].ttl_archive:
            reason = f"reads {schema}.{view}, which needs ttl_archive: true in the table's settings"
            return _with_path(aggregate, settings, reason)
    return None


def _with_path(aggregate: Aggregate, settings: Settings, problem: str) -> str:
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
    """Return the name of the asset behind a view; views of entities show `current_state`."""
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

        opened, results, started = lake.open(), [], time.monotonic()
        with readable_failures():
            if aggregate.daily:
                days = map(date.fromisoformat, context.partition_keys)
                for result in build_days(opened, aggregate, days):
                    results.append(result)
                    numbers = {"dagster/partition_row_count": result.rows}
                    context.add_asset_metadata(numbers, partition_key=str(result.day))
            else:
                results.append(build_aggregate(opened, aggregate))
        seconds = time.monotonic() - started
        return dg.MaterializeResult(metadata=aggregate_metadata(results, seconds))

    return built
