"""Requests for the description of a table: one per use case, and one per capture run in it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from click.testing import CliRunner

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.capture import catch_up
from cdc_pipeline.cli import main
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.reconcile import reconcile
from cdc_pipeline.reconcile.full_difference import FullDifference
from cdc_pipeline.snapshot.snapshot import take_snapshot
from cdc_pipeline_tests.capture.shards.test_stories import Behaviour
from cdc_pipeline_tests.e2e.exports_scenario import ExportsWorld, ReusedExports, StoryLake
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.story_frame import ChangeHook


@pytest.fixture(scope="module")
def sim() -> Iterator[ReusedExports]:
    with ReusedExports() as simulator, pytest.MonkeyPatch.context() as patch:
        use(simulator, patch)
        yield simulator


@pytest.fixture(scope="module")
def aws(sim: ReusedExports) -> AwsSession:
    return session(sim)


@pytest.fixture
def world(sim: ReusedExports, aws: AwsSession) -> Iterator[ExportsWorld]:
    """A table whose lake equals it; its requests are counted from here on."""
    made = ExportsWorld(sim, aws, Behaviour())
    made.settle()
    made.clock.advance(20 * 60)
    assert made.attempt("capture") is None
    sim.requests.clear()
    yield made
    made.close()


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each capture run of a use case that waits for capture."""
    runs: list[str] = []
    capture = catch_up._capture

    def counted(table: catch_up.TableLake) -> None:
        runs.append(table.name)
        capture(table)

    monkeypatch.setattr(catch_up, "_capture", counted)
    return runs


def described(world: ExportsWorld) -> int:
    return [request.operation for request in world.sim.requests].count("DescribeTable")


def test_a_snapshot_of_a_table_without_capture_describes_it_once(world: ExportsWorld) -> None:
    world.settings["lake"] = str(world.folder / "another lake")
    lake = StoryLake(world, ChangeHook())
    take_snapshot(lake.table(world.table), context=RunContext(sleep=world.sleep))
    assert described(world) == 1


def test_a_reconciliation_by_a_sample_describes_the_table_once(
    world: ExportsWorld, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [{"pk": item["pk"]} for item in world.sim.items("orders")]
    # The simulator has no projections.
    monkeypatch.setattr("cdc_pipeline.reconcile.sample.scan_some", lambda *_: iter(keys))
    monkeypatch.setattr("cdc_pipeline.commands.reconcile.open_lake", lambda: world.lake)
    result = CliRunner().invoke(main, ["reconcile", "orders", "--sample", "3"])
    assert result.exit_code == 0, result.output
    assert captures == []
    assert described(world) == 1


def test_a_full_reconciliation_describes_the_table_once(
    world: ExportsWorld, captures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if reads have to decide on items that changed at the time of the export."""
    compare = reconcile.compare_with_export

    def undecided(*parts: object) -> FullDifference:
        difference = compare(*parts)  # type: ignore[arg-type]
        return replace(difference, moving=list(world.there()))

    monkeypatch.setattr(reconcile, "compare_with_export", undecided)
    table = world.lake.table(world.table)
    report = reconcile.reconcile_full(table, context=RunContext(sleep=world.sleep))
    assert report.is_sound
    assert report.compared > 0
    assert captures
    assert described(world) == 1 + len(captures)
