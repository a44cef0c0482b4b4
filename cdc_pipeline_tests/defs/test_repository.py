"""The code location in a run: what it needs is built, and it is the same as all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.definitions import defs
from cdc_pipeline.defs import repository
from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.settings.load import load_settings

# Dagster passes this parameter itself when it copies a sensor.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefin")

_SETTINGS = """
lake: lake
tables:
  - name: orders
    snapshot: {schedule: "@daily"}
  - name: customers
    ttl_archive: true
"""

_HEAVY = ("cdc_pipeline.defs.build", "sqlglot", "pyarrow", "pyiceberg", "duckdb", "boto3")

_RUN = f"""
import json, sys
from cdc_pipeline.definitions import defs
job = defs().get_job(sys.argv[1])
print(json.dumps([job.name, sorted(job.resource_defs), [n for n in {_HEAVY} if n in sys.modules]]))
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cdc_pipeline.yaml"
    path.write_text(_SETTINGS)
    monkeypatch.setenv("CDC_PIPELINE_CONFIG", str(path))
    return path


@pytest.mark.parametrize("job", repository.JOBS, ids=lambda job: job.name)
def test_a_job_of_ops_is_made_without_assets(job: object, path: Path) -> None:
    name = getattr(job, "name", "")
    done = subprocess.run(
        [sys.executable, "-c", _RUN, name],
        env={**os.environ, "CDC_PIPELINE_CONFIG": str(path)},
        check=True,
        capture_output=True,
        text=True,
    )
    made, resources, heavy = json.loads(done.stdout)
    assert made == name
    assert "lake" in resources
    assert heavy == []


def test_the_rest_is_that_of_all_definitions(path: Path) -> None:
    made, whole = defs(), build_definitions(load_settings(path), path).get_repository_def()
    made.load_all_definitions()
    assert made.name == whole.name
    assert {*made.job_names} == {*whole.job_names} > {job.name for job in repository.JOBS}
    assert {job.name for job in made.get_all_jobs()} == {*whole.job_names}
    assert {s.name for s in made.sensor_defs} == {s.name for s in whole.sensor_defs} != set()
    assert {s.name for s in made.schedule_defs} == {s.name for s in whole.schedule_defs} != set()
    assert made.assets_defs_by_key.keys() == whole.assets_defs_by_key.keys()
    assert made.asset_checks_defs_by_key.keys() == whole.asset_checks_defs_by_key.keys()
    assert made.source_assets_by_key.keys() == whole.source_assets_by_key.keys()
    assert made.asset_graph.get_all_asset_keys() == whole.asset_graph.get_all_asset_keys()
    for name in whole.job_names:
        assert made.has_job(name)
        resources = whole.get_job(name).resource_defs
        assert made.get_job(name).resource_defs.keys() == resources.keys()
    assert not made.has_job("nothing")
    assert made.get_top_level_resources().keys() == whole.get_top_level_resources().keys()


def test_a_mistake_in_the_settings_is_found_at_once(path: Path) -> None:
    path.write_text(f"{_SETTINGS}\nschedule: never\n")
    with pytest.raises(SettingsError, match="schedule: unknown key"):
        defs()


def test_without_settings_there_is_an_asset_that_explains_it(path: Path) -> None:
    path.unlink()
    (key,) = defs().assets_defs_by_key
    assert key.path == ["getting_started"]
