"""The real daemon: run processes are killed, alone or with all of Dagster, and capture goes on."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.world import World, make_world
from cdc_pipeline_tests.ui.stack import dagster_dev, is_loaded, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

# A run may be silent for these and a minute (`silence_seconds`), and take twice that.
RUN, LINGER = 2, 20
STARTED = [dg.DagsterRunStatus.STARTED]


@pytest.fixture
def world(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = make_world(sandbox, tmp_path, "local")
    made.activate(monkeypatch)
    made.make_table("things")
    capture = {
        "interval_seconds": 5,
        "max_run_seconds": RUN,
        "linger_seconds": LINGER,
        "poll_seconds": 0.2,
        "listing_lag_seconds": 0,
    }
    schedules = {"running": True, "downstream_seconds": 10}
    made.configure("things", aggregates="none", capture=capture, schedules=schedules)
    return made


@contextmanager
def dagster(world: World) -> Iterator[dg.DagsterInstance]:
    """Dagster with its daemon on the world, and its books."""
    home = world.folder / "dagster_home"
    with dagster_dev(world.folder) as address:
        wait_for(lambda: is_loaded(address), "Dagster loads the assets", 240)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield instance


def landed(world: World) -> int:
    objects = world.table_lake("things").log.load().objects.values()
    return sum(o.rows for o in objects)


def started_captures(instance: dg.DagsterInstance) -> dict[str, int]:
    """Runs of capture that Dagster counts as running, with their processes."""
    runs = instance.get_runs(dg.RunsFilter(job_name="capture", statuses=STARTED))
    found = {}
    for run in runs:
        messages = " ".join(entry.message for entry in instance.all_logs(run.run_id))
        if pid := re.search(r"Started process for run \(pid: (\d+)\)", messages):
            found[run.run_id] = int(pid[1])
    return found


def kill_everything(world: World) -> None:
    """As if the machine had lost its power: nobody is left to write that a run has ended."""
    ours = f"DAGSTER_HOME={world.folder / 'dagster_home'}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if ours in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def test_killed_runs_stop_nothing(world: World) -> None:
    with dagster(world) as instance:
        world.put("things", "a")
        wait_for(lambda: landed(world) == 1, "the first change lands", 240)
        killed = wait_for(lambda: started_captures(instance), "a capture runs", 60)
        for pid in killed.values():
            os.kill(pid, signal.SIGKILL)
        world.put("things", "b")
        wait_for(lambda: landed(world) == 2, "a change behind the kill lands", 120)
        for run_id in killed:
            run = instance.get_run_by_id(run_id)
            assert run is not None
            assert run.is_failure, "the code server saw its process die"

        dead = wait_for(lambda: started_captures(instance), "a capture runs", 60)
        kill_everything(world)
    world.put("things", "c")
    with dagster(world) as instance:
        began = time.monotonic()
        wait_for(lambda: landed(world) == 3, "a change behind the outage lands", 240)
        still = started_captures(instance)
        assert dead.items() <= still.items(), "it was not Dagster that noticed"
        print(f"captured again {time.monotonic() - began:.0f} s after Dagster was up")

        def ended() -> bool:
            runs = [instance.get_run_by_id(run_id) for run_id in dead]
            return all(run is not None and run.is_failure for run in runs)

        wait_for(ended, "run_monitoring ends what is dead", 400)
