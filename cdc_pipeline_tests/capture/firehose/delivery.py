"""A table, what Firehose writes of it, and a lake that takes it; for tests over a local AWS."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture.firehose.drain import capture_files
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.core.changes.kinesis import from_envelope
from cdc_pipeline.core.log.entries import SourceFile
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.transports import FIREHOSE
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.world import World, key, make_world
from cdc_pipeline_tests.simulators.firehose import FirehoseFiles, envelope

NAME = "orders"
_OPTIONS = CaptureOptions()


@dataclass
class Delivery:
    """One test's table `orders`, with keys `pk` and `sk`."""

    world: World
    files: FirehoseFiles
    errors: FirehoseFiles

    def configure(self, **changes: Any) -> None:
        """Settings with both prefixes and no lag; `changes` replace whole top-level keys."""
        firehose = {
            "prefixes": [self.files.uri],
            "error_prefixes": [self.errors.uri],
            "lag_minutes": 0,
        }
        self.world.configure(
            {"name": NAME, "transport": "firehose", "firehose": firehose}, **changes
        )

    def write(self, op: str, pk: str, old: dict[str, Any] | None = None, **item: Any) -> Any:
        """Write an item to DynamoDB, and give the record that Kinesis gets."""
        if op == "D":
            self.world.delete(NAME, pk)
        else:
            self.world.put(NAME, pk, **item)
        new = None if op == "D" else {**key(pk), **item}
        before = None if old is None else {**key(pk), **old}
        return envelope(op, key(pk), new, before, time.time_ns() // 1000)

    @property
    def table_id(self) -> str:
        return self.world.dynamodb.describe_table(TableName=NAME)["Table"]["TableId"]

    def capture(self, options: CaptureOptions = _OPTIONS, **how: Any) -> CaptureResult:
        return capture_files(self.world.table_lake(NAME), options, **how)

    def state(self) -> LogState:
        return self.world.table_lake(NAME).log.load()

    def entries(self) -> list[Entry]:
        log = self.world.table_lake(NAME).log
        return list(log.entries_since(log.load(), date(2020, 1, 1)))

    def logged(self) -> list[SourceFile]:
        """Every object that the log took, as often as it did."""
        return [file for entry in self.entries() for file in entry.files if file.whole]

    def landed(self) -> list[tuple[Any, ...]]:
        """Every landed change, whole, but for when it landed."""
        return self.world.rows(
            "SELECT uuid, op, write_time_us, data, keys, new_image, old_image, position, "
            f"event_id, is_ttl_delete, transport FROM {NAME}.raw_stream "
            "ORDER BY write_time_us, uuid",
            NAME,
        )

    def as_landed(self, *records: dict[str, Any]) -> list[tuple[Any, ...]]:
        """How records must land, by the definition of an envelope."""
        changes = (from_envelope(r, table_id=self.table_id, transport=FIREHOSE) for r in records)
        left_out = {"sequence_number", "shard_id"}
        rows = [
            tuple(value for name, value in change._asdict().items() if name not in left_out)
            for change in changes
        ]
        return sorted(rows, key=lambda row: (row[2], row[0]))

    def generations(self) -> list[int]:
        sql = f"SELECT generation FROM {NAME}.raw_stream ORDER BY write_time_us"
        return [generation for (generation,) in self.world.rows(sql, NAME)]

    def quarantined(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for quarantined in self.state().quarantined.values():
            for reason, count in quarantined.reasons.items():
                found[reason] = found.get(reason, 0) + count
        return found


def make_delivery(
    sandbox: SandboxProcess, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> Delivery:
    """A table without a stream, no object yet, and an empty lake."""
    world = make_world(sandbox, folder, kind)
    world.activate(monkeypatch)
    world.make_table(NAME, view=None)
    s3 = world.client("s3")
    errors = FirehoseFiles(s3, world.bucket, "errors/orders/")
    made = Delivery(world, FirehoseFiles(s3, world.bucket, prefix), errors)
    made.configure()
    return made


def record(pk: str, time_us: int, op: str = "I", table: str = NAME, **item: Any) -> dict[str, Any]:
    """A record of a write that DynamoDB need not know of."""
    new = None if op == "D" else {**key(pk), **item}
    old = {**key(pk), **item} if op == "D" else None
    return envelope(op, key(pk), new, old, time_us, table=table)


def to_us(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


def now() -> datetime:
    return datetime.now(UTC)


def measure(
    world: World, namespace: str, name: str, where: dict[str, str], points: Mapping[int, float]
) -> None:
    """Give CloudWatch points of a metric, by their time in s."""
    dimensions = [{"Name": key, "Value": value} for key, value in where.items()]
    data = [
        {"MetricName": name, "Dimensions": dimensions, "Timestamp": at, "Value": value}
        for at, value in points.items()
    ]
    world.client("cloudwatch").put_metric_data(Namespace=namespace, MetricData=data)
