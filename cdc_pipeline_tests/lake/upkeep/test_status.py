"""`cdc-pipeline status`: what is loaded to answer it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change
from cdc_pipeline_tests.simulators.glue_server import GlueSimulator
from cdc_pipeline_tests.simulators.s3_server import BUCKET, S3Simulator

_SLOW = ("dagster", "pyiceberg", "pyarrow", "duckdb", "pandas", "numba", "numpy", "sqlglot")
_AWS = ("boto3", "botocore", "urllib3")

_CHILD = """
import json, sys
from cdc_pipeline.cli import main
main(["status", "--json"], standalone_mode=False)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture
def built(tmp_path: Path) -> LakeBuilder:
    lake = LakeBuilder.at(tmp_path.resolve())
    lake.start()
    lake.stage({"a": {"n": {"N": "1"}}, "b": {"n": {"N": "2"}}})
    lake.land([change("c", 1, {"n": {"N": "3"}})])
    lake.read_to(START_US + 60_000_000)
    publish_current_state(lake.table_lake)
    return lake


def _write_settings(folder: Path, lake: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(f"lake: {lake}\nregion: eu-west-1\ntables: [{{name: orders}}]\n")
    return path


def _status(settings: Path, **environment: str) -> tuple[dict[str, Any], set[str]]:
    """The row of `cdc-pipeline status --json`, and the packages loaded for it."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        env={**os.environ, "CDC_PIPELINE_CONFIG": str(settings), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    report, _, loaded = done.stdout.strip().rpartition("\n")
    (row,) = json.loads(report)
    return row, {*json.loads(loaded)}


def test_a_local_lake_is_read_without_anything_heavy(built: LakeBuilder, tmp_path: Path) -> None:
    row, loaded = _status(_write_settings(tmp_path, "lake"))
    assert (row["items"], row["changes"]) == (3, 1)
    assert (row["state_entry"], row["log_entry"]) == (built.state.n, built.state.n)
    assert row["state_to_us"] == START_US + 60_000_000
    assert not loaded & {*_SLOW, *_AWS}


def test_a_lake_in_s3_is_read_without_more_than_botocore(
    built: LakeBuilder, tmp_path: Path
) -> None:
    local = tmp_path.resolve() / "lake"
    files = [path for path in local.rglob("*") if path.is_file()]
    objects = {f"prefix/{p.relative_to(local).as_posix()}": p.read_bytes() for p in files}
    table = built.table_lake.iceberg("current_state")
    assert table is not None
    moved = table.metadata_location.replace(str(local), f"s3://{BUCKET}/prefix")
    credentials = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "simulator")
    with S3Simulator(objects) as s3, GlueSimulator() as glue:
        glue.tables["orders_current_state"] = {
            "Name": "orders_current_state",
            "Parameters": {"table_type": "ICEBERG", "metadata_location": moved},
        }
        row, loaded = _status(
            _write_settings(tmp_path, f"s3://{BUCKET}/prefix"),
            AWS_ENDPOINT_URL_S3=s3.endpoint_url,
            AWS_ENDPOINT_URL_GLUE=glue.endpoint_url,
            NO_PROXY="127.0.0.1",
            **credentials,
        )
    assert (row["items"], row["changes"], row["state_entry"]) == (3, 1, built.state.n)
    assert "botocore" in loaded
    assert not loaded & {*_SLOW, "boto3"}


def test_before_the_first_publication_nothing_is_made(tmp_path: Path) -> None:
    lake = LakeBuilder.at(tmp_path.resolve())
    assert lake.table_lake.properties("current_state") is None
    assert list(tmp_path.iterdir()) == []
