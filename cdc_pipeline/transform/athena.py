"""Ready queries on one table for Athena, in Trino's SQL."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from cdc_pipeline.core.items.columns import Column
from cdc_pipeline.transform.sql import load_sql


@dataclass(frozen=True)
class CataloguedTable:
    """A table's contents in the catalogue; None or empty: not there yet.

    `table`: the safe name. `key`: an item's key in the tables' form, canonical typed JSON.
    `columns`: of current_state, published at `published_at` and complete up to `complete_to`.
    `cdc_day`, `landed_day`: the newest ones. `baseline`: the snapshot of the live export.
    """

    database: str
    table: str
    key: str
    columns: Sequence[Column] = ()
    published_at: datetime | None = None
    complete_to: datetime | None = None
    cdc_day: date | None = None
    landed_day: date | None = None
    baseline: int | None = None
    has_ttl_archive: bool = False
    keep_snapshot_days: int = 7


@dataclass(frozen=True)
class Statement:
    """One query: its name, notes on meaning and cost, and its SQL."""

    name: str
    notes: str
    sql: str


def athena_statements(has: CataloguedTable) -> list[Statement]:
    """Build all queries on the existing tables."""
    statements: list[Statement] = []
    if has.published_at is not None:
        statements += _state(has, has.published_at)
    if has.cdc_day is not None:
        statements += _cdc(has, has.cdc_day)
    if has.landed_day is not None:
        statements += _raw(has, has.landed_day)
    if has.baseline is not None:
        statements.append(_pitr_export(has, has.baseline))
    return statements


def quoted(name: str) -> str:
    """Quote an identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Quote a string literal."""
    return "'" + value.replace("'", "''") + "'"


def json_path(attribute: str) -> str:
    """Build the literal of a JSON path to a top-level attribute of any name."""
    escaped = attribute.replace("\\", "\\\\").replace('"', '\\"')
    return text(f'$["{escaped}"]')


def _relation(has: CataloguedTable, view: str) -> str:
    return f"{quoted(has.database)}.{quoted(f'{has.table}_{view}')}"


def _typed_columns(has: CataloguedTable) -> str:
    return ",\n".join(['    "_key" AS "item_key"', *_attributes(has)])


def _attributes(has: CataloguedTable) -> list[str]:
    return [f"    {quoted(column.name)}" for column in has.columns]


def _whole_item(has: CataloguedTable) -> str:
    """List the columns of `core.items.view_names`, and the others."""
    return ",\n".join(
        [
            '    "_key" AS "item_key"',
            '    "_order_key" AS "order_key"',
            '    "_item" AS "item"',
            '    from_unixtime("_write_time_us" / 1000 / 1e3) AS "write_time"',
            '    "_rescued"',
            *_attributes(has),
        ]
    )


def _state(has: CataloguedTable, published_at: datetime) -> Iterator[Statement]:
    state = _relation(has, "current_state")
    to = f"{has.complete_to:%Y-%m-%d %H:%M:%S} UTC" if has.complete_to else "its baseline"
    yield Statement(
        "current_state",
        f"One row per item, one typed column per attribute, as published: complete up to {to}.\n"
        "List only columns that you need: Athena charges for the columns read, and `_item`,\n"
        "the whole item as exact DynamoDB JSON, is the largest. JSON columns (maps and lists) are\n"
        "text.",
        f"SELECT\n{_typed_columns(has)}\nFROM {state}\nLIMIT 100",
    )
    yield Statement(
        "item",
        "One item by its key, in DynamoDB JSON without spaces, attributes sorted by name. Files\n"
        "are sorted by key, so that little is read.",
        f'SELECT\n{_whole_item(has)}\nFROM {state}\nWHERE "_key" = {text(has.key)}',
    )
    yield Statement(
        "rescued",
        "Values whose DynamoDB type is not the column's: the column is null, and the value is in\n"
        "`_rescued`, as typed JSON by attribute.",
        f'SELECT "_key" AS "item_key", "_rescued"\nFROM {state}\n'
        'WHERE "_rescued" IS NOT NULL\nLIMIT 100',
    )
    yield Statement(
        "time_travel",
        "current_state as published at that time (not the source's state then, which\n"
        "`cdc-pipeline query --as-of` computes). Snapshots are kept for "
        f"{has.keep_snapshot_days} days.",
        f"SELECT\n{_typed_columns(has)}\nFROM {state}\n"
        f"FOR TIMESTAMP AS OF TIMESTAMP '{published_at:%Y-%m-%d %H:%M:%S} UTC'\nLIMIT 100",
    )
    snapshots = f"{quoted(has.database)}.{quoted(f'{has.table}_current_state$snapshots')}"
    yield Statement(
        "snapshots",
        "The published versions and their times; reads metadata only.",
        f'SELECT "committed_at", "snapshot_id", "operation"\nFROM {snapshots}\n'
        'ORDER BY "committed_at" DESC',
    )


def _cdc(has: CataloguedTable, day: date) -> Iterator[Statement]:
    cdc = _relation(has, "cdc")
    of_the_day = f"\"day\" = DATE '{day.isoformat()}'"
    yield Statement(
        "cdc_of_a_day",
        "Every change of one write day (UTC) once, in the order of each item's changes. Reads\n"
        "this day only.",
        'SELECT "time_stamp" AS "write_time", "op", "keys" AS "item_key", "data",\n'
        '    "is_ttl_delete", "transport", "order_key"\n'
        f'FROM {cdc}\nWHERE {of_the_day}\nORDER BY "item_key", "order_key"',
    )
    yield Statement(
        "ttl_deletes",
        "Items deleted by TTL on a day; `old_image` is their last state, if the stream has it.",
        'SELECT "time_stamp" AS "write_time", "keys" AS "item_key", "old_image"\n'
        f'FROM {cdc}\nWHERE {of_the_day} AND "op" = \'D\' AND "is_ttl_delete"\n'
        'ORDER BY "write_time", "item_key"',
    )
    if has.columns:
        yield Statement(
            "changes_as_columns",
            "Attributes from `data`, the plain JSON of the item after the change. Numbers with\n"
            "decimals are text, with all their digits: a cast would round. Maps, lists and sets\n"
            "are JSON, where Athena may keep numbers as floating point: `data` itself is exact.",
            f'SELECT\n    "time_stamp" AS "write_time",\n    "op",\n    "keys" AS "item_key",\n'
            f"{_extracts(has.columns)}\n"
            f'FROM {cdc}\nWHERE {of_the_day}\nORDER BY "keys", "order_key"',
        )
    yield Statement(
        "history",
        "One row per version of an item, valid from its change until the next one. Reads all\n"
        "columns below of all days; add `WHERE is_current`, or a time between valid_from and\n"
        "valid_to, at the end.",
        _history(cdc, ""),
    )
    yield Statement(
        "item_history",
        "The versions of one item. The day of a change does not follow from its key, so the keys\n"
        "of all days are read.",
        _history(cdc, f'\n    WHERE "keys" = {text(has.key)}'),
    )
    if has.has_ttl_archive:
        yield Statement(
            "ttl_archive",
            "Items deleted by TTL, with their last image, even if the stream has none.",
            'SELECT "keys" AS "item_key", "order_key", "_item" AS "item",\n'
            f'    "expired_at" AS "write_time", "data"\nFROM {_relation(has, "ttl_archive")}\n'
            f"WHERE {of_the_day}",
        )


def _history(cdc: str, where: str) -> str:
    versions = load_sql("history").strip().replace("\n", "\n    ")
    return (
        f"WITH cdc AS (\n    SELECT *\n    FROM {cdc}{where}\n),\n"
        f"versions AS (\n    {versions}\n)\n"
        'SELECT *\nFROM versions\nORDER BY "item_key", "order_key"'
    )


def _extracts(columns: Sequence[Column]) -> str:
    return ",\n".join(f"    {_extract(c)} AS {quoted(c.name)}" for c in columns)


def _extract(column: Column) -> str:
    path = json_path(column.attribute)
    scalar = f'json_extract_scalar("data", {path})'
    if column.type == "string" or column.type.startswith("decimal("):
        return scalar
    if column.type == "binary":
        return f"TRY(from_base64({scalar}))"
    if column.type == "boolean":
        return f"TRY_CAST({scalar} AS BOOLEAN)"
    if column.type == "int64":
        return f"TRY_CAST({scalar} AS BIGINT)"
    return f'json_extract("data", {path})'


def _raw(has: CataloguedTable, day: date) -> Iterator[Statement]:
    raw = _relation(has, "raw_stream")
    of_the_month = f"\"year\" = '{day:%Y}' AND \"month\" = '{day:%m}'"
    of_the_day = f"{of_the_month} AND \"day\" = '{day:%d}'"
    once = 'SELECT DISTINCT "uuid", "time_stamp", "op", "year", "month", "day"'
    yield Statement(
        "changes_per_day",
        "Landed changes of a month, by write day. The raw table may contain a change more than\n"
        "once; `uuid` (with `time_stamp`, for files of an older Lambda) identifies a change.",
        f'SELECT "year", "month", "day", "op", COUNT(*) AS "changes"\n'
        f"FROM (\n    {once}\n    FROM {raw}\n    WHERE {of_the_month}\n) AS landed\n"
        'GROUP BY "year", "month", "day", "op"\nORDER BY "year", "month", "day", "op"',
    )
    yield Statement(
        "changes_per_hour",
        "Landed changes of one day, by hour. Reads one partition.",
        'SELECT date_trunc(\'hour\', "time_stamp") AS "hour", "op", COUNT(*) AS "changes"\n'
        f"FROM (\n    {once}\n    FROM {raw}\n    WHERE {of_the_day}\n) AS landed\n"
        'GROUP BY date_trunc(\'hour\', "time_stamp"), "op"\nORDER BY 1, 2',
    )
    yield Statement(
        "landed_of_a_day",
        "The changes of a day as soon as they have landed, each once. `position` is the order of\n"
        "an item's changes if capture was not interrupted; `order_key` of cdc is always.\n"
        "Values are exact here even if columns are masked elsewhere: a restricted table.",
        'SELECT "time_stamp" AS "write_time", "op", "keys" AS "item_key", "data",\n'
        '    "new_image" AS "item", "position"\n'
        "FROM (\n"
        '    SELECT *, ROW_NUMBER() OVER (\n        PARTITION BY "uuid", "time_stamp" '
        'ORDER BY "position", "landed_at"\n    ) AS "occurrence"\n'
        f"    FROM {raw}\n    WHERE {of_the_day}\n) AS landed\n"
        'WHERE "occurrence" = 1\nORDER BY "item_key", "position"',
    )


def _pitr_export(has: CataloguedTable, baseline: int) -> Statement:
    return Statement(
        "pitr_export",
        "The items of the live baseline as DynamoDB exported them. Exact values even if columns\n"
        "are masked elsewhere: a restricted table.",
        f'SELECT "_key" AS "item_key", "_item" AS "item"\nFROM {_relation(has, "snapshot")}\n'
        f"FOR VERSION AS OF {baseline}\nLIMIT 100",
    )
