"""Daily partitions; shards are never partitions."""

from datetime import UTC, date, datetime

import dagster as dg

from cdc_pipeline.settings.model import Settings


def daily(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Return the partitions by write day (UTC), from `start_date` to today inclusive."""
    return dg.DailyPartitionsDefinition(start_date=settings.start_date.isoformat(), end_offset=1)


def today() -> date:
    """Return the current UTC day."""
    return datetime.now(UTC).date()
