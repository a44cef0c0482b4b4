"""Each DuckDB type on its way out: exact in Iceberg, JSON and CSV, or refused by name."""

import csv
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from cdc_pipeline.core.errors import QueryError
from cdc_pipeline.lake.engine.duckdb_session import connect_duckdb, statement
from cdc_pipeline.lake.engine.duckdb_types import TYPES, storable_table
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.query import as_csv, as_json
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.lake.builder import LakeBuilder, plain_view

_38 = "9" * 38
SAMPLES = {
    "BOOLEAN": ["true"],
    "TINYINT": ["'-128'::TINYINT"],
    "SMALLINT": ["'-32768'::SMALLINT"],
    "INTEGER": ["'-2147483648'::INTEGER"],
    "BIGINT": ["'-9223372036854775808'::BIGINT"],
    "UTINYINT": ["255::UTINYINT"],
    "USMALLINT": ["65535::USMALLINT"],
    "UINTEGER": ["4294967295::UINTEGER"],
    "UBIGINT": ["18446744073709551615::UBIGINT"],
    "HUGEINT": [f"{_38}::HUGEINT", f"'-{_38}'::HUGEINT"],
    "UHUGEINT": [f"{_38}::UHUGEINT"],
    "BIGNUM": [f"'{_38}{_38}'::BIGNUM"],
    "DECIMAL(p,s)": ["1.10::DECIMAL(9,2)", f"'0.{_38}'::DECIMAL(38,38)"],
    "FLOAT": ["1.1::FLOAT", "1e30::FLOAT", "'-inf'::FLOAT"],
    "DOUBLE": ["0.1::DOUBLE", "1e300::DOUBLE", "'nan'::DOUBLE"],
    "VARCHAR": ["'x'", """'{"a": 1}'::JSON"""],
    "UUID": ["'00000000-0000-0000-0000-00000000000f'::UUID"],
    "ENUM": ["'a'::ENUM('a', 'b')"],
    "BLOB": [r"'\xAA\x00'::BLOB"],
    "BIT": ["'0101'::BIT"],
    "DATE": ["DATE '2026-01-02'"],
    "TIME": ["TIME '01:02:03.000004'"],
    "TIME_NS": ["'01:02:03.000004005'::TIME_NS"],
    "TIMETZ": ["'01:02:03+05:00'::TIMETZ"],
    "TIMESTAMP_S": ["'2026-01-02 03:04:05'::TIMESTAMP_S"],
    "TIMESTAMP_MS": ["'2026-01-02 03:04:05.123'::TIMESTAMP_MS"],
    "TIMESTAMP": ["'2026-01-02 03:04:05.123456'::TIMESTAMP"],
    "TIMESTAMP_NS": ["'2026-01-02 03:04:05.123456'::TIMESTAMP_NS"],
    "TIMESTAMPTZ": ["'2026-01-02 03:04:05.123456+00'::TIMESTAMPTZ"],
    "TIMESTAMPTZ_NS": ["'2026-01-02 03:04:05.123456+00'::TIMESTAMPTZ_NS"],
    "INTERVAL": ["INTERVAL '1 month 2 days 3 seconds'"],
    "NULL": ["NULL"],
    "UNION": ["union_value(a := 340282366920938463463374607431768211455::UHUGEINT)"],
    "VARIANT": ["1::VARIANT"],
    "GEOMETRY": ["'POINT(1 2)'::GEOMETRY"],
}
_ENGINES = {  # of each Iceberg type: Spark, Trino and Athena, by their connectors' documentation
    "boolean": ("BOOLEAN", "boolean"),
    "int": ("INT", "integer"),
    "long": ("BIGINT", "bigint"),
    "decimal(38, 0)": ("DECIMAL(38,0)", "decimal(38,0)"),
    "decimal(p, s)": ("DECIMAL(p,s)", "decimal(p,s)"),
    "float": ("FLOAT", "real"),
    "double": ("DOUBLE", "double"),
    "string": ("STRING", "varchar"),
    "binary": ("BINARY", "varbinary"),
    "date": ("DATE", "date"),
    "timestamp": ("TIMESTAMP_NTZ", "timestamp(6)"),
    "timestamptz": ("TIMESTAMP", "timestamp(6) with time zone"),
    "refused": ("", ""),
}
_DOCS = Path(__file__).parents[3] / "docs" / "types.md"
_EVERY = [(name, sql) for name, samples in SAMPLES.items() for sql in samples]


@pytest.fixture
def duck(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    return connect_duckdb(LakeBuilder.at(tmp_path).lake)


def _documented() -> dict[str, list[str]]:
    lines = re.findall(r"^\| (.+) \|$", _DOCS.read_text("utf-8"), re.M)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells[1:]}


