"""Lakes in folders of their own."""

from pathlib import Path

import pytest

from cdc_pipeline_tests.lake.builder import LakeBuilder


@pytest.fixture
def built(tmp_path: Path) -> LakeBuilder:
    return LakeBuilder.at(tmp_path)
