"""Output of DuckDB's types: the exact representation of each in Iceberg, JSON and CSV.

Values pass through Arrow, and DuckDB 2.0 writes some types to Arrow with other values: UHUGEINT
becomes negative, TIMETZ loses its offset, BIT has DuckDB's internal bytes. docs/types.md shows
`TYPES`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import duckdb
import msgspec
import pyarrow as pa

from cdc_pipeline.core.errors import QueryError
from cdc_pipeline.core.names import MAX_COLUMN_NAME

Shown = Literal["value", "number", "text"]


@dataclass(frozen=True)
class OutputType:
    """Output of one DuckDB type.

    `stored`: the DuckDB type it is stored as; None: refused. `iceberg`: Iceberg's name of that
    type. `shown`: form in JSON and CSV; `number`: a token with all digits, `text`: DuckDB's
    spelling.
    """

    name: str
    stored: str | None
    iceberg: str | None
    shown: Shown = "value"


TYPES = {
    "boolean": OutputType("BOOLEAN", "BOOLEAN", "boolean"),
    "tinyint": OutputType("TINYINT", "INTEGER", "int"),
    "smallint": OutputType("SMALLINT", "INTEGER", "int"),
    "integer": OutputType("INTEGER", "INTEGER", "int"),
    "bigint": OutputType("BIGINT", "BIGINT", "long"),
    "utinyint": OutputType("UTINYINT", "BIGINT", "long"),
    "usmallint": OutputType("USMALLINT", "BIGINT", "long"),
    "uinteger": OutputType("UINTEGER", "BIGINT", "long"),
    "ubigint": OutputType("UBIGINT", "DECIMAL(38,0)", "decimal(38, 0)"),
    "hugeint": OutputType("HUGEINT", "DECIMAL(38,0)", "decimal(38, 0)"),
    "uhugeint": OutputType("UHUGEINT", "DECIMAL(38,0)", "decimal(38, 0)", "number"),
    "bignum": OutputType("BIGNUM", None, None, "number"),
    "decimal": OutputType("DECIMAL(p,s)", "DECIMAL(p,s)", "decimal(p, s)"),
    "float": OutputType("FLOAT", "FLOAT", "float", "number"),
    "double": OutputType("DOUBLE", "DOUBLE", "double"),
    "varchar": OutputType("VARCHAR", "VARCHAR", "string"),
    "uuid": OutputType("UUID", "VARCHAR", "string"),
    "enum": OutputType("ENUM", "VARCHAR", "string"),
    "blob": OutputType("BLOB", "BLOB", "binary"),
    "bit": OutputType("BIT", None, None, "text"),
    "date": OutputType("DATE", "DATE", "date"),
    "time": OutputType("TIME", None, None),
    "time_ns": OutputType("TIME_NS", None, None, "text"),
    "time with time zone": OutputType("TIMETZ", None, None, "text"),
    "timestamp_s": OutputType("TIMESTAMP_S", "TIMESTAMP", "timestamp"),
    "timestamp_ms": OutputType("TIMESTAMP_MS", "TIMESTAMP", "timestamp"),
    "timestamp": OutputType("TIMESTAMP", "TIMESTAMP", "timestamp"),
    "timestamp_ns": OutputType("TIMESTAMP_NS", "TIMESTAMP_NS", "timestamp", "text"),
    "timestamp with time zone": OutputType(
        "TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE", "timestamptz"
    ),
    "timestamptz_ns": OutputType("TIMESTAMPTZ_NS", "TIMESTAMPTZ_NS", "timestamptz", "text"),
    "interval": OutputType("INTERVAL", None, None, "text"),
    "null": OutputType("NULL", None, None),
    "union": OutputType("UNION", None, None, "text"),
    "variant": OutputType("VARIANT", None, None, "text"),
    "geometry": OutputType("GEOMETRY", None, None, "text"),
}
"""By DuckDB's id of the type; lists, arrays, structs and maps consist of these."""

_NANOS = ("timestamp_ns", "timestamptz_ns")
_REASONS = {
    "time": "Spark reads no Iceberg table that has one",
    "null": "an untyped NULL has no type to store",
}


