"""Ties: the order of changes of one time, found from any part of them in any order."""

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.core.changes.change import Change, content_identity
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.changes.ties import OrderedTie, end_of_tie, in_order, order_tie, ties_in

_TIME = 1_790_000_000_000_000


def _change(step: str, time_us: int = _TIME) -> Change:
    """`AB`: image A becomes image B; `.` is no item, `?` an image that the change does not say."""
    old, new = (None if state in ".?" else json.dumps({"n": {"S": state}}) for state in step)
    op = "I" if step[0] == "." else "D" if step[1] == "." else "U"
    return Change(
        uuid=content_identity("T", "k", time_us, op, new, old),
        op=op,
        write_time_us=time_us,
        data=new,
        keys="k",
        new_image=new,
        old_image=old,
        position=position(0, time_us),
        sequence_number="",
        shard_id="s",
        event_id=step,
        is_ttl_delete=False,
        transport="kinesis",
    )


def _steps(changes: list[Change] | None) -> str | None:
    return None if changes is None else " ".join(change.event_id for change in changes)


@pytest.mark.parametrize(
    ("steps", "order"),
    [
        ("AB", "AB"),
        ("BC AB", "AB BC"),
        ("CD AB BC", "AB BC CD"),
        (".A A. .B", ".A A. .B"),
        (".A", ".A"),
        ("AC AB BA", "AB BA AC"),
        ("AB BA", None),  # also B→A→B
        (".A A.", None),
        ("AB BC CB", None),  # A→B→C→B, but also A→B→C→B→C
        ("AB CD", None),
        ("AB BA CD", None),
        ("AB BC ?D", None),
        ("A? AB", None),
        ("AA", "AA"),
    ],
)
def test_the_chain_of_images_tells_the_order(steps: str, order: str | None) -> None:
    changes = [_change(step) for step in steps.split()]
    for arrived in itertools.permutations(changes):
        assert _steps(in_order(list(arrived))) == order


@pytest.mark.parametrize(
    ("steps", "end", "order"),
    [
        ("AB BA", "A", "AB BA"),
        ("AB BA", "B", "BA AB"),
        ("AB BA", "C", None),
        ("AB BC CB", "B", "AB BC CB"),
        ("AB BC CB", "C", None),
        (".A A.", ".", ".A A."),
        (".A A.", "A", "A. .A"),
        ("AB BA CD DC", "A", None),
        ("AB BC", "B", None),
    ],
)
def test_what_the_tie_left_behind_decides_a_cycle(steps: str, end: str, order: str | None) -> None:
    changes = [_change(step) for step in steps.split()]
    image = None if end == "." else json.dumps({"n": {"S": end}})
    for arrived in itertools.permutations(changes):
        assert _steps(in_order(list(arrived), image)) == order


def _land(known: list[Change], *steps: str) -> OrderedTie:
    settled = order_tie(known, [_change(step) for step in steps])
    known += settled.rows
    return settled


def _placed(rows: list[Change]) -> list[tuple[str, str]]:
    return [(row.event_id, row.position.removeprefix(position(0, _TIME))) for row in rows]


def test_the_first_keeps_the_plain_position_and_later_ones_get_numbers() -> None:
    assert _placed(_land([], "BC", "AB").rows) == [("BC", ".0001"), ("AB", "")]
    plain, numbered = position(0, _TIME), _land([], "BC", "AB").rows[0].position
    end = end_of_tie([_change("AB")], "read")
    assert plain < numbered < f"{plain}.9999" < end < position(0, _TIME + 1000)


def test_what_landed_too_early_lands_again_behind() -> None:
    known: list[Change] = []
    assert _placed(_land(known, "CD").rows) == [("CD", "")]
    assert _placed(_land(known, "BC").rows) == [("BC", ""), ("CD", ".0001")]
    assert _placed(_land(known, "AB").rows) == [("AB", ""), ("BC", ".0002"), ("CD", ".0003")]
    assert _placed(_land(known, "DE").rows) == [("DE", ".0004")]


def test_what_is_known_lands_at_its_last_place() -> None:
    known: list[Change] = []
    _land(known, "BC")
    _land(known, "AB")
    again = _land(known, "BC", "AB", "BC")
    assert _placed(again.rows) == [("BC", ".0001"), ("AB", ""), ("BC", ".0001")]
    assert again.is_decided


def test_an_undecided_tie_is_said_once_and_may_be_decided_later() -> None:
    known: list[Change] = []
    assert not (first := _land(known, "AB", "BA")).is_decided
    assert _placed(first.rows) == [("AB", ""), ("BA", ".0001")]
    assert _land(known, "AB").is_decided  # nothing new
    last = _land(known, "AC")
    assert last.is_decided
    assert _placed(last.rows) == [("AC", ".0002")]
    assert last.last.event_id == "AC"


def test_times_in_whole_ms_are_in_a_tie_with_all_of_their_ms() -> None:
    fine, finer = _change("AB", _TIME + 1), _change("BC", _TIME + 2)
    assert ties_in([fine], [finer]) == [([], [finer])]
    assert ties_in([finer], [fine, finer]) == [([], [fine]), ([finer], [finer])]
    coarse = _change("BC")
    assert ties_in([fine], [coarse]) == [([fine], [coarse])]
    (row,) = order_tie([fine], [coarse]).rows
    assert fine.position < row.position == f"{fine.position}.0001" < finer.position
    assert end_of_tie([fine], "read") < finer.position
    assert finer.position < end_of_tie([fine, coarse], "read") < position(0, _TIME + 1000)


@budget(max_examples=300)
@given(st.lists(st.sampled_from(".ABC"), min_size=2, max_size=7), st.integers(), st.booleans())
def test_in_any_delivery_places_follow_the_chain(states: list[str], seed: int, mixed: bool) -> None:
    """Whenever the last change is decided it is the true one, and stands behind all others."""
    walk = [a + b for a, b in itertools.pairwise(states) if a != b]
    chance = random.Random(seed)
    times = sorted(chance.randrange(1000) for _ in walk) if mixed else [0] * len(walk)
    coarse = [not mixed or n == 0 or chance.random() < 0.5 for n, _ in enumerate(walk)]
    truth = [
        _change(step, _TIME + (0 if is_coarse else at))
        for step, at, is_coarse in zip(walk, times, coarse, strict=True)
    ]
    deliveries = truth + chance.choices(truth, k=3) if truth else []
    chance.shuffle(deliveries)
    known: list[Change] = []
    settled, places = None, {}
    while deliveries:
        size = chance.randint(1, len(deliveries))
        batch, deliveries = deliveries[:size], deliveries[size:]
        is_news = {c.uuid for c in batch} - {c.uuid for c in known}
        before = {row.uuid: row.position for row in sorted(known, key=lambda c: c.position)}
        found = order_tie(known, batch)
        settled = found if is_news else settled
        assert {c.uuid for c in batch} <= {row.uuid for row in found.rows}
        assert all(row.position >= before.get(row.uuid, "") for row in found.rows)
        known += found.rows
        places = {row.uuid: row.position for row in sorted(known, key=lambda c: c.position)}
        assert len(set(places.values())) == len(places)
        assert max(row.position for row in known) == places[found.last.uuid]
    if settled is None or not settled.is_decided:
        return
    assert settled.last.uuid == truth[-1].uuid
    order = sorted({c.uuid: c for c in truth}.values(), key=lambda c: places[c.uuid])
    assert all(a.new_image == b.old_image for a, b in itertools.pairwise(order))
