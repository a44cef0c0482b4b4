"""Who wins a fold, against Python's order of texts."""

from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.core.changes.order import order_key, position
from cdc_pipeline.lake.engine.folding import find_winners

_NOW_US = 1_763_712_000_000_000
_SPREADS = {
    "moments": (st.just(1), st.just(1), st.integers(_NOW_US, _NOW_US + 20)),
    "hours": (st.just(1), st.just(1), st.integers(_NOW_US, _NOW_US + 10**10)),
    "years": (st.just(1), st.just(1), st.integers(_NOW_US - 10**14, _NOW_US)),
    "sequence numbers": (st.just(1), st.integers(0, 9), st.integers(10**20, 10**40 - 1)),
    "generations": (st.integers(0, 11), st.just(1), st.integers(_NOW_US, _NOW_US + 20)),
}


@pytest.mark.parametrize("spread", _SPREADS)
@budget(max_examples=40)
@given(st.data())
def test_the_greatest_order_key_of_each_item_wins(spread: str, data: st.DataObject) -> None:
    # Ties and reads stand right behind the change that they belong to.
    behind = st.sampled_from(["", "", ".0001", ".0002", ".read"])
    orders = st.tuples(*_SPREADS[spread], behind).map(
        lambda of: order_key(of[0], position(of[1], of[2])) + of[3]
    )
    changes = data.draw(st.lists(st.tuples(st.sampled_from("ab"), orders), max_size=20))
    # The capture log may know wider bounds than those of the rows that count.
    first, last = data.draw(orders), data.draw(orders)
    known = [order for _, order in changes] + [first, last]
    expected: dict[str, str] = {}
    for key, order in changes:
        expected[key] = max(order, expected.get(key, ""))
    found = _winners(changes, min(known), max(known))
    assert sorted(found) == sorted(expected.items())


def test_no_changes_have_no_winners() -> None:
    assert _winners([], "", "") == []


def _winners(changes: list[tuple[str, str]], least: str, greatest: str) -> list[Any]:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TEMP TABLE changes (item_key VARCHAR, order_key VARCHAR, place BIGINT)"
        )
        rows = [(*change, place) for place, change in enumerate(changes)]
        if rows:
            connection.executemany("INSERT INTO changes VALUES (?, ?, ?)", rows)
        find_winners(connection, least, greatest)
        return connection.execute(
            "SELECT item_key, order_key FROM changes SEMI JOIN winners USING (place)"
        ).fetchall()
