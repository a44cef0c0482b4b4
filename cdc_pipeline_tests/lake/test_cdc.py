"""cdc: the days of a local lake, without repeats."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from cdc_pipeline.core.names import day_of
from cdc_pipeline.lake.cdc import CDC_SCHEMA, build_cdc_day, build_cdc_days
from cdc_pipeline.lake.tables import table_property
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change, plain_view

_DAY_US = 24 * 3600 * 1_000_000
_TODAY = day_of(START_US)
# Change numbers are seconds after the start; days are whole ones of writes.
_LATER = (START_US // _DAY_US + 1) * _DAY_US
_FIRST_TOMORROW = (_LATER - START_US) // 1_000_000
_TOMORROW = day_of(_LATER)


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.store.os.fsync", lambda handle: None)


def _rows(built: LakeBuilder) -> list[dict[str, Any]]:
    return plain_view(built.lake, "SELECT * FROM orders.cdc ORDER BY day, keys, order_key")


def test_a_day_has_every_change_once(built: LakeBuilder) -> None:
    built.start()
    one, two, three = (change(name, n, {"n": {"N": "1"}}) for n, name in enumerate("aba", start=1))
    built.land([one, two])
    built.land([two, three, one])
    result = build_cdc_day(built.lake, built.table, _TODAY)
    assert (result.rows, result.duplicates, result.objects) == (3, 2, 2)
    assert result.watermark == built.state.n
    rows = _rows(built)
    assert [row["uuid"] for row in rows] == [one.uuid, three.uuid, two.uuid]
    assert list(rows[0]) == CDC_SCHEMA.names
    assert {row["day"] for row in rows} == {_TODAY}
    assert rows[0]["order_key"] == f"000001.{one.position}"
    assert rows[0]["generation"] == 1
    for column in ("op", "data", "keys", "new_image", "write_time_us", "is_ttl_delete"):
        assert rows[0][column] == getattr(one, column)
    written = datetime.fromtimestamp(one.write_time_us / 1_000_000, UTC)
    assert rows[0]["time_stamp"] == written


def test_days_are_write_days_and_late_data_rewrites_its_own(built: LakeBuilder) -> None:
    built.start()
    built.land([change("a", 1, {}), change("a", _FIRST_TOMORROW, None)])
    for day in (_TODAY, _TOMORROW):
        assert build_cdc_day(built.lake, built.table, day).rows == 1
    first = built.state.n
    built.land([change("b", 2, {})])
    assert build_cdc_day(built.lake, built.table, _TODAY).rows == 2
    assert [row["day"] for row in _rows(built)] == [_TODAY, _TODAY, _TOMORROW]
    table = built.lake.tables.load("orders_cdc")
    assert table is not None
    assert table_property(table, f"watermark.{_TODAY}") == str(first + 1)
    assert table_property(table, f"watermark.{_TOMORROW}") == str(first)


def test_building_again_is_the_same(built: LakeBuilder) -> None:
    built.start()
    built.land([change("a", 1, {}), change("b", 2, None)])
    build_cdc_day(built.lake, built.table, _TODAY)
    before = _rows(built)
    build_cdc_day(built.lake, built.table, _TODAY)
    assert _rows(built) == before


def test_a_day_without_changes_has_no_rows(built: LakeBuilder) -> None:
    built.start()
    assert build_cdc_day(built.lake, built.table, _TODAY).rows == 0
    built.land([change("a", 1, {})])
    assert build_cdc_day(built.lake, built.table, _TOMORROW).rows == 0
    assert build_cdc_day(built.lake, built.table, _TODAY).rows == 1
    assert build_cdc_day(built.lake, built.table, _TOMORROW).rows == 0
    assert len(_rows(built)) == 1


def test_history_spans_days_and_generations(built: LakeBuilder) -> None:
    built.start()
    built.land([change("a", 2, {"n": {"N": "1"}}), change("a", _FIRST_TOMORROW, None)])
    # A later generation counts as later, whatever its position says.
    built.land([change("a", 1, {"n": {"N": "3"}})], generation=2)
    for day in (_TODAY, _TOMORROW):
        build_cdc_day(built.lake, built.table, day)
    rows = plain_view(built.lake, "SELECT * FROM orders.history ORDER BY order_key")
    assert [row["op"] for row in rows] == ["U", "D", "U"]
    assert [row["is_current"] for row in rows] == [False, False, True]
    assert [row["valid_to"] for row in rows] == [row["valid_from"] for row in rows[1:]] + [None]
    assert rows[1]["valid_from"] - rows[0]["valid_from"] == timedelta(seconds=_FIRST_TOMORROW - 2)


def _days_of(built: LakeBuilder, days: int) -> list[date]:
    """A lake with a change or two on each of some days, the third one quiet."""
    built.start()
    for number in range(days):
        if number != 2:
            first = _FIRST_TOMORROW + number * 86_400
            later = [change("b", first + 1, None)] if number % 2 else []
            built.land([change("a", first, {"n": {"N": str(number)}}), *later])
    return [_TOMORROW + timedelta(days=number) for number in range(days)]


def test_many_days_are_one_commit_and_the_same_rows(built: LakeBuilder) -> None:
    days = _days_of(built, 6)
    for day in days:
        build_cdc_day(built.lake, built.table, day)
    one_by_one = _rows(built)
    table = built.lake.tables.load("orders_cdc")
    assert table is not None
    done = list(build_cdc_days(built.lake, built.table, days))
    assert [(d.day, d.rows) for d in done] == list(zip(days, [1, 2, 0, 2, 1, 2], strict=True))
    assert _rows(built) == one_by_one
    again = built.lake.tables.load("orders_cdc")
    assert again is not None
    for day in days:
        assert table_property(again, f"watermark.{day}") == str(built.state.n)
    new = {s.sequence_number for s in again.snapshots()} - {
        s.sequence_number for s in table.snapshots()
    }
    assert len(new) == 2, "one commit: what was there goes, what is now comes"


def test_days_that_nothing_has_landed_for_stay_as_they_are(built: LakeBuilder) -> None:
    days = _days_of(built, 4)
    before = list(build_cdc_days(built.lake, built.table, days))
    stood = built.lake.tables.load("orders_cdc")
    assert stood is not None
    kept = list(build_cdc_days(built.lake, built.table, days, only_changed=True))
    numbers = [(d.day, d.rows, d.duplicates, d.objects, d.watermark) for d in before]
    assert [(d.day, d.rows, d.duplicates, d.objects, d.watermark) for d in kept] == numbers
    now = built.lake.tables.load("orders_cdc")
    assert now is not None
    assert now.metadata == stood.metadata
    built.land([change("late", _FIRST_TOMORROW + 5, {})])
    changed = list(build_cdc_days(built.lake, built.table, days, only_changed=True))
    assert {d.day: d.rows for d in changed}[days[0]] == 2
    assert len(_rows(built)) == sum(d.rows for d in before) + 1
