"""Runs that die or fail again and again: what is theirs goes on, soon, and without a flood."""

import re
import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.core.plans.backoff import KILLS_FORGIVEN
from cdc_pipeline_tests.e2e.deployment import Deployment, deploy, requested_tables
from cdc_pipeline_tests.e2e.world import World
from cdc_pipeline_tests.log_clock import set_log_clock

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]
SENSOR = {"dagster/sensor_name": "a_sensor"}


@pytest.fixture
def kind() -> str:
    return "local"


@pytest.fixture
def table(world: World) -> str:
    name = world.make_table("things")
    world.configure(name)
    return name


@pytest.fixture
def deployment(world: World, table: str) -> Iterator[Deployment]:
    with deploy(world) as made:
        yield made


def capture_config(*tables: str) -> dict[str, Any]:
    return {"ops": {"capture_streams": {"config": {"tables": [*tables]}}}}


def started_run(made: Deployment, job: str, config: dict[str, Any]) -> dg.DagsterRun:
    """A run that Dagster counts as running; nothing runs."""
    return made.instance.create_run_for_job(
        made.defs.resolve_job_def(job), run_config=config, status=dg.DagsterRunStatus.STARTED
    )


class Clock:
    """The time of this process and of capture logs, set forward by tests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        # Not the machine's clock, which may be set while a test runs.
        began = time.time() - time.monotonic()
        self.now = lambda: began + time.monotonic() + self.ahead
        monkeypatch.setattr("time.time", self.now)
        set_log_clock(monkeypatch, self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_capture_that_died_is_in_nobodys_way(
    deployment: Deployment, table: str, clock: Clock
) -> None:
    """Dagster counts it as running for ever; its log shows no sign of it."""
    started_run(deployment, "capture", capture_config(table))
    tick = deployment.tick("shard_sensor")
    assert not tick.run_requests
    assert "in flight" in tick.skip_message
    clock.ahead = 240 + 61  # max_run_seconds, and a minute
    assert requested_tables(deployment.tick("shard_sensor", tick.cursor)) == [table]


def test_a_capture_that_writes_is_left_alone_however_long_it_takes(
    deployment: Deployment, table: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.world.put(table, "a")
    run = started_run(deployment, "capture", capture_config(table))
    clock.ahead = 3 * 3600
    monkeypatch.setenv("DAGSTER_RUN_ID", run.run_id)
    deployment.world.capture(table)
    assert f"in flight (run {run.run_id[:8]})" in deployment.tick("shard_sensor").skip_message


def test_what_a_run_lands_says_which_run_it_is_of(deployment: Deployment, table: str) -> None:
    """Dagster does not set the variable that the log's owners are made of."""
    result = deployment.run_job("capture", capture_config(table))
    state = deployment.world.lake().table(deployment.world.table(table)).log.load()
    assert state.last_owner.endswith(f":{result.run_id[:8]}")


def test_people_hear_of_a_table_that_falls_behind_while_its_run_hangs(
    deployment: Deployment, table: str, clock: Clock
) -> None:
    clock.ahead = -5 * 3600
    deployment.world.capture(table)
    clock.ahead = 0
    started_run(deployment, "capture", capture_config(table))
    tick = deployment.tick("shard_sensor")
    assert "in flight" in tick.skip_message
    key = dg.AssetCheckKey(dg.AssetKey([table, "raw_stream"]), "retention_budget")
    record = deployment.instance.get_latest_asset_check_evaluation_record(key)
    assert record is not None
    assert record.evaluation is not None
    assert not record.evaluation.passed


def test_a_broken_table_is_tried_ever_more_seldom_and_hides_no_other(
    world: World, clock: Clock
) -> None:
    sound = world.make_table("sound")
    world.configure("missing", sound)
    requested: list[list[str]] = []
    cursor = None
    with deploy(world) as made:
        for _ in range(40):  # a little more than an hour of ticks
            tick = made.tick("shard_sensor", cursor)
            cursor = tick.cursor
            requested.append(requested_tables(tick))
            if "missing" in requested[-1]:
                config = capture_config(*requested[-1])
                assert not made.run_job("capture", config, tags=SENSOR).success
            clock.ahead += 100
        assert 5 <= sum("missing" in tables for tables in requested) <= 7
        assert all(sound in tables for tables in requested)
        # A person's run, whatever comes of it, begins anew.
        assert not made.run_job("capture", capture_config("missing")).success
        clock.ahead += 61
        assert "missing" in requested_tables(made.tick("shard_sensor", cursor))


