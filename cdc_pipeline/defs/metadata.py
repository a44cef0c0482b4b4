"""What materialisations tell: numbers that plot, and column schemas."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from cdc_pipeline.core.columns import SYSTEM_COLUMNS, Column
from cdc_pipeline.core.landing import LANDING_COLUMNS

_SYSTEM_DESCRIPTIONS = {
    "_key": "the item's key, exact typed DynamoDB JSON",
    "_order_key": "which change the item is from",
    "_write_time_us": "when it was written, µs since the epoch",
    "_item": "the whole item, exact typed DynamoDB JSON",
    "_rescued": "values whose type is not their column's, by attribute",
}


def typed_columns(columns: Iterable[Column]) -> dg.TableSchema:
    """The column schema of a typed item table, as inferred from its data."""
    system = [
        dg.TableColumn(name, "int64" if name.endswith("_us") else "string", description)
        for name, description in ((n, _SYSTEM_DESCRIPTIONS[n]) for n in SYSTEM_COLUMNS)
    ]
    inferred = [
        dg.TableColumn(c.name, c.type, f"attribute {c.attribute!r}, DynamoDB type {c.tag}")
        for c in columns
    ]
    return dg.TableSchema(columns=system + inferred)


def arrow_columns(fields: Iterable[tuple[str, str]]) -> dg.TableSchema:
    """A column schema from names and Arrow types."""
    return dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in fields])


def landing_columns(more: Iterable[tuple[str, str, str]] = ()) -> dg.TableSchema:
    """The landing columns, and columns that follow them."""
    columns = [(c.name, c.type, c.description) for c in LANDING_COLUMNS]
    return dg.TableSchema(columns=[dg.TableColumn(*column) for column in (*columns, *more)])


def lag_seconds(watermark_us: int) -> float | None:
    """How far the lake is behind the source, None while that is unknown."""
    if not watermark_us:
        return None
    return round(max(0.0, datetime.now(UTC).timestamp() - watermark_us / 1_000_000), 1)


def moment(time_us: int) -> dg.TimestampMetadataValue:
    """A time in µs as metadata."""
    return dg.MetadataValue.timestamp(time_us / 1_000_000)


def known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without the entries that have no value."""
    return {name: value for name, value in metadata.items() if value is not None}
