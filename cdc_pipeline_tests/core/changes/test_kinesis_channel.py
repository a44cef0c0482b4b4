"""Where channels write, what their dead letters name, and what counts prove."""

import random
from typing import Any

import pytest

from cdc_pipeline.core.changes.kinesis_channel import (
    DeadLetter,
    dead_letter,
    folder_of,
    has_days,
    least_missing,
)
from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.plans.delivery_lag import MINUTE_US, STALE_US, delivered_before


@pytest.mark.parametrize(
    ("template", "folder", "days"),
    [
        ("", "kinesis-channel/c/id/", True),
        ("k/!{channel-name}/!{channel-id}/!{yyyy}/!{MM}/!{dd}/!{HH}/x", "k/c/id/", True),
        ("a/!{stream-name}/year=!{yyyy}/month=!{MM}/day=!{dd}/!{HH}", "a/s/", True),
        ("!{yyyy}/!{MM}/!{dd}/", "", True),
        ("a-!{yyyy}/!{MM}/!{dd}/", "a-", False),
        ("a/!{yyyy}/!{MM}/!{dd}", "a/", False),
        ("!{yyyy}-!{MM}-!{dd}/a", "", False),
        ("!{HH}/!{yyyy}/!{MM}/!{dd}/", "", False),
        ("a/!{new}/!{yyyy}/!{MM}/!{dd}/", "a/", False),
        ("a/!{yy}/!{MM}/!{dd}/", "a/", False),
        ("a/b", "a/b", False),
    ],
)
def test_the_folder_ends_where_the_date_begins(template: str, folder: str, days: bool) -> None:
    assert folder_of(template, channel="c", channel_id="id", stream="s") == folder
    assert has_days(template) is days


@pytest.mark.parametrize(
    "said",
    [
        {"streamArn": "arn:s", "shardId": "shardId-1", "sequenceNumber": "42"},
        {"StreamARN": "arn:s", "ShardId": "shardId-1", "SequenceNumber": 42, "Error": {"a": 1}},
        {"stream_arn": "arn:s", "metadata": {"shard_id": "shardId-1", "sequence-number": "42"}},
    ],
)
def test_a_dead_letter_is_understood_in_any_spelling(said: Any) -> None:
    assert dead_letter(said) == DeadLetter("shardId-1", "42", "arn:s")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (None, "its shard"),
        ({}, "its shard"),
        ({"shardId": "orders", "sequenceNumber": "42"}, "its shard"),
        ({"shardId": "shardId-1", "sequenceNumber": "LATEST"}, "its sequence number"),
        ({"shardId": "shardId-1", "sequenceNumber": True}, "its sequence number"),
    ],
)
def test_what_names_no_record_is_no_dead_letter(said: Any, reason: str) -> None:
    with pytest.raises(UnreadableError, match=f"a dead letter without {reason}"):
        dead_letter(said)


def _by_definition(counted: dict[int, int], found: dict[int, int], slack: int) -> int:
    worst = 0
    for start in range(-20, 60):
        for end in range(start, 60):
            put = sum(n for minute, n in counted.items() if start <= minute < end)
            got = sum(n for m, n in found.items() if start - slack <= m < end + slack)
            worst = max(worst, put - got)
    return worst


def test_missing_records_are_those_of_the_worst_stretch() -> None:
    assert least_missing({}, {}, 5) == 0
    assert least_missing({}, {3: 4}, 5) == 0
    assert least_missing({3: 4}, {}, 5) == 4
    # Clocks that differ by less than the slack are none.
    assert least_missing({3: 4, 9: 2}, {5: 4, 8: 2}, 2) == 0
    # What is too much at another time makes up for nothing.
    assert least_missing({3: 4, 30: 4}, {3: 3, 30: 5}, 2) == 1
    rng = random.Random(7)
    for _ in range(60):
        slack = rng.randint(1, 4)
        counted = {rng.randint(0, 30): rng.randint(0, 9) for _ in range(rng.randint(0, 9))}
        found = {rng.randint(0, 30): rng.randint(0, 9) for _ in range(rng.randint(0, 9))}
        expected = _by_definition(counted, found, slack)
        assert least_missing(counted, found, slack) == expected, (counted, found, slack)


def test_all_was_delivered_before_the_ages_of_every_leg_add_up() -> None:
    m = MINUTE_US
    assert delivered_before([], 10 * m) is None
    assert delivered_before([{}], 10 * m) is None
    assert delivered_before([{7 * m: 3 * m}], 10 * m) == 4 * m
    # The oldest record of any of the last minutes, also of one that is not complete yet.
    assert delivered_before([{5 * m: 4 * m, 7 * m: m}], 8 * m) == 3 * m
    assert delivered_before([{7 * m: m, 8 * m: 5 * m}], 8 * m) == 2 * m
    # A record is in Kinesis first, then in Firehose.
    assert delivered_before([{7 * m: m}, {6 * m: 2 * m}], 10 * m) == 3 * m
    # A metric that has stopped tells nothing.
    assert delivered_before([{7 * m: m}, {}], 10 * m) is None
    assert delivered_before([{7 * m: m}], 7 * m + STALE_US + 1) is None
    assert delivered_before([{9 * m: m}], 9 * m + 59_999_999) is None
