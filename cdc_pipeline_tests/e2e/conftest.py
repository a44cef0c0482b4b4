"""One sandbox for the whole folder; an account, a bucket and a lake of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.world import World, make_world


@pytest.fixture(scope="session")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess(
        ttl_interval_seconds=0.2, exports=ExportOptions(delay_seconds=0.1)
    ) as process:
        yield process


@pytest.fixture(params=["s3", "local"])
def kind(request: pytest.FixtureRequest) -> str:
    """Where the lake is; the same tests hold for both."""
    return request.param


@pytest.fixture
def world(
    sandbox: SandboxProcess, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> World:
    made = make_world(sandbox, tmp_path, kind)
    made.activate(monkeypatch)
    return made
