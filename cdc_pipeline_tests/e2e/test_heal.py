"""Gaps are healed from incremental exports: afterwards the lake equals its source, item by item."""

import itertools
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cdc_pipeline.cli import main
from cdc_pipeline.core.errors import CannotHealError, ExportError, NotReadyError
from cdc_pipeline.core.log.coverage import holes
from cdc_pipeline.lake.upkeep.status import table_status
from cdc_pipeline.repair import heal
from cdc_pipeline.repair.heal import heal_gap, open_gaps
from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.deployment import deploy, follow
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_nothing_twice,
    make_world,
    quick_sandbox,
)
from cdc_pipeline_tests.log_clock import set_log_clock

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]
HOUR = 3600


@pytest.fixture
def quick() -> Iterator[SandboxProcess]:
    """A sandbox of its own, for its clock is moved; windows of any length."""
    with quick_sandbox() as process:
        yield process


@pytest.fixture
def world(
    quick: SandboxProcess, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> World:
    made = make_world(quick, tmp_path, kind)
    made.activate(monkeypatch)
    monkeypatch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)
    made.make_table("orders")
    export = {**EXPORT, "bucket": made.bucket}
    made.configure("orders", export=export, aggregates="none")
    for number in range(20):
        made.put("orders", f"k{number}", n={"N": str(number)})
    made.bootstrap("orders")
    assert assert_mirrors(made, "orders") == 20
    return made


EXPORT = {"poll_seconds": 0.05, "least_window_minutes": 1 / 60}


def _change_everything(world: World) -> None:
    """Updates, inserts, deletes, and items that come and go, all while nobody looks."""
    for number in range(0, 10):
        world.put("orders", f"k{number}", n={"N": f"{number}.5"})
    for number in range(10, 15):
        world.delete("orders", f"k{number}")
    for number in range(20, 30):
        world.put("orders", f"k{number}", new={"S": "while away"})
    for number in range(25, 30):
        world.delete("orders", f"k{number}")


def _turn_stream(world: World, on: bool) -> None:
    specification = {"StreamEnabled": on}
    if on:
        specification["StreamViewType"] = "NEW_AND_OLD_IMAGES"  # type: ignore[assignment]
    world.dynamodb.update_table(TableName="orders", StreamSpecification=specification)


def _break_continuity(world: World) -> None:
    _turn_stream(world, on=False)
    _change_everything(world)
    _turn_stream(world, on=True)


def _begin_backups_anew(world: World) -> None:
    for enabled in (False, True):
        world.dynamodb.update_continuous_backups(
            TableName="orders",
            PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": enabled},
        )


def _heal(world: World) -> int:
    """Heal what is open, capturing in between as the sensor would; how many gaps there were."""
    lake, table = world.lake(), world.table("orders")
    gaps = open_gaps(lake.table(table))
    for gap in gaps:
        for _ in range(100):
            world.capture("orders")
            try:
                heal_gap(lake.table(table), gap)
                break
            except NotReadyError:
                time.sleep(0.1)
    return len(gaps)


def _check(world: World, *, ahead: bool = False) -> None:
    """`ahead`: the sandbox's clock is days ahead, and days to come have no partition yet."""
    world.capture("orders")
    world.publish("orders")
    assert assert_mirrors(world, "orders") == 20
    if ahead:
        world.refresh_cdc("orders")
    else:
        assert "orders/cdc" in follow(world)
    assert_nothing_twice(world, "orders")


def test_a_stream_turned_off_and_on(world: World) -> None:
    _break_continuity(world)
    world.capture("orders")
    lake, table = world.lake(), world.table("orders")
    (gap,) = open_gaps(lake.table(table))
    # Everything has landed, but capture is not past the end of the window: still frozen.
    with pytest.raises(NotReadyError, match="must pass"):
        heal_gap(lake.table(table), gap)
    assert open_gaps(lake.table(table)) == [gap]
    time.sleep(1.2)  # behind the window, so that only its generation tells that it is newer
    world.put("orders", "k3", n={"N": "99"})
    before = world.publish("orders")
    assert before.open_gaps == 1
    assert before.items == 20  # the state before the gap, whole
    assert world.rows("SELECT n FROM orders.current_state WHERE pk = 'k1'", "orders") == [(1,)]
    assert _heal(world) == 1
    assert open_gaps(lake.table(table)) == []
    _check(world)
    assert _heal(world) == 0


