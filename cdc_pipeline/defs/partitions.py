"""Days as partitions; shards never are."""

from datetime import UTC, date, datetime

import dagster as dg

from cdc_pipeline.settings.model import Settings


def daily(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Write days (UTC) up to and including today."""
    return dg.DailyPartitionsDefinition(start_date=settings.start_date.isoformat(), end_offset=1)


def today() -> date:
    """The UTC day that it is."""
    return datetime.now(UTC).date()
