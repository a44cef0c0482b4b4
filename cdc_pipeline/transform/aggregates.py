"""Aggregates: one SQL file each, with its description, partitioning and inputs."""

import re
from dataclasses import dataclass
from pathlib import Path

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from cdc_pipeline.core.errors import SettingsError

AGGREGATES = "aggregates"
DAY_PARAMETER = "$day"


@dataclass(frozen=True)
class Aggregate:
    """A query over the lake's views. `inputs`: (schema, view) pairs it reads."""

    name: str
    sql: str
    description: str
    daily: bool
    inputs: tuple[tuple[str, str], ...]
    owner: str | None = None

    @property
    def table(self) -> str:
        """The name of its Iceberg table."""
        return f"{AGGREGATES}_{self.name}"


def load_aggregates(folder: Path) -> list[Aggregate]:
    """Every `*.sql` in the folder, sorted by name; raises `SettingsError` naming the file."""
    return [_parse(path) for path in sorted(folder.glob("*.sql"))]


def _parse(path: Path) -> Aggregate:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", path.stem):
        raise SettingsError(f"{path}: an aggregate's name is [a-z][a-z0-9_]*")
    text = path.read_text("utf-8")
    header = dict(re.findall(r"^--\s*(description|partitioned|owner):\s*(.+?)\s*$", text, re.M))
    partitioned = header.get("partitioned", "none")
    if partitioned not in ("none", "daily"):
        raise SettingsError(f"{path}: partitioned: found {partitioned!r}; allowed: 'daily', 'none'")
    daily = partitioned == "daily"
    if daily != (DAY_PARAMETER in _without_comments(text)):
        raise SettingsError(
            f"{path}: a daily aggregate names {DAY_PARAMETER} in its SQL and its header says "
            "'-- partitioned: daily'; here only one of the two is so"
        )
    return Aggregate(
        name=path.stem,
        sql=text,
        description=header.get("description", f"Aggregate defined in {path.name}."),
        daily=daily,
        inputs=tables_named(text, str(path)),
        owner=header.get("owner"),
    )


def tables_named(sql: str, where: str = "SQL") -> tuple[tuple[str, str], ...]:
    """The `schema.view` pairs a statement reads, CTEs left out; raises `SettingsError`."""
    try:
        statement = sqlglot.parse_one(sql, read="duckdb")
    except SqlglotError as error:
        raise SettingsError(f"{where}: not valid SQL: {_first_line(error)}") from None
    defined = {cte.alias_or_name for cte in statement.find_all(exp.CTE)}
    found = {
        (table.db.lower(), table.name.lower())
        for table in statement.find_all(exp.Table)
        if table.name and not (not table.db and table.name in defined)
    }
    return tuple(sorted(found))


def _without_comments(text: str) -> str:
    return re.sub(r"--.*", "", text)


def _first_line(error: Exception) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0]