# Into Iceberg tables


def storable_table(relation: duckdb.DuckDBPyRelation, what: str) -> pa.Table:
    """Return the whole result in types that Iceberg and every engine can read, values exact.

    Raises `QueryError` with `what`, the column, its type and the SQL to write instead;
    `duckdb.Error` for a query that fails by itself.
    """
    names, kinds = relation.columns, relation.types
    _require_names(names, what)
    targets = [_target(name, kind, what) for name, kind in zip(names, kinds, strict=True)]
    casts = [
        f"CAST(#{n} AS {target})" if target != str(kind) else f"#{n}"
        for n, (kind, target) in enumerate(zip(kinds, targets, strict=True), 1)
    ]
    if all(expression.startswith("#") for expression in casts):
        rows = cast(pa.Table, relation.to_arrow_table())
    else:
        listed = ", ".join(f"{c} AS {_quoted(n)}" for c, n in zip(casts, names, strict=True))
        try:
            rows = cast(pa.Table, relation.project(listed).to_arrow_table())
        except duckdb.ConversionException:
            cells = zip(names, kinds, targets, casts, strict=True)
            for n, (name, kind, target, expression) in enumerate(cells, 1):
                if _fails(relation, expression) and not _fails(relation, f"#{n}"):
                    raise _refusal(
                        what, name, kind, f"a value exceeds {target}, the widest type of Iceberg"
                    ) from None
            raise
    return pa.table(
        [_micros(column, name, what) for name, column in zip(names, rows.columns, strict=True)],
        names=names,
    )