def _json(duck: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, Any]:
    """The cell as its JSON, and what a reader of JSON makes of it."""
    text = "".join(as_json(duck.sql(f"SELECT {sql} AS x")))
    cell = re.fullmatch(r'\[\n\{"x":(.*)\}\n\]\n', text, re.S)
    assert cell
    return cell[1], msgspec.json.decode(cell[1], type=Any if cell[1][0] in '"[{ntf' else Decimal)


def _text(duck: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """As `--format table` shows it."""
    ((text,),) = duck.sql(f"SELECT CAST({sql} AS VARCHAR)").fetchall()
    return text


def test_every_type_has_samples_and_a_line_in_the_docs() -> None:
    named = [known.name for known in TYPES.values()]
    assert list(SAMPLES) == named
    assert list(_documented()) == named


def test_no_type_of_duckdb_is_left_out(duck: duckdb.DuckDBPyConnection) -> None:
    rows = duck.sql("SELECT DISTINCT logical_type FROM duckdb_types()")
    # Of types themselves: refused and shown as text like anything that is not in the table.
    assert _text(duck, "get_type(1)") == _json(duck, "get_type(1)")[1]
    nested = {"LIST", "MAP", "STRUCT", "ARRAY", "TUPLE"}
    aliases = {"TIME WITH TIME ZONE": "TIMETZ", "TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ"}
    named = {aliases.get(name, name) for (name,) in rows.fetchall()} - nested
    ours = {re.sub(r"\(.*", "", name) for name in SAMPLES}
    assert {re.sub(r'\(.*|"', "", str(name)) for name in named} - ours == {"TYPE"}


@pytest.mark.parametrize(("name", "sql"), _EVERY)
def test_json_and_csv_are_what_duckdb_shows(
    name: str, sql: str, duck: duckdb.DuckDBPyConnection
) -> None:
    shown, (token, value) = _text(duck, sql), _json(duck, sql)
    _, line = "".join(as_csv(duck.sql(f"SELECT {sql} AS x, 0 AS y"))).splitlines()
    (cell, _), *_ = csv.reader([line])
    in_json, in_csv = _documented()[name][3:]
    if shown in ("nan", "inf", "-inf"):
        assert (value, cell) == (shown, shown)
    elif in_json == "number":
        assert in_csv == "number"
        assert Decimal(token) == Decimal(shown) == Decimal(cell)
        digits = Decimal(shown).as_tuple()[1]
        assert Decimal(token).as_tuple()[1] == digits or name in ("FLOAT", "DOUBLE")
    elif name == "BLOB":
        assert (value, cell) == ("qgA=", "qgA=")
    elif name == "BOOLEAN":
        assert (token, cell) == ("true", "True")
    elif name == "NULL":
        assert (token, cell) == ("null", "")
    else:
        assert (in_json, in_csv) == ("text", "text")
        if name == "TIMESTAMP_MS":
            shown += "000"
        plain = value.replace("T", " ").replace("Z", "+00") if "TIMESTAMP" in name else value
        assert plain == shown
        assert cell.removesuffix(":00") == shown if "TZ" in name else cell == shown


_REFUSED = [(t.name, sql) for t in TYPES.values() if t.stored is None for sql in SAMPLES[t.name]]


@pytest.mark.parametrize(("name", "sql"), _REFUSED)
@pytest.mark.parametrize("nested", ["{}", "[{}]", "{{'a': {}}}"])
def test_a_type_that_iceberg_lacks_is_refused_by_name(
    name: str, sql: str, nested: str, duck: duckdb.DuckDBPyConnection
) -> None:
    assert _documented()[name][:3] == ["refused", "", ""]
    value = nested.format(sql)
    relation = duck.sql(f"SELECT 1 AS n, {value} AS x")
    kind = str(relation.types[1]).strip('"')
    with pytest.raises(
        QueryError, match=re.escape(f"aggregate a: column x is {kind}: ")
    ) as refused:
        storable_table(relation, "aggregate a")
    fix = re.search(r'write (CAST\(.+\) AS "x")', str(refused.value))
    assert fix
    mended = duck.sql(f"SELECT {fix[1]} FROM (SELECT {value} AS x)")
    assert storable_table(mended, "aggregate a").column("x").to_pylist() == [_text(duck, value)]


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("170141183460469231731687303715884105727::HUGEINT", "HUGEINT"),
        ("340282366920938463463374607431768211455::UHUGEINT", "UHUGEINT"),
        ("[170141183460469231731687303715884105727::HUGEINT]", "HUGEINT[]"),
        ("'2026-01-02 03:04:05.123456789'::TIMESTAMP_NS", "TIMESTAMP_NS"),
        ("'2026-01-02 03:04:05.123456789+00'::TIMESTAMPTZ_NS", "TIMESTAMPTZ_NS"),
    ],
)
def test_a_value_that_iceberg_cannot_hold_is_refused_by_name(
    sql: str, named: str, duck: duckdb.DuckDBPyConnection
) -> None:
    found = duck.sql(f"SELECT 1::UBIGINT AS n, {sql} AS x")
    with pytest.raises(QueryError, match=re.escape(f"aggregate a: column x is {named}: a value")):
        storable_table(found, "aggregate a")