def test_a_table_is_well_again_with_its_first_success(
    deployment: Deployment, table: str, clock: Clock
) -> None:
    world = deployment.world
    world.dynamodb.delete_table(TableName=table)
    for _ in range(3):
        assert not deployment.run_job("capture", capture_config(table), tags=SENSOR).success
    tick = deployment.tick("shard_sensor")
    assert re.search(
        r"things: failed 3 times in a row, again in 2\d\d s \(pause 240 s\): .*check the name",
        tick.skip_message,
        re.DOTALL,
    )
    world.make_table(table)
    assert deployment.run_job("capture", capture_config(table), tags=SENSOR).success
    tick = deployment.tick("shard_sensor", tick.cursor)
    assert "captured" in tick.skip_message
    assert '"failures":{}' in tick.cursor


def test_killed_runs_are_started_again_at_once(deployment: Deployment, table: str) -> None:
    cursor = None
    for _ in range(4):
        run = started_run(deployment, "capture", capture_config(table))
        deployment.instance.add_run_tags(run.run_id, SENSOR)
        deployment.instance.report_run_failed(run)
        tick = deployment.tick("shard_sensor", cursor)
        cursor = tick.cursor
        assert requested_tables(tick) == [table]


def test_runs_that_are_killed_and_get_on_are_started_again_at_once_for_ever(
    deployment: Deployment, table: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_run(cursor: str | None) -> Any:
        run = started_run(deployment, "capture", capture_config(table))
        deployment.instance.add_run_tags(run.run_id, SENSOR)
        deployment.instance.report_run_failed(run)
        clock.ahead += 1
        return deployment.tick("shard_sensor", cursor)

    tick = killed_run(None)
    for _ in range(KILLS_FORGIVEN + 2):
        tick = killed_run(tick.cursor)
    assert "failed 3 times in a row, again in 2" in tick.skip_message
    assert "(pause 240 s): the run ended without saying why" in tick.skip_message
    # The next one lands something before it is killed.
    clock.ahead += 1
    deployment.world.put(table, "a")
    with monkeypatch.context() as patch:
        patch.setenv("DAGSTER_RUN_ID", "3f2a9c01-0000")
        deployment.world.capture(table)
    clock.ahead += 100
    assert requested_tables(deployment.tick("shard_sensor", tick.cursor)) == [table]


def test_a_heal_that_died_is_started_again(
    deployment: Deployment, table: str, clock: Clock
) -> None:
    world = deployment.world
    world.put(table, "a")
    world.capture(table)
    for enabled in (False, True):
        specification: dict[str, Any] = {"StreamEnabled": enabled}
        if enabled:
            specification["StreamViewType"] = "NEW_AND_OLD_IMAGES"
        world.dynamodb.update_table(TableName=table, StreamSpecification=specification)
    world.capture(table)
    tick = deployment.tick("gap_sensor")
    (request,) = tick.run_requests
    run = started_run(deployment, "heal", request.run_config)
    tick = deployment.tick("gap_sensor", tick.cursor)
    assert not tick.run_requests
    assert f"in flight (run {run.run_id[:8]})" in tick.skip_message
    clock.ahead = 3601
    (again,) = deployment.tick("gap_sensor", tick.cursor).run_requests
    assert again.run_config == request.run_config


def test_a_heal_that_fails_is_tried_ever_more_seldom(
    deployment: Deployment, table: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdc_pipeline.core.errors import ExportError

    def broken(*_: object, **__: object) -> None:
        raise ExportError("an export is damaged")

    # Whichever way it would be healed: one of them waits until recovery reaches our clock.
    monkeypatch.setattr("cdc_pipeline.repair.heal.close_gaps", broken)
    test_a_heal_that_died_is_started_again(deployment, table, clock)
    cursor, asked = None, 0
    for _ in range(30):
        tick = deployment.tick("gap_sensor", cursor)
        cursor = tick.cursor
        if tick.run_requests:
            asked += 1
            (request,) = tick.run_requests
            assert not deployment.run_job("heal", request.run_config, tags=SENSOR).success
        clock.ahead += 60
    assert 4 <= asked <= 6
    skipped = deployment.tick("gap_sensor", cursor).skip_message or ""
    assert "times in a row, again in" in skipped
    assert "an export is damaged" in skipped
