"""A hundred tables and few places: everyone gets a turn, whatever the others do."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from cdc_pipeline.core.log.entries import ShardState, StreamRef
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.defs.tables.shard_sensor import CaptureDecision, decide, plan_runs
from cdc_pipeline.settings.sections import Capture

TICK_US = 30_000_000
LONGEST_RUN = 5
NAMES = [f"table_{number:03d}" for number in range(100)]


def capture_options(**chosen: Any) -> Capture:
    return Capture.model_validate(chosen)


@dataclass
class Ticks:
    """The sensor's life: each tick asks `plan_runs`; runs take a random number of ticks.

    `failing` tables land nothing though their runs end; runs of `silent` ones do not even log that;
    `broken` ones cannot be looked at.
    """

    options: Capture
    chance: random.Random
    names: list[str] = field(default_factory=lambda: list(NAMES))
    failing: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    now_us: int = 1_000 * TICK_US
    runs: list[tuple[int, list[str]]] = field(default_factory=list)
    states: dict[str, LogState] = field(default_factory=dict)
    started: dict[str, list[int]] = field(default_factory=dict)
    configs: list[dict[str, Any]] = field(default_factory=list)
    tick: int = 0

    def __post_init__(self) -> None:
        for name in self.names:
            self.started[name] = [0]
            self.states[name] = self.captured(self.now_us - self.chance.randrange(10) * TICK_US)

    def captured(self, read_to_us: int) -> LogState:
        """The log of a table that a run has just ended for."""
        shard = ShardState("shard", None, 1, read_to_us=read_to_us)
        stream = StreamRef("id", "arn", "NEW_IMAGE", 0, read_to_us)
        return LogState(1, self.now_us, stream, shards={"shard": shard}, discovered_us=read_to_us)

    def decisions(self) -> list[CaptureDecision]:
        busy = {name for _, names in self.runs for name in names}
        return [
            replace(self.decision(name, name in busy), started=self.started[name][-1])
            for name in self.names
        ]

    def decision(self, name: str, busy: bool) -> CaptureDecision:
        if busy:
            return CaptureDecision(name, False, "in flight")
        if name in self.broken:
            return CaptureDecision(name, True, "cannot be inspected: no")
        interval = 0 if self.options.linger_seconds else self.options.interval_seconds
        return decide(name, self.states[name], {"shard"}, self.now_us, interval)

    def advance(self) -> list[list[str]]:
        """One tick: runs that are over end, new ones start; the new ones' tables."""
        self.tick, self.now_us = self.tick + 1, self.now_us + TICK_US
        for end, names in self.runs:
            if end <= self.tick:
                self.settle(names)
        self.runs = [run for run in self.runs if run[0] > self.tick]
        planned = plan_runs(self.decisions(), len(self.names), len(self.runs), self.options)
        groups = [config["tables"] for config in planned]
        self.configs += planned
        for group in groups:
            for name in group:
                self.started[name].append(self.tick)
            self.runs.append((self.tick + self.chance.randint(1, LONGEST_RUN), group))
        assert len(self.runs) <= self.options.runs
        return groups

    def settle(self, names: list[str]) -> None:
        for name in set(names) - self.silent:
            old_us = self.states[name].watermark_us
            self.states[name] = self.captured(old_us if name in self.failing else self.now_us)

    def longest_wait(self, name: str) -> int:
        """The most ticks between two of a table's runs, the present one included."""
        times = [*self.started[name], self.tick]
        return max(later - earlier for earlier, later in pairwise(times))

    def bound(self) -> int:
        """As long as all other tables, one after another in runs of the longest time."""
        places = self.options.tables_per_run * self.options.runs
        rounds = -(-len(self.names) // places) + 1
        due_after = -(-self.options.interval_seconds * 1_000_000 // TICK_US)
        return rounds * (LONGEST_RUN + 1) + due_after


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("places", "runs"), [(8, 2), (1, 1), (3, 4), (64, 2)])
def test_no_table_waits_for_ever(places: int, runs: int, seed: int) -> None:
    options = capture_options(tables_per_run=places, runs=runs)
    ticks = Ticks(options, random.Random(seed))
    for _ in range(4 * ticks.bound()):
        ticks.advance()
    waits = {name: ticks.longest_wait(name) for name in NAMES}
    assert max(waits.values()) <= ticks.bound(), max(waits, key=lambda name: waits[name])


@pytest.mark.parametrize("seed", range(5))
def test_never_one_table_in_two_runs_at_once(seed: int) -> None:
    ticks = Ticks(capture_options(runs=5), random.Random(seed))
    for _ in range(200):
        ticks.advance()
        placed = Counter(name for _, names in ticks.runs for name in names)
        assert set(placed.values()) <= {1}
        assert all(len(names) <= ticks.options.tables_per_run for _, names in ticks.runs)


@pytest.mark.parametrize("seed", range(5))
def test_the_most_behind_goes_first(seed: int) -> None:
    ticks = Ticks(capture_options(), random.Random(seed))
    for _ in range(100):
        behind = {name: state.watermark_us for name, state in ticks.states.items()}
        busy = {name for _, names in ticks.runs for name in names}
        groups = ticks.advance()
        chosen = [name for group in groups for name in group]
        if not chosen:
            continue
        left = [v for v in ticks.decisions() if v.due and v.table not in busy]
        due = sorted([*chosen, *(v.table for v in left)], key=lambda name: behind[name])
        # Every other place goes to the most behind, the ones between to those that waited longest.
        assert set(due[: len(chosen) // 2]) <= set(chosen)
        assert behind[chosen[0]] == behind[due[0]]


def test_a_table_that_was_never_captured_goes_before_all_others() -> None:
    ticks = Ticks(capture_options(), random.Random(0))
    ticks.states["table_077"] = LogState()
    assert ticks.advance()[0][0] == "table_077"


def test_crowded_runs_do_not_linger() -> None:
    options = capture_options(linger_seconds=200)
    crowded = Ticks(options, random.Random(0))
    for _ in range(30):
        crowded.advance()
    assert {config.get("linger_seconds") for config in crowded.configs} == {0.0}
    places = options.tables_per_run * options.runs
    roomy = Ticks(options, random.Random(0), names=NAMES[:places])
    for _ in range(30):
        roomy.advance()
    assert all("linger_seconds" not in config for config in roomy.configs)


@pytest.mark.parametrize("linger_seconds", [0, 200])
@pytest.mark.parametrize("kind", ["failing", "silent", "broken"])
def test_tables_in_trouble_do_not_starve_the_others(kind: str, linger_seconds: int) -> None:
    """As many of them as there are places, and more: always due, always the most behind."""
    options = capture_options(linger_seconds=linger_seconds)
    trouble: Any = {kind: set(NAMES[:20])}
    ticks = Ticks(options, random.Random(0), **trouble)
    for _ in range(6 * ticks.bound()):
        ticks.advance()
    waits = {name: ticks.longest_wait(name) for name in NAMES[20:]}
    assert max(waits.values()) <= 2 * ticks.bound()
