"""Spark's driver, its Python workers and the run in Dagster, killed while an asset is made."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_pipeline.lake.upkeep.verify import verify_files
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.test_workers import ITEMS, NAME, exported, fill
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    make_world,
    quick_sandbox,
)
from cdc_pipeline_tests.spark import session

pytestmark = pytest.mark.spark

_RUN = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import dagster as dg
from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.settings.load import load_settings
path = Path(sys.argv[1])
job = build_definitions(load_settings(path), path).resolve_implicit_global_asset_job_def()
chosen = [dg.AssetKey(["orders", sys.argv[2]])]
result = job.execute_in_process(asset_selection=chosen, raise_on_error=False)
sys.exit(not result.success)
"""
_TRIES = 6


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    if reason := session.unavailable():
        pytest.skip(f"Spark: {reason}")
    with quick_sandbox() as process:
        yield process


@pytest.fixture
def world(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = make_world(sandbox, tmp_path, "s3")
    world.activate(monkeypatch)
    world.make_table(NAME)
    world.configure(NAME, engine="spark", spark={"master": "local[2]"}, handover_margin_seconds=1)
    return world


def _start(world: World, asset: str) -> subprocess.Popen[bytes]:
    """A run in a process and a session of its own, as Dagster starts it."""
    command = [sys.executable, "-c", _RUN, str(world.settings_path), asset]
    with (world.folder / f"{asset}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _below(run: int, what: bytes) -> list[int]:
    """Processes of the run's session whose command line has a text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_of_run = os.getsid(int(process.name)) == run
            if is_of_run and what in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _kill_when_there(run: int, what: bytes, seconds: float) -> None:
    """Kill the newest such process some seconds after it is there."""
    deadline = time.monotonic() + 60
    while not (found := _below(run, what)):
        assert time.monotonic() < deadline, "it never started"
        time.sleep(0.05)
    time.sleep(seconds)
    for process in found[-1:]:
        if Path(f"/proc/{process}").exists():
            os.kill(process, signal.SIGKILL)


_KILLS: dict[str, Callable[[int, random.Random], None]] = {
    "driver": lambda run, chance: _kill_when_there(run, b"SparkSubmit", chance.uniform(1, 7)),
    "worker": lambda run, chance: _kill_when_there(run, b"pyspark.daemon", chance.uniform(0, 2)),
    "run": lambda run, chance: _kill_when_there(run, b"pitr_export", chance.uniform(2, 8)),
}


@pytest.mark.parametrize("victim", _KILLS)
def test_a_rerun_finishes_and_nothing_is_there_twice(world: World, victim: str) -> None:
    seed = random.randrange(1 << 16)
    print(f"seed {seed}")
    chance = random.Random(seed)
    fill(world, seed=10)
    first = _start(world, "pitr_export")
    _KILLS[victim](first.pid, chance)
    code, tries = first.wait(120), 0
    while code:
        tries += 1
        assert tries < _TRIES, (world.folder / "pitr_export.log").read_text()[-3000:]
        code = _start(world, "pitr_export").wait(180)
    assert len(exported(world)) == ITEMS
    world.capture_past_handover(NAME)
    assert _start(world, "current_state").wait(180) == 0
    assert assert_mirrors(world, NAME) == ITEMS
    handle = world.table_lake(NAME)
    assert verify_files(handle, content=True).damages == []
    assert not world.stored(handle.paths.staging) | world.stored(handle.paths.work)
    state = handle.log.load()
    staged = [b for b in state.baselines.values() if b.snapshot_id is not None]
    assert len(staged) == 1
