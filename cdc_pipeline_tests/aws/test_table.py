"""What a table's description tells: of global tables, which Regions there are."""

from collections.abc import Iterator

import pytest

from cdc_pipeline.aws.table import describe_table
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamsSimulator]:
    with StreamsSimulator() as simulator:
        use(simulator, monkeypatch)
        simulator.create_table("orders")
        yield simulator


def test_a_table_of_one_region(sim: StreamsSimulator) -> None:
    described = describe_table(session(sim), "orders")
    assert (described.replicas, described.global_note) == ((), None)


def test_a_global_table_says_what_its_history_lacks(sim: StreamsSimulator) -> None:
    sim.make_global("orders", "us-east-1", "eu-west-1", "ap-south-1")
    described = describe_table(session(sim), "orders")
    assert described.replicas == ("ap-south-1", "eu-west-1")
    assert not described.strongly_consistent
    assert described.global_note == (
        "global, with ap-south-1, eu-west-1: of changes made there, history may lack versions, and "
        "deletes by TTL are not marked; mirror the Region that is written to"
    )


def test_a_strongly_consistent_one_lacks_nothing(sim: StreamsSimulator) -> None:
    sim.make_global("orders", "eu-west-1", strong=True)
    described = describe_table(session(sim), "orders")
    assert described.strongly_consistent
    assert described.global_note == "global, with eu-west-1: the same changes in every Region"
