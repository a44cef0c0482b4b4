"""Preflight names Glue's active optimizers, and takes a Glue without them for what it is."""

from pathlib import Path

import pytest

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.setup.checks.findings import Finding
from cdc_pipeline.setup.checks.optimizers import check_optimizers
from cdc_pipeline_tests.simulators.glue_server import GlueError, GlueSimulator

_ACCOUNT = "111111111111"


def _look(folder: Path, tables: int = 1) -> Finding:
    raw = {
        "lake": "s3://bucket/prefix",
        "region": "eu-west-1",
        "tables": [{"name": f"table{n}"} for n in range(tables)],
    }
    settings = parse_settings(raw, folder / "settings.yaml")
    aws = AwsSession(region=settings.region)
    return check_optimizers(Lake(settings, aws, LocalStore(folder / "lake")), _ACCOUNT)


@pytest.fixture
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulator")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.usefixtures("_keys")
def test_active_optimizers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GlueSimulator() as glue:
        monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", glue.endpoint_url)
        assert "none active" in _look(tmp_path).found
        glue.optimizers = {
            ("table2_snapshot", "retention"): True,
            ("table0_current_state", "compaction"): True,
            ("table1_cdc", "orphan_file_deletion"): False,
        }
        found = _look(tmp_path, 3)
        assert found.green
        assert "compaction of table0_current_state; retention of table2_snapshot." in found.found
        assert "table1_cdc" not in found.found
        assert all(len(said["Entries"]) <= 20 for _, said in glue.calls)


@pytest.mark.usefixtures("_keys")
def test_a_glue_that_does_not_tell_is_not_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GlueSimulator() as glue:
        monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", glue.endpoint_url)
        monkeypatch.setattr(glue, "answer", _refuse)
        found = _look(tmp_path)
    assert found.green
    assert "not known: BatchGetTableOptimizer answers AccessDeniedException" in found.found


def _refuse(*_: object) -> None:
    raise GlueError("AccessDeniedException")
