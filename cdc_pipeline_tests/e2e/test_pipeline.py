"""The whole pipeline against a live source: nothing lost, nothing twice, every value exact."""

import itertools
import json
import time
from decimal import Decimal
from typing import Any

import pytest

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.lake.glue_partitions import find_repairs, registered_days
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.sandbox.demo.traffic import Traffic, TrafficCounts, create_tables, seed
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.e2e.world import (
    ORDERS_AND_CUSTOMERS,
    VIEWS,
    World,
    assert_mirrors,
    assert_no_orphans,
    assert_nothing_twice,
    key,
)

pytestmark = pytest.mark.slow

ORDERS, CUSTOMERS = 260, 40
RATE = 400.0


def _await_ttl(world: World) -> None:
    """Until every item that expires soon has gone, so that the source is at rest."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        left = world.dynamodb.scan(
            TableName="orders",
            FilterExpression="expires_at <= :soon",
            ExpressionAttributeValues={":soon": {"N": str(int(time.time()) + 20)}},
            Select="COUNT",
            ConsistentRead=True,
        )
        if not left["Count"]:
            return
        time.sleep(0.1)
    pytest.fail("TTL left expired items in the source")


def _views(world: World, *names: str) -> set[tuple[str, str]]:
    sql = "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal"
    found = world.rows(sql, *names, aggregates=True)
    return {(schema, view) for schema, view in found if schema not in ("main", "temp")}


def _expected_changes(counts: TrafficCounts) -> int:
    """Stream records of both tables: the seed, what traffic did, and one REMOVE per expiry."""
    return ORDERS + CUSTOMERS + counts.changes + counts.ttl_items


def test_a_snapshot_under_traffic_and_all_that_follows(world: World) -> None:
    world.margin_seconds = 1  # as a deployment on the sandbox has it
    world.configure(*ORDERS_AND_CUSTOMERS)
    names = ("orders", "customers")
    create_tables(world.dynamodb)
    seed(world.dynamodb, orders=ORDERS, customers=CUSTOMERS)
    traffic = Traffic(world.dynamodb, orders=ORDERS, customers=CUSTOMERS, rate=RATE)
    traffic.start()
    try:
        for name in names:
            world.snapshot(name)
        for name in names:
            world.capture_past_handover(name)
            published = world.publish(name)
            assert published.new_baseline
            assert published.changes_folded > 0
    finally:
        counts = traffic.stop()
    assert counts.deletes
    assert counts.reinserts
    assert counts.ttl_items
    _await_ttl(world)
    for name in names:
        world.capture(name)

    # Fresh from the merged view first, then from the compacted base: both must be exact.
    items = [assert_mirrors(world, name) for name in names]
    for name in names:
        assert not world.publish(name).new_baseline
    assert [assert_mirrors(world, name) for name in names] == items
    assert min(items) > 0

    for name in names:
        world.build_cdc(name)
        assert_nothing_twice(world, name)
        assert_no_orphans(world, name)
    total = sum(world.rows(f"SELECT count(*) FROM {n}.cdc", n)[0][0] for n in names)
    assert total == _expected_changes(counts)
    ttl = world.rows("SELECT count(*) FROM orders.cdc WHERE is_ttl_delete", "orders")
    assert ttl == [(counts.ttl_items,)]

    for name in names:
        _assert_history(world, name)
    for aggregate in load_aggregates(world.lake().settings.aggregates_folder):
        for day in world.days("orders") if aggregate.daily else [None]:
            build_aggregate(world.lake(), aggregate, day)
    _assert_aggregates(world)
    assert _views(world, *names) == {
        *((name, view) for name in names for view in VIEWS),
        ("aggregates", "customer_lifetime_value"),
        ("aggregates", "order_revenue_by_country"),
    }
    for name in names:
        _assert_partitions(world, name)


def _assert_history(world: World, name: str) -> None:
    """The stream began with the table, so history's current versions are the table."""
    current = dict(world.rows(f"SELECT item_key, item FROM {name}.history WHERE is_current", name))
    assert current == dict(world.rows(f"SELECT _key, _item FROM {name}.current_state", name))
    versions = world.rows(
        f"SELECT item_key, op, valid_from, valid_to, is_current FROM {name}.history "
        "ORDER BY item_key, order_key",
        name,
    )
    for this, following in itertools.pairwise(versions):
        if this[0] == following[0]:
            assert this[3] == following[2], "a version ends where the next one begins"
            assert not this[4]
        else:
            assert this[3] is None
            assert this[4] == (this[1] != "D")
    by_key = {item_key for item_key, *_ in versions}
    assert len(current) < len(by_key) or name == "customers"


