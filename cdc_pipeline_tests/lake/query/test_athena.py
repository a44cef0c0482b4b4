"""Queries for Athena: each is one statement of its dialect, whatever the names are."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from click.testing import CliRunner
from sqlglot import exp

from cdc_pipeline.cli import main
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import EraseRefusedError, QueryError
from cdc_pipeline.core.items.columns import Column
from cdc_pipeline.core.names import safe_name
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.athena import athena_script, catalogued
from cdc_pipeline.lake.query.view_script import list_views, view_script
from cdc_pipeline.settings.load import PATH_VARIABLE, load_settings
from cdc_pipeline.transform.athena import CataloguedTable, athena_statements
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change

_NAMES = [
    "current_state",
    "item",
    "rescued",
    "time_travel",
    "snapshots",
    "cdc_of_a_day",
    "ttl_deletes",
    "changes_as_columns",
    "history",
    "item_history",
    "ttl_archive",
    "changes_per_day",
    "changes_per_hour",
    "landed_of_a_day",
    "pitr_export",
]
_HOSTILE = [
    "plain",
    "select",
    "it's",
    'a"b',
    "back\\slash\\",
    "$.x[0]",
    "line\nDROP TABLE x; --",
    "*/ /*",
    "ü 🚪",
    "",
    "a?b:c",
]
_KINDS = ["string", "int64", "decimal(38,2)", "boolean", "binary", "json", "list<string>"]
_DAY = date(2026, 11, 5)


def _full(table: str = "orders", **changes: Any) -> CataloguedTable:
    columns = [
        Column(f'"{n}-{attribute}', attribute, "S", _KINDS[n % len(_KINDS)])
        for n, attribute in enumerate(_HOSTILE)
    ]
    facts: dict[str, Any] = {
        "database": "cdc",
        "table": table,
        "key": '{"it\'s":{"S":"-- \'); DROP TABLE x"}}',
        "columns": columns,
        "published_at": datetime(2026, 11, 5, 12, 0, 1, tzinfo=UTC),
        "complete_to": datetime(2026, 11, 5, 11, 59, tzinfo=UTC),
        "cdc_day": _DAY,
        "landed_day": _DAY,
        "baseline": 42,
        "has_ttl_archive": True,
    }
    return CataloguedTable(**{**facts, **changes})


def _parse(sql: str, dialect: str) -> exp.Query:
    (parsed,) = sqlglot.parse(sql, read=dialect)
    assert isinstance(parsed, exp.Query), sql
    return parsed


@pytest.mark.parametrize("dialect", ["trino", "athena"])
@pytest.mark.parametrize("table", ["orders", safe_name("2-Order.Select_FROM")])
def test_every_query_is_one_statement(table: str, dialect: str) -> None:
    statements = athena_statements(_full(table))
    assert [statement.name for statement in statements] == _NAMES
    for statement in statements:
        parsed = _parse(statement.sql, dialect)
        inner = {cte.alias for cte in parsed.find_all(exp.CTE)}
        tables = [t for t in parsed.find_all(exp.Table) if t.name not in inner]
        assert {t.db for t in tables} == {"cdc"}, statement.name
        assert all(t.name.startswith(f"{table}_") for t in tables)
        assert all(t.this.quoted for t in tables)


def test_names_and_values_arrive_as_they_are() -> None:
    has = _full()
    statements = {s.name: _parse(s.sql, "trino") for s in athena_statements(has)}
    columns = [c.name for c in has.columns]
    for name in ("current_state", "time_travel"):
        shown = [e.alias_or_name for e in statements[name].selects]
        assert shown == ["item_key", *columns]
        assert all(c.this.quoted for c in statements[name].find_all(exp.Column))
    shown = [e.alias_or_name for e in statements["changes_as_columns"].selects]
    assert shown == ["write_time", "op", "item_key", *columns]
    sql = next(s.sql for s in athena_statements(has) if s.name == "changes_as_columns")
    paths = [t.text for t in sqlglot.tokenize(sql, read="trino") if t.text.startswith("$[")]
    assert paths[:6] == [
        *('$["plain"]', '$["select"]', '$["it\'s"]', '$["a\\"b"]'),
        *('$["back\\\\slash\\\\"]', '$["$.x[0]"]'),
    ]
    for name, column in (("item", "_key"), ("item_history", "keys")):
        (where,) = statements[name].find_all(exp.Where)
        assert where.this == exp.column(column, quoted=True).eq(exp.Literal.string(has.key))


def test_partitions_and_times_are_said_as_they_are_stored() -> None:
    sql = {s.name: s.sql for s in athena_statements(_full())}
    in_the_day = "\"year\" = '2026' AND \"month\" = '11' AND \"day\" = '05'"
    assert in_the_day in sql["changes_per_hour"]
    assert in_the_day in sql["landed_of_a_day"]
    assert "\"year\" = '2026' AND \"month\" = '11'\n" in sql["changes_per_day"]
    assert "\"day\" = DATE '2026-11-05'" in sql["cdc_of_a_day"]
    assert "FOR TIMESTAMP AS OF TIMESTAMP '2026-11-05 12:00:01 UTC'" in sql["time_travel"]
    assert "FOR VERSION AS OF 42" in sql["pitr_export"]


def test_only_tables_that_exist_are_queried() -> None:
    def named(**changes: Any) -> list[str]:
        return [s.name for s in athena_statements(_full(**changes))]

    raw = ["changes_per_day", "changes_per_hour", "landed_of_a_day"]
    nothing = {"published_at": None, "columns": (), "cdc_day": None, "baseline": None}
    assert named(**nothing) == raw
    assert named(**nothing, landed_day=None) == []
    assert named(**{**nothing, "cdc_day": _DAY}, has_ttl_archive=False) == [
        *("cdc_of_a_day", "ttl_deletes", "history", "item_history"),
        *raw,
    ]


def test_the_script_is_comments_and_statements(built: LakeBuilder) -> None:
    script = "".join(athena_script(built.table_lake))
    assert "The catalogue is still empty" in script
    _fill(built)
    script = "".join(athena_script(built.table_lake))
    wanted = [name for name in _NAMES if name != "ttl_archive"]
    headings = [line for line in script.splitlines() if line.removeprefix("-- ") in wanted]
    assert headings == [f"-- {name}" for name in wanted]
    parsed = sqlglot.parse(script, read="trino")
    assert len([one for one in parsed if one is not None]) == len(wanted)
    assert max(map(len, script.splitlines())) <= 110
    assert "put the value here" in script

    one = "".join(athena_script(built.table_lake, ["item"], '{"pk": "a"}'))
    (found,) = [s for s in sqlglot.parse(one, read="trino") if s is not None]
    assert '\'{"pk":{"S":"a"}}\'' in found.sql("trino")
    with pytest.raises(QueryError, match="there is no query 'nothing'"):
        "".join(athena_script(built.table_lake, ["nothing"]))
    with pytest.raises(EraseRefusedError, match="the key has the attributes sk"):
        "".join(athena_script(built.table_lake, ["item"], '{"sk": "a"}'))


def test_facts_are_those_of_the_lake(built: LakeBuilder) -> None:
    baseline = _fill(built)
    has = catalogued(built.table_lake)
    state = built.lake.iceberg.load("orders_current_state")
    assert state is not None
    snapshot = state.current_snapshot()
    assert snapshot is not None
    assert has.published_at is not None
    behind = has.published_at.timestamp() * 1000 - snapshot.timestamp_ms
    assert 0 < behind <= 1000
    assert has.baseline == baseline.snapshot_id
    assert (has.cdc_day, has.landed_day) == (day_of(START_US), day_of(START_US))
    assert [column.name for column in has.columns] == ["pk", "v"]
    assert has.key == '{"pk":{"S":"put the value here"}}'


def test_the_key_of_an_item_is_hashed_where_rules_hash_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_MASKING_KEY", "k" * 40)
    built = LakeBuilder.at(tmp_path, tables=[{"name": "orders", "columns": {"pk": {"hash": True}}}])
    _fill(built)
    with_key = catalogued(built.table_lake, '{"pk": "a"}').key
    assert '"a"' not in with_key
    state = built.lake.iceberg.load("orders_current_state")
    assert state is not None
    assert with_key in state.scan().to_arrow()["_key"].to_pylist()


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "settings.yaml"
    margins = "handover_margin_seconds: 2\nclock_margin_seconds: 0\n"
    said = f"lake: lake\n{margins}tables: [{{name: orders}}]\n"
    settings.write_text(said, "utf-8")
    monkeypatch.setenv(PATH_VARIABLE, str(settings))
    built = LakeBuilder(Lake.open(load_settings()))
    _fill(built)

    def run(*arguments: str) -> list[str]:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    assert run("athena-sql", "orders") == "".join(athena_script(built.table_lake)).splitlines()
    assert run("athena-sql", "orders", "item", "--key", '{"pk": "a"}')[-1].endswith('"a"}}\';')
    assert run("views", "orders") == list_views(built.lake, ["orders"])
    script = "".join(view_script(built.lake)).splitlines()
    assert run("views", "--sql")[1:] == script[1:]  # the first line tells the time
    refused = CliRunner().invoke(main, ["athena-sql", "nothing"])
    assert refused.exit_code == 1
    assert "no table 'nothing'" in refused.output


def _fill(built: LakeBuilder) -> Any:
    built.start()
    baseline = built.stage({"a": {"v": {"N": "1"}}, "b": {"v": {"N": "2"}}})
    built.read_to(START_US + MARGIN_US)
    built.land([change("a", 1, {"v": {"N": "2"}})])
    publish_current_state(built.table_lake)
    build_cdc_day(built.table_lake, day_of(START_US))
    return baseline
