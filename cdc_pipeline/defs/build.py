"""`build_definitions`: builds the code location, in production and in tests."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from cdc_pipeline.defs.operations.alarms import build_alarms
from cdc_pipeline.defs.operations.glue import build_glue_sensor
from cdc_pipeline.defs.operations.heal import build_gap_sensor
from cdc_pipeline.defs.operations.maintenance import build_maintenance_defs
from cdc_pipeline.defs.operations.reconcile import build_reconcile_defs
from cdc_pipeline.defs.repository import JOBS
from cdc_pipeline.defs.resources import lake_resources
from cdc_pipeline.defs.tables.aggregates import (
    aggregate_errors,
    build_aggregate_defs,
    usable_aggregates,
)
from cdc_pipeline.defs.tables.downstream import build_downstream_sensor
from cdc_pipeline.defs.tables.schedules import build_schedules
from cdc_pipeline.defs.tables.shard_sensor import build_shard_sensor
from cdc_pipeline.defs.tables.table import build_table_defs
from cdc_pipeline.settings.load import DEFAULT_PATH
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.transform.aggregates import AGGREGATES


def build_definitions(
    settings: Settings, path: Path, resources: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Build all definitions of the settings; `resources` replaces those made from `path`.

    Uses no network and does not read the lake: only runs do.
    """
    parts = [build_table_defs(table, settings) for table in settings.tables]
    derived = [key for part in parts for key in _asset_keys(part) if key.path[-1] != "raw_stream"]
    aggregates = usable_aggregates(settings)
    derived += [dg.AssetKey([AGGREGATES, aggregate.name]) for aggregate in aggregates]
    parts += [
        build_aggregate_defs(settings, aggregates),
        build_maintenance_defs(settings),
        build_reconcile_defs(settings),
    ]
    daily_assets = [
        key
        for part in parts
        for asset in part.assets or ()
        if isinstance(asset, dg.AssetsDefinition) and asset.partitions_def is not None
        for key in asset.keys
    ]
    checks = sorted(
        key for part in parts for check in part.asset_checks or () for key in check.check_keys
    )
    own = dg.Definitions(
        jobs=JOBS,
        sensors=[
            build_shard_sensor(settings),
            build_gap_sensor(settings),
            build_downstream_sensor(settings, derived, aggregates),
            build_glue_sensor(settings),
            *build_alarms(settings, checks, aggregate_errors(settings)),
        ],
        resources=resources or lake_resources(path),
    )
    schedules = build_schedules(settings, daily_assets)
    return dg.Definitions.merge(*parts, schedules, own)


def _asset_keys(part: dg.Definitions) -> list[dg.AssetKey]:
    assets = [asset for asset in part.assets or () if isinstance(asset, dg.AssetsDefinition)]
    return [key for asset in assets for key in asset.keys]


def explain_missing_settings(path: Path) -> dg.Definitions:
    """Build the definitions for a missing settings file: one asset with instructions."""
    text = (
        f"No settings file at `{path}`, so there are no tables yet.\n\n"
        f"- to try it on sample data: `make demo`, then `make dev`\n"
        f"- to use your own tables: copy `cdc_pipeline.example.yaml` to `{DEFAULT_PATH}`, edit "
        "it, reload this code location"
    )
    print(f"cdc_pipeline: no settings file at {path}. Try: make demo", file=sys.stderr)

    @dg.asset(name="getting_started", group_name="getting_started", description=text)
    def getting_started() -> None:
        raise dg.Failure(description=f"no settings file at {path}; see this asset's description")

    return dg.Definitions(assets=[getting_started])