def test_an_outage_of_thirty_hours(
    quick: SandboxProcess, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def now() -> float:
        return control(quick.endpoint_url)["now_micros"] / 1_000_000

    set_log_clock(monkeypatch, now)
    monkeypatch.setattr("cdc_pipeline.core.changes.write_times.clock", lambda: 4e9)
    _change_everything(world)
    control(quick.endpoint_url, stand_at=int((now() + 30 * HOUR) * 1_000_000))
    world.put("orders", "k19", s={"S": "back"})
    world.capture("orders")
    assert [gap.cause for gap in open_gaps(world.table_lake("orders"))]
    control(quick.endpoint_url, stand_at=int((now() + 10) * 1_000_000))
    assert _heal(world) == 1
    heals = world.table_lake("orders").log.load().heals.values()
    assert [len(heal.windows) for heal in heals] == [2]  # 30 hours are more than one may cover
    _check(world, ahead=True)


def test_an_insert_that_landed_and_a_delete_that_was_lost(world: World) -> None:
    """The ghost rule: within one window the two leave no line in an export."""
    world.capture("orders")
    world.put("orders", "ghost", n={"N": "1"})
    world.capture("orders")
    _turn_stream(world, on=False)
    world.delete("orders", "ghost")
    _change_everything(world)
    _turn_stream(world, on=True)
    world.capture("orders")
    assert _heal(world) == 1
    _check(world)


def test_exports_that_fail_are_asked_for_anew(quick: SandboxProcess, world: World) -> None:
    _break_continuity(world)
    world.capture("orders")
    lake, table = world.lake(), world.table("orders")
    (gap,) = open_gaps(lake.table(table))
    control(quick.endpoint_url, fail_exports=2)
    for _ in range(2):
        with pytest.raises(ExportError, match="failed"):
            heal_gap(lake.table(table), gap)
    assert _heal(world) == 1
    _check(world)


def test_killed_at_every_durable_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object and each log entry of a heal in turn is the last thing that a run wrote."""

    class Killed(BaseException):
        pass

    _break_continuity(world)
    world.capture("orders")
    lake, table = world.lake(), world.table("orders")
    (gap,) = open_gaps(lake.table(table))
    left, last = 0, set()

    def dying(method: str) -> None:
        real = getattr(lake.store, method)

        def write(key: str, data: bytes) -> object:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            last.add("heal" if "heal-" in key else "log")
            return real(key, data)

        monkeypatch.setattr(lake.store, method, write)

    for method in ("write", "create"):
        dying(method)
    kills = 0
    # An object that no entry names is written anew, so that one write per run would never do.
    for limit in itertools.cycle((0, 1, 2, 3)):
        left = limit
        try:
            heal_gap(lake.table(table), gap)
            break
        except Killed:
            kills += 1
        except NotReadyError:
            left = 1000
            world.capture("orders")
    assert kills > 8
    assert last == {"heal", "log"}
    left = 1000
    assert open_gaps(lake.table(table)) == []
    _check(world)


def test_of_two_heals_at_once_the_slower_one_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was overtaken while it landed its first file: what that held is there already."""
    _break_continuity(world)
    world.capture("orders")
    time.sleep(1.2)
    world.capture("orders")
    lake, table = world.lake(), world.table("orders")
    (gap,) = open_gaps(lake.table(table))
    real, faster = heal._Healing._land, []

    def land(self: Any, changes: Any) -> Any:
        objects = real(self, changes)
        if not faster:
            faster.append(None)
            faster[0] = heal_gap(lake.table(table), gap)
        return objects

    monkeypatch.setattr(heal._Healing, "_land", land)
    slower = heal_gap(lake.table(table), gap)
    assert faster[0].gaps == slower.gaps == (gap.entry,)
    assert open_gaps(lake.table(table)) == []
    assert world.landing_files("orders") == set(lake.table(table).log.load().objects)
    _check(world)


def test_the_command_takes_a_new_baseline_where_backups_do_not_reach(world: World) -> None:
    """As the job does; `--plan` says so and does nothing."""
    _break_continuity(world)
    _begin_backups_anew(world)
    world.capture("orders")
    plan = CliRunner().invoke(main, ["heal", "orders", "--plan"])
    assert plan.exit_code == 0, plan.output
    assert "A full export will become a new baseline" in plan.output
    assert len(world.table_lake("orders").log.load().baselines) == 1
    done = CliRunner().invoke(main, ["heal", "orders"])
    assert done.exit_code == 0, done.output
    assert "a new baseline of 20 items" in done.output
    world.capture_past_handover("orders")
    world.publish("orders")
    assert open_gaps(world.table_lake("orders")) == []
    assert assert_mirrors(world, "orders") == 20


def test_what_backups_do_not_reach_needs_a_new_baseline(world: World) -> None:
    _break_continuity(world)
    _begin_backups_anew(world)
    world.capture("orders")
    lake, table = world.lake(), world.table("orders")
    (gap,) = open_gaps(lake.table(table))
    with pytest.raises(CannotHealError, match=r"does not reach back(.|\n)*orders/pitr_export"):
        heal_gap(lake.table(table), gap)
    world.bootstrap("orders")
    assert open_gaps(lake.table(table)) == []
    assert assert_mirrors(world, "orders") == 20


def test_time_travel_says_where_a_heal_knows_only_the_end(world: World) -> None:
    from cdc_pipeline.lake.query.connection import connect_lake
    from cdc_pipeline.lake.query.time_travel import parse_moment

    _break_continuity(world)
    world.capture("orders")
    assert _heal(world) == 1
    time.sleep(1.1)
    world.capture("orders")
    gap = next(iter(world.table_lake("orders").log.load().gaps.values()))
    inside = parse_moment(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(gap.to_us // 10**6)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connect_lake(world.lake(), ["orders"], as_of=inside).close()
    # So close to the first export there may be another one about that.
    assert any("is in a gap that was healed" in str(warning.message) for warning in caught)


def test_history_and_ledger_say_where_only_the_end_is_known(world: World) -> None:
    _break_continuity(world)
    world.put("orders", "k0", n={"N": "1"})
    world.capture("orders")
    before = table_status(world.table_lake("orders"))
    assert [s.means for s in holes(before.coverage)] == ["lost"]
    assert _heal(world) == 1
    world.capture("orders")
    follow(world)
    healed = table_status(world.table_lake("orders")).coverage
    assert [s.means for s in healed] == ["export", "stream", "heal", "stream", "unread"]
    assert [(s.from_us, s.to_us) for s in healed if s.means == "heal"] == [
        (s.from_us, s.to_us) for s in holes(before.coverage)
    ]
    collapsed = world.rows(
        "SELECT item_key, op FROM orders.history WHERE is_collapsed ORDER BY ALL", "orders"
    )
    ops = {json.loads(key)["pk"]["S"]: op for key, op in collapsed}
    # k0 was written behind the gap: whether the last window still holds it depends on the second.
    assert {k: op for k, op in ops.items() if k != "k0"} == {
        **{f"k{n}": "U" for n in range(1, 10)},
        **{f"k{n}": "D" for n in range(10, 15)},
        **{f"k{n}": "I" for n in range(20, 25)},
    }


def _heal_in_dagster(world: World) -> None:
    """The job as `gap_sensor` starts it, as often as it asks; then capture and publish."""
    with deploy(world) as deployment:
        for _ in range(20):
            (request,) = deployment.tick("gap_sensor").run_requests
            assert deployment.run_job("heal", request.run_config).success
            world.capture("orders")
            if not open_gaps(world.table_lake("orders")):
                break
        assert deployment.tick("gap_sensor").run_requests in (None, [])
    world.capture_past_handover("orders")
    world.publish("orders")


def test_a_table_that_says_ask_is_told_command_and_price_and_left_alone(world: World) -> None:
    export = {**EXPORT, "bucket": world.bucket}
    world.configure({"name": "orders", "heal": "ask"}, export=export, aggregates="none")
    _break_continuity(world)
    world.capture("orders")
    with deploy(world) as deployment:
        tick = deployment.tick("gap_sensor")
    assert not tick.run_requests
    assert "cdc-pipeline heal orders (gaps of entries" in tick.skip_message
    assert "1 incremental exports, about USD 0.001" in tick.skip_message
    assert len(open_gaps(world.table_lake("orders"))) == 1


def test_the_job_heals_from_incremental_exports(world: World) -> None:
    _break_continuity(world)
    world.capture("orders")
    _heal_in_dagster(world)
    state = world.table_lake("orders").log.load()
    assert [heal.healed for heal in state.heals.values()] == [True]
    assert len(state.baselines) == 1
    _check(world)


def test_the_job_takes_a_new_baseline_of_a_table_that_was_made_again(world: World) -> None:
    world.dynamodb.delete_table(TableName="orders")
    world.make_table("orders")
    for number in range(15, 35):
        world.put("orders", f"k{number}", again={"BOOL": True})
    world.capture("orders")
    (gap,) = open_gaps(world.table_lake("orders"))
    assert gap.cause == "table recreated"
    _heal_in_dagster(world)
    # Also those are gone that no export and no stream tells the deletion of.
    assert assert_mirrors(world, "orders") == 20
    assert sorted(world.items("orders")) == [f"k{number}" for number in range(15, 35)]


def test_the_job_takes_a_new_baseline_where_backups_do_not_reach(world: World) -> None:
    _break_continuity(world)
    _begin_backups_anew(world)
    world.capture("orders")
    _heal_in_dagster(world)
    assert assert_mirrors(world, "orders") == 20
    assert len(world.table_lake("orders").log.load().baselines) == 2


def test_the_command_tells_its_plan_and_its_price_first(world: World) -> None:
    def command(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["heal", "orders", *arguments])

    assert command("--plan").output == "orders: no open gap\n"
    _break_continuity(world)
    world.capture("orders")
    before = world.table_lake("orders").log.load()
    plan = command("--plan")
    assert plan.exit_code == 0, plan.output
    assert "1 incremental exports, about USD 0.001" in plan.output  # the least that AWS bills
    assert world.table_lake("orders").log.load() == before
    output = ""
    while "healed with" not in output:  # it asks for a capture until that is past the gap
        world.capture("orders")
        output = command().output
    _check(world)


def test_the_command_takes_a_new_baseline_of_a_restored_table(world: World) -> None:
    """Restored under another name; `status` names each step, and `history` ends in its items."""

    def fix() -> str:
        (said,) = table_status(world.table_lake("orders-restored")).fixes.values()
        return said

    world.build_cdc("orders")
    world.make_table("orders-restored", view=None)
    for number in range(15, 22):
        world.put("orders-restored", f"k{number}", restored={"BOOL": True})
    stream = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    world.dynamodb.update_table(TableName="orders-restored", StreamSpecification=stream)
    export = {**EXPORT, "bucket": world.bucket}
    table = {"name": "orders-restored", "alias": "orders"}
    world.configure(table, export=export, aggregates="none")
    world.capture("orders-restored")
    assert "cdc-pipeline heal orders (by a full export" in fix()
    done = CliRunner().invoke(main, ["heal", "orders"])
    assert done.exit_code == 0, done.output
    assert "a new baseline of 7 items" in done.output
    assert "job `capture`, then materialise orders/current_state" in fix()
    world.capture_past_handover("orders-restored")
    world.publish("orders-restored")
    assert table_status(world.table_lake("orders-restored")).fixes == {}
    world.refresh_cdc("orders-restored")
    ended = "SELECT item_key, item FROM orders.history WHERE is_current ORDER BY 1"
    items = "SELECT _key, _item FROM orders.current_state ORDER BY 1"
    assert assert_mirrors(world, "orders-restored") == 7
    assert world.rows(ended, "orders-restored") == world.rows(items, "orders-restored")
