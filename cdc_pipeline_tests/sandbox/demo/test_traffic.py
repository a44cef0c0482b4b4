"""Seed data and live traffic: all types, all kinds of change, repeatable, counted right."""

import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from cdc_pipeline.sandbox.demo import items
from cdc_pipeline.sandbox.demo.traffic import Traffic, TrafficCounts, create_tables, seed
from cdc_pipeline.sandbox.errors import SandboxError
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.sandbox.clients import Aws, connect, read_stream, wait_for

pytestmark = pytest.mark.slow

_WHEN = datetime(2026, 3, 1, tzinfo=UTC)
_ORDERS, _CUSTOMERS = 400, 60


@pytest.fixture(scope="module")
def seeded() -> Iterator[Aws]:
    with SandboxProcess(ttl_interval_seconds=0.2) as process:
        aws = connect(process.endpoint_url)
        create_tables(aws.dynamodb)
        progress: list[int] = []
        written = seed(
            aws.dynamodb,
            orders=_ORDERS,
            customers=_CUSTOMERS,
            until=_WHEN,
            progress=progress.append,
        )
        assert written == progress[-1] == _ORDERS + _CUSTOMERS
        assert progress == sorted(progress)
        yield aws


def _scan(aws: Aws, table: str) -> list[dict[str, Any]]:
    pages = aws.dynamodb.get_paginator("scan").paginate(TableName=table)
    return [item for page in pages for item in page["Items"]]


def test_tables_are_as_capture_needs_them(seeded: Aws) -> None:
    create_tables(seeded.dynamodb)  # again: nothing happens
    for name, keys in (("orders", ["customer_id", "order_id"]), ("customers", ["customer_id"])):
        table = seeded.dynamodb.describe_table(TableName=name)["Table"]
        assert [k["AttributeName"] for k in table["KeySchema"]] == keys
        assert table["StreamSpecification"]["StreamViewType"] == "NEW_AND_OLD_IMAGES"
        backups = seeded.dynamodb.describe_continuous_backups(TableName=name)
        recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
        assert recovery["PointInTimeRecoveryStatus"] == "ENABLED"
    ttl = seeded.dynamodb.describe_time_to_live(TableName="orders")["TimeToLiveDescription"]
    assert ttl == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires_at"}


def test_seeded_items_come_back_exactly(seeded: Aws) -> None:
    customers = {item["customer_id"]["S"]: item for item in _scan(seeded, "customers")}
    assert len(customers) == _CUSTOMERS
    wanted = items.customer(7, 5, _WHEN)
    assert customers[items.customer_id(5)].keys() == wanted.keys()
    for name in ("name", "avatar", "api_keys", "note", "referred_by"):
        assert customers[items.customer_id(5)][name] == wanted[name]
    sizes = [r["dynamodb"]["SizeBytes"] for r in read_stream(seeded, "orders")[:_ORDERS]]
    assert 500 <= sum(sizes) / len(sizes) <= 900


def test_traffic_makes_changes_of_all_kinds(seeded: Aws) -> None:
    before = {name: len(read_stream(seeded, name)) for name in ("orders", "customers")}
    traffic = Traffic(seeded.dynamodb, orders=_ORDERS, customers=_CUSTOMERS, rate=1000)
    traffic.start()
    wait_for(lambda: traffic.changes >= 150)
    counts = traffic.stop()
    assert traffic.changes == counts.changes == traffic.counts.changes
    assert all(vars(counts).values()), counts
    assert str(counts).startswith(f"{counts.inserts} inserts, ")

    def records() -> list[dict[str, Any]]:
        return [r for name in before for r in read_stream(seeded, name)[before[name] :]]

    def expired() -> list[dict[str, Any]]:
        found = [r for r in records() if "userIdentity" in r]
        return found if len(found) == counts.ttl_items else []

    wait_for(expired, seconds=15)
    made = Counter(r["eventName"] for r in records())
    assert made == {
        "INSERT": counts.inserts,
        "MODIFY": counts.updates,
        "REMOVE": counts.deletes + counts.ttl_items,
    }


def test_traffic_keeps_its_rate(seeded: Aws) -> None:
    traffic = Traffic(seeded.dynamodb, orders=_ORDERS, customers=_CUSTOMERS, rate=40)
    started = time.monotonic()
    traffic.start()
    wait_for(lambda: traffic.changes >= 40, seconds=6)
    assert time.monotonic() - started > 0.7
    assert traffic.stop().changes <= 60


def test_traffic_counts_right_on_tables_that_had_traffic(seeded: Aws) -> None:
    def written() -> int:
        records = [r for name in ("orders", "customers") for r in read_stream(seeded, name)]
        return len([r for r in records if "userIdentity" not in r])

    expected = written()
    # With seed 11 all orders have other keys: none of the seeded ones exists.
    for data_seed in (7, 11):
        traffic = Traffic(
            seeded.dynamodb, orders=100, customers=_CUSTOMERS, rate=1000, seed=data_seed
        )
        traffic.start()
        wait_for(lambda again=traffic: again.changes >= 60)
        expected += traffic.stop().changes
    assert written() == expected


def test_traffic_says_what_ended_it() -> None:
    with SandboxProcess() as process:
        aws = connect(process.endpoint_url)
        traffic = Traffic(aws.dynamodb, orders=5, customers=5)  # there are no tables
        traffic.start()
        wait_for(lambda: traffic._error)
        with pytest.raises(aws.dynamodb.exceptions.ResourceNotFoundException):
            traffic.stop()
    with pytest.raises(SandboxError):
        Traffic(aws.dynamodb, orders=1, customers=1, rate=0)
    assert TrafficCounts().changes == 0
