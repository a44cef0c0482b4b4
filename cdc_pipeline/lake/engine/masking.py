"""Masking at work in the lake: the rules with their key, SQL functions, what was published how."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import duckdb
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.errors import LakeError, SettingsError
from cdc_pipeline.core.items.masking import KEY_BYTES, Masking
from cdc_pipeline.lake.engine.duckdb_session import identifier, literal
from cdc_pipeline.lake.iceberg.tables import PROPERTY, table_property
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.model import Settings, Table
from cdc_pipeline.transform.aggregates import AGGREGATES, Aggregate

PUBLISHED = "masking"
"""The table property (per day: with the day behind it) that says how its rows were masked."""


class OtherRulesError(LakeError):
    """A table was published under other column rules than those of the settings."""


def masking_of(settings: Settings, table: Table, *, writing: bool) -> Masking:
    """The masking rules of a table with the key from the environment.

    `writing`: the key must be there; readers of what is published do without. Raises
    `SettingsError`, which names the variable and never what it holds.
    """
    rules = table.columns
    hashed = frozenset(name for name, rule in rules.items() if rule.hash)
    return Masking(
        hashed=hashed,
        dropped=frozenset(name for name, rule in rules.items() if rule.drop),
        masks={name: rule.mask for name, rule in rules.items() if rule.mask is not None},
        key=_key(settings.masking_key_env, table, required=writing) if hashed else None,
    )


def _key(variable: str, table: Table, *, required: bool) -> bytes | None:
    key = os.environ.get(variable, "").encode()
    if len(key) >= KEY_BYTES:
        return key
    if not key and not required:
        return None
    found = f"is shorter than {KEY_BYTES} bytes" if key else "is not set"
    raise SettingsError(
        f"table {table.name} has hashed columns, and the environment variable {variable} with "
        f"their key {found}",
        fix=f"set {variable} to a secret of at least {KEY_BYTES} bytes, the same wherever the "
        "pipeline runs; `openssl rand -hex 32` makes one. Another key means other hashes",
    )


@contextmanager
def masking_functions(connection: duckdb.DuckDBPyConnection, masking: Masking) -> Iterator[None]:
    """SQL functions `mask_item` and `mask_plain` while the outermost such block lasts.

    They do not stay: with them a query could try values out.
    """
    functions = {"mask_item": masking.item, "mask_plain": masking.plain} if masking else {}
    added: list[str] = []
    try:
        for name, function in functions.items():
            with suppress(duckdb.NotImplementedException):  # there already
                connection.create_function(name, function, ["VARCHAR"], "VARCHAR")  # type: ignore[arg-type]
                added.append(name)
        yield
    finally:
        for name in added:
            connection.remove_function(name)


def masked(masking: Masking, column: str, function: str = "mask_item") -> str:
    """SQL for a column as it may be seen."""
    return f"{function}({column})" if masking else column


def require_maskable_keys(
    connection: duckdb.DuckDBPyConnection, table: Table, masking: Masking, keys_sql: str
) -> None:
    """Raise `SettingsError` if a rule would make keys ambiguous; `keys_sql`: one column of keys."""
    rows = connection.execute(f"{keys_sql} LIMIT 1").fetchall() if masking else []
    for name in masking.unmaskable(rows[0][0]) if rows else ():
        raise SettingsError(
            f"table {table.name}: attribute {name!r} is part of the key, and items would not be "
            "told apart if it were dropped or masked",
            fix=f"hash it: columns: {{{name}: {{hash: true}}}}",
        )


def published_rules(table: IcebergTable, day: object = None) -> str:
    """The fingerprint of the masking that a table (or one day of it) was published under."""
    name = PUBLISHED if day is None else f"{PUBLISHED}.{day}"
    return table_property(table, name) or ""


def days_under_rules(table: IcebergTable) -> dict[str, str]:
    """The days of a table that is built day by day, with the fingerprint that each is under."""
    start = f"{PROPERTY}watermark."
    days = (name.removeprefix(start) for name in table.properties if name.startswith(start))
    return {day: published_rules(table, day) for day in days}


def sources_of(lake: Lake, aggregate: Aggregate, every: Iterable[Aggregate]) -> list[Table]:
    """The tables that an aggregate's rows come from, those behind other aggregates included.

    Raises `SettingsError` where that cannot be known, because a file on the way is broken.
    """
    by_name = {(AGGREGATES, other.name): other for other in every}
    known = {table.safe_name: table for table in lake.settings.tables}
    found: dict[str, Table] = {}
    todo, done = list(aggregate.inputs), set()
    while todo:
        place = todo.pop()
        if place in by_name and place not in done:
            todo += by_name[place].inputs
        elif place[0] in known:
            found[place[0]] = known[place[0]]
        elif place[0] == AGGREGATES and place not in by_name:
            raise SettingsError(
                f"aggregate {aggregate.name} reads {'.'.join(place)}, whose own file is broken",
                fix=f"mend {place[1]}.sql",
            )
        done.add(place)
    return [found[name] for name in sorted(found)]


def require_rules(masking: Masking, published: Iterable[str], view: str, asset: str) -> None:
    """Raise `OtherRulesError` unless all that is published was masked by these rules."""
    found = set(published)
    if len(found) > 1 or not all(map(masking.made, found)):
        raise OtherRulesError(
            f"{view} was published under other masking rules, or another masking key, than the "
            "present ones",
            fix=f"materialise {asset}: it is made anew from the exact data",
        )


def require_rules_of_aggregate(
    lake: Lake, aggregate: Aggregate, every: Iterable[Aggregate], built: IcebergTable
) -> None:
    """Raise `OtherRulesError` unless its sources were masked as the settings say."""
    tables = sources_of(lake, aggregate, every)
    rules = {t.safe_name: masking_of(lake.settings, t, writing=False) for t in tables}
    days = sorted(lake.iceberg.days(built)) if aggregate.daily else [None]
    for published in {published_rules(built, day) for day in days}:
        found = json.loads(published or "{}")
        for name, masking in rules.items():
            require_rules(
                masking,
                [found.get(name, "")],
                f"{AGGREGATES}.{aggregate.name} (from {name})",
                f"{AGGREGATES}/{aggregate.name}",
            )


def fingerprints(lake: Lake, tables: Iterable[Table]) -> str:
    """The fingerprints of tables whose rows meet in one, empty when nothing is masked."""
    found = {t.safe_name: masking_of(lake.settings, t, writing=True).fingerprint for t in tables}
    rules = {name: rules for name, rules in sorted(found.items()) if rules}
    return json.dumps(rules) if rules else ""


def forget_earlier(lake: Lake, table: IcebergTable) -> None:
    """Forget all earlier versions of a table: what they show is not to be seen any more.

    Maintenance removes their files.
    """
    lake.iceberg.expire(table, datetime.now(UTC) + timedelta(days=1), ())


def refusing_view(
    connection: duckdb.DuckDBPyConnection, view: str, relation: str, why: Exception
) -> None:
    """Create a view with the columns of `relation` that says why it cannot be read."""
    message = literal(str(why))
    columns = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    shown = ", ".join(f"CAST(error({message}) AS {c[1]}) AS {identifier(c[0])}" for c in columns)
    # Without the condition, count(*) would count.
    connection.execute(
        f"CREATE VIEW {view} AS SELECT {shown} FROM (SELECT 1) AS one "
        f"WHERE CAST(error({message}) AS BOOLEAN)"
    )
