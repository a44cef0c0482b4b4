"""Tombstones: what was deleted stays deleted, however late an older change of the item lands."""

import random
from typing import Any

import pytest

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.order import generation_prefix, position
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.transports import KINESIS
from cdc_pipeline.lake.engine.duckdb_session import connect_duckdb, files_relation
from cdc_pipeline.lake.engine.folding import TOMBSTONE_SCHEMA
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.publish.cdc import build_cdc_days
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    plain_view,
    temporary_lake,
)

_DAY_US = 24 * 3600 * 1_000_000


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


def _at(days_ago: float, name: str, item: dict[str, Any] | None, number: int = 0) -> Change:
    """A change as a transport orders it that goes by write times."""
    time_us = START_US - int(days_ago * _DAY_US) + number
    return change(name, number, item)._replace(
        uuid=f"{name}@{time_us}",
        write_time_us=time_us,
        position=position(0, time_us),
        transport=KINESIS,
    )


def _ready(built: LakeBuilder, items: dict[str, dict[str, Any]]) -> None:
    built.start()
    built.stage(items)
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)


def _stones(built: LakeBuilder) -> set[str]:
    """Order keys of the tombstones that are kept."""
    table = built.lake.iceberg.load("orders_tombstones")
    files = data_files(table) if table else []
    with connect_duckdb(built.lake) as connection:
        relation = files_relation(connection, files, TOMBSTONE_SCHEMA)
        return {
            key for (key,) in connection.execute(f"SELECT order_key FROM {relation}").fetchall()
        }


def _check(built: LakeBuilder) -> None:
    """The view is what the reference fold says."""
    shown = plain_view(built.lake, "SELECT _key, _item FROM orders.current_state")
    assert {row["_key"]: row["_item"] for row in shown} == built.items()


def _check_published(built: LakeBuilder) -> None:
    """So are the published table and `history`."""
    _check(built)
    published = publish_current_state(built.table_lake)
    assert published.items == len(built.items())
    _check(built)
    days = {day_of(c.write_time_us) for _, c in built.changes}
    assert list(build_cdc_days(built.table_lake, days))
    history = plain_view(
        built.lake, "SELECT item_key, item FROM orders.history WHERE is_current ORDER BY ALL"
    )
    touched = {c.keys for _, c in built.changes}
    expected = {key: item for key, item in built.items().items() if key in touched}
    assert {row["item_key"]: row["item"] for row in history} == expected


@pytest.mark.parametrize("days", [0, 34, 40, 400])
def test_a_delete_that_lands_late_rules_out_an_older_change_that_lands_later(
    built: LakeBuilder, days: int
) -> None:
    """A backlog: what was deleted weeks ago is learnt now, and the put before it after that."""
    _ready(built, {"b": {}})
    built.land([_at(days, "a", None, 9)])
    publish_current_state(built.table_lake)
    built.land([_at(days, "a", {"n": {"N": "1"}}, 5)])
    _check_published(built)
    assert "a" not in str(built.items())


def test_a_tombstone_outlives_every_fold_of_its_generation(built: LakeBuilder) -> None:
    _ready(built, {})
    built.land([_at(400, "a", None, 9)])
    for number in range(1, 5):
        built.land([_at(400 - 100 * number, "b", {"n": {"N": str(number)}})])
        publish_current_state(built.table_lake)
    # Delivered again a year later, as Kinesis may deliver within its retention.
    built.land([_at(400, "a", {"n": {"N": "1"}}, 5)])
    _check_published(built)


def test_a_new_baseline_ends_the_tombstones_of_earlier_generations(built: LakeBuilder) -> None:
    _ready(built, {})
    built.land([_at(40, "a", None, 9), change("b", 1, None)])
    publish_current_state(built.table_lake)
    assert len(_stones(built)) == 2
    built.stage({"c": {}}, generation=3)
    built.read_to(START_US + 2 * MARGIN_US)
    built.land([change("c", 5, None)], generation=3)
    publish_current_state(built.table_lake)
    # While a reader may still have the old base, they are needed; from the next fold on they go.
    built.land([change("d", 6, None)], generation=4)
    publish_current_state(built.table_lake)
    assert {key[:7] for key in _stones(built)} == {generation_prefix(3), generation_prefix(4)}
    # Older changes are ignored from now on, tombstone or not.
    built.land([_at(40, "a", {}, 5)], generation=1)
    shown = plain_view(built.lake, "SELECT _key FROM orders.current_state")
    assert shown == []


def test_the_old_base_keeps_its_tombstones_until_the_new_one_is_published(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the commit of the tombstones and that of the base."""
    _ready(built, {})
    built.land([_at(40, "a", None, 9)])
    publish_current_state(built.table_lake)
    before = dict(built.expected)
    built.stage({}, generation=3)
    built.expected = before  # readers have the old base still
    built.read_to(START_US + 2 * MARGIN_US)
    with monkeypatch.context() as patched:
        patched.setattr("cdc_pipeline.lake.state.fold.description_text", _dying)
        with pytest.raises(_KilledError):
            publish_current_state(built.table_lake)
    built.land([_at(40, "a", {"n": {"N": "1"}}, 5)])
    _check(built)


class _KilledError(Exception):
    pass


def _dying(*_: object, **__: object) -> None:
    raise _KilledError


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_landing_ends_where_the_reference_fold_says(seed: int) -> None:
    """Puts and deletes of a year land shuffled and repeated, with folds and baselines between."""
    chance = random.Random(seed)
    with temporary_lake() as built:
        _ready(built, {"d": {}})
        writes = [
            _at(
                chance.choice([1, 36, 40, 366]),
                chance.choice("abc"),
                None if chance.random() < 0.5 else {"n": {"N": str(number)}},
                number,
            )
            for number in range(16)
        ]
        delivered = writes + chance.choices(writes, k=8)
        chance.shuffle(delivered)
        while delivered:
            batch = [delivered.pop() for _ in range(min(len(delivered), chance.randint(1, 4)))]
            built.land(batch)
            _check(built)
            if chance.random() < 0.7:
                publish_current_state(built.table_lake)
                _check(built)
        _check_published(built)
