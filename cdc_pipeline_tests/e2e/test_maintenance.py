"""Maintenance on real stores: objects are merged, garbage goes, and the lake equals its source."""

import time

import pytest

from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, assert_nothing_twice

pytestmark = pytest.mark.slow


def test_a_lake_after_maintenance(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_table("orders")
    world.configure("orders")
    for number in range(10):
        world.put("orders", f"k{number}", n={"N": str(number)})
    world.bootstrap("orders")
    for number in range(12):
        world.put("orders", f"k{number % 10}", n={"N": f"{number}.5"})
        world.capture("orders")  # an object each
    world.delete("orders", "k9")
    world.capture("orders")
    world.publish("orders")
    world.build_cdc("orders")
    lake, table = world.lake(), world.table("orders")
    folder = next(iter(lake.table(table).log.load().objects)).rpartition("/")[0]
    orphan = f"{folder}/{1:012d}-{'f' * 16}.parquet"
    lake.store.write(orphan, b"?")
    done = maintain_table(lake.table(table))
    assert done.compaction.before >= 12
    assert done.compaction.after == 1
    assert done.files == 0  # nothing is old enough
    assert assert_mirrors(world, "orders") == 9
    # Three days later: files of now are old, and so are all snapshots but the last.
    later = time.time() + 3 * 24 * 3600

    class Later:
        @staticmethod
        def now(zone):  # type: ignore[no-untyped-def]
            from datetime import datetime

            return datetime.fromtimestamp(later, zone)

    monkeypatch.setattr("cdc_pipeline.lake.upkeep.maintenance.datetime", Later)
    monkeypatch.setattr(
        "cdc_pipeline.lake.storage.log.CaptureLog.now_us", lambda _: int(later * 1e6)
    )
    done = maintain_table(lake.table(table))
    assert done.replaced_removed >= 12
    assert done.files >= 1
    monkeypatch.undo()
    world.activate(monkeypatch)
    assert orphan not in world.landing_files("orders")
    assert world.landing_files("orders") == set(lake.table(table).log.load().objects)
    world.put("orders", "k3", n={"N": "99"})
    world.capture("orders")
    world.publish("orders")
    assert assert_mirrors(world, "orders") == 9
    world.build_cdc("orders")
    assert_nothing_twice(world, "orders")