def _require_names(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise QueryError(
                f"{what}: two columns have the name {name.lower()} (case is ignored)",
                fix="give each a different name with AS",
            )
        if not 0 < len(name) <= MAX_COLUMN_NAME:
            raise QueryError(
                f"{what}: a column's name has {len(name)} characters, not 1 to {MAX_COLUMN_NAME}: "
                f"{name[:40]!r}",
                fix="give it a shorter name with AS",
            )
        seen.add(name.lower())


class _RefusedError(Exception):
    """A type that cannot be stored in Iceberg tables."""


def _target(name: str, kind: Any, what: str) -> str:
    try:
        return _stored(kind)
    except _RefusedError as refused:
        raise _refusal(what, name, kind, str(refused)) from None


def _stored(kind: Any, *, nested: bool = False) -> str:
    """Return the DuckDB type, as text, that values are cast to before they are stored."""
    if kind.id in ("list", "array"):
        return f"{_stored(kind.children[0][1], nested=True)}[]"
    if kind.id == "map":
        key, value = (_stored(child, nested=True) for _, child in kind.children)
        return f"MAP({key}, {value})"
    if kind.id == "struct":
        fields = (f"{_quoted(n)} {_stored(child, nested=True)}" for n, child in kind.children)
        return f"STRUCT({', '.join(fields)})"
    known = TYPES.get(kind.id)
    if known is None or known.stored is None or (nested and kind.id in _NANOS):
        raise _RefusedError(_REASONS.get(kind.id, "Iceberg has no type that holds it exactly"))
    return str(kind) if kind.id == "decimal" else known.stored


def _refusal(what: str, name: str, kind: Any, reason: str) -> QueryError:
    shown = str(kind).strip('"')
    value = "NULL" if kind.id == "null" else _quoted(name)
    return QueryError(
        f"{what}: column {name} is {shown}: {reason}",
        fix=f"write CAST({value} AS VARCHAR) AS {_quoted(name)}, or another type of docs/types.md",
    )


def _fails(relation: duckdb.DuckDBPyRelation, expression: str) -> bool:
    try:
        relation.project(f"{expression} AS cell").to_arrow_table()
    except duckdb.ConversionException:
        return True
    return False


def _micros(column: pa.ChunkedArray, name: str, what: str) -> pa.ChunkedArray:
    """Convert nanoseconds to microseconds, the finest unit of Iceberg v2."""
    if not pa.types.is_timestamp(column.type) or column.type.unit != "ns":
        return column
    try:
        return column.cast(pa.timestamp("us", column.type.tz))
    except pa.ArrowInvalid:
        stored = "TIMESTAMP" if column.type.tz is None else "TIMESTAMPTZ"
        raise QueryError(
            f"{what}: column {name} is {stored}_NS: a value has nanoseconds, Iceberg stores µs",
            fix=f"write CAST({_quoted(name)} AS {stored}), which cuts them, or AS VARCHAR",
        ) from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Into JSON and CSV

Rows = Iterator[list[Any]]
_Convert = Callable[[Any], Any]


def shown_rows(relation: duckdb.DuckDBPyRelation, rows: int) -> Rows:
    """Yield the result's rows as Python values, as exact as DuckDB shows them.

    Numbers without an exact Python type are `msgspec.Raw` tokens. Reads `rows` rows at a time.
    Raises `QueryError` for a date that Python cannot represent, `duckdb.Error`, `OSError`.
    """
    shapes = [_shape(kind) for kind in relation.types]
    if any(sql for sql, _ in shapes):
        expressions = (
            f"CAST(#{n} AS {sql}) AS c{n}" if sql else f"#{n} AS c{n}"
            for n, (sql, _) in enumerate(shapes, 1)
        )
        reader: Any = relation.project(", ".join(expressions)).to_arrow_reader(rows)
    else:
        reader = relation.to_arrow_reader(rows)
    for batch in reader:
        columns = [
            _values(column, name, kind, convert)
            for column, name, kind, (_, convert) in zip(
                batch.columns, relation.columns, relation.types, shapes, strict=True
            )
        ]
        yield from ([*row] for row in zip(*columns, strict=True))


def _values(column: pa.Array, name: str, kind: Any, convert: _Convert | None) -> list[Any]:
    try:
        values = column.to_pylist()
    except (OverflowError, ValueError):
        raise QueryError(
            f"column {name} is {kind}: a value is infinite or outside of the years 1 to 9999",
            fix=f"write CAST({_quoted(name)} AS VARCHAR)",
        ) from None
    return values if convert is None else [_optional(convert, value) for value in values]


def _optional(convert: _Convert, value: Any) -> Any:
    return None if value is None else convert(value)


def _shape(kind: Any) -> tuple[str | None, _Convert | None]:
    """Return the SQL type to cast to (None: no cast) and the conversion of Python values."""
    if kind.id in ("list", "array"):
        sql, convert = _shape(kind.children[0][1])
        if convert is None:
            return sql and f"{sql}[]", None
        return sql and f"{sql}[]", lambda v: [_optional(convert, member) for member in v]
    if kind.id == "struct":
        shapes = [(name, child, *_shape(child)) for name, child in kind.children]
        if not any(sql or convert for _, _, sql, convert in shapes):
            return None, None
        fields = (f"{_quoted(name)} {sql or child}" for name, child, sql, _ in shapes)
        converts = {name: convert or _same for name, _, _, convert in shapes}
        return f"STRUCT({', '.join(fields)})", lambda v: {
            name: _optional(converts[name], member) for name, member in v.items()
        }
    if kind.id == "map":
        (_, key), (_, value) = kind.children
        (key_sql, from_key), (value_sql, from_value) = _shape(key), _shape(value)
        sql = f"MAP({key_sql or key}, {value_sql or value})" if key_sql or value_sql else None
        return sql, lambda v: [
            [_optional(from_key or _same, k), _optional(from_value or _same, m)] for k, m in v
        ]
    known = TYPES.get(kind.id)
    shown = known.shown if known else "text"
    if kind.id == "double":
        return None, _finite
    if shown == "number":
        return "VARCHAR", _token
    return ("VARCHAR", None) if shown == "text" else (None, None)


def _same(value: Any) -> Any:
    return value


def _token(text: str) -> Any:
    return text if text in ("nan", "inf", "-inf") else msgspec.Raw(text.encode())


def _finite(value: float) -> Any:
    return value if math.isfinite(value) else str(value)
