"""The landing zone in Glue: one Hive table per DynamoDB table, one partition per write day.

With `glue: {projection: true}` Athena makes the partitions out of the table's parameters instead,
and none are registered.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from cdc_pipeline.aws.glue import Columns, Glue, HiveTable, Partition, Values, same_place
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.names import day_folder
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.model import Table

_KEYS = (("year", "string"), ("month", "string"), ("day", "string"))
_FOLDERS_LOOKED_AT = 20
_FAILURES_TOLD = 5


@dataclass(frozen=True)
class Findings:
    """How the catalogue differs from the landing zone.

    `is_outdated`: the table itself, its columns, place or projection. `missing` and `outdated`:
    days to add and to update. `empty`: partitions of days that have nothing any more.
    """

    is_outdated: bool
    missing: list[date]
    outdated: list[date]
    empty: list[date]

    def __bool__(self) -> bool:
        """Whether there is anything to repair."""
        return self.is_outdated or bool(self.missing or self.outdated or self.empty)

    def __str__(self) -> str:
        """For people."""
        parts = ["table outdated"] if self.is_outdated else []
        parts += [f"{len(self.missing)} missing"] if self.missing else []
        parts += [f"{len(self.outdated)} outdated"] if self.outdated else []
        parts += [f"{len(self.empty)} of empty days"] if self.empty else []
        return ", ".join(parts) or "0 missing"


def landing_table(table: Table) -> str:
    """The name of the landing zone's Glue table."""
    return f"{table.safe_name}_raw_stream"


def landing_columns() -> Columns:
    """Name and type of the landing zone's columns, as Glue has them."""
    return tuple((column.name, column.type) for column in LANDING_COLUMNS)


def register_days(table: TableLake, days: Iterable[date]) -> list[date]:
    """Register write days as partitions; returns the new ones. Nothing for a lake without Glue.

    The table is made or brought up to date first. Raises `LakeError`, for partitions that Glue
    does not take after all others were added.
    """
    wanted = {_values(day): day for day in days}
    if not table.lake.settings.has_glue or not wanted:
        return []
    glue, name = Glue(table.lake.aws, table.lake.database), landing_table(table.settings)
    glue.ensure_table(_wanted_table(table, glue, wanted.values()))
    if table.lake.settings.glue.projection:
        return []
    locations = {values: _location(table, day) for values, day in wanted.items()}
    written = glue.add_partitions(name, landing_columns(), locations)
    _require_all(table.lake, name, written.failed)
    return [wanted[values] for values in written.done]


def find_repairs(table: TableLake) -> Findings:
    """Compare the capture log with the catalogue. Nothing is amiss without Glue."""
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
    """Make the catalogue as it should be; returns what was amiss.

    Raises `LakeError` for partitions that Glue does not take, after all others were written.
    """
    found = find_repairs(table)
    if not found:
        return found
    glue, name = Glue(table.lake.aws, table.lake.database), landing_table(table.settings)
    glue.ensure_table(_wanted_table(table, glue, _landed_days(table)))
    missing = {_values(day): _location(table, day) for day in found.missing}
    outdated = {_values(day): _location(table, day) for day in found.outdated}
    added = glue.add_partitions(name, landing_columns(), missing)
    updated = glue.update_partitions(name, landing_columns(), outdated)
    for day in found.empty:
        glue.remove_partition(name, _values(day))
    _require_all(table.lake, name, {**added.failed, **updated.failed})
    return found


def registered_days(table: TableLake) -> list[str]:
    """Registered partitions as `year=…/month=…/day=…`, in order."""
    if not table.lake.settings.has_glue:
        return []
    found = Glue(table.lake.aws, table.lake.database).partitions(
        landing_table(table.settings), landing_columns()
    )
    return [f"year={y}/month={m}/day={d}" for y, m, d in sorted(found)]


def _landed_days(table: TableLake) -> set[date]:
    return {date.fromisoformat(o.day) for o in table.log.load().objects.values()}


def _wanted_table(table: TableLake, glue: Glue, days: Iterable[date]) -> HiveTable:
    name, zone = landing_table(table.settings), table.lake.store.uri(table.paths.landing)
    projection = {}
    if table.lake.settings.glue.projection:
        before = (glue.table_parameters(name) or {}).get("projection.year.range")
        projection = _projection(zone, _years(table.lake.settings.start_date, days, before))
    return HiveTable(name, zone, landing_columns(), _KEYS, projection)


def _years(start: date, days: Iterable[date], before: str | None) -> tuple[int, int]:
    """First and last year to project. They only ever move apart: outside are no rows, no error.

    `before`: the range that stands, `first,last`.
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
    found = registered.get(_values(day))
    return found is not None and not (
        found.is_current and same_place(found.location, _location(table, day))
    )


def _empty_days(
    table: TableLake, registered: Mapping[Values, Partition], landed: set[date]
) -> list[date]:
    """Days that are partitions of our zone although nothing at all is in their folder any more.

    Files that others put there keep their partition, and so does one that points elsewhere. A few
    folders are looked at each time, any of them: each costs a request.
    """
    doubtful = [
        day
        for values, found in registered.items()
        if (day := _day(values)) is not None
        and day not in landed
        and same_place(found.location, _location(table, day))
    ]
    looked_at = random.sample(doubtful, min(len(doubtful), _FOLDERS_LOOKED_AT))
    zone = table.paths.landing
    return sorted(d for d in looked_at if not any(table.lake.store.list(zone + day_folder(d))))


def _require_all(lake: Lake, name: str, failed: Mapping[Values, str]) -> None:
    if failed:
        raise LakeError(
            f"Glue table {lake.database}.{name}: {len(failed)} partitions were not taken: "
            + _told(sorted(failed.items())),
            fix="the sensor glue_partition_sensor tries again; the others are registered",
        )


def _told(failed: Sequence[tuple[Values, str]]) -> str:
    told = [f"{'-'.join(values)} ({why})" for values, why in failed[:_FAILURES_TOLD]]
    more = len(failed) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _location(table: TableLake, day: date) -> str:
    return table.lake.store.uri(table.paths.landing + day_folder(day))


def _values(day: date) -> Values:
    return f"{day:%Y}", f"{day:%m}", f"{day:%d}"


def _day(values: Values) -> date | None:
    """The day that a partition is for, None where its values are no day of ours."""
    try:
        day = date(*map(int, values))
    except (ValueError, TypeError):
        return None
    return day if _values(day) == values else None
