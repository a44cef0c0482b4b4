"""`cdc-pipeline serve`: beside broken tables, beside Dagster, told to stop, and killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.capture.passes import Passes
from cdc_pipeline.core.plans.liveness import server_owner
from cdc_pipeline.lake.storage.residence import Residence
from cdc_pipeline_tests.e2e.deployment import deploy, requested_tables
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_no_orphans,
    assert_nothing_twice,
)

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]
_COMMAND = [sys.executable, "-c", "from cdc_pipeline.cli import main; main()", "serve", "--json"]


@pytest.fixture
def kind() -> str:
    return "local"


@contextmanager
def serving(
    world: World, *arguments: str, dagster_home: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    process = subprocess.Popen(
        [*_COMMAND, *arguments],
        env=world.environment(os.environ) | {"DAGSTER_HOME": dagster_home},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(what: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def rows(world: World, name: str) -> int:
    return sum(o.rows for o in world.table_lake(name).log.load().objects.values())


def stopped(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The lines of a server that is told to stop."""
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    return [json.loads(line) for line in output.splitlines()]


def test_beside_a_broken_table_and_told_to_stop(world: World) -> None:
    world.make_table("good")
    world.make_table("bad", view=None)
    world.configure("bad", "good")
    world.bootstrap("good")
    before = world.table_lake("good").properties("current_state")
    with serving(world, "--every", "0.3") as process:
        for number in range(5):
            world.put("good", f"item {number}", value={"N": str(number)})
            wait_for(lambda n=number: rows(world, "good") == n + 1)
        began = time.monotonic()
        lines = stopped(process)
        assert time.monotonic() - began < 5
    (error,) = [line for line in lines if "error" in line]
    assert error["table"] == "bad"
    assert "Fix: aws dynamodb update-table" in error["error"]
    status = lines[-1]["status"]
    assert [*status["failing"]] == ["bad"]
    assert status["changes"] == 5
    assert status["publications"] >= 1
    assert world.table_lake("good").properties("current_state") != before
    assert assert_mirrors(world, "good") == 5


def test_killed_at_any_moment_it_loses_nothing(world: World) -> None:
    chance = random.Random(3)
    world.make_table("things")
    world.configure("things", current_state={"publish_minutes": 0})
    world.bootstrap("things")
    for life in range(2):
        with serving(world, "--every", "0.2") as process:
            began = world.table_lake("things").log.load().n
            for number in range(20):
                world.put("things", f"k{chance.randrange(20)}", value={"N": f"{life}{number:03d}"})
                if chance.random() < 0.2:
                    world.delete("things", f"k{chance.randrange(20)}")
            wait_for(lambda n=began: world.table_lake("things").log.load().n > n)
            time.sleep(chance.random() / 2)
            process.send_signal(signal.SIGKILL)
    world.capture("things")
    assert_mirrors(world, "things")
    world.refresh_cdc("things")
    assert_nothing_twice(world, "things")
    assert_no_orphans(world, "things")


def test_beside_runs_of_dagster_which_is_told(world: World) -> None:
    world.make_table("things")
    world.configure("things", current_state={"publish_minutes": 0})
    world.bootstrap("things")
    home = world.folder / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").touch()
    with deploy(world) as made, serving(world, "--every", "0.2", dagster_home=str(home)) as process:
        for number in range(3):
            for item in range(10):
                world.put("things", f"k{item}", value={"N": f"{number}.{item}"})
            assert made.run_job("capture").success
        wait_for(lambda: rows(world, "things") == 30)
        wait_for(lambda: ":serve-" in world.table_lake("things").log.load().last_owner)
        tick = made.tick("shard_sensor")
        assert requested_tables(tick) == []
        assert "served by" in str(tick.skip_message)
        world.put("things", "last", value={"N": "1"})
        wait_for(lambda: rows(world, "things") == 31)
        stopped(process)
        # What is landed and not published is the server's, as long as it may be alive.
        world.put("things", "unpublished", value={"N": "1"})
        table = world.table_lake("things")
        for promise, wanted in ((300, False), (0, True)):
            table.lake.residence = Residence(server_owner("host", 1, promise), 0, 0)
            Passes(table, 0.2).run(lambda _: None)
            asked = made.tick("downstream").run_requests
            keys = {key.path[1] for request in asked for key in request.asset_selection}
            assert "cdc" in keys
            assert ("current_state" in keys) == wanted
        table.lake.residence = None
    assert_mirrors(world, "things")
    world.refresh_cdc("things")
    assert_nothing_twice(world, "things")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for name in ("raw_stream", "current_state"):
            event = instance.get_latest_materialization_event(dg.AssetKey(["things", name]))
            assert event is not None, name
            assert event.run_id == ""
