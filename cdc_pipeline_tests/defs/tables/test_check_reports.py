"""When results of checks become events: people see the truth, and idle tables say nothing."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.core.log.entries import Gap, StreamRef
from cdc_pipeline.defs.tables import check_reports
from cdc_pipeline.defs.tables.check_reports import VisibleResults, report_checks
from cdc_pipeline.defs.tables.checks import CHECKS
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.load import parse_settings

_ASSET = dg.AssetKey(["orders", "raw_stream"])
_STREAM = StreamRef("id", "arn", "NEW_AND_OLD_IMAGES", 1, 1)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def table(tmp_path: Path) -> TableLake:
    raw = {"lake": "lake", "region": "us-east-1", "tables": [{"name": "orders"}]}
    settings = parse_settings(raw, tmp_path / "settings.yaml")
    table = Lake.open(settings).table(settings.tables[0])
    commit(table, stream=_STREAM)
    return table


def commit(table: TableLake, **parts: Any) -> None:
    log = table.log
    assert log.commit(log.load(), lambda _: parts)


def reported(instance: dg.DagsterInstance, table: TableLake) -> list[str]:
    """The checks that a capture reports that landed nothing."""
    before = _ids(instance)
    report_checks(instance, table, unless=VisibleResults(instance, [table.settings]))
    return sorted(name for name, number in _ids(instance).items() if before.get(name) != number)


def _ids(instance: dg.DagsterInstance) -> dict[str, int]:
    keys = [dg.AssetCheckKey(_ASSET, name) for name in CHECKS]
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    return {key.name: record.id for key, record in latest.items()}


def test_only_the_first_of_equal_results_is_reported(
    instance: dg.DagsterInstance, table: TableLake
) -> None:
    assert reported(instance, table) == sorted(CHECKS)
    for _ in range(3):
        assert reported(instance, table) == []


def test_another_answer_or_count_is_reported(
    instance: dg.DagsterInstance, table: TableLake
) -> None:
    reported(instance, table)
    for _ in range(2):
        commit(table, gap=Gap("trimmed", ("s",), 1, 2, 2))
        assert reported(instance, table) == ["no_open_gaps"], "it fails; then two gaps"
        assert reported(instance, table) == []


def test_a_later_materialisation_hides_results(
    instance: dg.DagsterInstance, table: TableLake
) -> None:
    reported(instance, table)
    instance.report_runless_asset_event(dg.AssetMaterialization(_ASSET, partition="2026-01-01"))
    assert reported(instance, table) == sorted(CHECKS)
    assert reported(instance, table) == []


def test_results_are_repeated_when_they_are_old(
    instance: dg.DagsterInstance, table: TableLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported(instance, table)
    soon = time.time() + check_reports.REPEAT_SECONDS - 60
    monkeypatch.setattr(check_reports.time, "time", lambda: soon)
    assert reported(instance, table) == []
    monkeypatch.setattr(check_reports.time, "time", lambda: soon + 120)
    assert reported(instance, table) == sorted(CHECKS)


def test_other_reports_are_unconditional(instance: dg.DagsterInstance, table: TableLake) -> None:
    report_checks(instance, table)
    before = _ids(instance)
    report_checks(instance, table)
    assert all(before[name] != number for name, number in _ids(instance).items())
