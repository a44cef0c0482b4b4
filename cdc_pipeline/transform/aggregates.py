"""Aggregates: one SQL file each, with its description, partitioning and inputs."""

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import chain, count
from pathlib import Path

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.core.names import OWNERS, is_owner, safe_name

AGGREGATES = "aggregates"
DAY_PARAMETER = "$day"


@dataclass(frozen=True)
class Aggregate:
    """A query over the lake's views. `inputs`: (schema, view) pairs that it reads."""

    name: str
    sql: str
    description: str
    daily: bool
    inputs: tuple[tuple[str, str], ...]
    owner: str | None = None

    @property
    def table(self) -> str:
        """Name of its Iceberg table."""
        return f"{AGGREGATES}_{self.name}"


@dataclass(frozen=True)
class BrokenAggregate:
    """An invalid aggregate file, and the reason. `name`: from the file's, unique in the folder."""

    name: str
    error: str

    @property
    def table(self) -> str:
        """Name of its Iceberg table, which exists if it was built while the file was valid."""
        return f"{AGGREGATES}_{self.name}"


def load_aggregates(folder: Path) -> list[Aggregate]:
    """Load every valid `*.sql` in the folder, sorted by name."""
    return _read(folder)[0]


def broken_aggregates(folder: Path) -> list[BrokenAggregate]:
    """List every invalid `*.sql` in the folder; invalid files do not affect the others."""
    return _read(folder)[1]


def _read(folder: Path) -> tuple[list[Aggregate], list[BrokenAggregate]]:
    paths = {path.stem: path for path in sorted(folder.glob("*.sql"))}
    parsed: dict[str, Aggregate] = {}
    errors: dict[str, str] = {}
    for stem, path in paths.items():
        try:
            parsed[stem] = _parse(path)
        except SettingsError as error:
            errors[stem] = error.message
    for name, problem in list(_invalid_reads(parsed.values(), paths)):
        del parsed[name]
        errors[name] = f"{paths[name]}: {problem}"
    taken = set(parsed)
    broken = []
    for stem, error in sorted(errors.items(), key=lambda pair: safe_name(pair[0]) != pair[0]):
        broken.append(BrokenAggregate(_free_name(stem, taken), error))
        taken.add(broken[-1].name)
    return list(parsed.values()), broken


def _invalid_reads(parsed: Iterable[Aggregate], known: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield name and problem of each aggregate that reads an undefined one, or itself."""
    reads = {a.name: [view for schema, view in a.inputs if schema == AGGREGATES] for a in parsed}
    for name, sources in list(reads.items()):
        missing = [f"{AGGREGATES}.{source}" for source in sources if source not in known]
        if missing:
            del reads[name]
            yield name, f"reads {', '.join(missing)}, which no file defines"
    while True:
        try:
            TopologicalSorter(reads).prepare()
        except CycleError as error:
            cycle = error.args[1][::-1]  # each is read by the next one
        else:
            return
        for name in cycle[1:]:
            del reads[name]
            yield name, f"aggregates wait for each other in a circle: {' reads '.join(cycle)}"


def _free_name(stem: str, taken: set[str]) -> str:
    """Derive a free asset name from a file's name, which need not be valid."""
    name = safe_name(stem)
    numbered = (f"{name}_{number}" for number in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)


def _parse(path: Path) -> Aggregate:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", path.stem):
        raise SettingsError(f"{path}: an aggregate's name is [a-z][a-z0-9_]*")
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: see its byte {error.start}") from None
    header = dict(re.findall(r"^--\s*(description|partitioned|owner):\s*(.+?)\s*$", text, re.M))
    partitioned = header.get("partitioned", "none")
    if partitioned not in ("none", "daily"):
        raise SettingsError(f"{path}: partitioned: found {partitioned!r}; allowed: 'daily', 'none'")
    daily = partitioned == "daily"
    if daily != (DAY_PARAMETER in _without_comments(text)):
        raise SettingsError(
            f"{path}: a daily aggregate has {DAY_PARAMETER} in its SQL and '-- partitioned: daily' "
            "in its header; this file has only one of the two"
        )
    owner = header.get("owner")
    if owner is not None and not is_owner(owner):
        raise SettingsError(f"{path}: owner: found {owner!r}; allowed: {OWNERS}")
    return Aggregate(
        name=path.stem,
        sql=text,
        description=header.get("description", f"Aggregate defined in {path.name}."),
        daily=daily,
        inputs=tables_named(text, str(path)),
        owner=owner,
    )


def tables_named(sql: str, where: str = "SQL") -> tuple[tuple[str, str], ...]:
    """List the (schema, view) pairs read by a statement, without CTEs; raises `SettingsError`.

    A macro of a schema that is read like a view is one, too.
    """
    try:
        statement = sqlglot.parse_one(sql, read="duckdb")
    except SqlglotError as error:
        raise SettingsError(f"{where}: not valid SQL: {_first_line(error)}") from None
    except RecursionError:
        raise SettingsError(f"{where}: not valid SQL: nested too deeply") from None
    defined = {cte.alias_or_name for cte in statement.find_all(exp.CTE)}
    named = {
        (table.db, table.name or (table.this.name if table.db else ""))
        for table in statement.find_all(exp.Table)
    }
    pairs = {
        (schema.lower(), view.lower())
        for schema, view in named
        if view and (schema or view not in defined)
    }
    return tuple(sorted(pairs))


def _without_comments(text: str) -> str:
    return re.sub(r"--.*", "", text)


def _first_line(error: Exception) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0]
