"""A hundred tables from a CSV file: added, looked at, loaded, captured by the one sensor.

Times are printed (`pytest -s`); docs/onboarding.md has them.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from cdc_pipeline.cli import main
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline_tests.e2e.deployment import deploy, requested_tables
from cdc_pipeline_tests.e2e.world import World, make_world

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]

NAMES = [f"Table.{number:03d}" for number in range(100)]

_LOAD = """
import time
import dagster
begun = time.process_time()
from cdc_pipeline.definitions import defs
repository = defs()
repository.load_all_definitions()
print(time.process_time() - begun, len(list(repository.assets_defs_by_key)))
"""


@pytest.fixture
def world(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = make_world(sandbox, tmp_path, "local")
    world.activate(monkeypatch)

    def make(name: str) -> None:
        world.make_table(name)
        world.put(name, f"only {name}")

    assert world.dynamodb  # its client is made once
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, NAMES))
    return world


def test_a_hundred_tables(world: World) -> None:
    world.configure(
        NAMES[0], capture={"poll_seconds": 0.02, "empty_polls": 1, "tables_per_run": 50}
    )
    source = world.folder / "tables.csv"
    source.write_text("\n".join(NAMES[1:]))
    _timed("tables add --from", "tables", "add", "--from", str(source))
    assert [table.name for table in load_settings().tables] == NAMES
    _timed("preflight", "preflight")
    _print_load_seconds(world)
    _capture_all(world)
    for table in world.lake().settings.tables:
        (landed,) = world.lake().table(table).log.load().objects.values()
        assert landed.rows == 1
    keys = world.rows("SELECT keys FROM table_042.raw_stream", NAMES[42])
    assert keys == [('{"pk":{"S":"only Table.042"},"sk":{"N":"1"}}',)]


def _timed(what: str, *arguments: str) -> None:
    begun = time.monotonic()
    result = CliRunner().invoke(main, list(arguments))
    seconds = time.monotonic() - begun
    assert result.exit_code == 0, result.output
    print(f"\n{what}, {len(NAMES)} tables: {seconds:.1f} s")


def _print_load_seconds(world: World) -> None:
    """CPU seconds from the settings file to all definitions, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        env=world.environment(os.environ) | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seconds, assets = map(float, done.stdout.split())
    assert assets > 4 * len(NAMES)
    print(f"definitions: {seconds:.1f} CPU seconds")


def _capture_all(world: World) -> None:
    with deploy(world) as made:
        begun = time.monotonic()
        tick = made.tick("shard_sensor")
        asked = requested_tables(tick)
        print(f"tick of the sensor: {time.monotonic() - begun:.1f} s")
        assert sorted(asked) == NAMES
        assert len(tick.run_requests) == 2
        for request in tick.run_requests:
            assert made.run_job("capture", request.run_config).success
        print(f"captured: {time.monotonic() - begun:.1f} s")
        assert requested_tables(made.tick("shard_sensor", tick.cursor)) == []
