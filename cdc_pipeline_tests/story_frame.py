"""The frame of random stories of capture: their steps, kills and faults, and how one is told.

A story is a list of steps in plain data, so that one that failed can be kept as it was printed. A
`StoryWorld` carries out the steps against a simulator with one clock, checks after every run what
must be true then, and settles in the end. `CDC_PIPELINE_STORIES=20000` tells that many new stories,
not the same ones as always.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from cdc_pipeline_tests.simulators import faults
from cdc_pipeline_tests.simulators.clients import use
from cdc_pipeline_tests.simulators.clock import SimulatedClock, WrongClock
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

LONG = int(os.environ.get("CDC_PIPELINE_STORIES", "0"))
"""Stories in one long run: of ten, six are of streams, three of Kinesis, one of exports."""
MARKS = [pytest.mark.slow, pytest.mark.timeout(0 if LONG else 900)]
HOUR = 3600
DAY = 24 * HOUR
MARGIN = 300
"""How far the capturing machine's clock may be off, in seconds; AWS refuses what is off by more."""

Step = tuple[Any, ...]
T = TypeVar("T")

# ------------------------------------------------------------------------------------- steps

CLOCK = st.tuples(st.just("clock"), st.sampled_from([-300, -60, -5, -0.5, 0, 0.5, 5, 60, 300]))
NEARLY_A_DAY = st.integers(DAY - 1200, DAY + 600).map(lambda s: s - s % 30)
CAPTURES = st.one_of(
    st.just(("capture",)),
    st.just(("capture",)),
    st.tuples(st.just("killed"), st.integers(0, 4), st.booleans()),
    st.tuples(st.just("raced"), st.integers(0, 4), st.booleans()),
    st.just(("in small batches",)),
)
FAULTS: dict[str, Callable[[], faults.Fault]] = {
    "throttled": faults.throttled,
    "limit": faults.limit_exceeded,
    "5xx": faults.internal_error,
    "503": faults.unavailable,
    "reset": faults.reset,
    "late reset": lambda: faults.reset(after_headers=True),
    "cut": faults.cut,
    "cut, honest": lambda: faults.cut(honest_length=True),
    "cut error": faults.cut_error,
    "empty body": faults.empty_body,
    "denied": lambda: faults.error("AccessDeniedException"),
    "lagging": faults.lagging,
    "children missing": faults.children_missing,
    "parent looks open": faults.parent_looks_open,
    "shard missing": faults.shard_missing,
}
LISTING_FAULTS = ["lagging", "children missing", "parent looks open", "shard missing"]
ANY_FAULTS = [name for name in FAULTS if name not in LISTING_FAULTS]


def steps_of(chapters: Sequence[tuple[Step, ...]]) -> list[Step]:
    """A story of chapters, each of which is steps that seldom come together by chance."""
    return [step for chapter in chapters for step in chapter]


# ------------------------------------------------------------------------------------- kills


class Killed(BaseException):
    """The process is no more. Not an `Exception`: nothing may catch it."""


def kill() -> NoReturn:
    raise Killed


@dataclass
class ChangeHook:
    """Does something, by default a kill, at a run's change number `at` of the lake.

    `after`: when the change is made, else before it.
    """

    at: int = -1
    after: bool = False
    do: Callable[[], object] = kill
    count: int = 0

    def change(self, make: Callable[[], T]) -> T:
        """Make one change."""
        number, self.count = self.count, self.count + 1
        if number == self.at and not self.after:
            self.do()
        made = make()
        if number == self.at and self.after:
            self.do()
        return made


# ------------------------------------------------------------------------------------- world


class StoryWorld:
    """A table, its stream and its lake while a story is told; to be closed.

    `on`: the table writes to its stream. `outcomes`: how runs ended, for statistics. `keys`: number
    of items that a story writes to.
    """

    keys: ClassVar[int]
    sim: Any
    how: Any
    clock: SimulatedClock
    local: WrongClock
    on: bool
    outcomes: Any

    def tell(self, step: Step) -> None:
        """Carry out a step that every table knows; one that does not apply now does nothing."""
        match step:
            case ("write", what):
                for number in what:
                    self.write(number % self.keys, number // self.keys)
            case ("rotate", which) if self.on:
                shards = self.sim.open_shards("orders")
                self.sim.rotate("orders", shards[which % len(shards)])
            case ("advance" | "pause", seconds):
                self.clock.advance(seconds)
            case ("clock", error):
                self.local.error = error
            case ("off",) if self.on:
                self.sim.disable_stream("orders")
                self.on = False
            case ("on",) if not self.on:
                self.sim.enable_stream("orders", shards=self.how.shards)
                self.on = True

    def write(self, key: int, what: int) -> None:
        """Write item `key`; `what`: one of the kinds of writes."""
        raise NotImplementedError

    def settle(self) -> None:
        """Without more faults, run until the lake is complete, and compare it with the table."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what is left of the world."""


def tell_story(world: StoryWorld, story: Iterable[Step]) -> Any:
    """Tell a story to its end and check it; how its runs ended."""
    try:
        for step in story:
            world.tell(step)
        world.settle()
    finally:
        world.close()
    return world.outcomes


@contextmanager
def shared_simulator(simulator: StreamsSimulator) -> Iterator[pytest.MonkeyPatch]:
    """One HTTP server for all stories of a module, and clients that lose no time."""
    with simulator, pytest.MonkeyPatch.context() as patch:
        use(simulator, patch)
        # Thousands of stories share one client, and its budget of retries would run out.
        patch.setattr("botocore.retries.quota.RetryQuota.acquire", lambda *_: True)
        patch.setattr("cdc_pipeline.aws.shards._RETRY_SECONDS", 0)
        patch.setattr("cdc_pipeline.capture.shards.drain._FLUSH_WAIT_SECONDS", 0.002)
        yield patch


def story_settings(*, tenths: int, usual: int, shrinks: bool = True) -> settings:
    """Hypothesis's settings: `usual` stories, the same ones each time, or `tenths` of a long run.

    A story that fails is printed with the blob that tells it again.
    """
    shrinking = [Phase.shrink] if shrinks else []
    return settings(
        max_examples=LONG * tenths // 10 or usual,
        derandomize=not LONG,
        print_blob=True,
        report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate, *shrinking],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
