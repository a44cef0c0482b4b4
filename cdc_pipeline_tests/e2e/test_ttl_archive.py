"""What TTL deletes in the sandbox is archived with its last image, whatever the stream shows."""

import json
import time
from typing import Any

import pytest

from cdc_pipeline.lake.publish.ttl_archive import build_archive_day
from cdc_pipeline_tests.e2e.world import World, key

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("view", ["NEW_AND_OLD_IMAGES", "NEW_IMAGE", "KEYS_ONLY"])
def test_expired_items(world: World, view: str) -> None:
    world.make_table("orders", view=view)
    by_read = view == "KEYS_ONLY"
    world.configure({"name": "orders", "ttl_archive": True, "complete_by_read": by_read})
    world.dynamodb.update_time_to_live(
        TableName="orders", TimeToLiveSpecification={"Enabled": True, "AttributeName": "ends"}
    )
    world.put("orders", "base", note={"S": "from the export"})
    for name in ("user", "later", "again", "moved"):
        world.put("orders", name, note={"S": name})
    world.bootstrap("orders")
    # All at once, by a transaction, without another change in between that tells what they were.
    world.dynamodb.transact_write_items(
        TransactItems=[
            {"Put": {"TableName": "orders", "Item": {**key("moved"), "n": {"N": "1.50"}}}},
            {"Delete": {"TableName": "orders", "Key": key("user")}},
            {"Put": {"TableName": "orders", "Item": {**key("again"), "n": {"N": "1"}}}},
        ]
    )
    soon = {"N": str(int(time.time()) + 3)}
    expected: dict[str, dict[str, Any]] = {}
    for name, item in _items(world).items():
        if name in ("base", "moved", "again"):
            expected[name] = {**item, "ends": soon}
            world.put("orders", name, **expected[name])  # type: ignore[arg-type]
    world.capture("orders")  # with KEYS_ONLY items are read now, before they expire
    expected["unread"] = {"ends": {"N": str(int(time.time()) - 60)}}
    world.put("orders", "unread", 1, **expected["unread"])
    _wait_until_gone(world, set(expected))
    world.put("orders", "again", note={"S": "a new life"})
    world.capture("orders")
    assert {"later", "again"} == set(_items(world))
    world.build_cdc("orders")
    lake, table = world.lake(), world.table("orders")
    for day in world.days("orders"):
        build_archive_day(lake.table(table), day)
    rows = world.rows("SELECT keys, _item, data, is_ttl_delete FROM orders.ttl_archive", "orders")
    assert len(rows) == 4
    assert all(by_ttl for *_, by_ttl in rows)
    found = {json.loads(keys)["pk"]["S"]: item and json.loads(item) for keys, item, *_ in rows}
    wanted: dict[str, Any] = {name: {**item, **key(name)} for name, item in expected.items()}
    if by_read:
        wanted["unread"] = None  # it was gone before anyone could read it
    assert found == wanted
    plain = {json.loads(keys)["pk"]["S"]: data and json.loads(data) for keys, _, data, _ in rows}
    assert plain["moved"]["n"] == 1.5
    assert plain["base"]["note"] == "from the export"


def _items(world: World) -> dict[str, dict[str, Any]]:
    found = world.dynamodb.scan(TableName="orders", ConsistentRead=True)["Items"]
    return {
        item["pk"]["S"]: {name: v for name, v in item.items() if name not in ("pk", "sk")}
        for item in found
    }


def _wait_until_gone(world: World, names: set[str]) -> None:
    deadline = time.monotonic() + 120
    while names & _items(world).keys():
        assert time.monotonic() < deadline, "TTL deletes nothing"
        time.sleep(0.1)
