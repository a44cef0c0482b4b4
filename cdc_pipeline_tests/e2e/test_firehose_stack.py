"""The road through Firehose for real: our stack, our Lambda, files in S3, our assets, DuckDB."""

import base64
import json
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.changes.change import from_stream_record
from cdc_pipeline.sandbox.demo.transports import start_traffic
from cdc_pipeline.sandbox.demo.workspace import BUCKET, write_settings
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, assert_nothing_twice, make_world
from cdc_pipeline_tests.sandbox.clients import connect, read_stream, wait_for

pytestmark = pytest.mark.slow

_TABLES = ("orders", "customers")


def test_a_stack_carries_every_change_to_duckdb(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(sandbox, tmp_path, "s3")
    world.activate(monkeypatch)
    world.client("s3").create_bucket(Bucket=BUCKET)
    write_settings(world.folder, kind="s3", running=False, transport="firehose")
    traffic = start_traffic(300, 300, "firehose")
    wait_for(lambda: traffic.changes >= 200)
    for name in _TABLES:
        world.snapshot(name)
    _send_garbage(world)
    traffic.stop()
    _wait_for_ttl(world)
    ended_us = time.time_ns() // 1000
    for name in _TABLES:
        _capture_past(world, name, ended_us)
        world.publish(name)
        world.build_cdc(name)
        assert assert_mirrors(world, name) > 20
        assert_nothing_twice(world, name)
        assert _landed(world, name) == _streamed(world, name)
    (quarantined,) = world.table_lake("orders").log.load().quarantined.values()
    assert quarantined.rows == 1


def _send_garbage(world: World) -> None:
    """What our Lambda refuses: it comes back under the error prefix and is quarantined."""
    world.client("kinesis").put_record(
        StreamName="cdc-orders", PartitionKey="x", Data=b'{"not": "a change"}'
    )


def _wait_for_ttl(world: World) -> None:
    """Until nothing is about to expire."""

    def expiring() -> int:
        return world.dynamodb.scan(
            TableName="orders",
            FilterExpression="expires_at <= :soon",
            ExpressionAttributeValues={":soon": {"N": str(int(time.time()) + 10)}},
        )["Count"]

    wait_for(lambda: expiring() == 0)


def _capture_past(world: World, name: str, time_us: int) -> None:
    log = world.table_lake(name).log

    def passed() -> bool:
        world.capture(name)
        return log.load().watermark_us >= time_us

    wait_for(passed, seconds=30)


def _landed(world: World, name: str) -> Counter[Any]:
    rows = world.rows(
        f"SELECT keys, op, new_image, old_image, is_ttl_delete FROM {name}.raw_stream", name
    )
    return Counter(rows)


def _streamed(world: World, name: str) -> Counter[Any]:
    """The same changes as the table's own DynamoDB stream has them, a road of another kind."""
    aws = connect(world.endpoint_url, account=world.account)
    changes = [
        from_stream_record(_as_json(record), table_id="t", shard_id="s", depth=0)
        for record in read_stream(aws, name)
    ]
    return Counter((c.keys, c.op, c.new_image, c.old_image, c.is_ttl_delete) for c in changes)


def _as_json(record: dict[str, Any]) -> Any:
    """A record as it came over the wire, from what boto3 made of it."""

    def plain(value: Any) -> Any:
        is_time = isinstance(value, datetime)
        return value.timestamp() if is_time else base64.b64encode(value).decode()

    return json.loads(json.dumps(record, default=plain))
