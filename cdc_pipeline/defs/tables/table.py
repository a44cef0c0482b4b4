"""The assets of one table: its source, pitr_export, raw_stream, cdc, current_state, and checks."""

from collections.abc import Iterator
from datetime import date

import dagster as dg

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import (
    archive_day_metadata,
    cdc_day_metadata,
    known,
    landing_columns,
    snapshot_metadata,
    state_metadata,
)
from cdc_pipeline.defs.partitions import daily
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.signatures import fixed_signature
from cdc_pipeline.defs.tables.capture import land_days
from cdc_pipeline.defs.tables.checks import build_checks, state_checks
from cdc_pipeline.defs.tables.downstream import is_automatic
from cdc_pipeline.defs.tables.entities import build_entity_assets
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table

BACKFILL = dg.BackfillPolicy.multi_run(max_partitions_per_run=168)


def build_table_defs(table: Table, settings: Settings) -> dg.Definitions:
    """Build all definitions of one DynamoDB table."""
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [
        _dynamodb(table),
        _pitr_export(table),
        _raw_stream(table, settings),
        _cdc(table, settings),
        _current_state(table),
    ]
    if table.ttl_archive:
        assets.append(_ttl_archive(table, settings))
    assets += build_entity_assets(table, settings)
    return dg.Definitions(
        assets=assets,
        asset_checks=build_checks(table),
        schedules=_export_schedule(table, settings),
    )


_CDC_COLUMNS = (
    ("generation", "int", "increases with every break of continuity"),
    ("order_key", "string", "total order of an item's changes, compared as text"),
    ("day", "date", "write day, the partition"),
)


def _uri(settings: Settings, key: str) -> str:
    if settings.catalog_type == "s3tables" and settings.catalog and key.startswith("iceberg/"):
        return settings.catalog.properties["warehouse"]
    root = settings.lake if settings.is_s3 else str(settings.lake_folder)
    return f"{root.rstrip('/')}/{key}"


def _group(table: Table) -> str:
    return table.group or table.safe_name


def _owners(table: Table) -> list[str] | None:
    return [table.owner] if table.owner else None


def source_key(table: Table) -> dg.AssetKey:
    """Return the key of the asset of the DynamoDB table itself."""
    return dg.AssetKey([table.safe_name, "dynamodb"])


def _dynamodb(table: Table) -> dg.AssetSpec:
    where = {"region": table.region, "account": table.account}
    return dg.AssetSpec(
        key=source_key(table),
        kinds={"dynamodb"},
        metadata={"dagster/table_name": table.name, **known(where)},
        description=(
            f"DynamoDB table `{table.name}`, the source; the pipeline never writes to it. It "
            "carries the checks that compare the lake with the source: these have runs of their "
            "own, and publications in between do not reset their results."
        ),
        group_name=_group(table),
        owners=_owners(table),
    )


