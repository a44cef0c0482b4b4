"""Daily aggregates whose columns change with their SQL: each view shows the table's own columns."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change, temporary_lake

DAY = day_of(START_US)
DAYS = [DAY + timedelta(days=number) for number in range(4)]


@pytest.fixture
def built(tmp_path: Path) -> Iterator[LakeBuilder]:
    with temporary_lake(aggregates=str(tmp_path)) as lake:
        lake.start()
        lake.land([change("k1", 1, {"n": {"N": "1"}}), change("k2", 2, None)])
        yield lake


def _build(built: LakeBuilder, day: int, columns: str) -> None:
    path = built.lake.settings.aggregates_folder / "daily.sql"
    path.write_text(
        f"-- partitioned: daily\nSELECT $day AS day, {columns} FROM orders.raw_stream\n"
    )
    (aggregate,) = load_aggregates(path.parent)
    build_aggregate(built.lake, aggregate, DAYS[day])


def _rows(built: LakeBuilder) -> tuple[list[str], list[tuple[Any, ...]]]:
    with connect_lake(built.lake) as connection:
        found = connection.execute("SELECT * FROM aggregates.daily ORDER BY day")
        names = [column[0] for column in found.description or ()]
        return names, found.fetchall()


def test_a_column_that_the_sql_gained_is_shown(built: LakeBuilder) -> None:
    _build(built, 0, "count(*) AS changes")
    _build(built, 1, "count(*) AS changes, max(write_time_us) AS last")
    names, rows = _rows(built)
    assert names == ["day", "changes", "last"]
    assert rows == [(DAYS[0], 2, None), (DAYS[1], 2, START_US + 2_000_000)]


def test_a_column_that_the_sql_lost_is_gone_and_no_other(built: LakeBuilder) -> None:
    _build(built, 0, "count(*) AS changes, max(op) AS op")
    _build(built, 1, "count(*) AS changes")
    assert _rows(built) == (["day", "changes"], [(DAYS[0], 2), (DAYS[1], 2)])


def test_a_column_of_the_same_name_is_another_one(built: LakeBuilder) -> None:
    """What a column held before it was dropped is no value of the one that has its name now."""
    _build(built, 0, "count(*) AS changes, max(op) AS op")
    _build(built, 1, "count(*) AS changes")
    _build(built, 2, "count(*) AS changes, min(op) AS op")
    names, rows = _rows(built)
    assert names == ["day", "changes", "op"]
    assert rows == [(DAYS[0], 2, None), (DAYS[1], 2, None), (DAYS[2], 2, "D")]


def test_types_that_hold_more_are_read_from_files_of_all_days(built: LakeBuilder) -> None:
    _build(built, 0, "1::INTEGER AS n, [1]::INTEGER[] AS l, {'a': 1} AS s, MAP {'a': 1} AS m")
    _build(built, 1, "1::BIGINT AS n, [2]::INTEGER[] AS l, {'a': 2} AS s, MAP {'a': 2} AS m")
    _, rows = _rows(built)
    assert [row[1:] for row in rows] == [(1, [1], {"a": 1}, {"a": 1})] * 2 + [
        (1, [2], {"a": 2}, {"a": 2})
    ] * 2


def test_an_aggregate_without_rows_is_an_empty_view(built: LakeBuilder) -> None:
    _build(built, 0, "op FROM orders.raw_stream WHERE op = 'X' --")
    assert _rows(built) == (["day", "op"], [])
