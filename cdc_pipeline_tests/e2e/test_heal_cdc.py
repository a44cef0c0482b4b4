"""`cdc` after a heal whose windows reach past the gap: each captured change once, and of what was
lost one line per item and window."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.lake.publish.image_chain import check_chain
from cdc_pipeline.lake.publish.ttl_archive import build_archive_day
from cdc_pipeline.repair.heal import heal_gap, open_gaps
from cdc_pipeline_tests.e2e.mirrored_source import EXPORT, LATE, TABLE, KinesisTwin
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_each_change_once,
    assert_mirrors,
    key,
    make_world,
    quick_sandbox,
)
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.kinesis_server import KinesisSimulator

pytestmark = pytest.mark.slow
_ITEMS = [*(f"k{n}" for n in range(10)), "ttl-head", "ttl-gap", "ttl-tail"]
_WIDE_SECONDS = 3


def _check_cdc(world: World, transport: str, lines: dict[str, str]) -> None:
    """Each captured record as it was captured, and these export lines, by item."""
    columns = "uuid, keys, op, new_image, old_image, event_id, is_ttl_delete, write_time_us"
    cdc = world.rows(f"SELECT {columns}, transport FROM orders.cdc", TABLE)
    captured = world.rows(
        f"SELECT DISTINCT {columns}, transport FROM orders.raw_stream "
        f"WHERE transport = '{transport}'",
        TABLE,
    )
    assert sorted(row for row in cdc if row[-1] == transport) == sorted(captured)
    healed = {_name(row[1]): row for row in cdc if row[-1] != transport}
    assert {name: row[2] for name, row in healed.items()} == lines
    assert len(cdc) == len(captured) + len(lines)
    assert_each_change_once(world, TABLE)


def _name(keys: str) -> str:
    return json.loads(keys)["pk"]["S"]


def _healed_names(world: World) -> set[str]:
    rows = world.rows("SELECT keys FROM orders.raw_stream WHERE transport = 'export'", TABLE)
    return {_name(keys) for (keys,) in rows}


def _ttl_deletes(world: World) -> dict[str, bool | None]:
    rows = world.rows("SELECT keys, is_ttl_delete FROM orders.cdc WHERE op = 'D'", TABLE)
    return {_name(keys): flag for keys, flag in rows if _name(keys).startswith("ttl")}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with quick_sandbox() as process:
        made = make_world(process, tmp_path, "local")
        made.margin_seconds = _WIDE_SECONDS
        made.activate(monkeypatch)
        monkeypatch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)
        made.make_table(TABLE)
        export = {**EXPORT, "bucket": made.bucket, "least_window_minutes": 2 * _WIDE_SECONDS / 60}
        made.configure({"name": TABLE, "ttl_archive": True}, export=export)
        for name in _ITEMS:
            made.put(TABLE, name, n={"N": "0"})
        made.dynamodb.update_time_to_live(
            TableName=TABLE, TimeToLiveSpecification={"Enabled": True, "AttributeName": "ends"}
        )
        made.bootstrap(TABLE)
        yield made


def _expire(world: World, name: str) -> None:
    world.put(TABLE, name, ends={"N": str(int(time.time()) - 60)})
    for _ in range(200):
        if "Item" not in world.dynamodb.get_item(TableName=TABLE, Key=key(name)):
            return
        time.sleep(0.05)
    pytest.fail("TTL deletes nothing")


def _turn_stream(world: World, **specification: Any) -> None:
    world.dynamodb.update_table(TableName=TABLE, StreamSpecification=specification)


def test_streams_records_win_over_lines_of_the_same_changes(world: World) -> None:
    world.put(TABLE, "k0", n={"N": "1"})
    world.put(TABLE, "k0", n={"N": "2"})
    world.delete(TABLE, "k1")
    _expire(world, "ttl-head")
    world.capture(TABLE)
    _turn_stream(world, StreamEnabled=False)
    for name in ("k2", "k3", "k4", "new"):
        world.put(TABLE, name, n={"N": "3"})
    world.delete(TABLE, "k5")
    _expire(world, "ttl-gap")
    _turn_stream(world, StreamEnabled=True, StreamViewType="NEW_AND_OLD_IMAGES")
    world.put(TABLE, "k3", n={"N": "4"})
    world.delete(TABLE, "k4")
    world.put(TABLE, "k6", n={"N": "4"})
    _expire(world, "ttl-tail")
    world.capture(TABLE)
    (gap,) = open_gaps(world.table_lake(TABLE))
    for _ in range(200):
        try:
            heal_gap(world.table_lake(TABLE), gap)
            break
        except NotReadyError:
            world.capture(TABLE)
    world.build_cdc(TABLE)
    assert _healed_names(world) >= {"k3", "k4", "k6", "ttl-tail"}  # the window reached past the gap
    lines = {"k2": "U", "new": "I", "k5": "D", "ttl-gap": "D"}
    _check_cdc(world, "dynamodb_streams", lines)
    assert _ttl_deletes(world) == {"ttl-head": True, "ttl-gap": None, "ttl-tail": True}
    lake, table = world.lake(), world.table(TABLE)
    assert check_chain(lake.table(table), min(world.days(TABLE))).breaks == 0
    for day in world.days(TABLE):
        build_archive_day(lake.table(table), day)
    archived = world.rows("SELECT keys FROM orders.ttl_archive", TABLE)
    assert {_name(keys) for (keys,) in archived} == {"ttl-head", "ttl-tail"}
    world.publish(TABLE)
    assert_mirrors(world, TABLE)


def test_lines_stand_until_the_records_that_land_after_them(world: World) -> None:
    """A heal may be faster than the capture of what its windows end with."""
    world.capture(TABLE)
    _turn_stream(world, StreamEnabled=False)
    world.put(TABLE, "k0", n={"N": "1"})
    world.put(TABLE, "ghost", n={"N": "1"})
    world.delete(TABLE, "ghost")
    _turn_stream(world, StreamEnabled=True, StreamViewType="NEW_AND_OLD_IMAGES")
    world.capture(TABLE)
    world.put(TABLE, "k1", n={"N": "2"})
    world.delete(TABLE, "k2")
    lake, table = world.lake(), world.table(TABLE)
    (gap,) = open_gaps(lake.table(table))
    with pytest.raises(NotReadyError, match="must pass"):
        heal_gap(lake.table(table), gap)
    world.build_cdc(TABLE)
    ops = world.rows("SELECT keys, op FROM orders.cdc WHERE transport = 'export'", TABLE)
    assert {_name(keys): op for keys, op in ops} == {"k0": "U", "k1": "U", "k2": "D"}
    world.capture_past_handover(TABLE)
    for _ in range(200):
        try:
            heal_gap(lake.table(table), gap)
            break
        except NotReadyError:
            world.capture(TABLE)
    world.build_cdc(TABLE)
    _check_cdc(world, "dynamodb_streams", {"k0": "U"})


@pytest.fixture(params=["MICROSECOND", "MILLISECOND"])
def twin(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KinesisTwin]:
    clock = SimulatedClock(time.time() + 30)  # a sandbox may take its time to start
    with quick_sandbox() as sandbox, KinesisSimulator(clock=clock) as simulator:
        made = KinesisTwin(make_world(sandbox, tmp_path, "local"), simulator, clock)
        made.kinesis.set_precision(TABLE, request.param)
        made.world.margin_seconds = _WIDE_SECONDS
        made.activate(monkeypatch)
        for name in _ITEMS:
            made.put(name, n={"N": "0"})
        made.sleep(LATE)
        made.bootstrap()
        yield made


def _delete_by_ttl(twin: KinesisTwin, name: str) -> None:
    twin.sleep(0.0030007)  # a time in µs that ms do not tell
    twin.world.delete(TABLE, name)
    twin.simulator.delete(TABLE, key(name), by_ttl=True)


def test_kinesis_records_win_over_lines_of_the_same_changes(twin: KinesisTwin) -> None:
    kinesis, world = twin.kinesis, twin.world
    kinesis.disturb(TABLE, duplicates=0.3)
    twin.put("k0", n={"N": "1"})
    twin.delete("k1")
    _delete_by_ttl(twin, "ttl-head")
    kinesis.release(TABLE)
    kinesis.skip_next(TABLE, 6)
    for name in ("k2", "k3", "k4", "new"):
        twin.put(name, n={"N": "3"})
    twin.delete("k5")
    _delete_by_ttl(twin, "ttl-gap")
    twin.put("k3", n={"N": "4"})
    twin.delete("k4")
    twin.put("k6", n={"N": "4"})
    _delete_by_ttl(twin, "ttl-tail")
    kinesis.release(TABLE)
    for _ in range(3):
        twin.sleep(200)
        twin.capture()
    assert twin.heal() == 1
    for _ in range(3):
        twin.sleep(LATE)
        twin.capture()
    world.build_cdc(TABLE)
    assert _healed_names(world) >= {"k0", "k1", "k3", "k4", "k6", "ttl-head", "ttl-tail"}
    _check_cdc(world, "kinesis", {"k2": "U", "new": "I", "k5": "D", "ttl-gap": "D"})
    assert _ttl_deletes(world) == {"ttl-head": True, "ttl-gap": None, "ttl-tail": True}
    world.publish(TABLE)
    assert_mirrors(world, TABLE)