def _pitr_export(table: Table) -> dg.AssetsDefinition:
    @dg.asset(
        name="pitr_export",
        kinds={"dynamodb", "s3", "iceberg"},
        deps=[source_key(table)],
        description=(
            f"Full export of DynamoDB table `{table.name}` from its backups (no load on the "
            "table), every file verified against its manifest. It becomes the baseline to which "
            "changes are applied. Materialise it once to start, again for a fresh baseline."
        ),
        key_prefix=table.safe_name,
        group_name=_group(table),
        owners=_owners(table),
    )
    @fixed_signature
    def pitr_export(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        from cdc_pipeline.snapshot.snapshot import take_snapshot

        with readable_failures():
            handle = lake.open(context).table(table)
            result = take_snapshot(handle, context=RunContext(context.log.info))
        return dg.MaterializeResult(metadata=snapshot_metadata(result))

    return pitr_export


def _raw_stream(table: Table, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        name="raw_stream",
        kinds={"dynamodb", "parquet"},
        deps=[source_key(table)],
        partitions_def=daily(settings),
        backfill_policy=BACKFILL,
        metadata={
            "dagster/table_name": f"{settings.database}.{table.safe_name}_raw_stream",
            "dagster/uri": _uri(settings, TablePaths(settings.database, table.safe_name).landing),
            "dagster/column_schema": landing_columns(),
        },
        description=(
            f"Every change of DynamoDB table `{table.name}` as read from the table's stream, by "
            "write day. The job `capture` fills it continuously. Materialising today or yesterday "
            "captures now; an older day gets its missing changes from the stream while it still "
            "has them, else from an incremental export."
        ),
        key_prefix=table.safe_name,
        group_name=_group(table),
        owners=_owners(table),
    )
    @fixed_signature
    def raw_stream(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> Iterator[dg.AssetMaterialization | dg.MaterializeResult]:
        with readable_failures():
            opened = lake.open()
        days = [date.fromisoformat(key) for key in context.partition_keys]
        yield from land_days(context, opened.table(table), days)

    return raw_stream


def _cdc(table: Table, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        name="cdc",
        kinds={"iceberg", "duckdb"},
        deps=[dg.AssetKey([table.safe_name, "raw_stream"])],
        partitions_def=daily(settings),
        backfill_policy=BACKFILL,
        # Parallel runs of a long backfill would conflict on commit and start over each time.
        pool=f"{table.safe_name}_cdc",
        metadata={
            "dagster/table_name": f"{settings.database}.{table.safe_name}_cdc",
            "dagster/uri": _uri(settings, f"iceberg/{settings.database}/{table.safe_name}_cdc"),
            "dagster/column_schema": landing_columns(_CDC_COLUMNS),
        },
        description=(
            f"The changes of `{table.name}` without duplicates: one row per change, with the item "
            "before and after it, by write day. Materialising a day rebuilds only that day."
        ),
        key_prefix=table.safe_name,
        group_name=_group(table),
        owners=_owners(table),
    )
    @fixed_signature
    def cdc(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        from cdc_pipeline.lake.publish.cdc import build_cdc_days

        days = list(map(date.fromisoformat, context.partition_keys))
        rows = duplicates = 0
        with readable_failures():
            # A backfill of raw_stream without additions requests all its days again.
            only_changed = is_automatic(context.run)
            for built in build_cdc_days(lake.open().table(table), days, only_changed=only_changed):
                rows, duplicates = rows + built.rows, duplicates + built.duplicates
                day_metadata = cdc_day_metadata(built)
                context.add_asset_metadata(day_metadata, partition_key=built.day.isoformat())
        # One line for all days: each line is an event, and a year of them outlasts the work.
        context.log.info(f"{len(days)} days: {rows} changes, {duplicates} duplicates removed")
        return dg.MaterializeResult(metadata={"duplicates_removed": duplicates, "rows": rows})

    return cdc


def _ttl_archive(table: Table, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        name="ttl_archive",
        kinds={"iceberg", "duckdb"},
        deps=[dg.AssetKey([table.safe_name, "cdc"])],
        partitions_def=daily(settings),
        backfill_policy=BACKFILL,
        metadata={
            "dagster/table_name": f"{settings.database}.{table.safe_name}_ttl_archive",
            "dagster/uri": _uri(
                settings, f"iceberg/{settings.database}/{table.safe_name}_ttl_archive"
            ),
        },
        description=(
            f"Items of `{table.name}` deleted by DynamoDB's TTL, each with its last image, by day "
            "of deletion; deletes by users are not included. If the stream has no old images, the "
            "image is from the item's previous change or from the baseline."
        ),
        key_prefix=table.safe_name,
        group_name=_group(table),
        owners=_owners(table),
    )
    @fixed_signature
    def ttl_archive(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        from cdc_pipeline.lake.publish.ttl_archive import build_archive_day

        opened = lake.open()
        rows = unknown = 0
        for key in context.partition_keys:
            with readable_failures():
                built = build_archive_day(opened.table(table), date.fromisoformat(key))
            rows, unknown = rows + built.rows, unknown + built.unknown
            context.add_asset_metadata(archive_day_metadata(built), partition_key=key)
        return dg.MaterializeResult(metadata={"rows": rows, "without_image": unknown})

    return ttl_archive


def _current_state(table: Table) -> dg.AssetsDefinition:
    @dg.asset(
        name="current_state",
        kinds={"iceberg", "duckdb"},
        deps=[
            dg.AssetKey([table.safe_name, "pitr_export"]),
            dg.AssetKey([table.safe_name, "raw_stream"]),
        ],
        output_required=False,
        description=(
            f"Current state of DynamoDB table `{table.name}`: one row per item, one typed column "
            "per attribute, `_item` with the exact item. The export with every change applied, "
            "published in one commit. DuckDB queries also show changes landed since."
        ),
        key_prefix=table.safe_name,
        group_name=_group(table),
        owners=_owners(table),
    )
    @fixed_signature
    def current_state(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckEvaluation]:
        from cdc_pipeline.lake.publish.current_state import publish_current_state

        with readable_failures():
            handle = lake.open(context).table(table)
            try:
                result = publish_current_state(handle)
            except NotReadyError as error:
                if not is_automatic(context.run):
                    raise
                context.log.info(f"not yet: {error}")
                yield from state_checks(handle)
                return
        counts = f"{result.items} items after {result.changes_folded} changes"
        context.log.info(f"{counts}, up to log entry {result.watermark}")
        yield dg.MaterializeResult(metadata=state_metadata(table, result))

    return current_state


def _export_schedule(table: Table, settings: Settings) -> list[dg.ScheduleDefinition]:
    if not table.snapshot.schedule:
        return []
    return [
        dg.ScheduleDefinition(
            name=f"{table.safe_name}_export",
            target=dg.AssetSelection.assets(dg.AssetKey([table.safe_name, "pitr_export"])),
            cron_schedule=table.snapshot.schedule,
            execution_timezone="UTC",
            default_status=schedule_status(settings),
            description=f"Exports {table.name} as a fresh baseline.",
        )
    ]


def schedule_status(settings: Settings) -> dg.DefaultScheduleStatus:
    """Return whether schedules run as soon as the code location loads."""
    running = settings.schedules.running
    return dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
