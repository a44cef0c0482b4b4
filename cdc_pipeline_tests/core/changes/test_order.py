"""Positions and order keys: string order is the order of changes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.changes.order import (
    SNAPSHOT_POSITION,
    generation_prefix,
    order_key,
    position,
)

_depths = st.integers(0, 999_999)
_sequence_numbers = st.integers(1, 10**40 - 1)
_places = st.tuples(_depths, _sequence_numbers)
_generations = st.integers(0, 999_999)


@given(_places, _places)
def test_string_order_is_depth_then_number(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (position(*one) < position(*other)) == (one < other)


@given(_depths, _sequence_numbers, _sequence_numbers)
def test_numbers_of_any_length_compare_by_value(depth: int, one: int, other: int) -> None:
    assert (position(depth, str(one)) < position(depth, str(other))) == (one < other)


@given(_sequence_numbers, _sequence_numbers, st.integers(0, 999_998))
def test_a_childs_changes_come_after_its_parents(parent: int, child: int, depth: int) -> None:
    assert position(depth, parent) < position(depth + 1, child)


@given(_places, _generations)
def test_snapshot_rows_sort_first_in_their_generation(
    place: tuple[int, int], generation: int
) -> None:
    assert order_key(generation, SNAPSHOT_POSITION) < order_key(generation, position(*place))


@given(_places, _places, _generations, _generations)
def test_generations_dominate(
    one: tuple[int, int], other: tuple[int, int], earlier: int, later: int
) -> None:
    expected = (earlier, one) < (later, other)
    found = order_key(earlier, position(*one)) < order_key(later, position(*other))
    assert found == expected


def test_the_spelling_that_is_stored() -> None:
    assert position(3, "123") == "000003." + "0" * 37 + "123"
    assert order_key(2, position(0, 5)) == "000002.000000." + "0" * 39 + "5"
    assert order_key(2, "x").startswith(generation_prefix(2))


@pytest.mark.parametrize(
    ("depth", "number"),
    [(-1, 1), (10**6, 1), (0, -1), (0, 10**40), (0, "1" * 41), (0, "x"), (0, "")],
)
def test_places_that_do_not_fit_raise(depth: int, number: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - int() words its own
        position(depth, number)


@pytest.mark.parametrize("generation", [-1, 10**6])
def test_generations_that_do_not_fit_raise(generation: int) -> None:
    with pytest.raises(ValueError, match="generation"):
        order_key(generation, SNAPSHOT_POSITION)
