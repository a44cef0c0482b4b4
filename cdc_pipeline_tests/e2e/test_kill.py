"""SIGKILL at every durable operation of every step: run again, and nothing shows of it.

Right after one operation and right before the next are one state of the lake, but for files that
nothing names yet. Where a repetition takes long (in S3, snapshots, captures) a step is therefore
killed once in every gap; elsewhere right before and right after each operation.
"""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cdc_pipeline.lake.storage.log_memory import MEMORY
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.checkpoint import Checkpoint
from cdc_pipeline_tests.e2e.killer import AFTER, BEFORE, Killer
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_no_orphans,
    assert_nothing_twice,
    few_items_are_many,
    make_world,
)

pytestmark = pytest.mark.slow

NAME = "killed"


@dataclass
class Scene:
    """A world, its lake at several moments, and a process whose children die there."""

    world: World
    killer: Killer
    moments: dict[str, Checkpoint]


@pytest.fixture(scope="module")
def scenes() -> Iterator[dict[str, Scene]]:
    """The scenes made so far, by kind of lake: preparing one takes longer than most tests."""
    made: dict[str, Scene] = {}
    try:
        yield made
    finally:
        for scene in made.values():
            scene.killer.close()


@pytest.fixture
def scene(
    kind: str,
    scenes: dict[str, Scene],
    sandbox: SandboxProcess,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    if kind in scenes:
        scenes[kind].world.activate(monkeypatch)
        return scenes[kind]
    world = make_world(sandbox, tmp_path_factory.mktemp(kind), kind)
    world.activate(monkeypatch)
    world.make_table(NAME)
    # Few rows per object, so that one capture makes several entries.
    capture = {"poll_seconds": 0.01, "empty_polls": 1, "flush_rows": 3, "listing_lag_seconds": 0}
    world.configure(NAME, capture=capture, current_state={"fold_percent": 1000})
    moments = _moments(world)
    scenes[kind] = Scene(world, Killer(world), moments)
    return scenes[kind]


def _moments(world: World) -> dict[str, Checkpoint]:
    """Walk through the pipeline once; what comes later in the source is only news to a lake."""
    moments: dict[str, Checkpoint] = {}

    def here(*names: str) -> None:
        moments.update(dict.fromkeys(names, Checkpoint.take(world)))

    here("first snapshot")
    for number in range(6):
        world.put(NAME, f"i{number}", v={"N": str(number)})
    world.snapshot(NAME)
    world.delete(NAME, "i5")
    here("first capture")
    world.capture_past_handover(NAME)
    here("first publish", "first cdc")
    world.publish(NAME)
    world.build_cdc(NAME)
    for number in range(4):
        world.put(NAME, f"i{number}", v={"S": f"changed {number}"})
    world.delete(NAME, "i0")
    world.delete(NAME, "i1")
    world.put(NAME, "i1", v={"S": "again"})
    world.put(NAME, "new", v={"N": "1E-130"})
    here("later capture")
    world.capture(NAME)
    here("later publish", "later cdc")
    world.publish(NAME)
    world.build_cdc(NAME)
    here("later snapshot")
    world.snapshot(NAME)
    world.put(NAME, "i2", v={"S": "after the second export"})
    world.delete(NAME, "i3")
    world.capture_past_handover(NAME)
    here("swap")
    return moments


def _finish(world: World, step: str) -> None:
    """What the next runs do: the step that was killed again, then what is behind it."""
    again: dict[str, Callable[[str], Any]] = {
        "snapshot": world.snapshot,
        "capture": world.capture,
        "publish": world.publish,
        "cdc": world.build_cdc,
    }
    if step in ("row delta", "merge"):
        with few_items_are_many(merging=step == "merge"):
            world.publish(NAME)
            world.capture_past_handover(NAME)
            world.publish(NAME)
        assert_mirrors(world, NAME)
        step = "publish"
    again[step](NAME)
    world.capture_past_handover(NAME)
    if step in ("snapshot", "capture"):
        world.publish(NAME)
    if step != "publish":
        # The capture before it brought what the source has since.
        world.build_cdc(NAME)


def _verify(world: World, step: str) -> None:
    assert_no_orphans(world, NAME)
    if step != "cdc":
        assert_mirrors(world, NAME)
    if step in ("snapshot", "capture", "cdc"):
        assert_nothing_twice(world, NAME)


def _points(operations: int, *, both_sides: bool) -> list[tuple[int, str]]:
    if both_sides:
        return [(n, when) for n in range(1, operations + 1) for when in (BEFORE, AFTER)]
    return [*((n, BEFORE) for n in range(1, operations + 1)), (operations, AFTER)]


# Which operations each moment must at least go through: a test that kills nowhere proves nothing.
_SNAPSHOT = {"request export": 1, "create _cdc/": 3, "Iceberg commit": 1}
_CAPTURE = {"write dynamo-cdc/": 2, "create _cdc/": 2}
_FIRST_PUBLISH = {"create Iceberg table": 2, "Iceberg commit": 2}
_PUBLISH = {"Iceberg commit": 2}
LOCAL = [
    ("first snapshot", "snapshot", _SNAPSHOT),
    ("later snapshot", "snapshot", _SNAPSHOT),
    ("first capture", "capture", _CAPTURE),
    ("later capture", "capture", _CAPTURE),
    ("first publish", "publish", _FIRST_PUBLISH),
    ("later publish", "publish", _PUBLISH),
    ("later publish", "row delta", _PUBLISH),
    ("later publish", "merge", _PUBLISH),
    ("swap", "publish", _PUBLISH),
    ("first cdc", "cdc", {"create Iceberg table": 1, "Iceberg commit": 2}),
    ("later cdc", "cdc", {"Iceberg commit": 1}),
]
# What differs in S3 is how an entry and a commit are made atomic; test_killed_again_and_again goes
# through every operation of every step there too.
_IN_S3 = ("later capture", "first publish", "swap", "first cdc")
S3 = [m for m in LOCAL if m[0] in _IN_S3]
CASES = [("s3", *moment) for moment in S3] + [("local", *moment) for moment in LOCAL]


@pytest.mark.parametrize(
    ("kind", "moment", "step", "at_least"),
    CASES,
    ids=[f"{kind}-{moment}-{step}" for kind, moment, step, _ in CASES],
    indirect=["kind"],
)
def test_killed_anywhere(scene: Scene, moment: str, step: str, at_least: dict[str, int]) -> None:
    world, checkpoint = scene.world, scene.moments[moment]
    checkpoint.restore()
    whole = scene.killer.run(step, NAME)
    assert (whole.signal, whole.code) == (None, 0), whole.error
    for label, count in at_least.items():
        assert sum(op.startswith(label) for op in whole.operations) >= count, whole.operations
    both_sides = world.kind == "local" and step in ("publish", "cdc")
    for number, when in _points(len(whole.operations), both_sides=both_sides):
        checkpoint.restore()
        killed = scene.killer.run(step, NAME, kill_at=number, when=when)
        where = f"{when} operation {number}, {killed.operations[-1]}"
        assert killed.signal == signal.SIGKILL, f"{where}: {killed.error}"
        try:
            _finish(world, step)
            _verify(world, step)
        except Exception as error:
            error.add_note(f"killed {where}")
            raise


def test_killed_again_and_again(scene: Scene) -> None:
    """Each attempt at everything dies one operation later than the one before."""
    world = scene.world
    scene.moments["first snapshot"].restore()
    for step in ("snapshot", "capture", "publish", "cdc"):
        for number in range(1, 40):
            outcome = scene.killer.run(step, NAME, kill_at=number, when=AFTER)
            if outcome.signal is None:
                assert outcome.code == 0, outcome.error
                break
        else:
            pytest.fail(f"{step} never finished")
        if step == "capture":
            world.capture_past_handover(NAME)
    _finish(world, "capture")
    _verify(world, "capture")


def test_a_kill_is_seen_by_the_checks(scene: Scene) -> None:
    """The proof of these tests: a lake that did lose or double something does not pass."""
    world = scene.world
    scene.moments["later publish"].restore()
    _finish(world, "publish")
    stray = next(iter(world.landing_files(NAME)))
    lake = world.lake()
    data = lake.store.read(stray)
    assert data is not None
    folder, _, name = stray.rpartition("/")
    lake.store.write(f"{folder}/{name[:12]}-{'0' * 16}.parquet", data)
    # Orphans are looked for behind a run that did not end well.
    lake.store.delete([world.table_lake(NAME).paths.heartbeat])
    MEMORY.clear()
    with pytest.raises(AssertionError):
        assert_no_orphans(world, NAME)
    world.capture(NAME)
    assert_no_orphans(world, NAME)
