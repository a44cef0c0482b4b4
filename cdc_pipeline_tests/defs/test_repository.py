"""The code location in a run: what it needs is built, and it is the same as all of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.definitions import defs
from cdc_pipeline.defs import build, repository
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
jobs = [defs().get_job(name) for name in sys.argv[1:]]
heavy = [name for name in {_HEAVY} if name in sys.modules]
resources = ["lake" in job.resource_defs for job in jobs]
print(json.dumps([[job.name for job in jobs], resources, heavy]))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("location") / "cdc_pipeline.yaml"
    path.write_text(_SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDC_PIPELINE_CONFIG", str(path))
        yield path


@pytest.fixture(scope="module")
def whole(path: Path) -> dg.RepositoryDefinition:
    """All definitions of these settings."""
    return build_definitions(load_settings(path), path).get_repository_def()


def test_jobs_of_ops_are_made_without_assets(path: Path) -> None:
    names = [job.name for job in repository.JOBS]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *names],
        env={**os.environ, "CDC_PIPELINE_CONFIG": str(path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == [names, [True] * len(names), []]


def test_the_rest_is_that_of_all_definitions(whole: dg.RepositoryDefinition) -> None:
    made = defs()
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


def test_a_mistake_in_the_settings_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.yaml"
    monkeypatch.setenv("CDC_PIPELINE_CONFIG", str(path))
    path.write_text(f"{_SETTINGS}\nschedule: never\n")
    with pytest.raises(SettingsError, match="schedule: unknown key"):
        defs()


def test_without_settings_there_is_an_asset_that_explains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDC_PIPELINE_CONFIG", str(tmp_path / "none.yaml"))
    (key,) = defs().assets_defs_by_key
    assert key.path == ["getting_started"]


def _selection(*keys: str, checks: bool | None = None) -> dict[str, Any]:
    chosen = {dg.AssetKey(key.split("/")) for key in keys}
    checked = {dg.AssetCheckKey(key, "no_open_gaps") for key in chosen}
    return {"asset_selection": chosen} | ({"asset_check_selection": checked} if checks else {})


# All of Dagster's snapshot of a job but its parent, the job of all assets.
_PARTS = (
    *("name", "tags", "config_schema_snapshot", "dagster_type_namespace_snapshot"),
    *("node_defs_snapshot", "dep_structure_snapshot", "mode_def_snaps", "graph_def_name"),
)

_SELECTIONS = {
    "one": _selection("orders/cdc"),
    "with its checks": _selection("orders/raw_stream"),
    "with one of its checks": _selection("orders/raw_stream", checks=True),
    "several of one table": _selection("customers/cdc", "customers/ttl_archive"),
    "of two tables": _selection("orders/current_state", "customers/current_state"),
    "with one of no table": _selection("orders/cdc", "maintenance"),
    "a check against the source": {
        "asset_selection": set(),
        "asset_check_selection": {
            dg.AssetCheckKey(dg.AssetKey(["orders", "dynamodb"]), "export_verified")
        },
    },
    "nothing": {},
}


@pytest.mark.parametrize("selection", _SELECTIONS.values(), ids=_SELECTIONS)
def test_a_run_of_assets_is_the_same_run(
    selection: dict[str, Any], whole: dg.RepositoryDefinition
) -> None:
    made = defs().get_maybe_subset_job_def(repository.ASSET_JOB, **selection)
    expected = whole.get_maybe_subset_job_def(repository.ASSET_JOB, **selection)
    snapshots = [job.get_job_snapshot() for job in (made, expected)]
    for part in _PARTS:
        assert getattr(snapshots[0], part) == getattr(snapshots[1], part)
    assert made.resource_defs.keys() == expected.resource_defs.keys()
    layers = (made.asset_layer, expected.asset_layer)
    for selected in ("selected_asset_keys", "executable_asset_keys"):
        assert len({frozenset(getattr(layer, selected)) for layer in layers}) == 1
    for key in made.asset_layer.executable_asset_keys:
        nodes = [layer.asset_graph.get(key) for layer in layers]
        assert nodes[0].parent_keys == nodes[1].parent_keys
        assert nodes[0].partitions_def == nodes[1].partitions_def
        assert nodes[0].check_keys == nodes[1].check_keys


def test_a_run_of_one_table_makes_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> dg.Definitions:
        raise AssertionError("all definitions were built")

    monkeypatch.setattr(build, "build_definitions", forbidden)
    job = defs().get_maybe_subset_job_def(repository.ASSET_JOB, **_selection("orders/cdc"))
    names = {key.path[0] for key in job.asset_layer.asset_graph.get_all_asset_keys()}
    assert names == {"orders"}
    with pytest.raises(AssertionError, match="all definitions"):
        _ = defs().get_job(repository.ASSET_JOB).graph
