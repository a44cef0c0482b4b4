"""Masking in the lake: rules with their key, SQL functions, checks of published tables."""

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
from cdc_pipeline.lake.iceberg.properties import PROPERTY, table_property
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.aggregates import AGGREGATES, Aggregate

PUBLISHED = "masking"
"""Table property with the fingerprint of the masking; daily tables have the day as suffix."""


class OtherRulesError(LakeError):
    """A table was published under other column rules than those of the settings."""


def masking_of(settings: Settings, table: Table, *, writing: bool) -> Masking:
    """Return the masking rules of a table, with the key from the environment.

    `writing`: require the key; readers of published tables do not need it. Raises `SettingsError`,
    which names the variable and never its value.
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
    problem = f"is shorter than {KEY_BYTES} bytes" if key else "is not set"
    raise SettingsError(
        f"table {table.name} has hashed columns, and the environment variable {variable} with "
        f"their key {problem}",
        fix=f"set {variable} to a secret of at least {KEY_BYTES} bytes, the same wherever the "
        "pipeline runs; `openssl rand -hex 32` makes one. Another key gives other hashes",
    )


@contextmanager
def masking_functions(connection: duckdb.DuckDBPyConnection, masking: Masking) -> Iterator[None]:
    """Provide the SQL functions `mask_item` and `mask_plain` within the outermost such block.

    They are removed at its end: with them a query could test values.
    """
    functions = {"mask_item": masking.item, "mask_plain": masking.plain} if masking else {}
    added: list[str] = []
    try:
        for name, function in functions.items():
            with suppress(duckdb.NotImplementedException):  # exists already
                connection.create_function(name, function, ["VARCHAR"], "VARCHAR")  # type: ignore[arg-type]
                added.append(name)
        yield
    finally:
        for name in added:
            connection.remove_function(name)


def masked_column(masking: Masking, column: str, function: str = "mask_item") -> str:
    """Return SQL for a column, masked if there are rules."""
    return f"{function}({column})" if masking else column


def require_maskable_keys(
    connection: duckdb.DuckDBPyConnection, table: Table, masking: Masking, keys_sql: str
) -> None:
    """Raise `SettingsError` if a rule would make keys ambiguous; `keys_sql`: a query of keys."""
    rows = connection.execute(f"{keys_sql} LIMIT 1").fetchall() if masking else []
    for name in masking.unmaskable(rows[0][0]) if rows else ():
        raise SettingsError(
            f"table {table.name}: attribute {name!r} is part of the key; if it were dropped or "
            "masked, different items could have equal keys",
            fix=f"hash it: columns: {{{name}: {{hash: true}}}}",
        )


def published_rules(table: IcebergTable, day: object = None) -> str:
    """Return the fingerprint of the masking that a table, or a day of it, was published under."""
    name = PUBLISHED if day is None else f"{PUBLISHED}.{day}"
    return table_property(table, name) or ""


def rules_by_day(table: IcebergTable) -> dict[str, str]:
    """Return the days of a daily table, each with the fingerprint of its masking."""
    prefix = f"{PROPERTY}watermark."
    days = (name.removeprefix(prefix) for name in table.properties if name.startswith(prefix))
    return {day: published_rules(table, day) for day in days}


def sources_of(lake: Lake, aggregate: Aggregate, every: Iterable[Aggregate]) -> list[Table]:
    """Return the tables that an aggregate reads, directly or through other aggregates.

    Raises `SettingsError` if they are unknown because the file of an aggregate is broken.
    """
    by_name = {(AGGREGATES, other.name): other for other in every}
    known = {table.safe_name: table for table in lake.settings.tables}
    sources: dict[str, Table] = {}
    pending, seen = list(aggregate.inputs), set()
    while pending:
        view = pending.pop()
        schema, name = view
        if view in by_name and view not in seen:
            pending += by_name[view].inputs
        elif schema in known:
            sources[schema] = known[schema]
        elif schema == AGGREGATES and view not in by_name:
            raise SettingsError(
                f"aggregate {aggregate.name} reads {schema}.{name}, whose own file is broken",
                fix=f"correct {name}.sql",
            )
        seen.add(view)
    return [sources[name] for name in sorted(sources)]


def require_rules(masking: Masking, published: Iterable[str], view: str, asset: str) -> None:
    """Raise `OtherRulesError` unless all published fingerprints are those of these rules."""
    fingerprints = set(published)
    if len(fingerprints) > 1 or not all(map(masking.made, fingerprints)):
        raise OtherRulesError(
            f"{view} was published under other masking rules, or another masking key, than the "
            "present ones",
            fix=f"materialise {asset}: it is built again from the exact data",
        )


def require_rules_of_aggregate(
    lake: Lake, aggregate: Aggregate, every: Iterable[Aggregate], built: IcebergTable
) -> None:
    """Raise `OtherRulesError` unless its sources were masked by the rules of the settings."""
    tables = sources_of(lake, aggregate, every)
    rules = {t.safe_name: masking_of(lake.settings, t, writing=False) for t in tables}
    days = sorted(lake.iceberg.days(built)) if aggregate.daily else [None]
    for published in {published_rules(built, day) for day in days}:
        by_table = json.loads(published or "{}")
        for name, masking in rules.items():
            require_rules(
                masking,
                [by_table.get(name, "")],
                f"{AGGREGATES}.{aggregate.name} (from {name})",
                f"{AGGREGATES}/{aggregate.name}",
            )


def fingerprints(lake: Lake, tables: Iterable[Table]) -> str:
    """Return the fingerprints of an aggregate's source tables as JSON; '' if none is masked."""
    by_table = {t.safe_name: masking_of(lake.settings, t, writing=True).fingerprint for t in tables}
    rules = {name: rules for name, rules in sorted(by_table.items()) if rules}
    return json.dumps(rules) if rules else ""


def expire_earlier_versions(lake: Lake, table: IcebergTable) -> None:
    """Expire all earlier versions of a table, whose values readers may no longer see.

    Maintenance removes their files.
    """
    lake.iceberg.expire(table, datetime.now(UTC) + timedelta(days=1), ())


def create_failing_view(
    connection: duckdb.DuckDBPyConnection, view: str, relation: str, reason: Exception
) -> None:
    """Create a view with the columns of `relation` that fails with the reason when it is read."""
    message = literal(str(reason))
    columns = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    shown = ", ".join(f"CAST(error({message}) AS {c[1]}) AS {identifier(c[0])}" for c in columns)
    # Without the condition, count(*) would succeed.
    connection.execute(
        f"CREATE VIEW {view} AS SELECT {shown} FROM (SELECT 1) AS one "
        f"WHERE CAST(error({message}) AS BOOLEAN)"
    )
