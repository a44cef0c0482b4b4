"""Shard lineage: parents before children, whatever the list looks like."""

import random

from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.log.lineage import ROOT_DEPTH, STEP, Shard, depths, readable


def _shard(shard_id: str, parent: str | None = None, *, is_open: bool = True) -> Shard:
    return Shard(shard_id, parent, "1", None if is_open else "2")


@st.composite
def _trees(draw: st.DrawFn) -> list[Shard]:
    """A forest of shards in any order; some parents are not listed."""
    shards: list[Shard] = []
    for number in range(draw(st.integers(1, 12))):
        parent = draw(st.none() | st.integers(0, number)) if number else None
        name = None if parent is None else (f"s{parent}" if parent < number else "expired")
        shards.append(_shard(f"s{number}", name))
    return draw(st.permutations(shards))


_any_shards = st.lists(
    st.builds(
        _shard,
        st.sampled_from("abcdef"),
        st.none() | st.sampled_from("abcdefx"),
        is_open=st.booleans(),
    ),
    unique_by=lambda shard: shard.shard_id,
)


@given(_trees())
def test_parents_are_shallower_than_their_children(shards: list[Shard]) -> None:
    found = depths(shards, {})
    assert set(found) == {shard.shard_id for shard in shards}
    for shard in shards:
        if shard.parent_id in found:
            assert found[shard.parent_id] < found[shard.shard_id]
        else:
            assert found[shard.shard_id] == ROOT_DEPTH


@given(_trees(), st.data())
def test_known_depths_stay_and_what_follows_is_deeper(
    shards: list[Shard], data: st.DataObject
) -> None:
    """The list grows from ancestors to descendants, as streams do."""
    by_age = sorted(shards, key=lambda shard: int(shard.shard_id[1:]))
    cut = data.draw(st.integers(0, len(by_age)))
    known = depths(by_age[:cut], {})
    found = depths(shards, known)
    assert {name: found[name] for name in known} == known
    for shard in shards:
        if shard.parent_id in found:
            assert found[shard.parent_id] < found[shard.shard_id]


@given(_any_shards, st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9)))
def test_any_list_gets_depths_cycles_included(shards: list[Shard], known: dict[str, int]) -> None:
    found = depths(shards, known)
    assert set(found) == {shard.shard_id for shard in shards}
    assert all(found[name] == depth for name, depth in known.items() if name in found)
    assert all(depth >= 0 for depth in found.values())


def test_a_child_of_an_expired_parent_is_a_root() -> None:
    assert depths([_shard("b", "gone"), _shard("c", "b")], {}) == {
        "b": ROOT_DEPTH,
        "c": ROOT_DEPTH + STEP,
    }


def test_a_parent_that_is_known_but_no_longer_listed_counts() -> None:
    assert depths([_shard("b", "a")], {"a": 7, "z": 9}) == {"b": 7 + STEP}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(10, 20), min_size=1),
    st.integers(1, 4),
    st.data(),
)
def test_a_line_of_parents_that_shows_late_goes_above_all_its_children(
    children: dict[str, int], length: int, data: st.DataObject
) -> None:
    line = [_shard(f"p{n}", f"p{n - 1}" if n else None) for n in range(length)]
    shards = [*line, *(_shard(name, line[-1].shard_id) for name in children)]
    found = depths(data.draw(st.permutations(shards)), children)
    assert {name: found[name] for name in children} == children
    for shard in shards:
        assert shard.parent_id is None or found[shard.parent_id] < found[shard.shard_id]


def test_late_roots_go_deeper_than_everything_known() -> None:
    found = depths([_shard("a"), _shard("late"), _shard("late-child", "late")], {"a": 3, "b": 5})
    assert found == {"a": 3, "late": 5 + STEP, "late-child": 5 + 2 * STEP}


def test_a_parent_that_is_listed_later_goes_above_its_child() -> None:
    found = depths([_shard("b", "a"), _shard("a", "o"), _shard("o")], {"b": ROOT_DEPTH})
    assert found == {"b": ROOT_DEPTH, "a": ROOT_DEPTH - 1, "o": ROOT_DEPTH - 2}


def test_a_long_lineage_is_no_recursion() -> None:
    shards = [_shard(f"s{n}", f"s{n - 1}" if n else None) for n in range(3000)]
    assert depths(reversed(shards), {})["s2999"] == ROOT_DEPTH + 2999 * STEP


def test_a_cycle_does_not_hang_and_is_never_read() -> None:
    shards = [_shard("a", "b"), _shard("b", "a"), _shard("c", "c")]
    assert set(depths(shards, {})) == {"a", "b", "c"}
    assert readable(shards, lambda _: False, lambda _: False) == []


