"""What Dagster shows of columns, on a real instance over a lake filled by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change

pytestmark = [
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]
_N, _HIDDEN = {"N": "1"}, {"S": "hidden"}


class _Deployment:
    """A lake, its settings file, and an instance to materialise `orders/current_state` on."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.path, self.instance = folder / "settings.yaml", instance
        self.use()
        self.built = LakeBuilder(Lake.open(load_settings(self.path)))

    def use(self, **table: Any) -> None:
        raw = {
            "lake": "lake",
            "handover_margin_seconds": MARGIN_US / 1_000_000,
            "clock_margin_seconds": 0,
            "tables": [{"name": "orders", **table}],
        }
        self.path.write_text(yaml.safe_dump(raw), "utf-8")

    def materialize(self) -> Any:
        defs = build_definitions(load_settings(self.path), self.path)
        return defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(["orders", "current_state"])],
            instance=self.instance,
            raise_on_error=False,
        )

    def reported(self) -> dict[str, Any]:
        """Metadata of the last materialisation, as the instance has it."""
        event = self.instance.get_latest_materialization_event(
            dg.AssetKey(["orders", "current_state"])
        )
        assert event is not None
        assert event.asset_materialization is not None
        return {name: found.value for name, found in event.asset_materialization.metadata.items()}


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Deployment]:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)
    home = tmp_path / "dagster_home"
    home.mkdir()
    with dg.instance_for_test(temp_dir=str(home)) as instance:
        yield _Deployment(tmp_path, instance)


def _ready(built: LakeBuilder, items: dict[str, dict[str, Any]]) -> None:
    built.start()
    built.stage(items)
    built.read_to(START_US + MARGIN_US)


def _check(result: Any) -> Any:
    checks = {found.check_name: found for found in result.get_asset_check_evaluations()}
    assert checks["type_conflicts"].asset_key.path == ["orders", "current_state"]
    return checks["type_conflicts"]


def test_the_check_warns_with_attributes_and_counts_and_without_values(
    deployment: _Deployment,
) -> None:
    deployment.use(columns={"price": {"type": "decimal(4,2)"}})
    items = {
        "a": {"v": _N, "price": {"N": "1.5"}, "pipe|\n": _HIDDEN},
        "b": {"v": _N, "price": {"N": "12345"}, "pipe|\n": _HIDDEN},
        "c": {"v": _HIDDEN, "price": _HIDDEN, "pipe|\n": _N},
        "d": {"v": {"NULL": True}},
    }
    _ready(deployment.built, items)
    result = deployment.materialize()
    assert result.success
    found = _check(result)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    metadata = {name: value.value for name, value in found.metadata.items()}
    assert (metadata["attributes"], metadata["rescued_values"]) == (3, 4)
    assert metadata["conflicts"].splitlines() == [
        "| attribute | column type | values by DynamoDB type | rescued |",
        "| --- | --- | --- | --- |",
        "| 'price' | decimal(4,2) | N 2, S 1 | 2 |",
        "| 'pipe\\|\\n' | string | N 1, S 2 | 1 |",
        "| 'v' | int64 | N 2, S 1 | 1 |",
    ]
    assert "hidden" not in str(metadata)
    deployment.built.land([change(key, n, {"v": _N}) for n, key in enumerate("abc", start=1)])
    assert _check(deployment.materialize()).passed


def test_a_materialisation_tells_columns_their_changes_and_rules(deployment: _Deployment) -> None:
    _ready(deployment.built, {"a": {"n": _N, "t": _HIDDEN, "gone": _HIDDEN}})
    assert deployment.materialize().success
    metadata = deployment.reported()
    assert metadata["columns"] == 4
    assert metadata.keys() & {"column_changes", "column_rules"} == set()
    rules = {"t": {"mask": "hidden text"}, "typo": {"drop": True}, "n": {"type": "decimal(9,1)"}}
    deployment.use(columns=rules)
    deployment.built.land([change("a", 1, {"n": {"N": "1.5"}, "t": _HIDDEN, "New": {"L": []}})])
    assert deployment.materialize().success
    metadata = deployment.reported()
    assert metadata["column_changes"].splitlines() == [
        "| change | attribute | before | after |",
        "| --- | --- | --- | --- |",
        "| added | 'New' |  | new json |",
        "| gone | 'gone' | gone string |  |",
        "| retyped | 'n' | n int64 | n decimal(9,1) |",
    ]
    assert metadata["column_rules"].splitlines()[2:] == [
        "| 'n' | type decimal(9,1) | yes |",
        "| 't' | mask | yes |",
        "| 'typo' | drop | no |",
    ]
    assert (metadata["rebuilt"], metadata["new_baseline"], metadata["columns"]) == (True, False, 4)
    assert "hidden" not in str(metadata)
    assert deployment.materialize().success
    assert "column_changes" not in deployment.reported()


def test_a_contract_fails_the_run_and_the_check_is_skipped(deployment: _Deployment) -> None:
    deployment.use(schema_contract="refuse")
    _ready(deployment.built, {"a": {"n": _N}})
    assert deployment.materialize().success
    deployment.built.land([change("a", 1, {"n": _N, "new": _HIDDEN})])
    result = deployment.materialize()
    assert not result.success
    failures = [event for event in result.all_events if event.is_step_failure]
    (said,) = [event.step_failure_data.user_failure_data for event in failures]
    assert "attribute 'new' is new (string)" in said.description
    assert "schema_contract: evolve" in said.metadata["fix"].value
    assert "hidden" not in said.description
    assert result.get_asset_check_evaluations() == []
    deployment.use(schema_contract="evolve")
    assert deployment.materialize().success