def _assert_aggregates(world: World) -> None:
    """Recomputed here from a Scan with Python's exact decimals."""
    pages = world.dynamodb.get_paginator("scan")

    def scan(name: str) -> list[dict[str, Any]]:
        pages_of = pages.paginate(TableName=name, ConsistentRead=True)
        return [item for page in pages_of for item in page["Items"]]

    segments = {c["customer_id"]["S"]: c["segment"]["S"] for c in scan("customers")}
    revenue: dict[str, Decimal] = {}
    orders: dict[str, int] = {}
    for order in scan("orders"):
        segment = segments[order["customer_id"]["S"]]
        revenue[segment] = revenue.get(segment, Decimal(0)) + Decimal(order["total"]["N"])
        orders[segment] = orders.get(segment, 0) + 1
    found = world.rows(
        "SELECT segment, orders, revenue FROM aggregates.customer_lifetime_value",
        aggregates=True,
    )
    assert {segment: (number, total) for segment, number, total in found} == {
        segment: (orders[segment], revenue[segment]) for segment in orders
    }


def _assert_partitions(world: World, name: str) -> None:
    lake, table = world.lake(), world.table(name)
    if world.kind == "local":
        assert registered_days(lake.table(table)) == []
        return
    landed = {
        k.removeprefix(lake.table(table).paths.landing).rpartition("/")[0]
        for k in world.landing_files(name)
    }
    assert landed
    assert set(registered_days(lake.table(table))) == landed
    assert not find_repairs(lake.table(table))
    glue = world.client("glue")
    found = glue.get_table(DatabaseName="cdc", Name=f"{name}_raw_stream")["Table"]
    columns = [column["Name"] for column in found["StorageDescriptor"]["Columns"]]
    described = world.rows(f"DESCRIBE SELECT * FROM {name}.raw_stream", name)
    assert columns == [row[0] for row in described][: len(columns)]
    partition = glue.get_partitions(DatabaseName="cdc", TableName=f"{name}_raw_stream")
    locations = {p["StorageDescriptor"]["Location"] for p in partition["Partitions"]}
    root = lake.store.uri(lake.table(table).paths.landing)
    assert {place.rstrip("/") for place in locations} == {root + day for day in landed}


_DIGITS_38 = "12345678901234567890123456789012345678"
_ODD: dict[str, dict[str, Any]] = {
    "big": {"N": _DIGITS_38},
    "negative": {"N": "-" + _DIGITS_38},
    "fraction": {"N": "0.12345678901234567890123456789012345678"},
    "tiny": {"N": "1E-130"},
    "huge": {"N": "9.9999999999999999999999999999999999999E+125"},
    "trailing": {"N": "12.50"},
    "zero": {"N": "-0"},
    "binary": {"B": b"\x00\xff\x80binary"},
    "empty_binary": {"B": b""},
    "strings": {"SS": ["b", "a", "ä"]},
    "numbers": {"NS": ["10", "9", _DIGITS_38]},
    "binaries": {"BS": [b"\x01", b"\x00\x02"]},
    "nothing": {"NULL": True},
    "empty": {"S": ""},
    "padded": {"S": "007"},
    "note": {"S": "lower"},
    "Note": {"N": "7"},
    "flag": {"BOOL": False},
    "dotted.name-with space": {"S": '«☕ \U0001f6aa" \\ \n'},
    "nested": {
        "M": {
            "n": {"N": _DIGITS_38},
            "Note": {"S": ""},
            "note": {"NULL": True},
            "list": {"L": [{"L": []}, {"M": {}}, {"B": b"\xfe"}, {"NS": ["2", "1"]}]},
        }
    },
}
_CANONICAL = {
    "big": {"N": _DIGITS_38},
    "negative": {"N": "-" + _DIGITS_38},
    "fraction": {"N": "0.12345678901234567890123456789012345678"},
    "tiny": {"N": "1E-130"},
    "huge": {"N": "9.9999999999999999999999999999999999999E+125"},
    "trailing": {"N": "12.5"},
    "zero": {"N": "0"},
    "binary": {"B": "AP+AYmluYXJ5"},
    "empty_binary": {"B": ""},
    "strings": {"SS": ["a", "b", "ä"]},
    "numbers": {"NS": ["9", "10", _DIGITS_38]},
    "binaries": {"BS": ["AAI=", "AQ=="]},
    "nothing": {"NULL": True},
    "empty": {"S": ""},
    "padded": {"S": "007"},
    "note": {"S": "lower"},
    "Note": {"N": "7"},
    "flag": {"BOOL": False},
    "dotted.name-with space": {"S": '«☕ \U0001f6aa" \\ \n'},
    "nested": {
        "M": {
            "Note": {"S": ""},
            "list": {"L": [{"L": []}, {"M": {}}, {"B": "/g=="}, {"NS": ["1", "2"]}]},
            "n": {"N": _DIGITS_38},
            "note": {"NULL": True},
        }
    },
}


