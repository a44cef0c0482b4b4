"""Nothing wedges: whatever a killed run left, and whatever became of the world since, there is a
way out.

Each cell leaves one durable state behind, changes the world, and then runs the step again. Where
that ends in an error, the error names a command; that is run, and the step again. In the end the
lake equals its source, compared whole, and an item can be erased.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from cdc_pipeline.capture.shards import drain
from cdc_pipeline.cli import main
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.erase import erase
from cdc_pipeline.erase.erase import erase_item
from cdc_pipeline.reconcile import reconcile
from cdc_pipeline.reconcile.reconcile import reconcile_full
from cdc_pipeline.repair import heal
from cdc_pipeline.repair.heal import open_gaps
from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.sandbox.errors import SandboxError
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.snapshot import export as exports
from cdc_pipeline.snapshot import snapshot
from cdc_pipeline_tests.e2e.damage import Export
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, make_world, quick_sandbox
from cdc_pipeline_tests.log_clock import set_log_clock

pytestmark = pytest.mark.slow
NAME = "orders"
VICTIM = '{"pk": "victim", "sk": 1}'
DAY = 24 * 3600
ROUNDS = 8


class Killed(BaseException):
    """Ends a run where it stands."""


class Time:
    """The sandbox's time, which ticks on when it was moved; nothing of ours sees another one."""

    def __init__(self, endpoint_url: str) -> None:
        self.ahead = 0.0
        self._url = endpoint_url
        self._over = threading.Event()
        self._ticking = threading.Thread(target=self._tick, daemon=True)
        self._ticking.start()

    def now(self) -> float:
        return time.time() + self.ahead

    def pass_by(self, seconds: float) -> None:
        self.ahead += seconds
        self._show()

    def stop(self) -> None:
        self._over.set()
        self._ticking.join()

    def _tick(self) -> None:
        while not self._over.wait(0.05):
            if self.ahead:
                self._show()

    def _show(self) -> None:
        with contextlib.suppress(SandboxError):  # a write may have been later by some µs
            control(self._url, stand_at=int(self.now() * 1_000_000))


@pytest.fixture(scope="module")
def quick() -> Iterator[SandboxProcess]:
    with quick_sandbox() as process:
        yield process


@pytest.fixture(scope="module")
def clock(quick: SandboxProcess) -> Iterator[Time]:
    made = Time(quick.endpoint_url)
    yield made
    made.stop()


@pytest.fixture
def world(
    quick: SandboxProcess, clock: Time, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> World:
    """Ten items and one that has gone since, published; another clock for our runs."""
    made = make_world(quick, tmp_path, "local")
    made.activate(monkeypatch)
    set_log_clock(monkeypatch, clock.now)
    monkeypatch.setattr("cdc_pipeline.core.changes.write_times.clock", clock.now)
    monkeypatch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)
    monkeypatch.setattr("cdc_pipeline.capture.catch_up._POLL_SECONDS", 0.1)
    made.make_table(NAME)
    export = {"bucket": made.bucket, "poll_seconds": 0.05, "least_window_minutes": 1 / 60}
    made.configure(NAME, export=export)
    made.put(NAME, "victim", v={"S": "secret"})
    for number in range(10):
        made.put(NAME, f"k{number}", v={"N": f"{number}.50"})
    made.bootstrap(NAME)
    made.delete(NAME, "victim")
    made.put(NAME, "k0", v={"S": "changed"})
    return made


# What a killed run leaves behind. Each returns the step that was on its way.

Step = Callable[[World], object]


def _export(world: World) -> object:
    return world.snapshot(NAME)


def _compare(world: World) -> object:
    return reconcile_full(world.table_lake(NAME))


def _repair(world: World) -> object:
    return reconcile_full(world.table_lake(NAME), repair=True)


def _heal(world: World) -> object:
    result = CliRunner().invoke(main, ["heal", NAME])
    if isinstance(result.exception, SystemExit) and result.exit_code:
        raise CdcPipelineError(result.output)
    if result.exception:
        raise result.exception
    return None


def _erase(world: World) -> object:
    return erase_item(world.table_lake(NAME), VICTIM)


