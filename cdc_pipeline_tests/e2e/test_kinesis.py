"""A table that comes through Kinesis, in the sandbox: handover, losses, repairs, switches."""

import time
from collections.abc import Callable, Iterator
from datetime import date

import pytest
from click.testing import CliRunner

from cdc_pipeline.cli import main
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.lake.upkeep.status import table_status
from cdc_pipeline.repair.backfill import backfill_days
from cdc_pipeline.repair.heal import heal_all
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    make_world,
    quick_sandbox,
)

pytestmark = pytest.mark.slow

_KINESIS = {"late_seconds": 0, "metric_minutes": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch, quick_sandbox() as process:
        made = make_world(process, tmp_path_factory.mktemp("kinesis"), "local")
        made.activate(patch)
        # A minute is a second, for those who look for losses.
        patch.setattr("cdc_pipeline.capture.landing.replication_losses._MINUTE_US", 1_000_000)
        patch.setattr("cdc_pipeline.capture.landing.replication_losses._COUNT_EVERY_US", 1_000_000)
        patch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)
        made.make_table("orders")
        time.sleep(1)  # so that recovery reaches back to the whole second in which capture begins
        made.client("kinesis").create_stream(StreamName="changes", ShardCount=2)
        _turn_destination(made, on=True)
        _configure(made, "kinesis")
        for number in range(20):
            made.put("orders", f"k{number}", n={"N": f"{number}.50"}, b={"B": b"\x12\x02\x08\x7b"})
        made.bootstrap("orders")
        yield made


def _configure(world: World, transport: str) -> None:
    table = {"name": "orders", "transport": transport, "kinesis": _KINESIS}
    export = {"poll_seconds": 0.05, "least_window_minutes": 1 / 60, "bucket": world.bucket}
    world.configure(table, export=export)


def _turn_destination(world: World, *, on: bool) -> None:
    stream = world.client("kinesis").describe_stream_summary(StreamName="changes")
    where = {
        "TableName": "orders",
        "StreamArn": stream["StreamDescriptionSummary"]["StreamARN"],
    }
    if on:
        world.dynamodb.enable_kinesis_streaming_destination(
            **where,
            EnableKinesisStreamingConfiguration={
                "ApproximateCreationDateTimePrecision": "MICROSECOND"
            },
        )
    else:
        world.dynamodb.disable_kinesis_streaming_destination(**where)


def _capture_until(world: World, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        world.capture("orders")


def _check(world: World) -> int:
    now_us = time.time_ns() // 1000
    log = world.table_lake("orders").log
    _capture_until(world, lambda: log.load().watermark_us >= now_us)
    world.publish("orders")
    world.build_cdc("orders")
    # A heal lands changes that had landed, which are the same ones here.
    ((rows, changes),) = world.rows(
        "SELECT count(*), count(DISTINCT uuid) FROM orders.cdc", "orders"
    )
    assert rows == changes
    return assert_mirrors(world, "orders")


def test_the_export_hands_over_to_kinesis(world: World) -> None:
    for number in range(10):
        world.put("orders", f"k{number}", n={"N": f"{number}.75"}, b={"B": b""})
    world.delete("orders", "k19")
    assert _check(world) == 19
    assert world.rows("SELECT DISTINCT transport FROM orders.raw_stream", "orders") == [
        ("kinesis",)
    ]


def test_a_record_that_was_not_replicated_is_healed_from_an_export(world: World) -> None:
    large = {"B": b"\x00" * 390_000}
    world.put("orders", "k1", large=large)
    world.put("orders", "k1", large=large, n={"N": "7"})  # both images are more than Kinesis takes
    lake, table = world.lake(), world.table("orders")
    _capture_until(world, lambda: bool(lake.table(table).log.load().gaps))
    status = table_status(lake.table(table))
    assert [str(gap) for gap in status.gaps] == ["not replicated"]
    assert [s.note for s in status.coverage if s.means == "lost"] == ["not replicated"]
    shown = CliRunner().invoke(main, ["status", "orders"])
    assert "not replicated, changes from" in " ".join(shown.output.split())
    world.put("orders", "k2", n={"N": "8"})
    world.capture("orders")
    time.sleep(1)  # the heal's windows end in whole seconds
    world.capture("orders")
    (healed,) = heal_all(lake.table(table))
    assert healed.lines >= 1
    assert _check(world) == 19
    assert world.items("orders")["k1"]["n"] == {"N": "7"}
    assert not table_status(lake.table(table)).gaps


def test_a_lost_object_is_landed_again_from_kinesis(world: World) -> None:
    lake, table = world.lake(), world.table("orders")
    sql = "SELECT * EXCLUDE (landed_at) FROM orders.raw_stream ORDER BY ALL"
    before = world.rows(sql, "orders")
    state = lake.table(table).log.load()
    streamed = [o for o in state.objects.values() if state.shards.keys() >= {*o.shards}]
    newest = max(streamed, key=lambda landed: landed.entry)
    lake.store.delete([newest.key])
    (found,) = backfill_days(lake.table(table), [date.fromisoformat(newest.day)])
    assert (found.error, found.sources, found.added) == (None, ["stream"], newest.rows)
    assert world.rows(sql, "orders") == before


def test_a_destination_that_was_off_for_a_while_is_a_gap(world: World) -> None:
    lake, table = world.lake(), world.table("orders")
    _turn_destination(world, on=False)
    off_us = time.time_ns() // 1000
    world.put("orders", "k3", n={"N": "9"})
    time.sleep(1)  # a heal's windows begin with whole seconds
    with pytest.raises(SourceError, match="enable-kinesis-streaming-destination"):
        world.capture("orders")
    _turn_destination(world, on=True)
    world.put("orders", "k4", n={"N": "10"})
    on_us = time.time_ns() // 1000
    world.capture("orders")
    (gap,) = lake.table(table).log.load().open_gaps(1)
    assert gap.cause == "new stream"
    assert gap.from_us < off_us < on_us < gap.to_us
    time.sleep(1)
    world.capture("orders")
    assert len(list(heal_all(lake.table(table)))) == 1
    assert _check(world) == 19


def test_switching_to_streams_and_back(world: World) -> None:
    lake, table = world.lake(), world.table("orders")
    log = lake.table(table).log
    gaps = set(log.load().gaps)
    for transport in ("dynamodb_streams", "kinesis"):
        _configure(world, transport)
        for number in range(5):
            world.put("orders", f"{transport}{number}", n={"N": "1"})
            world.put("orders", f"k{number}", n={"N": f"{time.time_ns()}"})

        def has_switched(to: str = transport) -> bool:
            stream = log.load().stream
            return stream is not None and stream.transport == to

        _capture_until(world, has_switched)
        world.delete("orders", f"{transport}0")
    assert _check(world) == 19 + 8
    assert set(log.load().gaps) == gaps
