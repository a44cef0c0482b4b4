"""What Kinesis lost, or never got, is healed: afterwards the lake equals its source."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_pipeline_tests.e2e.mirrored_source import LATE, STREAM, TABLE, KinesisTwin
from cdc_pipeline_tests.e2e.test_heal_shards import check_twin
from cdc_pipeline_tests.e2e.world import make_world, quick_sandbox
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.kinesis_server import KinesisSimulator

pytestmark = pytest.mark.slow
HOUR = 3600


@pytest.fixture
def twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KinesisTwin]:
    clock = SimulatedClock(time.time() + 10)
    with quick_sandbox() as sandbox, KinesisSimulator(clock=clock) as simulator:
        made = KinesisTwin(make_world(sandbox, tmp_path, "local"), simulator, clock)
        made.activate(monkeypatch)
        for number in range(10):
            made.put(f"k{number}", n={"N": "0"})
        made.sleep(LATE)
        made.bootstrap()
        yield made


def causes(twin: KinesisTwin) -> list[str]:
    gaps = twin.world.lake().table(twin.world.table(TABLE)).log.load().gaps
    return [gap.cause for gap in gaps.values()]


def test_skipped_and_trimmed_changes_are_healed_and_old_ones_that_come_again_do_no_harm(
    twin: KinesisTwin,
) -> None:
    kinesis = twin.kinesis
    kinesis.disturb(TABLE, duplicates=0.3, late=0.3)
    for number in range(6):
        twin.put(f"k{number}", n={"N": "1"})
    kinesis.release(TABLE)
    first = kinesis.changes(TABLE)[10]
    kinesis.skip_next(TABLE, 3)
    twin.put("k0", n={"N": "2"})
    twin.delete("k1")
    twin.put("new", n={"N": "3"})
    twin.put("k2", n={"N": "4"})
    kinesis.release(TABLE)
    for _ in range(3):
        twin.sleep(200)
        twin.capture()
    assert causes(twin) == ["not replicated"]
    # Behind the gap: what is older than its heal must not be put over it.
    kinesis.again(first)
    twin.capture()
    twin.put("k3", n={"N": "5"})
    kinesis.release(TABLE)
    assert twin.heal() == 1
    twin.sleep(LATE)
    check_twin(twin)

    twin.put("k4", n={"N": "6"})
    twin.delete("k5")
    kinesis.release(TABLE)
    twin.sleep(25 * HOUR)
    kinesis.merge_kinesis(STREAM, *kinesis.open_kinesis(STREAM))
    twin.put("k6", n={"N": "7"})
    kinesis.release(TABLE)
    twin.sleep(LATE)
    twin.capture()
    assert set(causes(twin)) > {"not replicated"}
    kinesis.again(first)
    check_twin(twin)
    assert set(twin.world.items(TABLE)) == {"new", *(f"k{n}" for n in (0, 2, 3, 4, 6, 7, 8, 9))}