def _kill(world: World, step: Step, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Run a step, and end it where `owner.name` is called with arguments for which `when` holds."""
    real = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raise Killed
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            step(world)


def _always(*_: Any, **__: Any) -> bool:
    return True


def _after(world: World, step: Step, owner: Any, name: str) -> None:
    """The same behind the call."""
    real = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            step(world)


def _says(name: str) -> Callable[..., bool]:
    return lambda *_, **changes: name in changes


def export_begun(world: World) -> Step:
    _kill(world, _export, snapshot, "request_export", _always)
    return _export


def export_asked(world: World) -> Step:
    _after(world, _export, snapshot, "request_export")
    return _export


def export_written(world: World) -> Step:
    _kill(world, _export, snapshot, "_stage", _always)
    return _export


def export_committed(world: World) -> Step:
    _kill(world, _export, snapshot, "record_baseline", _says("snapshot_id"))
    return _export


def export_staged(world: World) -> Step:
    _export(world)
    return _export


def shadow_begun(world: World) -> Step:
    _kill(world, _compare, snapshot, "request_export", _always)
    return _compare


def shadow_written(world: World) -> Step:
    _kill(world, _compare, snapshot, "_stage", _always)
    return _compare


def shadow_held(world: World) -> Step:
    _kill(world, _compare, reconcile, "compare_with_export", _always)
    return _repair


def shadow_discarding(world: World) -> Step:
    _kill(world, _compare, reconcile, "discard_shadow", _always)
    return _compare


def _gap(world: World) -> None:
    """The stream is off for a while, and nobody looks."""
    world.capture(NAME)
    _turn_stream(world, on=False)
    for number in range(3, 9):
        world.put(NAME, f"k{number}", v={"S": "in the gap"})
    world.delete(NAME, "k9")
    _turn_stream(world, on=True)
    world.capture(NAME)


def heal_planned(world: World) -> Step:
    _gap(world)
    _kill(world, _heal, heal, "request_incremental", _always)
    return _heal


def heal_asked(world: World) -> Step:
    _gap(world)
    _kill(world, _heal, exports, "read_manifest", _always)
    return _heal


def heal_half_landed(world: World) -> Step:
    _gap(world)
    seen: list[int] = []

    def second_object(healing: Any, number: int, window: Any, objects: Any = None) -> bool:
        seen.extend([1] if objects else [])
        return len(seen) > 1

    _kill(world, _heal, heal._Healing, "_move", second_object)
    (begun,) = world.table_lake(NAME).log.load().heals.values()
    assert sum(len(window.files) for window in begun.windows) > 0
    return _heal


def heal_landed(world: World) -> Step:
    _gap(world)
    _kill(world, _heal, heal._Healing, "_require_captured", _always)
    return _heal


def erase_suppressed(world: World) -> Step:
    _kill(world, _erase, erase, "erase_state_rows", _always)
    return _erase


def erase_half_done(world: World) -> Step:
    _after(world, _erase, erase, "erase_landed")
    return _erase


def switch_cut(world: World) -> Step:
    """The table goes over to Kinesis; the cut is logged, and the run ends there."""
    world.client("kinesis").create_stream(StreamName=world.account, ShardCount=1)
    _write_to_kinesis(world)
    table = {
        "name": NAME,
        "transport": "kinesis",
        "kinesis": {"late_seconds": 0, "metric_minutes": 0},
    }
    export = {"bucket": world.bucket, "poll_seconds": 0.05, "least_window_minutes": 1 / 60}
    world.configure(table, export=export)
    _after(world, _capture, drain, "begin_cutover")
    return _capture


def _write_to_kinesis(world: World) -> None:
    found = world.client("kinesis").describe_stream_summary(StreamName=world.account)
    arn = found["StreamDescriptionSummary"]["StreamARN"]
    world.dynamodb.enable_kinesis_streaming_destination(TableName=NAME, StreamArn=arn)


def _capture(world: World) -> object:
    return world.capture(NAME)


# What becomes of the world meanwhile.


def _turn_stream(world: World, on: bool) -> None:
    specification: dict[str, Any] = {"StreamEnabled": on}
    if on:
        specification["StreamViewType"] = "NEW_AND_OLD_IMAGES"
    world.dynamodb.update_table(TableName=NAME, StreamSpecification=specification)


def _turn_recovery(world: World, on: bool) -> None:
    world.dynamodb.update_continuous_backups(
        TableName=NAME,
        PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": on},
    )


def recovery_off_and_on(world: World, clock: Time) -> None:
    _turn_recovery(world, on=False)
    clock.pass_by(2)
    _turn_recovery(world, on=True)


def recovery_off(world: World, clock: Time) -> None:
    _turn_recovery(world, on=False)


def recreated(world: World, clock: Time) -> None:
    world.dynamodb.delete_table(TableName=NAME)
    world.make_table(NAME)
    for number in range(5, 15):
        world.put(NAME, f"k{number}", v={"S": "of the new table"})


def stream_off_and_on(world: World, clock: Time) -> None:
    _turn_stream(world, on=False)
    world.put(NAME, "k1", v={"S": "unseen"})
    world.delete(NAME, "k2")
    _turn_stream(world, on=True)


def _keys(world: World) -> list[str]:
    pages = world.client("s3").get_paginator("list_objects_v2")
    listed = [page.get("Contents", ()) for page in pages.paginate(Bucket=world.bucket)]
    return [found["Key"] for page in listed for found in page if "/AWSDynamoDB/" in found["Key"]]


def files_gone(world: World, clock: Time) -> None:
    _wait_for_exports(world)
    for name in _keys(world):
        world.client("s3").delete_object(Bucket=world.bucket, Key=name)


def data_damaged(world: World, clock: Time) -> None:
    _wait_for_exports(world)
    for name in _keys(world):
        if name.endswith("manifest-summary.json"):
            export = Export(world, name)
            for file in export.files:
                data = export.get(file["dataFileS3Key"])
                export.put(file["dataFileS3Key"], data[: len(data) // 2])


def manifests_damaged(world: World, clock: Time) -> None:
    _wait_for_exports(world)
    for name in _keys(world):
        if name.endswith(("manifest-summary.json", "manifest-files.json")):
            world.client("s3").put_object(Bucket=world.bucket, Key=name, Body=b'{"?')


def forty_days(world: World, clock: Time) -> None:
    _wait_for_exports(world)
    clock.pass_by(40 * DAY)
    world.put(NAME, "k1", v={"S": "forty days later"})


def _wait_for_exports(world: World) -> None:
    def running() -> bool:
        listed = world.dynamodb.list_exports()["ExportSummaries"]
        return any(export["ExportStatus"] == "IN_PROGRESS" for export in listed)

    deadline = time.monotonic() + 120
    while running():
        assert time.monotonic() < deadline
        time.sleep(0.05)


STATES = [
    export_begun,
    export_asked,
    export_written,
    export_committed,
    export_staged,
    shadow_begun,
    shadow_written,
    shadow_held,
    shadow_discarding,
    heal_planned,
    heal_asked,
    heal_half_landed,
    heal_landed,
    erase_suppressed,
    erase_half_done,
    switch_cut,
]
CHANGES = [
    recovery_off_and_on,
    recovery_off,
    recreated,
    stream_off_and_on,
    files_gone,
    data_damaged,
    manifests_damaged,
    forty_days,
]


# The way out.

COMMANDS: dict[str, Step] = {
    r"aws dynamodb update-continuous-backups": lambda world: _turn_recovery(world, on=True),
    r"aws dynamodb enable-kinesis-streaming-destination": _write_to_kinesis,
    r"cdc-pipeline heal orders": _heal,
    r"cdc-pipeline reconcile orders --full --repair": _repair,
    r"job `capture`": _capture,
    r"materialise (orders/)?pitr_export": _export,
    r"materialise (orders/)?current_state": lambda world: world.publish(NAME),
    r"erase again": lambda world: time.sleep(0.2),
}


def get_out(world: World, step: Step) -> None:
    """Run a step; whenever it fails, run what its error names, and the step again."""
    said: list[str] = []
    for _ in range(ROUNDS):
        try:
            step(world)
            return
        except CdcPipelineError as error:
            said.append(str(error))
        named = [run for text, run in COMMANDS.items() if re.search(text, said[-1])]
        assert named, f"no way out is named: {said[-1]}"
        try:
            named[0](world)
        except CdcPipelineError as error:
            said.append(f"(then) {error}")  # the step itself is to name the way from here
    pytest.fail("stuck:\n" + "\n".join(said))


def _settle(world: World) -> None:
    """What the sensors do in the end: capture, heal, publish."""
    lake, table = world.lake(), world.table(NAME)
    for _ in range(ROUNDS):
        get_out(world, _capture)
        if not open_gaps(lake.table(table)):
            break
        get_out(world, _heal)
    else:
        pytest.fail(f"gaps stay open: {open_gaps(lake.table(table))}")
    world.capture_past_handover(NAME)
    world.publish(NAME)


ALL = "CDC_PIPELINE_STORIES" in os.environ
"""Every change in every state takes half an hour (`make test-nightly`); else each change once."""
CELLS = [
    pytest.param(left, change, id=f"{left.__name__}-{change.__name__}")
    for row, left in enumerate(STATES)
    for column, change in enumerate(CHANGES)
    if ALL or (row + column) % 16 == 0
]


@pytest.mark.parametrize(("left", "change"), CELLS)
def test_a_way_out(
    world: World, clock: Time, left: Callable[[World], Step], change: Callable[[World, Time], None]
) -> None:
    step = left(world)
    change(world, clock)
    get_out(world, step)
    world.put(NAME, "later", v={"S": "behind it all"})
    _settle(world)
    assert assert_mirrors(world, NAME) >= 9
    # Windows of two heals may overlap; `cdc` takes the first generation of a repeated identity.
    ((landed, distinct),) = world.rows(
        "SELECT count(*), count(DISTINCT (generation, uuid)) FROM orders.raw_stream", NAME
    )
    assert landed == distinct, "landed twice"
    world.build_cdc(NAME)
    ((rows, distinct),) = world.rows("SELECT count(*), count(DISTINCT uuid) FROM orders.cdc", NAME)
    assert rows == distinct, "twice in cdc"
    get_out(world, _erase)
    assert assert_mirrors(world, NAME) > 0
    get_out(world, _export)
    _settle(world)
    state = world.table_lake(NAME).log.load()
    assert not [b for b in state.baselines.values() if b.snapshot_id is None and not b.discarded]