def test_values_survive_exactly(world: World) -> None:
    """Through the export, through the stream, merged and compacted, typed and plain."""
    name = world.make_table("exact")
    world.configure(name)
    world.put(name, "exported", 1, **_ODD)
    world.put(name, "sparse", big={"N": "1"})
    world.bootstrap(name)
    world.put(name, "streamed", 1, **_ODD)
    world.dynamodb.update_item(
        TableName=name,
        Key=key("exported"),
        UpdateExpression="SET added = :added",
        ExpressionAttributeValues={":added": {"BOOL": True}},
    )
    world.capture(name)
    expected = {
        "exported": {**key("exported"), **_CANONICAL, "added": {"BOOL": True}},
        "streamed": {**key("streamed"), **_CANONICAL},
        "sparse": {**key("sparse"), "big": {"N": "1"}},
    }
    assert world.items(name) == expected
    _assert_typed(world)
    world.publish(name)
    assert world.items(name) == expected
    _assert_typed(world)
    assert_mirrors(world, name)

    world.build_cdc(name)
    ((new, old, data),) = world.rows(
        "SELECT new_image, old_image, data FROM exact.cdc WHERE op = 'U'", name
    )
    assert json.loads(new) == expected["exported"]
    assert json.loads(old) == {**key("exported"), **_CANONICAL}
    plain = json.loads(data, parse_float=Decimal, parse_int=Decimal)
    assert plain["big"] == Decimal(_DIGITS_38)
    assert plain["fraction"] == Decimal(_ODD["fraction"]["N"])
    assert plain["tiny"] == Decimal("1E-130")
    assert plain["huge"] == Decimal(_ODD["huge"]["N"])
    assert plain["nothing"] is None
    assert "absent" not in plain
    assert plain["empty"] == ""
    assert (plain["note"], plain["Note"]) == ("lower", Decimal(7))
    assert plain["binary"] == "AP+AYmluYXJ5"
    assert plain["strings"] == ["a", "b", "ä"]
    assert plain["nested"]["n"] == Decimal(_DIGITS_38)


def _assert_typed(world: World) -> None:
    """Typed columns: an integer wider than 64 bits stays whole, absent and NULL are null."""
    rows = world.rows(
        'SELECT pk, big, note, "empty", nothing, "binary", flag, strings FROM exact.current_state '
        "ORDER BY pk",
        "exact",
    )
    binary = b"\x00\xff\x80binary"
    full = (Decimal(_DIGITS_38), "lower", "", None, binary, False, ["a", "b", "ä"])
    assert [row[0] for row in rows] == ["exported", "sparse", "streamed"]
    assert rows[0][1:] == full
    assert rows[2][1:] == full
    assert rows[1][1:] == (Decimal(1), None, None, None, None, None, None)
    ((columns,),) = world.rows(
        "SELECT count(*) FROM (DESCRIBE SELECT COLUMNS('^note') FROM exact.current_state)", "exact"
    )
    assert columns == 2, "`note` and `Note` are two attributes"


def test_a_type_change_and_a_number_that_grows(world: World) -> None:
    """What the base typed narrowly, the delta makes wider or puts another type into."""
    name = world.make_table("widening")
    world.configure(name)
    for number in range(5):
        world.put(name, f"i{number}", amount={"N": str(number)}, mixed={"N": "1.5"})
    world.bootstrap(name)
    world.put(name, "i0", amount={"N": "0.25"}, mixed={"S": "text"})
    world.put(name, "i1", amount={"N": _DIGITS_38}, mixed={"N": "1E+100"})
    world.put(name, "i9", amount={"N": "1E-100"}, extra={"S": "new"})
    world.capture(name)
    assert_mirrors(world, name)
    merged = world.rows("SELECT pk, CAST(amount AS VARCHAR) FROM widening.current_state", name)
    assert {pk: Decimal(text) for pk, text in merged} == {
        "i0": Decimal("0.25"),
        "i1": Decimal(_DIGITS_38),
        "i2": Decimal(2),
        "i3": Decimal(3),
        "i4": Decimal(4),
        "i9": Decimal("1E-100"),
    }
    world.publish(name)
    assert_mirrors(world, name)
    folded = world.rows("SELECT pk, CAST(amount AS VARCHAR) FROM widening.current_state", name)
    assert sorted(folded) == sorted(merged), "compacting changes no value that people read"


