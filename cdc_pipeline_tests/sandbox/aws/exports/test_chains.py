"""A full export and the windows after it make the full export at their end, whatever was written.

The reference is a replay of what the test itself wrote, at times that it set; it shares nothing
with the sandbox's journal.
"""

import bisect
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline_tests.sandbox.aws.exports.exporting import (
    export_table,
    exported_items,
    exported_lines,
)
from cdc_pipeline_tests.sandbox.clients import Aws
from cdc_pipeline_tests.sandbox.timed import TimedTable, timed_sandbox

_SECOND = 1_000_000
_SHORTEST, _LONGEST = 900, 86_400
# No shrinking: a story takes half a second, and making a failing one shorter takes minutes.
_PHASES = (Phase.explicit, Phase.generate)
_KINDS = (
    "put",
    "put",
    "update",
    "delete",
    "same",
    "same",
    "flicker",
    "back",
    "back",
    "swap",
    "ttl",
)
_BUCKET = "chain"

Item = dict[str, Any]


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    with timed_sandbox() as connected:
        connected.s3.create_bucket(Bucket=_BUCKET)
        yield connected


@dataclass(frozen=True)
class Step:
    """One thing to do, `seconds` (and `micros`) after the one before."""

    kind: str
    seconds: int
    micros: int
    place: int
    value: int


