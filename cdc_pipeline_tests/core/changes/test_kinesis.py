"""The Kinesis envelope: identity, times, binaries, and what is refused."""

import base64
import json
from typing import Any

import pytest

from cdc_pipeline.core.changes.change import content_identity
from cdc_pipeline.core.changes.kinesis import from_envelope
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.errors import UnreadableError


def _envelope(**body: Any) -> dict[str, Any]:
    return {
        "eventID": "e-1",
        "eventName": "MODIFY",
        "userIdentity": None,
        "tableName": "people",
        "dynamodb": {
            "ApproximateCreationDateTime": 1649719712473,
            "Keys": {"name": {"S": "person-1"}},
            "NewImage": {"name": {"S": "person-1"}, "n": {"N": "1.50"}},
            "OldImage": {"name": {"S": "person-1"}},
            **body,
        },
    }


def test_a_change_is_known_by_what_it_says_and_ordered_by_its_time() -> None:
    change = from_envelope(_envelope(), table_id="T", sequence_number="7", shard_id="s")
    keys, new = '{"name":{"S":"person-1"}}', '{"n":{"N":"1.5"},"name":{"S":"person-1"}}'
    assert change.write_time_us == 1649719712473000
    assert change.position == position(0, 1649719712473000)
    assert (change.keys, change.new_image, change.old_image) == (keys, new, keys)
    assert change.uuid == content_identity("T", keys, 1649719712473000, "U", new, keys)
    assert (change.sequence_number, change.shard_id, change.event_id) == ("7", "s", "e-1")


def test_milliseconds_and_microseconds_are_one_clock() -> None:
    ms = from_envelope(_envelope(), table_id="T")
    us = from_envelope(
        _envelope(
            ApproximateCreationDateTime=1649719712473000,
            ApproximateCreationDateTimePrecision="MICROSECOND",
        ),
        table_id="T",
    )
    assert ms == us


def test_binaries_lose_one_layer_of_base64_wherever_they_are() -> None:
    once = base64.b64encode(b"\x12\x02\x08\x7b").decode()
    twice = base64.b64encode(once.encode()).decode()

    def image(text: str) -> dict[str, Any]:
        return {
            "name": {"B": text},
            "set": {"BS": [text]},
            "deep": {"L": [{"M": {"B": {"B": text}}}, {"S": twice}]},
        }

    change = from_envelope(
        _envelope(Keys={"name": {"B": twice}}, NewImage=image(twice)), table_id=""
    )
    plain = from_envelope(
        _envelope(Keys={"name": {"B": once}}, NewImage=image(once)), table_id="", encodings=1
    )
    assert change == plain
    assert change.new_image is not None
    assert json.loads(change.new_image)["deep"]["L"] == [{"M": {"B": {"B": once}}}, {"S": twice}]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"Keys": {}}, "without keys"),
        ({"NewImage": None}, "does not fit"),
        ({"ApproximateCreationDateTime": 1.5}, "creation time"),
        ({"ApproximateCreationDateTime": -1}, "before 2012"),
        ({"ApproximateCreationDateTimePrecision": "NANOSECOND"}, "precision"),
        ({"NewImage": {"b": {"B": "gICAgA=="}}}, "twice"),
        ({"NewImage": {"b": {"X": "1"}}}, "unknown attribute type"),
    ],
)
def test_what_is_no_change_is_refused(body: dict[str, Any], why: str) -> None:
    with pytest.raises(UnreadableError, match=why):
        from_envelope(_envelope(**body), table_id="T")
