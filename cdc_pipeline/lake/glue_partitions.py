"""The landing zone in Glue: one Hive table per DynamoDB table, one partition per write day.

With `glue: {projection: true}` Athena derives the partitions from the table's parameters, and none
are registered.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from cdc_pipeline.aws.glue import Columns, Glue, HiveTable, Partition, Values, is_same_location
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.names import day_folder
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.table import Table

_KEYS = (("year", "string"), ("month", "string"), ("day", "string"))
_FOLDERS_CHECKED = 20
_FAILURES_LISTED = 5


@dataclass(frozen=True)
class Findings:
    """Differences between the catalogue and the landing zone.

    `is_outdated`: the table itself, that is its columns, location or projection. `missing` and
    `outdated`: days to add and to update. `empty`: days with a partition and without files.
    """

    is_outdated: bool
    missing: list[date]
    outdated: list[date]
    empty: list[date]

    def __bool__(self) -> bool:
        """Whether there is anything to repair."""
        return self.is_outdated or bool(self.missing or self.outdated or self.empty)

    def __str__(self) -> str:
        """Return a summary for people."""
        parts = ["table outdated"] if self.is_outdated else []
        parts += [f"{len(self.missing)} missing"] if self.missing else []
        parts += [f"{len(self.outdated)} outdated"] if self.outdated else []
        parts += [f"{len(self.empty)} of empty days"] if self.empty else []
        return ", ".join(parts) or "0 missing"


def landing_table(table: Table) -> str:
    """Return the name of the landing zone's Glue table."""
    return f"{table.safe_name}_raw_stream"


def landing_columns() -> Columns:
    """Return names and Glue types of the landing zone's columns."""
    return tuple((column.name, column.type) for column in LANDING_COLUMNS)


def register_days(table: TableLake, days: Iterable[date]) -> list[date]:
    """Register write days as partitions; return the new ones. Does nothing without Glue.

    The table is created or updated first. Raises `LakeError` for partitions that Glue rejects,
    after adding all others.
    """
    by_values = {_values(day): day for day in days}
    if not table.lake.settings.has_glue or not by_values:
        return []
    glue, name = Glue(table.lake.aws, table.lake.database), landing_table(table.settings)
    glue.ensure_table(_wanted_table(table, glue, by_values.values()))
    if table.lake.settings.glue.projection:
        return []
    locations = {values: _location(table, day) for values, day in by_values.items()}
    written = glue.add_partitions(name, landing_columns(), locations)
    _require_all(table.lake, name, written.failed)
    return [by_values[values] for values in written.done]


def find_repairs(table: TableLake) -> Findings:
    """Compare the catalogue with the capture log. Without Glue there are no differences."""
    landed = _landed_days(table) if table.lake.settings.has_glue else set()
    if not landed:
        return Findings(False, [], [], [])
    glue, name = Glue(table.lake.aws, table.lake.database), landing_table(table.settings)
    is_outdated = not glue.is_as_wanted(_wanted_table(table, glue, landed))
    if table.lake.settings.glue.projection:
        return Findings(is_outdated, [], [], [])
    registered = glue.partitions(name, landing_columns())
    return Findings(
        is_outdated,
        missing=sorted(day for day in landed if _values(day) not in registered),
        outdated=sorted(day for day in landed if _is_outdated(table, day, registered)),
        empty=_empty_days(table, registered, landed),
    )


def repair(table: TableLake) -> Findings:
    """Repair the catalogue; return the differences it had.

    Raises `LakeError` for partitions that Glue rejects, after writing all others.
    """
    differences = find_repairs(table)
    if not differences:
        return differences
    glue, name = Glue(table.lake.aws, table.lake.database), landing_table(table.settings)
    glue.ensure_table(_wanted_table(table, glue, _landed_days(table)))
    missing = {_values(day): _location(table, day) for day in differences.missing}
    outdated = {_values(day): _location(table, day) for day in differences.outdated}
    added = glue.add_partitions(name, landing_columns(), missing)
    updated = glue.update_partitions(name, landing_columns(), outdated)
    for day in differences.empty:
        glue.remove_partition(name, _values(day))
    _require_all(table.lake, name, {**added.failed, **updated.failed})
    return differences