def test_a_second_export_swaps_in(world: World) -> None:
    name = world.make_table("swapped")
    world.configure(name)
    for number in range(20):
        world.put(name, f"i{number}", v={"N": str(number)})
    first = world.bootstrap(name)
    world.delete(name, "i3")
    world.put(name, "i4", v={"S": "before the swap"})
    world.capture(name)
    second = world.snapshot(name)
    assert second.generation == first.generation + 1
    early = world.publish(name)
    assert not early.new_baseline, "changes have not passed the export's time yet"
    assert early.generation == first.generation

    world.delete(name, "i5")
    world.put(name, "i3", v={"S": "after the export"})
    # Readers go on with the first baseline until changes have passed the new export's time.
    world.capture(name)
    assert world.items(name).keys() >= {"i0", "i3", "i4"}
    world.capture_past_handover(name)
    swapped = world.publish(name)
    assert swapped.new_baseline
    assert swapped.generation == second.generation
    assert assert_mirrors(world, name) == 19
    assert world.items(name)["i3"]["v"] == {"S": "after the export"}
    (exported,) = world.rows("SELECT count(*) FROM swapped.pitr_export", name)
    assert exported == (19,), "pitr_export shows the live baseline"

    world.put(name, "i5", v={"S": "again"})
    world.delete(name, "i0")
    world.capture(name)
    assert assert_mirrors(world, name) == 19
    world.publish(name)
    assert assert_mirrors(world, name) == 19
    world.build_cdc(name)
    assert_nothing_twice(world, name)


def test_an_empty_table(world: World) -> None:
    name = world.make_table("nothing_yet")
    world.configure(name)
    world.snapshot(name)
    with pytest.raises(NotReadyError, match="once they have landed up to"):
        world.publish(name)
    world.capture_past_handover(name)
    published = world.publish(name)
    assert published.items == 0
    assert assert_mirrors(world, name) == 0
    assert world.build_cdc(name) == []

    world.put(name, "first", v={"N": "1"})
    world.capture(name)
    assert assert_mirrors(world, name) == 1
    world.delete(name, "first")
    world.capture(name)
    world.publish(name)
    assert assert_mirrors(world, name) == 0
    world.build_cdc(name)
    assert_nothing_twice(world, name)


def test_a_name_with_dashes_dots_and_capitals(world: World) -> None:
    name = world.make_table("My-Shop.Orders_V2")
    world.configure(name)
    world.put(name, "a", v={"N": "1"})
    world.bootstrap(name)
    world.put(name, "b", v={"N": "2"})
    world.capture(name)
    world.build_cdc(name)
    assert assert_mirrors(world, name) == 2
    assert_nothing_twice(world, name)
    assert {view for schema, view in _views(world, name) if schema == "my_shop_orders_v2"} == VIEWS
    assert world.stored("dynamo-cdc/cdc/my_shop_orders_v2/year=")
    assert_no_orphans(world, name)


def test_a_stream_of_new_images_only(world: World) -> None:
    name = world.make_table("new_images", view="NEW_IMAGE")
    world.configure(name)
    world.put(name, "kept", v={"N": "1"})
    world.put(name, "gone", v={"N": "1"})
    world.bootstrap(name)
    world.put(name, "kept", v={"N": "2"})
    world.delete(name, "gone")
    result = world.capture(name)
    assert result.rows == 2
    assert result.quarantined == 0
    assert assert_mirrors(world, name) == 1
    world.publish(name)
    assert assert_mirrors(world, name) == 1
    world.build_cdc(name)
    assert_nothing_twice(world, name)
    assert world.rows("SELECT count(*) FROM new_images.cdc WHERE old_image IS NOT NULL", name) == [
        (0,)
    ]
    current = world.rows("SELECT item_key FROM new_images.history WHERE is_current", name)
    assert current == [('{"pk":{"S":"kept"},"sk":{"N":"1"}}',)]
