"""The reference fold, the oracle of everything that folds."""

import random

from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.changes.fold import KeyedChange, Row, fold, items


def _image(key: str, order: str) -> str | None:
    """One change is one image: what a key holds after `order` is a function of both."""
    return None if hash_of(key, order) % 3 == 0 else f"{key}@{order}"


def hash_of(key: str, order: str) -> int:
    return sum(map(ord, key + order))


_orders = st.integers(0, 20).map(lambda n: f"{n:03d}")
_changes = st.lists(
    st.tuples(st.sampled_from("abc"), _orders).map(
        lambda at: KeyedChange(at[0], at[1], _image(*at))
    ),
    max_size=15,
)
_bases = st.dictionaries(st.sampled_from("abc"), _orders).map(
    lambda base: {key: Row(order, _image(key, order)) for key, order in base.items()}
)


@given(_bases, _changes, st.randoms(use_true_random=False))
def test_order_and_duplicates_do_not_matter(
    base: dict[str, Row], changes: list[KeyedChange], chance: random.Random
) -> None:
    again = changes + chance.sample(changes, len(changes) // 2)
    chance.shuffle(again)
    assert fold(base, again) == fold(base, changes)


@given(_bases, _changes)
def test_folding_twice_changes_nothing(base: dict[str, Row], changes: list[KeyedChange]) -> None:
    once = fold(base, changes)
    assert fold(once, changes) == once


@given(_bases, _changes, _changes)
def test_folding_in_steps_is_folding_at_once(
    base: dict[str, Row], first: list[KeyedChange], then: list[KeyedChange]
) -> None:
    assert fold(fold(base, first), then) == fold(base, first + then)


@given(_bases, _changes)
def test_every_key_holds_its_latest(base: dict[str, Row], changes: list[KeyedChange]) -> None:
    state = fold(base, changes)
    for key, row in state.items():
        orders = [change.order_key for change in changes if change.key == key]
        orders += [base[key].order_key] if key in base else []
        assert row == Row(max(orders), _image(key, max(orders)))


def test_late_rows_never_resurrect() -> None:
    state = fold({"a": Row("1", "x")}, [KeyedChange("a", "3", None)])
    late = fold(state, [KeyedChange("a", "2", "y")])
    assert late == state
    assert items(late) == {}
    assert items(fold(late, [KeyedChange("a", "4", "z")])) == {"a": "z"}


def test_the_base_is_left_alone() -> None:
    base = {"a": Row("1", "x")}
    fold(base, [KeyedChange("a", "2", "y")])
    assert base == {"a": Row("1", "x")}
