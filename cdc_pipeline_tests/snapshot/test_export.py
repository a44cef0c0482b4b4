"""The wait for an export: it ends when AWS has written it, when it failed, or at its limit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.export import ExportStatus
from cdc_pipeline.core.errors import FailedExportError, RunningExportError, UnusableExportError
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.snapshot import export
from cdc_pipeline.snapshot.export import wait_for_export
from cdc_pipeline_tests.log_clock import set_log_clock

_RUNNING = ExportStatus("arn:e/1", "IN_PROGRESS", "bucket", "", None, ": ", "id")


@pytest.fixture
def wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[ExportStatus]], tuple[ExportStatus, list[str]]]:
    """Wait for an export that is described so, the last for ever; what was told meanwhile."""
    raw = {
        "lake": str(tmp_path / "lake"),
        "region": "us-east-1",
        "export": {"bucket": "bucket", "poll_seconds": 20, "timeout_minutes": 2},
        "tables": [{"name": "orders"}],
    }
    settings = parse_settings(raw, tmp_path / "settings.yaml")
    lake, now = Lake(settings, AwsSession(region="us-east-1"), LocalStore(tmp_path)), [0.0]
    set_log_clock(monkeypatch, lambda: now[0])

    def run(described: list[ExportStatus]) -> tuple[ExportStatus, list[str]]:
        progress: list[str] = []
        left = iter(described)
        last = described[-1]
        monkeypatch.setattr(export, "describe_export", lambda *_: next(left, last))

        def sleep(seconds: float) -> None:
            now[0] += seconds

        table = settings.tables[0]
        context = RunContext(progress.append, sleep)
        return wait_for_export(lake.table(table), "arn:e/1", "id", context), progress

    return run


def test_it_ends_when_the_export_is_complete(wait: Callable) -> None:
    done = replace(_RUNNING, status="COMPLETED")
    status, progress = wait([_RUNNING, _RUNNING, done])
    assert status == done
    assert progress == ["export 1 is IN_PROGRESS (0 s)", "export 1 is IN_PROGRESS (20 s)"]


def test_it_has_a_limit_and_leaves_the_export_as_it_is(wait: Callable) -> None:
    with pytest.raises(RunningExportError, match="still IN_PROGRESS after 2 minutes") as ended:
        wait([_RUNNING])
    assert "continues to wait for the same export" in str(ended.value.fix)


def test_one_that_failed_or_is_of_another_table_is_no_use(wait: Callable) -> None:
    with pytest.raises(FailedExportError, match="why"):
        wait([_RUNNING, replace(_RUNNING, status="FAILED", failure="X: why")])
    with pytest.raises(UnusableExportError, match=r"of another table \(other\)"):
        wait([replace(_RUNNING, table_id="other")])
