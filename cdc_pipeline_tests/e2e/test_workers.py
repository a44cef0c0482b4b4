"""Baselines by workers equal those of one process, row by row; killed ones are finished."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cdc_pipeline.core.errors import ExportError
from cdc_pipeline.core.log.entries import Gap
from cdc_pipeline.lake.storage import sorted_parts
from cdc_pipeline.lake.upkeep.verify import verify_files
from cdc_pipeline.repair import landing_parts
from cdc_pipeline.repair.heal import heal_gap
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.snapshot import parts
from cdc_pipeline.spark.job.tasks import Work
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_nothing_twice,
    make_world,
    quick_sandbox,
)
from cdc_pipeline_tests.spark.in_process import distributed_here, workers_here

pytestmark = pytest.mark.slow

NAME = "orders"
ITEMS = 700


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with quick_sandbox() as process:
        yield process


@pytest.fixture(params=["s3", "local"])
def world(
    request: pytest.FixtureRequest,
    sandbox: SandboxProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    world = make_world(sandbox, tmp_path, request.param)
    world.activate(monkeypatch)
    world.make_table(NAME)
    world.configure(NAME, engine="spark")
    monkeypatch.setattr(parts, "_RANGE_BYTES", 20_000)
    monkeypatch.setattr(parts, "_SLICE_BYTES", 1)
    monkeypatch.setattr(sorted_parts, "_OBJECT_BYTES", 4_000)
    return world


def fill(world: World, seed: int) -> None:
    """Items of several types under one name, wide ones, large ones, and odd keys."""
    rng = random.Random(seed)
    values = [
        {"N": "1"},
        {"N": "-12.50"},
        {"N": "1E+20"},
        {"S": 'a"\\\n\x01ü\U0001f600'},
        {"NULL": True},
        {"SS": ["b", "a"]},
        {"L": [{"M": {"z": {"N": "2"}}}]},
        {"B": b"\x01\x02"},
    ]
    with_puts: list[dict[str, Any]] = []
    for number in range(ITEMS):
        pk = rng.choice(["a", "ä", "\U0001f600", "", " "]) + f"{number:05}"
        item = {"pk": {"S": pk}, "sk": {"N": str(number % 3)}}
        item |= {name: rng.choice(values) for name in rng.sample("abcdefgh", 5)}
        if number % 90 == 7:
            item |= {f"wide{n:03}": {"N": str(n)} for n in range(60)}
        if number == 11:
            item |= {"large": {"S": "x" * 390_000}}
        with_puts.append({"PutRequest": {"Item": item}})
    for start in range(0, len(with_puts), 20):
        batch = with_puts[start : start + 20]
        world.dynamodb.batch_write_item(RequestItems={NAME: batch})


def exported(world: World) -> pa.Table:
    table = world.table_lake(NAME).iceberg("snapshot")
    assert table is not None
    return table.scan().to_arrow()


def use_workers(world: World, **options: Any) -> None:
    world.lake().workers_of = lambda table: workers_here(table, **options)


def test_a_baseline_by_workers_equals_that_of_one_process(world: World) -> None:
    fill(world, seed=5)
    world.snapshot(NAME)
    alone = exported(world)
    use_workers(world)
    world.snapshot(NAME)
    handle = world.table_lake(NAME)
    table = handle.iceberg("snapshot")
    assert table is not None
    together = exported(world)
    assert len(alone) == ITEMS
    # Baselines differ in generation and time.
    own = ["_order_key", "_write_time_us"]
    assert together.schema.names == alone.schema.names
    assert together.drop_columns(own) == alone.drop_columns(own)
    assert together["_key"].to_pylist() == sorted(together["_key"].to_pylist(), key=str.encode)
    files = list(table.scan().plan_files())
    assert len(files) > 3
    assert not world.stored(handle.paths.staging)
    world.capture_past_handover(NAME)
    world.publish(NAME)
    assert assert_mirrors(world, NAME) == ITEMS
    assert verify_files(handle, content=True).damages == []


def test_an_empty_table_is_a_baseline_without_files(world: World) -> None:
    use_workers(world)
    world.snapshot(NAME)
    assert len(exported(world)) == 0
    world.put(NAME, "first")
    world.capture_past_handover(NAME)
    world.publish(NAME)
    assert assert_mirrors(world, NAME) == 1


class Killed(BaseException):
    """As if the process ended: not handled by anything."""


def test_killed_runs_are_continued(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(world, seed=6)
    done: list[str] = []

    def counted(work: Work, *rest: Any) -> list[Any]:
        done.append(work.request.task)
        return distributed_here(work, *rest)

    use_workers(world, distribute=counted)
    tables = type(world.lake().iceberg)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "replace", _killed)
        with pytest.raises(Killed):
            world.snapshot(NAME)
    assert done == [parts.CONVERT, parts.WRITE]
    # A run that does the same finds both answers.
    world.snapshot(NAME)
    assert done == [parts.CONVERT, parts.WRITE]
    assert len(exported(world)) == ITEMS
    assert verify_files(world.table_lake(NAME), content=True).damages == []


def _killed(*_: Any, **__: Any) -> None:
    raise Killed


def test_errors_of_tasks_are_those_of_one_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world, seed=7)
    use_workers(world)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "convert_part", None)
        patch.setitem(_tasks(), parts.CONVERT, _refuse)
        with pytest.raises(ExportError, match="no such file"):
            world.snapshot(NAME)
    world.snapshot(NAME)
    assert len(exported(world)) == ITEMS


def test_a_gap_is_healed_by_workers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another stream of the table is a gap; its changes come from an incremental export."""
    exports = {"bucket": world.bucket, "poll_seconds": 0.05, "least_window_minutes": 0.02}
    world.configure(NAME, engine="spark", export=exports)
    for number in range(30):
        world.put(NAME, f"k{number}")
    world.bootstrap(NAME)
    off = {"StreamEnabled": False}
    world.dynamodb.update_table(TableName=NAME, StreamSpecification=off)
    for number in range(20):
        world.put(NAME, f"k{number}", new={"N": str(number)})
    world.delete(NAME, "k29")
    time.sleep(1.1)
    on = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    world.dynamodb.update_table(TableName=NAME, StreamSpecification=on)
    world.put(NAME, "after")
    done: list[str] = []

    def counted(work: Work, *rest: Any) -> list[Any]:
        done.extend([work.request.task] * len(work.request.arguments))
        return distributed_here(work, *rest)

    world.capture(NAME)
    handle = world.table_lake(NAME)
    (gap,) = handle.log.load().open_gaps()
    use_workers(world, distribute=counted)
    with monkeypatch.context() as patch:
        patch.setitem(_tasks(), landing_parts.LAND, _unreachable)
        with pytest.raises(ExportError, match="cannot be reached"):
            _heal(world, gap)
    # An error of a service does not cost another export.
    assert [w.attempt for w in handle.log.load().heals[gap.entry].windows] == [0]
    done.clear()
    _heal(world, gap)
    assert done.count(landing_parts.LAND) == 4
    assert handle.log.load().open_gaps() == []
    world.capture(NAME)
    world.publish(NAME)
    assert assert_mirrors(world, NAME) == 30
    world.build_cdc(NAME)
    assert_nothing_twice(world, NAME)
    assert not world.stored(handle.paths.work)


def _heal(world: World, gap: Gap) -> None:
    """As soon as capture has passed the window of its export."""
    handle = world.table_lake(NAME)
    deadline = time.monotonic() + 60
    while handle.log.load().watermark_us <= gap.to_us + 1_500_000:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        world.capture(NAME)
    heal_gap(handle, gap)


def _unreachable(*_: Any) -> Any:
    try:
        raise OSError
    except OSError as error:
        raise ExportError("S3 cannot be reached") from error


def _tasks() -> Any:
    from cdc_pipeline.spark.job import tasks

    return tasks._TASKS


def _refuse(*_: Any) -> Any:
    raise ExportError("no such file")