def registered_days(table: TableLake) -> list[str]:
    """Return the registered partitions as `year=…/month=…/day=…`, in order."""
    if not table.lake.settings.has_glue:
        return []
    partitions = Glue(table.lake.aws, table.lake.database).partitions(
        landing_table(table.settings), landing_columns()
    )
    return [f"year={y}/month={m}/day={d}" for y, m, d in sorted(partitions)]


def _landed_days(table: TableLake) -> set[date]:
    return {date.fromisoformat(o.day) for o in table.log.look().objects.values()}


def _wanted_table(table: TableLake, glue: Glue, days: Iterable[date]) -> HiveTable:
    name, zone = landing_table(table.settings), table.lake.store.uri(table.paths.landing)
    projection = {}
    if table.lake.settings.glue.projection:
        before = (glue.table_parameters(name) or {}).get("projection.year.range")
        projection = _projection(zone, _years(table.lake.settings.start_date, days, before))
    return HiveTable(name, zone, landing_columns(), _KEYS, projection)


def _years(start: date, days: Iterable[date], before: str | None) -> tuple[int, int]:
    """Return the first and last year to project. The range never shrinks.

    Rows outside of it would be invisible without an error. `before`: the present range, as
    `first,last`.
    """
    known = [int(year) for year in before.split(",")] if before else []
    years = [start.year, datetime.now(UTC).year + 1, *(day.year for day in days), *known]
    return min(years), max(years)


def _projection(zone: str, years: tuple[int, int]) -> dict[str, str]:
    """The table parameters from which Athena makes the folders (docs/aws_facts.md, Athena)."""
    ranges = {"year": (years, 4), "month": ((1, 12), 2), "day": ((1, 31), 2)}
    parameters = {
        "projection.enabled": "true",
        "storage.location.template": zone + "year=${year}/month=${month}/day=${day}/",
    }
    for name, ((first, last), digits) in ranges.items():
        parameters[f"projection.{name}.type"] = "integer"
        parameters[f"projection.{name}.range"] = f"{first},{last}"
        parameters[f"projection.{name}.digits"] = str(digits)
    return parameters


def _is_outdated(table: TableLake, day: date, registered: Mapping[Values, Partition]) -> bool:
    partition = registered.get(_values(day))
    return partition is not None and not (
        partition.is_current and is_same_location(partition.location, _location(table, day))
    )


def _empty_days(
    table: TableLake, registered: Mapping[Values, Partition], landed: set[date]
) -> list[date]:
    """Return days with a partition in the landing zone whose folder is empty.

    A partition stays if its folder has any file, also of others, or if it points elsewhere. Each
    call checks a few random folders, because each costs a request.
    """
    candidates = [
        day
        for values, partition in registered.items()
        if (day := _day(values)) is not None
        and day not in landed
        and is_same_location(partition.location, _location(table, day))
    ]
    checked = random.sample(candidates, min(len(candidates), _FOLDERS_CHECKED))
    zone = table.paths.landing
    return sorted(d for d in checked if not any(table.lake.store.list(zone + day_folder(d))))


def _require_all(lake: Lake, name: str, failed: Mapping[Values, str]) -> None:
    if failed:
        raise LakeError(
            f"Glue table {lake.database}.{name}: {len(failed)} partitions were rejected: "
            + _failure_list(sorted(failed.items())),
            fix="the sensor glue_partition_sensor tries again; the others are registered",
        )


def _failure_list(failed: Sequence[tuple[Values, str]]) -> str:
    listed = [f"{'-'.join(values)} ({reason})" for values, reason in failed[:_FAILURES_LISTED]]
    more = len(failed) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")


def _location(table: TableLake, day: date) -> str:
    return table.lake.store.uri(table.paths.landing + day_folder(day))


def _values(day: date) -> Values:
    return f"{day:%Y}", f"{day:%m}", f"{day:%d}"


def _day(values: Values) -> date | None:
    """Return the day of a partition; None if its values are not a day as written here."""
    try:
        day = date(*map(int, values))
    except (ValueError, TypeError):
        return None
    return day if _values(day) == values else None
