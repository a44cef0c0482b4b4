"""The lake that an old version made, put back into a sandbox. See `data/make_old_lake.py`."""

import base64
import json
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline_tests.data.make_old_lake import MASKING_KEY, TABLES
from cdc_pipeline_tests.e2e.checkpoint import Checkpoint
from cdc_pipeline_tests.e2e.world import World
from cdc_pipeline_tests.log_clock import set_log_clock

_ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "old_lake.tar.xz"
_OF_THE_TABLE = (
    "TableId",
    "CreationDateTime",
    "StreamSpecification",
    "LatestStreamLabel",
    "LatestStreamArn",
)


@dataclass(frozen=True)
class OldLake:
    """`views`: columns and rows by view, as the old version showed them (`make_old_lake.rows_of`).

    `past`: a moment, and the source's items then. `source`: of each table its description, items
    and stream. `ended_us`: the time of all that.
    """

    files: dict[str, bytes]
    account: str
    ended_us: int
    views: dict[str, dict[str, Any]]
    past: dict[str, Any]
    source: dict[str, dict[str, Any]]

    @staticmethod
    def load() -> "OldLake":
        with tarfile.open(_ARCHIVE) as tar:
            files = {m.name: _content(tar, m) for m in tar.getmembers()}
        about, views, past, source = (
            json.loads(files[f"{name}.json"]) for name in ("about", "views", "past", "source")
        )
        return OldLake(files, about["account"], about["ended_us"], views, past, source)

    def put_back(self, endpoint_url: str, folder: Path, patch: pytest.MonkeyPatch) -> World:
        """The bucket, what Glue says, and the user's settings; the tables are not there yet."""
        world = World(endpoint_url, "s3", folder, self.account)
        s3 = world.client("s3")
        s3.create_bucket(Bucket=world.bucket)
        world.client("glue").create_database(DatabaseInput={"Name": "cdc"})
        for name, body in self._under("bucket/").items():
            if not name.startswith("lake/"):
                s3.put_object(Bucket=world.bucket, Key=name, Body=body)
        glue = json.loads(self.files["glue.json"])
        Checkpoint(world, self._under("bucket/lake/"), **glue).restore()
        aggregates = folder / "aggregates"
        aggregates.mkdir()
        for name, sql in self._under("aggregates/").items():
            (aggregates / name).write_bytes(sql)
        settings = yaml.safe_load(self.files["settings.yaml"])
        settings["aggregates"] = str(aggregates)
        settings["clock_margin_seconds"] = 0  # the sandbox's clock is this machine's
        world.settings_path.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
        world.activate(patch)
        patch.setenv("CDC_MASKING_KEY", MASKING_KEY)
        patch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)
        patch.setattr("cdc_pipeline.capture.catch_up._POLL_SECONDS", 0.1)
        return world

    def go_on(self, world: World, patch: pytest.MonkeyPatch, after_seconds: float = 60) -> None:
        """Let it be a minute after the old version's last day, with the same tables."""
        behind_us = time.time_ns() // 1000 - self.ended_us - int(after_seconds * 1_000_000)
        control(world.endpoint_url, behind=behind_us)

        def clock() -> float:
            return time.time() - behind_us / 1_000_000

        set_log_clock(patch, clock, margin_us=None)
        patch.setattr("cdc_pipeline.core.changes.write_times.clock", clock)
        for name in TABLES:
            self.make_table(world, name, same=True)

    def make_table(self, world: World, name: str, *, same: bool) -> None:
        """A table with the old one's items; `same`: it is that one, by its id and its stream."""
        frozen = self.source[name]
        world.make_table(name, view=None if same else "NEW_AND_OLD_IMAGES", recovery=False)
        for item in frozen["items"]:
            world.dynamodb.put_item(TableName=name, Item=native(item))
        if same:
            attributes = {key: frozen["table"][key] for key in _OF_THE_TABLE}
            adopted = {"attributes": attributes, "records": frozen["records"]}
            control(world.endpoint_url, adopt={"account": self.account, "name": name, **adopted})
        world.dynamodb.update_continuous_backups(
            TableName=name,
            PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
        )

    def _under(self, prefix: str) -> dict[str, bytes]:
        found = self.files.items()
        return {name.removeprefix(prefix): b for name, b in found if name.startswith(prefix)}


def native(item: dict[str, Any]) -> dict[str, Any]:
    """An item of JSON as boto3 takes it: binary as bytes."""
    return {name: _native(value) for name, value in item.items()}


def _native(value: dict[str, Any]) -> dict[str, Any]:
    ((kind, content),) = value.items()
    if kind == "B":
        return {kind: base64.b64decode(content)}
    if kind == "BS":
        return {kind: [base64.b64decode(one) for one in content]}
    if kind == "L":
        return {kind: [_native(one) for one in content]}
    return {kind: native(content)} if kind == "M" else value


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()
