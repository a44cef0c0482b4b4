"""Assets of entities that the settings keep as tables."""

from collections.abc import Iterator

import dagster as dg

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.defs.failures import readable_failures
from cdc_pipeline.defs.metadata import entity_metadata
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.defs.signatures import fixed_signature
from cdc_pipeline.defs.tables.downstream import is_automatic
from cdc_pipeline.settings.entities import EntityRule
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table


def build_entity_assets(table: Table, settings: Settings) -> list[dg.AssetsDefinition]:
    """Build the assets `<table>/<entity>` of entities with `table: true`."""
    return [_entity(table, rule, settings) for rule in table.entities if rule.table]


def _entity(table: Table, rule: EntityRule, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        name=rule.name,
        kinds={"iceberg", "duckdb"},
        deps=[dg.AssetKey([table.safe_name, "current_state"])],
        output_required=False,
        metadata={"dagster/table_name": f"{settings.database}.{table.safe_name}_{rule.name}"},
        description=(
            f"The items of `{table.name}` of entity `{rule.name}`, with columns of their own: "
            "items of `current_state` whose attributes match the entity's rule in the settings. "
            "Rebuilt after each publication of `current_state`. The DuckDB view of this name also "
            "shows later changes."
        ),
        key_prefix=table.safe_name,
        group_name=table.group or table.safe_name,
        owners=[table.owner] if table.owner else None,
    )
    @fixed_signature
    def entity(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> Iterator[dg.MaterializeResult]:
        from cdc_pipeline.lake.publish.entity_tables import build_entity

        with readable_failures():
            try:
                result = build_entity(lake.open().table(table), rule.name)
            except NotReadyError as error:
                if not is_automatic(context.run):
                    raise
                context.log.info(f"not yet: {error}")
                return
        yield dg.MaterializeResult(metadata=entity_metadata(result))

    return entity
