"""A simulator per test, with its clock."""

from collections.abc import Iterator

import pytest

from cdc_pipeline_tests.simulators.clients import use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def sim(clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamsSimulator]:
    with StreamsSimulator(clock=clock) as simulator:
        use(simulator, monkeypatch)
        yield simulator
