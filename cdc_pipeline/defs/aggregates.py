"""Aggregates as assets: one per SQL file, its inputs found by parsing it."""

import time
from collections.abc import Sequence
from datetime import date

import dagster as dg

from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import arrow_columns
from cdc_pipeline.defs.partitions import daily
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.table import BACKFILL
from cdc_pipeline.settings import Settings
from cdc_pipeline.transform.aggregates import AGGREGATES, Aggregate, load_aggregates

_ASSET_OF_VIEW = {"history": "cdc"}


def usable_aggregates(settings: Settings) -> list[Aggregate]:
    """Those of the SQL files whose tables the settings name."""
    names = {table.safe_name for table in settings.tables}
    found = load_aggregates(settings.aggregates_folder)
    return [a for a in found if {schema for schema, _ in a.inputs} <= names | {AGGREGATES}]


def build_aggregate_defs(settings: Settings, aggregates: Sequence[Aggregate]) -> dg.Definitions:
    """An asset `aggregates/<name>` for each of them."""
    return dg.Definitions(assets=[_aggregate(aggregate, settings) for aggregate in aggregates])


def _aggregate(aggregate: Aggregate, settings: Settings) -> dg.AssetsDefinition:
    inputs = {(schema, _ASSET_OF_VIEW.get(view, view)) for schema, view in aggregate.inputs}

    @dg.asset(
        name=aggregate.name,
        key_prefix="aggregates",
        group_name="aggregates",
        deps=[dg.AssetKey(list(pair)) for pair in sorted(inputs)],
        kinds={"sql", "duckdb", "iceberg"},
        owners=[aggregate.owner] if aggregate.owner else None,
        partitions_def=daily(settings) if aggregate.daily else None,
        backfill_policy=BACKFILL if aggregate.daily else None,
        pool=aggregate.table,
        description=f"{aggregate.description}\n\n```sql\n{aggregate.sql.strip()}\n```",
    )
    def built(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        from cdc_pipeline.lake.aggregates import build_aggregate, build_days

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
