"""cdc: the days of a local lake, without repeats."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.log.entries import Gap, Heal, HealWindow
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, EXPORT
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.publish.cdc import CDC_SCHEMA, build_cdc_day, build_cdc_days
from cdc_pipeline.lake.upkeep.restore import restore_landing
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change, plain_view

_DAY_US = 24 * 3600 * 1_000_000
_TODAY = day_of(START_US)
# Change numbers are seconds after the start; days are whole ones of writes.
_LATER = (START_US // _DAY_US + 1) * _DAY_US
_FIRST_TOMORROW = (_LATER - START_US) // 1_000_000
_TOMORROW = day_of(_LATER)


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


def _rows(built: LakeBuilder) -> list[dict[str, Any]]:
    return plain_view(built.lake, "SELECT * FROM orders.cdc ORDER BY day, keys, order_key")


def test_a_day_has_every_change_once(built: LakeBuilder) -> None:
    built.start()
    one, two, three = (change(name, n, {"n": {"N": "1"}}) for n, name in enumerate("aba", start=1))
    built.land([one, two])
    built.land([two, three, one])
    result = build_cdc_day(built.table_lake, _TODAY)
    assert (result.rows, result.duplicates, result.objects) == (3, 2, 2)
    assert result.watermark == built.state.n
    rows = _rows(built)
    assert [row["uuid"] for row in rows] == [one.uuid, three.uuid, two.uuid]
    assert list(rows[0]) == [*CDC_SCHEMA.names, "item_key", "item", "write_time"]
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
        assert build_cdc_day(built.table_lake, day).rows == 1
    first = built.state.n
    built.land([change("b", 2, {})])
    assert build_cdc_day(built.table_lake, _TODAY).rows == 2
    assert [row["day"] for row in _rows(built)] == [_TODAY, _TODAY, _TOMORROW]
    table = built.lake.iceberg.load("orders_cdc")
    assert table is not None
    assert table_property(table, f"watermark.{_TODAY}") == str(first + 1)
    assert table_property(table, f"watermark.{_TOMORROW}") == str(first)


def test_building_again_is_the_same(built: LakeBuilder) -> None:
    built.start()
    built.land([change("a", 1, {}), change("b", 2, None)])
    build_cdc_day(built.table_lake, _TODAY)
    before = _rows(built)
    build_cdc_day(built.table_lake, _TODAY)
    assert _rows(built) == before


def test_a_day_without_changes_has_no_rows(built: LakeBuilder) -> None:
    built.start()
    assert build_cdc_day(built.table_lake, _TODAY).rows == 0
    built.land([change("a", 1, {})])
    assert build_cdc_day(built.table_lake, _TOMORROW).rows == 0
    assert build_cdc_day(built.table_lake, _TODAY).rows == 1
    assert build_cdc_day(built.table_lake, _TOMORROW).rows == 0
    assert len(_rows(built)) == 1


def test_history_spans_days_and_generations(built: LakeBuilder) -> None:
    built.start()
    built.land([change("a", 2, {"n": {"N": "1"}}), change("a", _FIRST_TOMORROW, None)])
    # A later generation counts as later, whatever its position says.
    built.land([change("a", 1, {"n": {"N": "3"}})], generation=2)
    for day in (_TODAY, _TOMORROW):
        build_cdc_day(built.table_lake, day)
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
        build_cdc_day(built.table_lake, day)
    one_by_one = _rows(built)
    table = built.lake.iceberg.load("orders_cdc")
    assert table is not None
    done = list(build_cdc_days(built.table_lake, days))
    assert [(d.day, d.rows) for d in done] == list(zip(days, [1, 2, 0, 2, 1, 2], strict=True))
    assert _rows(built) == one_by_one
    again = built.lake.iceberg.load("orders_cdc")
    assert again is not None
    for day in days:
        assert table_property(again, f"watermark.{day}") == str(built.state.n)
    new = {s.sequence_number for s in again.snapshots()} - {
        s.sequence_number for s in table.snapshots()
    }
    assert len(new) == 2, "one commit: what was there goes, what is now comes"


def test_days_that_nothing_has_landed_for_stay_as_they_are(built: LakeBuilder) -> None:
    days = _days_of(built, 4)
    before = list(build_cdc_days(built.table_lake, days))
    stood = built.lake.iceberg.load("orders_cdc")
    assert stood is not None
    kept = list(build_cdc_days(built.table_lake, days, only_changed=True))
    numbers = [(d.day, d.rows, d.duplicates, d.objects, d.watermark) for d in before]
    assert [(d.day, d.rows, d.duplicates, d.objects, d.watermark) for d in kept] == numbers
    now = built.lake.iceberg.load("orders_cdc")
    assert now is not None
    assert now.metadata == stood.metadata
    built.land([change("late", _FIRST_TOMORROW + 5, {})])
    changed = list(build_cdc_days(built.table_lake, days, only_changed=True))
    assert {d.day: d.rows for d in changed}[days[0]] == 2
    assert len(_rows(built)) == sum(d.rows for d in before) + 1


def _line(record: Change, **parts: Any) -> Change:
    """What an incremental export says of a change that DynamoDB Streams told, too."""
    place = position(0, record.write_time_us)
    said = {"transport": EXPORT, "event_id": "", "is_ttl_delete": None, "position": place}
    return record._replace(uuid=f"line of {record.uuid}", old_image=None, **said)._replace(**parts)


def _heal(built: LakeBuilder, lines: list[Change], *, generation: int = 2) -> None:
    """A gap, and a heal that landed these lines."""
    built.append(gap=Gap("trimmed", (), START_US, START_US + 1, generation))
    opened = built.state.n
    built.land(lines, generation=generation)
    window = HealWindow(START_US, START_US + 1, done=True)
    built.append(heal=Heal(opened, (window,), reread=0, healed=True))


def test_a_captured_record_wins_over_a_line_whichever_lands_first(built: LakeBuilder) -> None:
    built.start()
    before, after, lost = (change("a", n, {"n": {"N": str(n)}}) for n in (1, 5, 3))
    gone = change("b", 6, None)._replace(is_ttl_delete=True)
    built.land([before])
    only_line = _line(lost, write_time_us=lost.write_time_us + 123)
    _heal(built, [_line(before), only_line, _line(after), _line(gone)])
    result = build_cdc_day(built.table_lake, _TODAY)
    assert (result.rows, result.duplicates) == (4, 1)
    built.land([after, gone], generation=3)
    result = build_cdc_day(built.table_lake, _TODAY)
    assert (result.rows, result.duplicates) == (4, 3)
    rows = _rows(built)
    assert [row["uuid"] for row in rows] == [c.uuid for c in (before, only_line, after, gone)]
    assert rows[-1]["is_ttl_delete"] is True


def test_images_that_only_a_masked_attribute_tells_apart_are_of_two_changes(tmp_path: Path) -> None:
    built = LakeBuilder.at(
        tmp_path, tables=[{"name": "orders", "columns": {"secret": {"drop": True}}}]
    )
    built.start()
    record, lost = (change("a", 1, {"secret": {"S": text}}) for text in ("x", "y"))
    built.land([record])
    _heal(built, [_line(lost)])
    build_cdc_day(built.table_lake, _TODAY)
    rows = _rows(built)
    assert [row["transport"] for row in rows] == [DYNAMODB_STREAMS, EXPORT]
    assert "secret" not in str(rows)


def test_days_with_healed_rows_that_an_older_version_built_are_built_again(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.start()
    record, plain = change("a", 1, {}), change("b", _FIRST_TOMORROW, {})
    built.land([record, plain])
    _heal(built, [_line(record)])
    with monkeypatch.context() as older:
        older.setattr("cdc_pipeline.lake.publish.cdc._PRESENT_RULES", "1")
        for day in (_TODAY, _TOMORROW):
            build_cdc_day(built.table_lake, day)
    before = built.state.n
    built.land([change("c", _FIRST_TOMORROW + 86_400, {})])
    third = _TOMORROW + timedelta(days=1)
    kept = list(build_cdc_days(built.table_lake, [third, _TOMORROW], only_changed=True))
    assert [(d.day, d.seconds > 0) for d in kept] == [(_TOMORROW, False), (third, True)]
    table = built.lake.iceberg.load("orders_cdc")
    assert table is not None
    # The day with a heal is as of now, though nobody asked for it; the other one is as it was.
    assert table_property(table, f"watermark.{_TODAY}") == str(built.state.n)
    assert table_property(table, f"watermark.{_TOMORROW}") == str(before)
    again = build_cdc_days(built.table_lake, [_TODAY, _TOMORROW], only_changed=True)
    assert [d.seconds for d in again] == [0.0, 0.0]


def test_a_damaged_object_of_a_heal_is_restored_without_what_records_tell(
    built: LakeBuilder,
) -> None:
    built.start()
    record, lost = change("a", 1, {}), change("a", 3, {"n": {"N": "3"}})
    built.land([record])
    _heal(built, [_line(record), _line(lost)])
    build_cdc_day(built.table_lake, _TODAY)
    before = _rows(built)
    (damaged,) = (o.key for o in built.state.objects.values() if o.generation == 2)
    built.lake.store.delete([damaged])
    assert restore_landing(built.table_lake, [damaged]).restored == [damaged]
    build_cdc_day(built.table_lake, _TODAY)
    assert _rows(built) == before
    # The fold of what has landed ends in the last line again.
    (line,) = (o for o in built.table_lake.log.load().objects.values() if o.generation == 2)
    assert line.rows == 2
    # What cdc lacks itself cannot be told from what it leaves out.
    cdc = built.lake.iceberg.load("orders_cdc")
    assert cdc is not None
    cdc.delete(f"day = '{_TODAY}'")
    state = built.table_lake.log.load()
    (damaged,) = (o.key for o in state.objects.values() if o.generation == 2)
    assert restore_landing(built.table_lake, [damaged]).lost == [damaged]
