"""One test's own world: an account of the sandbox, a bucket, tables, a lake, and its settings."""

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config

import cdc_pipeline
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.run import Captured, Failed, capture_tables
from cdc_pipeline.core.changes import fold
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.cdc import CdcDay, build_cdc_day, build_cdc_days
from cdc_pipeline.lake.publish.current_state import PublishResult, publish_current_state
from cdc_pipeline.lake.publish.staleness import Staleness
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.state import row_delta
from cdc_pipeline.lake.state.base import handover_us
from cdc_pipeline.reconcile.compare import compare_with_source
from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.settings.load import PATH_VARIABLE, load_settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline.snapshot.snapshot import SnapshotResult, take_snapshot
from cdc_pipeline_tests.reference_cdc import COLUMNS, Landed, cdc_of

PACKAGE_ROOT = Path(cdc_pipeline.__file__).resolve().parents[1]
VIEWS = {"pitr_export", "raw_stream", "cdc", "history", "current_state"}
ORDERS_AND_CUSTOMERS = ({"name": "orders", "owner": "team:sales"}, {"name": "customers"})

_numbers = itertools.count(1)


@dataclass
class World:
    """Nothing in it is shared with another one: in the sandbox, each account is an AWS alone."""

    endpoint_url: str
    kind: str
    folder: Path
    account: str
    # The least that the settings allow is a second, and a hundred snapshots would wait it out. The
    # sandbox's exports are exact, so that any margin is safe there.
    margin_seconds: float = 0.05
    _clients: dict[str, Any] = field(default_factory=dict)
    _lake: Lake | None = None

    @property
    def bucket(self) -> str:
        return f"lake-{self.account}"

    @property
    def settings_path(self) -> Path:
        return self.folder / "cdc_pipeline.yaml"

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base`, pointed at this world, as a process of it would have it."""
        from cdc_pipeline.sandbox.process import apply_environment

        env = dict(base)
        apply_environment(env, self.endpoint_url)
        env["AWS_ACCESS_KEY_ID"] = self.account
        env[PATH_VARIABLE] = str(self.settings_path)
        env["PYTHONPATH"] = str(PACKAGE_ROOT)
        env["DAGSTER_HOME"] = str(self.folder)
        return env

    def activate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this very process see this world, until `monkeypatch` undoes it."""
        wanted = self.environment(os.environ)
        for name in set(os.environ) - set(wanted):
            monkeypatch.delenv(name)
        for name, value in wanted.items():
            if name != "PYTHONPATH":
                monkeypatch.setenv(name, value)

    def client(self, service: str) -> Any:
        if service not in self._clients:
            session = boto3.Session(self.account, "sandbox", region_name="us-east-1")
            self._clients[service] = session.client(  # type: ignore[call-overload]
                service, endpoint_url=self.endpoint_url, config=Config(proxies={})
            )
        return self._clients[service]

    @property
    def dynamodb(self) -> Any:
        return self.client("dynamodb")

    def configure(self, *tables: str | dict[str, Any], **changes: Any) -> Path:
        """Write the settings file; `changes` replace whole top-level keys."""
        settings: dict[str, Any] = {
            "lake": f"s3://{self.bucket}/lake" if self.kind == "s3" else str(self.folder / "lake"),
            "region": "us-east-1",
            "handover_margin_seconds": 1,
            "clock_margin_seconds": 0,  # the sandbox's clock is this machine's
            "capture": {
                "interval_seconds": 5,
                "poll_seconds": 0.02,
                "empty_polls": 2,
                "listing_lag_seconds": 0,
            },
            "export": {"bucket": self.bucket, "poll_seconds": 0.05},
            "aggregates": str(PACKAGE_ROOT / "aggregates"),
            "tables": [{"name": t} if isinstance(t, str) else t for t in tables],
        }
        chosen = {k: v for k, v in (settings | changes).items() if v is not None}
        self.settings_path.write_text(yaml.safe_dump(chosen, sort_keys=False), "utf-8")
        self._lake = None
        return self.settings_path

    def lake(self) -> Lake:
        """The lake of the present settings file; a handle holds no state but its clients."""
        if self._lake is None:
            self._lake = open_lake(self.settings_path, self.margin_seconds)
        return self._lake

    def table(self, name: str) -> Table:
        return load_settings(self.settings_path).table(name)

    def table_lake(self, name: str) -> TableLake:
        return self.lake().table(self.table(name))

    def make_table(
        self, name: str, *, view: str | None = "NEW_AND_OLD_IMAGES", recovery: bool = True
    ) -> str:
        """A table with keys `pk` (S) and `sk` (N)."""
        stream = (
            {"StreamEnabled": True, "StreamViewType": view} if view else {"StreamEnabled": False}
        )
        self.dynamodb.create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "N"},
            ],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification=stream,
        )
        if recovery:
            self.dynamodb.update_continuous_backups(
                TableName=name,
                PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
            )
        return name

    def put(self, name: str, pk: str, sk: int = 1, **attributes: dict[str, Any]) -> None:
        self.dynamodb.put_item(TableName=name, Item={**key(pk, sk), **attributes})

    def delete(self, name: str, pk: str, sk: int = 1) -> None:
        self.dynamodb.delete_item(TableName=name, Key=key(pk, sk))

    def snapshot(self, name: str) -> SnapshotResult:
        return take_snapshot(self.table_lake(name))

    def capture(self, name: str) -> CaptureResult:
        """One capture run of one table; its failure is raised."""
        for event in capture_tables(self.lake(), [self.table(name)]):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Captured):
                return event.result
        raise AssertionError("capture_tables ended without a result")

    def capture_past_handover(self, name: str) -> None:
        """Capture until the newest staged export may be published."""
        lake, table = self.lake(), self.table(name)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            self.capture(name)
            state = lake.table(table).log.load()
            if state.staged and state.watermark_us >= handover_us(lake, state.staged):
                return
        pytest.fail("the stream never passed the export time")

    def publish(self, name: str) -> PublishResult:
        return publish_current_state(self.table_lake(name))

    def bootstrap(self, name: str) -> PublishResult:
        """Export, capture and publish for the first time, or a new baseline."""
        self.snapshot(name)
        self.capture_past_handover(name)
        return self.publish(name)

    def days(self, name: str) -> list[date]:
        objects = self.table_lake(name).log.load().objects.values()
        return sorted({date.fromisoformat(landed.day) for landed in objects})

    def build_cdc(self, name: str) -> list[CdcDay]:
        lake, table = self.lake(), self.table(name)
        return [build_cdc_day(lake.table(table), day) for day in self.days(name)]

    def refresh_cdc(self, name: str) -> list[CdcDay]:
        """Build the days of cdc that are stale by the log, and no others."""
        lake, table = self.lake(), self.table(name)
        staleness = Staleness(lake)
        staleness.load(table)
        days = [
            d for stale in staleness.of_table(table) if stale.asset == "cdc" for d in stale.days
        ]
        return list(build_cdc_days(lake.table(table), days))

    def rows(self, sql: str, *tables: str, aggregates: bool = False) -> list[tuple[Any, ...]]:
        """The result of a query over the views of `tables`."""
        with connect_lake(self.lake(), tables, aggregates=aggregates) as connection:
            return connection.execute(sql).fetchall()

    def items(self, name: str) -> dict[str, dict[str, Any]]:
        """`current_state` as exact typed items by `pk`."""
        safe = self.table(name).safe_name
        found = self.rows(f"SELECT _item FROM {safe}.current_state", name)
        parsed = [json.loads(text) for (text,) in found]
        return {item["pk"]["S"]: item for item in parsed}

    def landing_files(self, name: str) -> set[str]:
        """Every file in the landing zone and quarantine, listed by something that is not ours."""
        paths = self.table_lake(name).paths
        found = self.stored("dynamo-cdc/")
        return {k for k in found if k.startswith((paths.landing, paths.quarantine))}

    def stored(self, prefix: str = "") -> set[str]:
        """Keys of all lake objects under a prefix, relative to the lake's root."""
        if self.kind == "local":
            root = self.folder / "lake"
            files = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
            return {k for k in files if k.startswith(prefix)}
        pages = self.client("s3").get_paginator("list_objects_v2")
        return {
            entry["Key"].removeprefix("lake/")
            for page in pages.paginate(Bucket=self.bucket, Prefix=f"lake/{prefix}")
            for entry in page.get("Contents", ())
        }


@contextmanager
def few_items_are_many(*, merging: bool = False) -> Iterator[None]:
    """Publish as row deltas; `merging`: each with all files of the one before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_delta, "SMALL_ITEMS", -1)
        if merging:
            patch.setattr(row_delta, "_TIER_FILES", 2)
        yield


def open_lake(settings_path: Path, margin_seconds: float) -> Lake:
    """The lake, with another handover margin than its settings file has."""
    settings = load_settings(settings_path)
    return Lake.open(settings.model_copy(update={"handover_margin_seconds": margin_seconds}))


def key(pk: str, sk: int = 1) -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"N": str(sk)}}


def quick_sandbox() -> SandboxProcess:
    """A sandbox with incremental exports of any window, and recovery up to the present."""
    return SandboxProcess(
        ttl_interval_seconds=0.2,
        exports=ExportOptions(delay_seconds=0.05, least_window_seconds=1, restorable_lag_seconds=0),
    )


def make_world(sandbox: SandboxProcess, folder: Path, kind: str) -> World:
    folder.mkdir(parents=True, exist_ok=True)
    world = World(sandbox.endpoint_url, kind, folder, f"{next(_numbers):012d}")
    world.client("s3").create_bucket(Bucket=world.bucket)
    return world


def assert_mirrors(world: World, name: str) -> int:
    """The lake equals its source, item by item, and the pure-Python fold agrees with the SQL.

    Returns how many items there are.
    """
    table = world.table(name)
    compared = compare_with_source(world.lake().table(table))
    assert compared.differences == 0, compared
    safe = table.safe_name
    with connect_lake(world.lake(), [name], aggregates=False) as connection:

        def rows(sql: str) -> Iterator[tuple[Any, ...]]:
            return iter(connection.execute(sql).fetchall())

        base = {
            item_key: fold.Row(order_key, item)
            for item_key, order_key, item in rows(
                f"SELECT _key, _order_key, _item FROM {safe}.pitr_export"
            )
        }
        generation = world.lake().table(table).log.load().staged
        assert generation is not None
        changes = [
            fold.KeyedChange(*row)
            for row in rows(
                f"SELECT keys, order_key, new_image FROM {safe}.raw_stream "
                f"WHERE generation >= {generation.generation}"
            )
        ]
        expected = fold.items(fold.fold(base, changes))
        found = list(rows(f"SELECT _key, _item FROM {safe}.current_state"))
    assert len(found) == len({item_key for item_key, _ in found}), "a key is there twice"
    assert dict(found) == expected
    return compared.items


def assert_nothing_twice(world: World, name: str) -> None:
    """No change twice: not in what readers see of the landing zone, and not in cdc."""
    safe = world.table(name).safe_name
    counted = f"SELECT count(*), count(DISTINCT uuid) FROM {safe}.raw_stream"
    (landed,) = world.rows(counted, name)
    assert landed[0] == landed[1], "repeats among logged landing objects"
    assert_each_change_once(world, name)


def assert_each_change_once(world: World, name: str) -> None:
    """cdc has every captured change, and of what a heal landed what nothing else tells.

    What a later baseline shows is no change.
    """
    safe = world.table(name).safe_name
    landed = world.rows(f"SELECT {COLUMNS} FROM {safe}.raw_stream", name)
    changes = f"SELECT uuid FROM {safe}.cdc WHERE transport <> 'baseline'"
    cdc = [uuid for (uuid,) in world.rows(changes, name)]
    assert sorted(cdc) == sorted(cdc_of(Landed(*row) for row in landed))


def assert_no_orphans(world: World, name: str) -> None:
    """Every file in the landing folders is one that the log names, and the other way round."""
    state = world.table_lake(name).log.load()
    assert world.landing_files(name) == {*state.objects, *state.quarantined}
