"""`make dev` as a newcomer starts it, left to itself: whatever ticks or runs must end well."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline_tests.e2e.ticks import automation, failed_ticks
from cdc_pipeline_tests.e2e.world import PACKAGE_ROOT
from cdc_pipeline_tests.ui.stack import ask, free_port, is_loaded, wait_for

_SECONDS = float(os.environ.get("CDC_PIPELINE_DEV_SECONDS", "300"))
_START_SECONDS = 120
_STOP_SECONDS = 60

pytestmark = [pytest.mark.dev, pytest.mark.timeout(_SECONDS + 2 * _START_SECONDS + _STOP_SECONDS)]

_RUNS = """{ runsOrError { ... on Runs { results {
  runId jobName status assetSelection { path } } } } }"""
_CHECKS = """{ assetNodes { assetKey { path } assetChecksOrError { ... on AssetChecks { checks {
  name executionForLatestMaterialization { status runId } } } } } }"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a Dagster that has run for the whole time."""
    with _dev(tmp_path_factory.mktemp("dev")) as found:
        wait_for(lambda: is_loaded(found), "Dagster loads the assets", _START_SECONDS)
        time.sleep(_SECONDS)
        yield found


def test_no_tick_fails(address: str) -> None:
    sensors, schedules = automation(address)
    states = {found["name"]: found["sensorState"] for found in sensors}
    for found in sensors:
        # The daemon is up some seconds after the UI, and a tick may wait for the one before it.
        least = (_SECONDS - 60) / max(30, found["minIntervalSeconds"]) / 2
        assert len(states[found["name"]]["ticks"]) >= max(1, least), found["name"]
    states |= {found["name"]: found["scheduleState"] for found in schedules}
    assert {"shard_sensor", "alarm_sensor", "downstream", "yesterday", "reconcile"} <= set(states)
    assert {name: state["status"] for name, state in states.items()} == dict.fromkeys(
        states, "RUNNING"
    )
    assert not failed_ticks(address)
    alarms = [tick["skipReason"] for tick in states["alarm_sensor"]["ticks"]]
    # Some orders have a discount of another type, on purpose; the first publication shows that.
    expected = {"every check passes", "failing: orders/current_state type_conflicts", None}
    assert set(alarms) <= expected, alarms


def test_no_run_fails(address: str) -> None:
    wanted = {"orders/pitr_export", "customers/pitr_export", "orders/current_state", "orders/cdc"}
    wait_for(lambda: wanted <= _done(_runs(address)), "each asset has had a run", _START_SECONDS)
    ended = {"SUCCESS", "STARTED", "STARTING", "QUEUED", "NOT_STARTED"}
    assert [run for run in _runs(address) if run["status"] not in ended] == []


def test_every_check_that_a_run_planned_has_an_answer(address: str) -> None:
    """Each reads passed, none "Skipped"; some run is always under way."""
    statuses = {
        f"{'/'.join(node['assetKey']['path'])} {check['name']}": execution["status"]
        for node in ask(address, _CHECKS)["assetNodes"]
        for check in node["assetChecksOrError"].get("checks", ())
        if (execution := check["executionForLatestMaterialization"])
    }
    assert {"orders/raw_stream no_open_gaps", "orders/current_state fresh"} <= set(statuses)
    assert set(statuses.values()) <= {"SUCCEEDED", "IN_PROGRESS"}, statuses


def _runs(address: str) -> list[dict[str, Any]]:
    return ask(address, _RUNS)["runsOrError"]["results"]


def _done(runs: list[dict[str, Any]]) -> set[str]:
    """Assets of runs that succeeded; one run may have several."""
    return {
        "/".join(key["path"])
        for run in runs
        if run["status"] == "SUCCESS"
        for key in run["assetSelection"] or ()
    }


@contextmanager
def _dev(folder: Path) -> Iterator[str]:
    """`cdc-pipeline dev` as `make dev` calls it, in a folder of its own; Dagster's address."""
    shutil.copy(PACKAGE_ROOT / "dagster.yaml", folder)
    command = [str(Path(sys.executable).with_name("cdc-pipeline")), "dev"]
    command += ["--port", str(free_port()), "--aws-port", str(free_port())]
    output = folder / "dev.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(PACKAGE_ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            address = wait_for(lambda: _address(process, output), "dev is up", _START_SECONDS)
            assert address is not None
            yield address
            assert process.poll() is None, output.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_SECONDS)


def _address(process: subprocess.Popen[bytes], output: Path) -> str | None:
    said = output.read_text("utf-8")
    assert process.poll() is None, said
    found = re.search(r"Dagster UI: http://localhost:(\d+)", said)
    return f"http://127.0.0.1:{found[1]}" if found else None
