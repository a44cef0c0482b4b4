"""The landing zone in Glue: one Hive table per DynamoDB table, one partition per write day."""

from collections.abc import Iterable
from datetime import date

from cdc_pipeline.aws.glue import Glue, Values
from cdc_pipeline.core.landing import LANDING_COLUMNS
from cdc_pipeline.core.names import day_folder
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import Table

_COLUMNS = tuple((column.name, column.type) for column in LANDING_COLUMNS)
_KEYS = (("year", "string"), ("month", "string"), ("day", "string"))


def landing_table(table: Table) -> str:
    """The name of the landing zone's Glue table."""
    return f"{table.safe_name}_raw_stream"


def register_days(lake: Lake, table: Table, days: Iterable[date]) -> list[date]:
    """Register write days as partitions; returns the new ones. Nothing for a local lake."""
    wanted = {_values(day): day for day in days}
    if not lake.settings.is_s3 or not wanted:
        return []
    glue = Glue(lake.aws, lake.database)
    zone, name = lake.paths(table).landing, landing_table(table)
    if not glue.has_table(name):
        glue.create_table(name, lake.store.uri(zone), _COLUMNS, _KEYS)
    locations = {v: lake.store.uri(zone + day_folder(day)) for v, day in wanted.items()}
    return [wanted[values] for values in glue.add_partitions(name, _COLUMNS, locations)]


def missing_days(lake: Lake, table: Table) -> list[date]:
    """Write days that have landed and are no partition yet. None for a local lake."""
    if not lake.settings.is_s3:
        return []
    landed = {date.fromisoformat(o.day) for o in lake.log(table).load().objects.values()}
    if not landed:
        return []
    registered = Glue(lake.aws, lake.database).partitions(landing_table(table))
    return sorted(day for day in landed if _values(day) not in registered)


def registered_days(lake: Lake, table: Table) -> list[str]:
    """Registered partitions as `year=…/month=…/day=…`, in order."""
    if not lake.settings.is_s3:
        return []
    found = Glue(lake.aws, lake.database).partitions(landing_table(table))
    return [f"year={y}/month={m}/day={d}" for y, m, d in sorted(found)]


def _values(day: date) -> Values:
    return f"{day:%Y}", f"{day:%m}", f"{day:%d}"
