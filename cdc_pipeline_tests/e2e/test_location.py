"""The code location has one name, and a former name's sensors and schedules come along."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cdc_pipeline.cli import main
from cdc_pipeline.settings.load import PATH_VARIABLE
from cdc_pipeline_tests.e2e.world import PACKAGE_ROOT
from cdc_pipeline_tests.ui.stack import ask, dagster_dev, is_loaded, wait_for

pytestmark = pytest.mark.slow

_NAME = "cdc_pipeline.definitions"
_START_SECONDS = 120
_ROUTES = {
    "workspace": ("dagster", "dev", "-w", "workspace.yaml"),
    "pyproject": ("dagster", "dev"),
    "module": ("dagster", "dev", "-m", "cdc_pipeline.definitions"),
    "dg": ("dg", "dev"),
}
_SENSORS = """query ($repository: RepositorySelector!) {
  sensorsOrError(repositorySelector: $repository) { ... on Sensors { results {
  name sensorState { status typeSpecificData {
  ... on SensorData { lastCursor } } } } } } }"""
_START = """mutation ($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) {
  ... on Sensor { name } } }"""
_CURSOR = """mutation ($sensor: SensorSelector!, $cursor: String) {
  setSensorCursor(sensorSelector: $sensor, cursor: $cursor) { ... on Sensor { name } } }"""


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({"lake": "lake", "tables": [{"name": "orders"}]}))
    monkeypatch.setenv(PATH_VARIABLE, str(path))


def test_one_name_however_it_is_started(tmp_path: Path) -> None:
    """`make dev` has a test of its own, which asks for this name."""
    with ExitStack() as stack:
        addresses = {}
        for route, command in _ROUTES.items():
            folder = tmp_path / route
            folder.mkdir()
            started = dagster_dev(folder, command=command, cwd=PACKAGE_ROOT)
            addresses[route] = stack.enter_context(started)
        for address in addresses.values():
            wait_for(lambda found=address: is_loaded(found), "assets", _START_SECONDS)
        names = {route: _locations(address) for route, address in addresses.items()}
    assert names == {route: [_NAME] for route in _ROUTES}


def test_sensors_of_a_former_name_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on is on, each behind its cursor; what was set under the new name stays as set."""
    former = tmp_path / "former.yaml"
    module = {"module_name": "cdc_pipeline.definitions", "location_name": "cdc_pipeline"}
    former.write_text(yaml.safe_dump({"load_from": [{"python_module": module}]}))
    _set(tmp_path, former, "cdc_pipeline", {"shard_sensor": "42", "gap_sensor": "old"})
    _set(tmp_path, PACKAGE_ROOT / "workspace.yaml", _NAME, {"gap_sensor": "new"})
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster_home"))
    command = ["move-sensors", "--from", "cdc_pipeline"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert "shard_sensor: moved" in result.output
    assert "gap_sensor: left unchanged" in result.output
    again = CliRunner().invoke(main, command, catch_exceptions=False)
    assert "moved" not in again.output
    states = _set(tmp_path, PACKAGE_ROOT / "workspace.yaml", _NAME, {})
    assert states["shard_sensor"] == ("RUNNING", "42")
    assert states["gap_sensor"] == ("RUNNING", "new")
    assert states["alarm_sensor"] == ("STOPPED", None)


def _locations(address: str) -> list[str]:
    found = ask(address, "{ workspaceOrError { ... on Workspace { locationEntries { name } } } }")
    return [entry["name"] for entry in found["workspaceOrError"]["locationEntries"]]


def _set(
    folder: Path, workspace: Path, location: str, cursors: dict[str, str]
) -> dict[str, tuple[str, str | None]]:
    """Turn sensors on and set their cursors in the web interface; the states of all of them."""
    # Without the daemon, no sensor ticks in between.
    command = ("dagster-webserver", "-w", str(workspace))
    repository = {"repositoryName": "__repository__", "repositoryLocationName": location}
    with dagster_dev(folder, command=command) as address:
        wait_for(lambda: is_loaded(address), "assets", _START_SECONDS)
        for name, cursor in cursors.items():
            sensor = {**repository, "sensorName": name}
            assert ask(address, _START, sensor=sensor)["startSensor"] == {"name": name}
            changed = ask(address, _CURSOR, sensor=sensor, cursor=cursor)
            assert changed["setSensorCursor"] == {"name": name}
        found = ask(address, _SENSORS, repository=repository)["sensorsOrError"]["results"]
    return {
        sensor["name"]: (
            sensor["sensorState"]["status"],
            (sensor["sensorState"]["typeSpecificData"] or {}).get("lastCursor"),
        )
        for sensor in found
    }
