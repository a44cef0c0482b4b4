"""Entities through Dagster and the sandbox: split, followed, checked and erased."""

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.erase.erase import erase_item
from cdc_pipeline_tests.e2e.deployment import Deployment, deploy
from cdc_pipeline_tests.e2e.world import World, assert_mirrors

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]
_ENTITIES = [
    {"name": "customer", "when": {"pk": {"prefix": "c#"}}, "table": True},
    {"name": "order", "when": {"pk": {"regex": "o#[0-9]+"}}, "table": True, "flatten": {}},
]


@pytest.fixture
def kind() -> str:
    return "local"


@pytest.fixture
def deployment(world: World) -> Iterator[Deployment]:
    world.make_table("shop")
    world.configure(
        {"name": "shop", "entities": _ENTITIES},
        current_state={"fold_percent": 0, "publish_minutes": 0, "derive_minutes": 0},
        export={"bucket": world.bucket, "poll_seconds": 0.05},
    )
    world.put("shop", "c#1", ref={"S": "first"}, since={"N": "2019"})
    world.put("shop", "o#1", ref={"N": "7.25"}, to={"M": {"city": {"S": "Lima"}}})
    world.snapshot("shop")
    world.capture_past_handover("shop")
    # The settings file that Dagster reads has the least margin there is, a second.
    time.sleep(1.2)
    world.capture("shop")
    with deploy(world) as made:
        yield made


def test_entities_follow_and_an_erasure_leaves_none(deployment: Deployment) -> None:
    world = deployment.world
    built = deployment.follow()
    assert {"shop/customer", "shop/order", "shop/current_state"} <= {*built}
    assert deployment.follow() == []
    assert _check(deployment)["items_of_none"] == 0
    world.put("shop", "o#2", ref={"N": "1"}, to={"M": {"zip": {"N": "9"}}})
    world.put("shop", "stray", ref={"S": "x"})
    world.delete("shop", "c#1")
    world.capture("shop")
    assert _orders(world) == [(Decimal("7.25"), "Lima", None), (Decimal(1), None, 9)]
    assert world.rows("SELECT count(*) FROM shop.customer", "shop") == [(0,)]
    assert {"shop/customer", "shop/order"} <= {*deployment.follow()}
    assert_mirrors(world, "shop")
    order = world.lake().iceberg.load("shop_order")
    assert order is not None
    assert order.scan().to_arrow().num_rows == 2
    assert order.schema().find_field("to_city")
    assert _check(deployment)["items_of_none"] == 1
    world.delete("shop", "o#1")
    world.capture("shop")
    erased = erase_item(world.table_lake("shop"), json.dumps({"pk": "o#1", "sk": 1}))
    assert "order" in {part.place for part in erased.erasure.removed}
    assert world.rows("SELECT ref, to_zip FROM shop.order", "shop") == [(1, 9)]
    assert {*deployment.follow()} >= {"shop/order"}
    assert deployment.follow() == []


def _orders(world: World) -> list[tuple[Any, ...]]:
    return world.rows("SELECT ref, to_city, to_zip FROM shop.order ORDER BY pk", "shop")


def _check(deployment: Deployment) -> dict[str, Any]:
    key = dg.AssetCheckKey(dg.AssetKey(["shop", "current_state"]), "entities_match")
    record = deployment.instance.get_latest_asset_check_evaluation_record(key)
    assert record is not None
    assert record.event is not None
    assert record.event.dagster_event is not None
    found = record.event.dagster_event.asset_check_evaluation_data
    return {name: value.value for name, value in found.metadata.items()}
