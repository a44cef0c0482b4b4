"""The backends, each started once; every test of the folder runs over each of them."""

import os
from collections.abc import Iterator

import pytest

from cdc_pipeline.sandbox.process import SandboxProcess, apply_environment
from cdc_pipeline_tests.contract import servers
from cdc_pipeline_tests.contract.backends import SANDBOX, WITH_STREAMS, Backend, Simulated
from cdc_pipeline_tests.contract.servers import Server
from cdc_pipeline_tests.maven import Unavailable
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator


@pytest.fixture(scope="session")
def simulator() -> Iterator[Backend]:
    clock = SimulatedClock()
    with StreamsSimulator(clock=clock) as started:
        yield Simulated(started, clock)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Backend]:
    with SandboxProcess() as process:
        yield Backend(SANDBOX, process.endpoint_url)


def _started(server: Server) -> Iterator[Backend]:
    """Needs what a machine may lack; then its tests say so and are skipped."""
    try:
        with server.running() as endpoint_url:
            yield Backend(server.name, endpoint_url)
    except Unavailable as reason:
        pytest.skip(f"{server.name}: {reason}")


@pytest.fixture(scope="session")
def dynoxide() -> Iterator[Backend]:
    yield from _started(servers.DYNOXIDE)


@pytest.fixture(scope="session")
def moto() -> Iterator[Backend]:
    yield from _started(servers.MOTO)


@pytest.fixture(scope="session")
def dynalite() -> Iterator[Backend]:
    yield from _started(servers.DYNALITE)


@pytest.fixture(params=WITH_STREAMS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A backend; this process's environment points at it, too."""
    found: Backend = request.getfixturevalue(request.param)
    wanted = dict(os.environ)
    apply_environment(wanted, found.endpoint_url)
    for name in set(os.environ) - set(wanted):
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    return found