def test_a_cast_that_fails_in_the_query_itself_is_the_querys(
    duck: duckdb.DuckDBPyConnection,
) -> None:
    with pytest.raises(duckdb.ConversionException, match="nonsense"):
        storable_table(duck.sql("SELECT 1::UBIGINT AS n, CAST('nonsense' AS INT) AS x"), "a")


@pytest.mark.parametrize("sql", ["1 AS a, 2 AS A", f"1 AS {'a' * 256}"])
def test_names_that_no_catalogue_takes_are_refused(
    sql: str, duck: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(QueryError, match=r"aggregate a: .*column"):
        storable_table(duck.sql(f"SELECT {sql}"), "aggregate a")


def _aggregate(built: LakeBuilder, sql: str) -> None:
    folder = built.lake.settings.aggregates_folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "typed.sql").write_text(sql)
    (aggregate,) = load_aggregates(folder)
    build_aggregate(built.lake, aggregate)


def _nests(name: str, sql: str) -> bool:
    """JSON becomes text, which DuckDB shows otherwise within lists."""
    return "_NS" not in name and "JSON" not in sql


def test_iceberg_has_every_other_type_exactly(
    built: LakeBuilder, duck: duckdb.DuckDBPyConnection
) -> None:
    kept = [(name, sql) for name, sql in _EVERY if (name, sql) not in _REFUSED]
    columns = [f"{sql} AS c{n}" for n, (_, sql) in enumerate(kept)]
    nested = [f"[{sql}] AS l{n}" for n, (name, sql) in enumerate(kept) if _nests(name, sql)]
    more = [
        "[1, 2]::UINTEGER[2] AS fixed",
        "{'a': 1::UBIGINT, 'b': [255::UTINYINT]} AS record",
        f"MAP {{'k': {_38}::UHUGEINT}} AS pairs",
    ]
    _aggregate(built, f"SELECT {', '.join(columns + nested + more)}; -- é;")
    table = built.lake.iceberg.load("aggregates_typed")
    assert table is not None
    for n, (name, sql) in enumerate(kept):
        iceberg, spark, trino, *_ = _documented()[name]
        found = str(table.schema().find_type(f"c{n}"))
        assert found == iceberg or (iceberg, found[:8]) == ("decimal(p, s)", "decimal("), sql
        assert _ENGINES[iceberg] == (spark, trino)
    select = ", ".join(f"CAST(c{n} AS VARCHAR) AS c{n}" for n in range(len(kept)))
    (row,) = plain_view(built.lake, f"SELECT {select} FROM aggregates.typed")
    assert [*row.values()] == [_text(duck, sql) for _, sql in kept]
    select = ", ".join(
        f"CAST({c.rpartition(' ')[2]} AS VARCHAR) AS x{n}" for n, c in enumerate(nested + more)
    )
    (row,) = plain_view(built.lake, f"SELECT {select} FROM aggregates.typed")
    assert [*row.values()] == [_text(duck, c.rpartition(" AS ")[0]) for c in nested + more]


@pytest.mark.parametrize(
    ("sql", "json"),
    [
        (
            "[340282366920938463463374607431768211455::UHUGEINT, NULL]",
            "[340282366920938463463374607431768211455,null]",
        ),
        ("{'a': 1.1::FLOAT, 'b': 'x'}", '{"a":1.1,"b":"x"}'),
        ("MAP {1.1::FLOAT: '01'::BIT}", '[[1.1,"01"]]'),
        ("['nan'::DOUBLE, 1]", '["nan",1.0]'),
        ("[[1::UHUGEINT]]", "[[1]]"),
        ("{'a': NULL::BIT}", '{"a":null}'),
    ],
)
def test_json_is_exact_within_nested_values(
    sql: str, json: str, duck: duckdb.DuckDBPyConnection
) -> None:
    assert "".join(as_json(duck.sql(f"SELECT {sql} AS x"))) == f'[\n{{"x":{json}}}\n]\n'


@pytest.mark.parametrize("sql", ["'infinity'::TIMESTAMP", "DATE '10000-01-01'"])
def test_a_date_beyond_python_is_refused_by_name(sql: str, duck: duckdb.DuckDBPyConnection) -> None:
    for form in (as_json, as_csv):
        with pytest.raises(QueryError, match=r"column x is .*years 1 to 9999"):
            "".join(form(duck.sql(f"SELECT {sql} AS x")))


@pytest.mark.parametrize("end", ["", ";", " ;; -- é;", "; /* ; */", "\n-- é\n;\n"])
def test_a_statement_ends_before_its_semicolon(end: str, duck: duckdb.DuckDBPyConnection) -> None:
    relation = duck.sql(statement(f"SELECT 'é;' AS x, 1::BIT AS y{end}"))
    assert "".join(as_json(relation)).startswith('[\n{"x":"é;","y":"000')
