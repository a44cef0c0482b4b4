"""Columns of the next published version, and the table properties that record their choice."""

import json
from collections.abc import Callable
from typing import Any

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.columns import Column, Stats, carry_widths, columns_of
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.lake.engine.item_table import column_names, prior_columns, prior_stats
from cdc_pipeline.lake.engine.masking import PUBLISHED
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.base import MAX_COLUMNS, TYPES
from cdc_pipeline.lake.state.schema_contract import pinned_types, require_contract

_SEEN = "rules_seen"


def plan_columns(
    table: TableLake, over: IcebergTable | None, masking: Masking, *, beside: bool = False
) -> Callable[[Stats], tuple[list[Column], dict[str, str]]]:
    """Return the function that decides the next version's columns and properties.

    `beside`: the rows of `over` stay as they are, so the statistics include theirs and no column
    changes its tag. The function raises `SchemaContractError` for columns that the contract does
    not allow.
    """
    pins, limit = pinned_types(table.settings), table.settings.max_columns
    choice: dict[str, Any] = {
        "pins": pins,
        "limit": limit,
        "names": column_names(table.lake.iceberg, table.safe_name),
        "keep_tags": beside,
    }

    def plan(stats: Stats) -> tuple[list[Column], dict[str, str]]:
        before = prior_columns(over)
        if not beside:
            carry_widths(stats, prior_stats(over))
        columns = columns_of(stats, before, **choice)
        require_contract(table.settings, before, columns)
        seen = {*seen_rules(over), *masking.seen, *(pins.keys() & stats.keys())}
        properties = {PUBLISHED: masking.fingerprint, TYPES: json.dumps(pins)}
        properties[MAX_COLUMNS] = str(limit or "")
        return columns, {**properties, _SEEN: json.dumps(sorted(seen))}

    return plan


def seen_rules(published: IcebergTable | None) -> set[str]:
    """Return the attributes with a rule in the settings that some item has had."""
    return {*json.loads((published and table_property(published, _SEEN)) or "[]")}