@given(_trees(), st.randoms(use_true_random=False))
def test_reading_all_that_is_readable_goes_parents_first(
    shards: list[Shard], chance: random.Random
) -> None:
    finished: set[str] = set()
    order: list[str] = []
    while offered := readable(shards, finished.__contains__, finished.__contains__):
        for shard in offered:
            listed = {s.shard_id for s in shards}
            assert shard.parent_id not in listed - finished
            assert shard.shard_id not in finished
        done = chance.choice(offered).shard_id
        finished.add(done)
        order.append(done)
    assert sorted(order) == sorted(shard.shard_id for shard in shards)


@given(_any_shards, st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdefx")))
def test_no_child_is_offered_before_its_parent_is_finished(
    shards: list[Shard], finished: set[str], known: set[str]
) -> None:
    listed = {shard.shard_id for shard in shards}
    for shard in readable(shards, finished.__contains__, known.__contains__):
        parent = shard.parent_id
        assert shard.shard_id not in finished
        assert parent is None or parent in finished or parent not in listed | known


def test_an_unlisted_parent_that_was_never_finished_holds_its_child_back() -> None:
    child = _shard("b", "a")
    assert readable([child], lambda _: False, {"a"}.__contains__) == []
    assert readable([child], lambda _: False, lambda _: False) == [child]
    assert readable([child], {"a"}.__contains__, {"a"}.__contains__) == [child]


def test_open_is_without_an_ending() -> None:
    assert _shard("a").is_open
    assert not _shard("a", is_open=False).is_open


def test_a_shard_that_shows_between_two_known_ones_goes_between_them() -> None:
    first = depths([_shard("s0"), _shard("s2", "s1")], {})
    found = depths([_shard("s0"), _shard("s1", "s0"), _shard("s2", "s1")], {"s0": first["s0"]})
    assert found["s0"] < found["s1"] < found["s2"]
    known = {"s0": ROOT_DEPTH, "s2": ROOT_DEPTH + STEP}
    found = depths([_shard("s0"), _shard("s1", "s0"), _shard("s2", "s1")], known)
    assert found["s0"] < found["s1"] < found["s2"]


@st.composite
def _reshardings(draw: st.DrawFn) -> list[Shard]:
    """Shards with splits and merges, listed in any order."""
    shards = [_shard("s0"), _shard("s1")]
    leaves = ["s0", "s1"]
    for _ in range(draw(st.integers(0, 8))):
        name = f"s{len(shards)}"
        parent = leaves.pop(draw(st.integers(0, len(leaves) - 1)))
        if len(leaves) > 1 and draw(st.booleans()):
            other = leaves.pop(draw(st.integers(0, len(leaves) - 1)))
            shards.append(Shard(name, parent, "1", None, other))
            leaves.append(name)
        else:
            children = [_shard(name, parent), _shard(f"s{len(shards) + 1}", parent)]
            shards += children
            leaves += [child.shard_id for child in children]
    return draw(st.permutations(shards))


@given(_reshardings(), st.integers(0, 10))
def test_a_merged_shard_is_deeper_than_both_its_parents(shards: list[Shard], cut: int) -> None:
    by_age = sorted(shards, key=lambda shard: int(shard.shard_id[1:]))
    known = depths(by_age[:cut], {})
    found = depths(shards, known)
    assert {name: found[name] for name in known} == known
    for shard in shards:
        assert all(found[parent] < found[shard.shard_id] for parent in shard.parents)


@given(_reshardings(), st.randoms(use_true_random=False))
def test_a_merged_shard_is_read_behind_both_its_parents(
    shards: list[Shard], chance: random.Random
) -> None:
    finished: set[str] = set()
    while offered := readable(shards, finished.__contains__, finished.__contains__):
        for shard in offered:
            assert finished.issuperset(shard.parents)
        finished.add(chance.choice(offered).shard_id)
    assert finished == {shard.shard_id for shard in shards}


def test_of_two_parents_one_may_have_expired() -> None:
    child = Shard("c", "a", "1", None, "b")
    parent = _shard("b")
    assert readable([child, parent], lambda _: False, lambda _: False) == [parent]
    assert readable([child], lambda _: False, {"a"}.__contains__) == []
    assert readable([child], {"a"}.__contains__, {"a"}.__contains__) == [child]


def test_unknown_parents_of_a_known_merge_go_above_it() -> None:
    known = {"c": ROOT_DEPTH}
    found = depths([Shard("c", "a", "1", None, "b"), _shard("b", "x"), _shard("x")], known)
    assert found["x"] < found["b"] < found["c"] == ROOT_DEPTH
