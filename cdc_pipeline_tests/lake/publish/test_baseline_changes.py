"""History after a later baseline: its current versions are the items, whatever no change said."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.items.attributes import to_json
from cdc_pipeline.core.log.entries import Gap
from cdc_pipeline.lake.publish.baseline_changes import COMPARED, BaselineChanges
from cdc_pipeline.lake.publish.cdc import CdcDay, build_cdc_days
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.publish.image_chain import check_chain
from cdc_pipeline.lake.publish.staleness import Staleness
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    key_of,
    plain_view,
    temporary_lake,
)

_CURRENT = "SELECT item_key, item FROM orders.history WHERE is_current"


def _item(number: int) -> dict[str, Any]:
    return {"n": {"N": str(number)}}


def _rebase(built: LakeBuilder, items: dict[str, Any], generation: int, second: int) -> None:
    """A gap that nothing heals, then a baseline that was exported in that second."""
    stream = built.state.stream
    assert stream is not None
    lost = (START_US, START_US + second * 1_000_000)
    gap = Gap("table recreated", ("shard-1",), *lost, heal_generation=generation - 2)
    built.append(gap=gap, stream=replace(stream, generation=generation - 1))
    built.append(stream=replace(stream, generation=generation))
    staged = built.stage(items, generation=generation)
    built.append(baseline=replace(staged, export_time_us=START_US + second * 1_000_000))


def _settle(built: LakeBuilder, second: int) -> None:
    built.read_to(START_US + second * 1_000_000 + MARGIN_US)
    publish_current_state(built.table_lake)


def _stale_days(built: LakeBuilder) -> list[date]:
    staleness = Staleness(built.lake)
    staleness.load(built.table)
    return [d for s in staleness.of_table(built.table) if s.asset == "cdc" for d in s.days]


def _refresh(built: LakeBuilder) -> list[CdcDay]:
    return list(build_cdc_days(built.table_lake, _stale_days(built)))


def _history(built: LakeBuilder) -> dict[str, str]:
    rows = plain_view(built.lake, _CURRENT)
    found = {row["item_key"]: row["item"] for row in rows}
    assert len(found) == len(rows)
    return found


def _compared(built: LakeBuilder) -> list[dict[str, Any]]:
    sql = (
        "SELECT keys, op, data, old_image, time_stamp FROM orders.cdc "
        "WHERE transport = 'baseline' ORDER BY keys"
    )
    return plain_view(built.lake, sql)


@pytest.fixture
def built() -> Iterator[LakeBuilder]:
    with temporary_lake() as lake:
        lake.start()
        lake.stage({"a": _item(0), "b": _item(0), "never": _item(0)})
        lake.land([change("a", 1, _item(1)), change("b", 2, _item(2)), change("c", 3, _item(3))])
        _settle(lake, 5)
        yield lake


def test_the_items_of_a_table_that_is_gone_end_with_it(built: LakeBuilder) -> None:
    _refresh(built)
    _rebase(built, {"a": _item(9), "b": _item(2), "d": _item(4)}, 4, 20)
    _settle(built, 30)
    _refresh(built)
    assert _history(built) == built.items()
    rows = [(json.loads(r["keys"])["pk"]["S"], r["op"], r["data"]) for r in _compared(built)]
    assert rows == [
        ("a", "U", '{"n":9,"pk":"a"}'),
        ("c", "D", None),
        ("d", "I", '{"n":4,"pk":"d"}'),
        ("never", "D", None),
    ]
    (ended,) = plain_view(
        built.lake,
        "SELECT valid_to, is_collapsed FROM orders.history WHERE item_key LIKE '%\"c\"%' "
        "AND op <> 'D'",
    )
    assert ended["valid_to"].timestamp() * 1_000_000 == START_US + 20_000_000
    (gone,) = plain_view(
        built.lake,
        "SELECT is_current, is_collapsed, valid_to FROM orders.history "
        "WHERE item_key LIKE '%\"c\"%' AND op = 'D'",
    )
    assert gone == {"is_current": False, "is_collapsed": True, "valid_to": None}
    assert check_chain(built.table_lake, day_of(START_US)).breaks == 0
    assert _stale_days(built) == []


_VALUES = st.none() | st.integers(0, 3)
_ITEMS = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 3).map(_item), max_size=4)
_WRITES = st.lists(st.tuples(st.sampled_from("abcde"), _VALUES), max_size=6)


@pytest.mark.slow
@budget(max_examples=5, deadline=None)
@given(_ITEMS, st.lists(st.tuples(_WRITES, _ITEMS, _WRITES), min_size=1, max_size=2), st.booleans())
def test_after_any_baselines_history_ends_in_their_items(
    first: dict[str, Any], chapters: list, often: bool
) -> None:
    with temporary_lake() as built:
        built.start()
        built.stage(first)
        generation, second = 1, 0
        for before, items, after in chapters:
            second = _write(built, before, generation, second)
            if often:
                _settle(built, second)
                _refresh(built)
            generation, second = generation + 3, second + 30
            _rebase(built, items, generation, second)
            second = _write(built, after, generation, second + 10)
        _settle(built, second)
        _refresh(built)
        known = {row["keys"] for row in plain_view(built.lake, "SELECT keys FROM orders.cdc")}
        started = {to_json(key_of(name)) for name in first}
        items = built.items()
        assert items.keys() - known <= started  # of those no change and no baseline says more
        assert _history(built) == {key: items[key] for key in items.keys() & known}


def _write(built: LakeBuilder, writes: list, generation: int, second: int) -> int:
    for name, value in writes:
        second += 1
        item = None if value is None else _item(value)
        built.land([change(name, second, item)], generation=generation)
    return second


def test_what_changed_while_it_was_exported_is_told_by_the_change(built: LakeBuilder) -> None:
    _rebase(built, {"a": _item(9), "b": _item(2), "c": _item(3), "never": _item(0)}, 4, 20)
    built.land([change("a", 19, _item(9))], generation=4)
    _settle(built, 30)
    _refresh(built)
    assert _compared(built) == []
    assert _history(built).keys() == built.items().keys() - {'{"pk":{"S":"never"}}'}


def test_a_baseline_waits_for_what_may_explain_it(built: LakeBuilder) -> None:
    _refresh(built)
    _rebase(built, {"a": _item(9)}, 4, 20)
    assert _stale_days(built) == []
    built.read_to(START_US + 20_000_000 + MARGIN_US)
    assert _stale_days(built) == [day_of(START_US)]


def test_a_day_of_which_nothing_landed(built: LakeBuilder) -> None:
    second = 86_400 * 2
    _rebase(built, {"a": _item(1)}, 4, second)
    _settle(built, second)
    days = {found.day: found for found in _refresh(built)}
    day = day_of(START_US + second * 1_000_000)
    assert (days[day].rows, days[day].objects, days[day].duplicates) == (3, 0, 0)
    assert _history(built) == built.items()


def test_rows_that_are_right_are_not_compared_again(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _rebase(built, {"a": _item(9)}, 4, 20)
    _settle(built, 30)
    _refresh(built)
    before = _compared(built)
    built.land([change("a", 60, _item(5))], generation=4)
    monkeypatch.setattr(BaselineChanges, "_compare", lambda *_: pytest.fail("compared again"))
    (day,) = _refresh(built)
    assert (day.rows, day.duplicates) == (3 + 4 + 1, 0)
    assert _compared(built) == before
    (day,) = build_cdc_days(built.table_lake, [day.day], only_changed=True)
    assert (day.rows, day.duplicates, day.seconds) == (8, 0, 0)


def test_a_watermark_that_is_smaller_again_changes_nothing(built: LakeBuilder) -> None:
    _rebase(built, {"a": _item(9)}, 4, 20)
    _settle(built, 30)
    _refresh(built)
    built.land([change("a", 60, _item(5))], generation=4)
    built.append(shards=(replace(built.state.shards["shard-1"], read_to_us=0),))
    _refresh(built)
    assert len(_compared(built)) == 4
    assert _history(built) == built.items()


def test_older_changes_that_land_later_are_compared(built: LakeBuilder) -> None:
    _rebase(built, {"a": _item(9)}, 4, 20)
    _settle(built, 30)
    _refresh(built)
    items = built.items()
    built.land([change("late", 7, _item(7))], generation=0)
    built.land([change("later", 8, _item(8))], generation=2)
    _refresh(built)
    assert _history(built) == items
    assert len(_compared(built)) == 4 + 2


def test_a_backfill_of_before_capture_ends_where_the_first_baseline_lacks_it() -> None:
    with temporary_lake() as built:
        built.start()
        built.stage({"a": _item(0)})
        _settle(built, 5)
        items = built.items()
        built.land([change("a", 1, _item(0)), change("gone", 2, _item(1))], generation=0)
        _refresh(built)
        assert _history(built) == items


def test_a_lake_of_an_older_version(built: LakeBuilder) -> None:
    _rebase(built, {"a": _item(9)}, 4, 20)
    _settle(built, 30)
    _refresh(built)
    cdc = built.lake.iceberg.load("orders_cdc")
    assert cdc is not None
    with cdc.transaction() as transaction:
        transaction.delete("transport == 'baseline'")
        transaction.remove_properties(f"cdc_pipeline.{COMPARED}.{day_of(START_US)}")
    assert _history(built) != built.items()
    assert _stale_days(built) == [day_of(START_US)]
    _refresh(built)
    assert _history(built) == built.items()


def test_masked_rows_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_MASKING_KEY", "k" * 32)
    rules = {"pk": {"hash": True}, "n": {"mask": "***"}}
    with temporary_lake(tables=[{"name": "orders", "columns": rules}]) as built:
        built.start()
        built.stage({"secret-a": _item(0), "secret-b": _item(0)})
        _rebase(built, {"secret-a": _item(1)}, 4, 20)
        _settle(built, 30)
        _refresh(built)
        rows = plain_view(built.lake, "SELECT * FROM orders.cdc")
        assert sorted(row["op"] for row in rows) == ["D", "U"]
        assert "secret" not in str(rows)
        assert '"n":"***"' in str(rows)