@dataclass
class Story:
    """A table and every state its items ever had: key -> [(time, image or None)], oldest first."""

    aws: Aws
    table: TimedTable
    seen: dict[str, list[tuple[int, Item | None]]] = field(default_factory=dict)

    def tell(self, step: Step) -> None:
        whole = self.table.now() // _SECOND + 1 + step.seconds
        at = whole * _SECOND + step.micros
        key = {"pk": {"S": f"p{step.place % 3}"}, "sk": {"N": str(step.place)}}
        item = {**key, "v": {"N": str(step.value)}}
        getattr(self, f"_{step.kind}")(key, item, at)

    def _put(self, key: Item, item: Item, at: int) -> None:
        self._note(key, self.table.put(item, at=at), item)

    def _update(self, key: Item, item: Item, at: int) -> None:
        # Creates the item if there is none, keeps its other attributes if there is one.
        self.table.update(key, "u", item["v"], at=at)
        self._note(key, at, {**(self._latest(key) or key), "u": item["v"]})

    def _delete(self, key: Item, item: Item, at: int) -> None:
        self.table.delete(key, at=at)
        self._note(key, at, None)

    def _same(self, key: Item, item: Item, at: int) -> None:
        latest = self._latest(key)
        if latest is None:
            self._delete(key, item, at)
        else:
            self.table.put(latest, at=at)

    def _flicker(self, key: Item, item: Item, at: int) -> None:
        self._put(key, item, at)
        self._delete(key, item, at + 1)

    def _back(self, key: Item, item: Item, at: int) -> None:
        before = self._latest(key)
        self._put(key, {**item, "other": {"L": []}}, at)
        if before is None:
            self._delete(key, item, at + 2)
        else:
            self._put(key, before, at + 2)

    def _swap(self, key: Item, item: Item, at: int) -> None:
        """Delete one item and put another in one transaction."""
        other = {**key, "pk": {"S": "other"}}
        self.table.stand_at(at)
        self.aws.dynamodb.transact_write_items(
            TransactItems=[
                {"Delete": {"TableName": self.table.name, "Key": key}},
                {"Put": {"TableName": self.table.name, "Item": {**item, **other}}},
            ]
        )
        # Only a delete of something takes a time.
        deleted = self._latest(key) is not None
        self._note(key, at, None)
        self._note(other, at + deleted, {**item, **other})

    def _ttl(self, key: Item, item: Item, at: int) -> None:
        self.table.put_expiring(item, seconds=60, at=at)
        expires = at // _SECOND + 60
        self._note(key, at, {**item, "expires": {"N": str(expires)}})
        self._note(key, self.table.expire(key), None)

    def _note(self, key: Item, at: int, image: Item | None) -> None:
        if image != self._latest(key):
            self.seen.setdefault(_text(key), []).append((at, image))

    def _latest(self, key: Item) -> Item | None:
        return self.seen.get(_text(key), [(0, None)])[-1][1]

    def seconds(self) -> list[int]:
        """Return the whole seconds next to writes: the interesting ends of windows."""
        times = {at for states in self.seen.values() for at, _ in states}
        return sorted(
            {self.table.enabled // _SECOND, *(at // _SECOND + n for at in times for n in (0, 1))}
        )

    def at(self, second: int) -> dict[str, Item]:
        """Return the items as they were just before a second."""
        states = {key: _before(seen, second * _SECOND) for key, seen in self.seen.items()}
        return {key: image for key, image in states.items() if image is not None}

    def lines(self, start: int, end: int, view: str, spelling: str) -> list[str]:
        """Return the lines that an export of a window must have."""
        lines = []
        for key, seen in self.seen.items():
            written = [at for at, _ in seen if start * _SECOND <= at < end * _SECOND]
            old, new = _before(seen, start * _SECOND), _before(seen, end * _SECOND)
            if written and (old or new):
                time = {"typed": {"N": str(written[-1])}, "number": written[-1]}
                line: Item = {
                    "Metadata": {"WriteTimestampMicros": time.get(spelling, str(written[-1]))},
                    "Keys": json.loads(key),
                }
                if old and view == "NEW_AND_OLD_IMAGES":
                    line["OldImage"] = dict(sorted(old.items()))
                if new:
                    line["NewImage"] = dict(sorted(new.items()))
                lines.append(_text(line))
        return sorted(lines)


def _before(seen: list[tuple[int, Item | None]], micros: int) -> Item | None:
    index = bisect.bisect_left(seen, micros, key=lambda state: state[0])
    return seen[index - 1][1] if index else None


def _text(value: Item) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


_steps = st.builds(
    Step,
    kind=st.sampled_from(_KINDS),
    seconds=st.sampled_from((0, 0, 1, 899, 900, 3000)) | st.integers(0, 20_000),
    micros=st.sampled_from((0, 0, 1, 999_990)),
    place=st.integers(0, 4),
    value=st.integers(0, 2),
)


def _check_chain(aws: Aws, steps: list[Step], seed: int, view: str, spelling: str) -> None:
    story = Story(aws, TimedTable(aws))
    for step in steps:
        story.tell(step)
    cuts = _cuts(story.seconds(), random.Random(seed))
    table = story.table
    table.go(seconds=max(1, cuts[-1] + 301 - table.now() // _SECOND))
    control(aws.endpoint_url, write_time=spelling)
    state = _full(aws, table, cuts[0])
    assert state == story.at(cuts[0])
    for start, end in itertools.pairwise(cuts):
        done = table.export_window(_BUCKET, start * _SECOND, end * _SECOND, view=view)
        lines = sorted(itertools.chain(*exported_lines(aws, done)))
        assert lines == story.lines(start, end, view, spelling)
        assert done["ItemCount"] == len(lines)
        for line in map(json.loads, lines):
            key = _text(line["Keys"])
            state.pop(key, None)
            if "NewImage" in line:
                state[key] = line["NewImage"]
        assert state == story.at(end) == _full(aws, table, end)


def _cuts(seconds: list[int], rng: random.Random) -> list[int]:
    """Pick where windows begin and end: next to writes if they are then neither short nor long."""
    cuts = [rng.choice(seconds)]
    for _ in range(3):
        least, most = cuts[-1] + _SHORTEST, cuts[-1] + _LONGEST
        near = [second for second in seconds if least <= second <= most]
        cuts.append(rng.choice([*near, least, least + 1] if near else [least, most]))
    return cuts


def _full(aws: Aws, table: TimedTable, second: int) -> dict[str, Item]:
    moment = datetime.fromtimestamp(second, UTC)
    items = exported_items(aws, export_table(aws, table.name, _BUCKET, ExportTime=moment))
    found = {_text({"pk": item["pk"], "sk": item["sk"]}): item for item in items}
    assert len(found) == len(items)
    return found


_stories = given(
    steps=st.lists(_steps, min_size=8, max_size=16),
    seed=st.integers(0, 1_000_000),
    view=st.sampled_from(("NEW_AND_OLD_IMAGES", "NEW_IMAGE")),
    spelling=st.sampled_from(("typed", "number", "string")),
)


@settings(max_examples=16, phases=_PHASES)
@_stories
def test_windows_lead_from_one_full_export_to_the_next(
    aws: Aws, steps: list[Step], seed: int, view: str, spelling: str
) -> None:
    _check_chain(aws, steps, seed, view, spelling)


@pytest.mark.slow
@settings(max_examples=60, phases=_PHASES)
@_stories
def test_many_chains_of_windows(
    aws: Aws, steps: list[Step], seed: int, view: str, spelling: str
) -> None:
    _check_chain(aws, steps, seed, view, spelling)
