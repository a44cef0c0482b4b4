"""Heals and backfills of a table whose stream has many shards, some lost while others go on."""

import random
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from cdc_pipeline.core.log.coverage import holes
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.upkeep.status import table_status
from cdc_pipeline.repair.backfill import backfill_days
from cdc_pipeline.repair.heal import open_gaps
from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline_tests.e2e.mirrored_source import TABLE, Twin
from cdc_pipeline_tests.e2e.world import (
    assert_each_change_once,
    assert_mirrors,
    make_world,
    quick_sandbox,
)
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.faults import error
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

pytestmark = pytest.mark.slow
HOUR = 3600
_KEYS = [f"k{n}" for n in range(40)]


@pytest.fixture
def seed() -> int:
    return 0


@pytest.fixture
def twin(tmp_path: Path, kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Twin]:
    clock = SimulatedClock(time.time() + 10)
    with (
        quick_sandbox() as sandbox,
        StreamsSimulator(clock=clock, seed=seed) as simulator,
    ):
        made = Twin(make_world(sandbox, tmp_path, kind), simulator, clock, shards=4)
        made.activate(monkeypatch)
        for pk in _KEYS[:20]:
            made.put(pk, n={"N": "0"})
        made.bootstrap()
        yield made


def check_twin(twin: Twin) -> None:
    """Everything is read and healed: the lake equals the source, item by item, nothing twice."""
    world = twin.world
    twin.simulator.faults.clear()
    for _ in range(3):
        twin.sleep(2)
        twin.capture()
        twin.heal()
    assert open_gaps(world.table_lake(TABLE)) == []
    assert holes(table_status(world.table_lake(TABLE)).coverage) == []
    world.publish(TABLE)
    assert_mirrors(world, TABLE)
    world.refresh_cdc(TABLE)  # by the log: nothing tells it which days a heal has changed
    assert_each_change_once(world, TABLE)


def test_one_shard_of_many_is_trimmed_while_the_others_go_on(twin: Twin) -> None:
    unlucky = twin.simulator.open_shards(TABLE)[1]
    twin.simulator.faults.always("GetRecords", error("AccessDeniedException"), shard=unlucky)
    for hour in range(30):
        for n in range(hour % 3, len(_KEYS), 3):
            twin.put(_KEYS[n], n={"N": str(hour)})
        if hour % 2:
            for n in range(hour % 5, len(_KEYS), 5):
                twin.delete(_KEYS[n])
        twin.sleep(HOUR)
        twin.capture()
    twin.simulator.faults.clear()
    twin.capture()
    state = twin.world.lake().table(twin.world.table(TABLE)).log.load()
    assert {shard for gap in state.gaps.values() for shard in gap.shards} == {unlucky}
    before = twin.world.items(TABLE)
    twin.put("k1", n={"N": "1000"})  # behind the gap, and never to be undone by its heal
    twin.sleep(5)
    twin.capture()
    assert twin.world.items(TABLE) == before  # readers stay at the last whole state
    assert twin.heal() == 1
    check_twin(twin)
    assert twin.world.items(TABLE)["k1"]["n"] == {"N": "1000"}


@pytest.mark.parametrize("seed", range(6))
def test_any_story_of_outages_ends_with_no_difference(twin: Twin, seed: int) -> None:
    rng = random.Random(seed)
    simulator = twin.simulator
    for step in range(25):
        for _ in range(rng.choice((0, 1, 5, 20))):
            pk = rng.choice(_KEYS)
            twin.delete(pk) if rng.random() < 0.3 else twin.put(pk, n={"N": str(step)})
            if rng.random() < 0.1:  # an insert and a delete within a window leave no line
                twin.put(pk, ghost={"BOOL": True})
                twin.delete(pk)
        match rng.choice(("capture", "capture", "hours", "outage", "shards", "shard", "heal")):
            case "capture":
                twin.capture()
            case "hours":
                twin.sleep(rng.choice((1, 60, HOUR, 5 * HOUR)))
            case "outage":
                twin.sleep(rng.choice((20, 25, 30, 50)) * HOUR)
            case "shards":
                chosen = rng.choice(simulator.open_shards(TABLE))
                rng.choice((simulator.rotate, simulator.split))(TABLE, chosen)
            case "shard":
                simulator.faults.clear()
                if rng.random() < 0.7:
                    chosen = rng.choice(simulator.open_shards(TABLE))
                    denied = error("AccessDeniedException")
                    simulator.faults.always("GetRecords", denied, shard=chosen)
            case "heal":
                control(twin.world.endpoint_url, fail_exports=rng.choice((0, 0, 1)))
                twin.capture()
                twin.heal(tries=3)
    control(twin.world.endpoint_url, fail_exports=0)
    check_twin(twin)


def test_a_lost_object_of_many_shards_is_landed_again_from_the_stream(twin: Twin) -> None:
    """Its range of positions spans shards, so it holds what other objects hold, too: not twice."""
    for step in range(5):
        for pk in _KEYS[step::2]:
            twin.put(pk, n={"N": str(step)})
        twin.capture()
    world = twin.world
    lake, table = world.lake(), world.table(TABLE)
    landed = "SELECT uuid, order_key, keys, new_image FROM orders.raw_stream ORDER BY ALL"
    before = world.rows(landed, TABLE)
    objects = sorted(lake.table(table).log.load().objects.values(), key=lambda o: o.entry)
    lost = objects[len(objects) // 2]
    assert len(lost.shards) > 1
    lake.store.delete([lost.key])
    day = date.fromisoformat(lost.day)
    (done,) = backfill_days(
        lake.table(table), [day], context=RunContext(sleep=lambda _: twin.sleep(1))
    )
    assert (done.error, done.sources, done.added) == (None, ["stream"], lost.rows)
    assert world.rows(landed, TABLE) == before
    (again,) = backfill_days(
        lake.table(table), [day], context=RunContext(sleep=lambda _: twin.sleep(1))
    )
    assert (again.sources, again.added) == ([], 0)
    check_twin(twin)
