"""Aggregates in Dagster: one bad file is one broken asset, and everything else is there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.defs.resources import LakeResource
from cdc_pipeline.settings.load import load_settings

pytestmark = [
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]

_BAD = {
    "no_sql": (b"SELECT FROM WHERE", "not valid SQL"),
    "header": (b"-- partitioned: hourly\nSELECT 1 AS n", "found 'hourly'"),
    "owner": (b"-- owner: nobody\nSELECT 1 AS n", "found 'nobody'"),
    "latin": (b"SELECT '\xe9' AS n", "not UTF-8"),
    "no_table": (b"SELECT * FROM ordres.cdc", "no table 'ordres'"),
    "no_schema": (b"SELECT * FROM orders", "no table ''"),
    "no_view": (b"SELECT * FROM orders.cbc", "orders.cbc"),
    "no_archive": (b"SELECT * FROM orders.ttl_archive", "ttl_archive: true"),
    "no_aggregate": (b"SELECT * FROM aggregates.nothing", "aggregates.nothing"),
    "circle": (b"SELECT * FROM aggregates.circles", "in a circle"),
    "circles": (b"SELECT * FROM aggregates.circle", "in a circle"),
    "taken_cdc": (b"SELECT 1 AS n", "aggregates_taken"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "aggregates"
    made.mkdir()
    (made / "sound.sql").write_text("SELECT count(*) AS n FROM orders.cdc")
    (made / "after.sql").write_text("SELECT * FROM aggregates.no_sql")
    raw = {"lake": "lake", "tables": [{"name": "orders"}, {"name": "aggregates_taken"}]}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(raw))
    return made


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "dagster_home"
    home.mkdir()
    with dg.instance_for_test(temp_dir=str(home)) as made:
        yield made


def _build(folder: Path) -> dg.Definitions:
    path = folder.parent / "settings.yaml"
    return build_definitions(load_settings(path), path)


def _outline(defs: dg.Definitions) -> set[str]:
    """Everything that is defined, by name, as the code server would load it."""
    repository = defs.get_repository_def()
    return {
        *(key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()),
        *repository.job_names,
        *(sensor.name for sensor in repository.sensor_defs),
        *(schedule.name for schedule in repository.schedule_defs),
    }


def _materialize(defs: dg.Definitions, instance: dg.DagsterInstance, name: str) -> str:
    """Why it failed."""
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey(["aggregates", name])],
        instance=instance,
        raise_on_error=False,
    )
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    described = event.step_failure_data.user_failure_data
    assert described is not None, "failed with something else than a dg.Failure"
    return str(described.description)


@pytest.mark.parametrize("names", [[name] for name in _BAD if "circle" not in name] + [list(_BAD)])
def test_a_bad_file_is_a_broken_asset(
    names: list[str], folder: Path, instance: dg.DagsterInstance
) -> None:
    (folder / "no_sql.sql").write_text("SELECT 1 AS n")
    without = _outline(_build(folder))
    for name in names:
        (folder / f"{name}.sql").write_bytes(_BAD[name][0])
    defs = _build(folder)
    assert _outline(defs) == without | {f"aggregates/{name}" for name in names}
    specs = {spec.key.path[-1]: spec for spec in defs.resolve_all_asset_specs()}
    for name in names:
        assert _BAD[name][1] in (specs[name].description or "")
        assert specs[name].automation_condition is None, "it would fail again and again"
    name = names[0]
    said = _materialize(defs, instance, name)
    assert _BAD[name][1] in said
    assert f"{name}.sql" in said
    assert "aggregates/sound" in _outline(defs)


def test_people_are_told_once_of_a_broken_one_and_of_its_end(
    folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of one that waits for a table: the examples do, wherever others are used."""
    alarms: list[str] = []
    monkeypatch.setattr(
        "cdc_pipeline.defs.operations.alarms.notify",
        lambda _lake, _subject, lines, _log: alarms.extend(lines),
    )
    file = folder / "no_sql.sql"
    file.write_text("SELECT FROM WHERE")
    for name in ("no_table", "no_view"):
        (folder / f"{name}.sql").write_bytes(_BAD[name][0])
    tick = _tick(folder, instance, None)
    view, sql = sorted(alarms, reverse=True)
    assert view.startswith(f"ERROR: aggregates/no_view: {folder}/no_view.sql: reads orders.cbc")
    assert sql.startswith(f"ERROR: aggregates/no_sql: {file}: not valid SQL")
    assert tick.skip_message == "failing: aggregates/no_sql, aggregates/no_view"
    tick = _tick(folder, instance, tick.cursor)
    assert len(alarms) == 2
    file.write_text("SELECT 1 AS n")
    tick = _tick(folder, instance, tick.cursor)
    assert alarms[2:] == ["recovered: aggregates/no_sql"]
    assert tick.skip_message == "failing: aggregates/no_view"


def _tick(folder: Path, instance: dg.DagsterInstance, cursor: str | None) -> Any:
    path = folder.parent / "settings.yaml"
    with dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        resources={"lake": LakeResource(settings_path=str(path))},
    ) as context:
        return _build(folder).resolve_sensor_def("alarm_sensor").evaluate_tick(context)
