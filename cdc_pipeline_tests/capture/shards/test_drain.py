"""Capture of one table into a lake in a local folder, from a stream that misbehaves."""

import base64
import io
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureFailedError, CaptureResult
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.faults import (
    Fault,
    children_missing,
    cut,
    cut_error,
    cut_in_character,
    empty_body,
    empty_page,
    error,
    internal_error,
    lagging,
    limit_exceeded,
    meanwhile,
    parent_looks_open,
    reset,
    shard_missing,
    throttled,
    throughput_exceeded,
    unavailable,
)
from cdc_pipeline_tests.simulators.streams_model import Record
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

HOUR = 3600
OPTIONS = CaptureOptions(poll_seconds=0, empty_polls=2, listing_lag_seconds=0)


@dataclass
class Bench:
    """A simulated table and the lake that it is captured into."""

    sim: StreamsSimulator
    clock: SimulatedClock
    folder: Path

    def log(self) -> CaptureLog:
        return CaptureLog(LocalStore(self.folder), TablePaths("cdc", "orders"), self.clock)

    def source(self) -> Source:
        streams = DynamoDBStreams(session(self.sim))
        table_id, arn = self.sim.table_id("orders"), self.sim.stream_arn("orders")
        return Source("orders", table_id, arn, "NEW_AND_OLD_IMAGES", streams)

    def capture(
        self,
        options: CaptureOptions = OPTIONS,
        *,
        report: Callable[[list[LandedObject]], None] = lambda _: None,
        sleep: Callable[[float], object] = lambda _: None,
    ) -> CaptureResult:
        """One run, begun after everything that was written before it."""
        self.clock.advance(2)
        return capture_table(self.log(), self.source(), options, report=report, sleep=sleep)

    def write(self, count: int, *, keys: int = 20, seed: int = 0) -> None:
        """Puts and deletes spread over the keys, with time going by."""
        chance = random.Random(seed)
        for number in range(count):
            key = {"pk": {"S": f"größe {chance.randrange(keys)}"}}
            if chance.random() < 0.2:
                self.sim.delete("orders", key, by_ttl=chance.random() < 0.5)
            else:
                value = {"N": f"{seed}{number:06d}.10"}
                self.sim.put("orders", {**key, "n": value, "b": {"B": b"\x00\xff"}})
            if number % 50 == 49:
                self.clock.advance(1)

    def state(self) -> LogState:
        return self.log().load()

    def landed(self) -> list[dict[str, Any]]:
        """The rows of every object that the log names, with their order keys."""
        store, rows = LocalStore(self.folder), []
        for landed in self.state().objects.values():
            data = store.read(landed.key)
            assert data is not None
            table = pq.read_table(io.BytesIO(data))
            assert table.num_rows == landed.rows
            rows += [
                {**row, "order_key": order_key(landed.generation, row["position"])}
                for row in table.to_pylist()
            ]
        return rows

    def readers(self) -> list[str]:
        """The shards in the order in which GetRecords was called for them."""
        found = [r.shard_id for r in self.sim.requests if r.operation == "GetRecords"]
        return [shard_id for shard_id in found if shard_id is not None]

    def parquet_files(self) -> set[str]:
        return {p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*.parquet")}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    clock = SimulatedClock()
    with StreamsSimulator(clock=clock) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=4)
        yield Bench(sim, clock, tmp_path)


def image(item: dict[str, Any] | None) -> str | None:
    return None if item is None else to_json(canonical_item(item))


def expected(record: Record) -> tuple[Any, ...]:
    return (
        record.shard_id,
        record.sequence_number,
        record.event_id,
        {"INSERT": "I", "MODIFY": "U", "REMOVE": "D"}[record.event_name],
        record.created * 1_000_000,
        image(record.keys),
        image(record.new_image),
        image(record.old_image),
        record.by_ttl,
    )


def found(row: dict[str, Any]) -> tuple[Any, ...]:
    names = (
        "shard_id",
        "sequence_number",
        "event_id",
        "op",
        "write_time_us",
        "keys",
        "new_image",
        "old_image",
        "is_ttl_delete",
    )
    return tuple(row[name] for name in names)


def check(bench: Bench, records: list[Record] | None = None) -> None:
    """Every record has landed, once, as it was; and each item's changes sort in write order."""
    records = bench.sim.records("orders") if records is None else records
    rows = bench.landed()
    assert sorted(map(found, rows), key=str) == sorted(map(expected, records), key=str)
    assert len({row["uuid"] for row in rows}) == len(rows)
    check_order(rows, records)
    assert bench.parquet_files() == set(bench.state().objects)


def check_order(rows: list[dict[str, Any]], records: list[Record]) -> None:
    written: dict[str, list[str]] = {}
    for record in records:
        written.setdefault(to_json(record.keys), []).append(record.event_id)
    sorted_rows: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["order_key"]):
        sorted_rows.setdefault(row["keys"], []).append(row["event_id"])
    assert sorted_rows == written


def test_everything_lands_once_and_in_order(bench: Bench) -> None:
    bench.write(1500)
    result = bench.capture()
    check(bench)
    assert result.rows == len(bench.sim.records("orders"))
    assert result.shards_open == 4
    assert result.shards_finished == 0
    assert sum(rows for rows, _ in result.days.values()) == result.rows
    # Everything written before the run began has landed.
    assert result.watermark_us == int(bench.clock() * 1_000_000)


def test_a_second_run_lands_nothing(bench: Bench) -> None:
    bench.write(300)
    bench.sim.rotate("orders")
    bench.write(100, seed=1)
    bench.capture()
    files = bench.parquet_files()
    again = bench.capture()
    assert again.rows == again.quarantined == again.conflicts == 0
    assert bench.parquet_files() == files
    check(bench)


def test_runs_go_on_where_the_last_one_ended(bench: Bench) -> None:
    for round_ in range(5):
        bench.write(120, seed=round_)
        bench.capture()
        if round_ % 2:
            bench.sim.rotate("orders")
    bench.capture()
    check(bench)


def test_an_idle_table(bench: Bench) -> None:
    assert bench.capture().rows == 0
    assert bench.landed() == []
    bench.sim.rotate("orders")
    result = bench.capture()
    assert (result.shards_open, result.shards_finished) == (4, 4)
    assert result.watermark_us == int(bench.clock() * 1_000_000)


def test_many_shards_over_several_listing_pages(bench: Bench) -> None:
    for round_ in range(30):
        bench.write(60, seed=round_)
        bench.sim.rotate("orders")
    assert len(bench.sim.shards("orders")) > 100
    result = bench.capture()
    check(bench)
    assert (result.shards_open, result.shards_finished) == (4, 120)


def test_parents_are_read_to_their_end_before_their_children(bench: Bench) -> None:
    bench.write(300)
    for shard_id in bench.sim.open_shards("orders")[:2]:
        bench.sim.split("orders", shard_id)
    bench.write(300, seed=1)
    bench.sim.rotate("orders")
    bench.sim.rotate("orders")
    bench.write(300, seed=2)
    bench.capture()
    check(bench)
    readers = bench.readers()
    for shard in bench.sim.shards("orders"):
        assert shard.shard_id in readers
        if shard.parent_id is not None:
            last_of_parent = len(readers) - 1 - readers[::-1].index(shard.parent_id)
            assert last_of_parent < readers.index(shard.shard_id)


def test_shards_close_and_split_while_they_are_read(bench: Bench) -> None:
    bench.write(400)
    rounds = iter(range(1, 5))

    def write_more() -> None:
        round_ = next(rounds)
        bench.sim.rotate("orders")
        bench.write(80, seed=round_)
        bench.sim.split("orders", bench.sim.open_shards("orders")[round_])
        bench.write(80, seed=10 + round_)

    bench.sim.faults.script(
        "GetRecords", None, *[meanwhile(write_more), None] * 2, meanwhile(write_more)
    )
    bench.sim.faults.script("DescribeStream", None, meanwhile(write_more))
    bench.capture()
    bench.capture()
    bench.capture()
    assert bench.sim.faults.count("meanwhile") == 4
    check(bench)


def test_a_run_under_steady_traffic_ends(bench: Bench) -> None:
    """The tip is where the run began; what is written later is the next run's."""
    bench.write(200)
    traffic = iter(range(10_000))

    def write_more() -> None:
        bench.clock.advance(1)
        bench.write(4, seed=next(traffic))

    bench.sim.faults.always("GetRecords", meanwhile(write_more))
    bench.capture()
    assert next(traffic) < 100
    bench.sim.faults.clear()
    bench.capture()
    check(bench)


def test_empty_pages_in_the_middle_of_a_shard_end_nothing(bench: Bench) -> None:
    bench.write(5000, keys=8)
    for shard_id in bench.sim.open_shards("orders"):
        bench.sim.faults.script("GetRecords", empty_page(), None, empty_page(), shard=shard_id)
    bench.capture()
    assert bench.sim.faults.count("empty page") == 8
    check(bench)


def test_empty_pages_in_a_closed_shard_do_not_finish_it(bench: Bench) -> None:
    bench.write(200)
    closed = bench.sim.open_shards("orders")
    bench.sim.rotate("orders")
    bench.write(200, seed=1)
    for shard_id in closed:
        bench.sim.faults.script("GetRecords", *[empty_page()] * 4, shard=shard_id)
    # A closed shard that is quiet for long is given up for now, never for good.
    for _ in range(4):
        bench.capture()
    assert bench.sim.faults.unused() == 0
    check(bench)


def test_closed_and_empty_shards(bench: Bench) -> None:
    for _ in range(3):
        bench.sim.rotate("orders")
    bench.write(100)
    result = bench.capture()
    assert (result.shards_open, result.shards_finished) == (4, 12)
    check(bench)


ONE_SHARD_FAULTS = [
    throttled,
    limit_exceeded,
    throughput_exceeded,
    internal_error,
    unavailable,
    reset,
    lambda: reset(after_headers=True),
    cut,
    lambda: cut(honest_length=True),
    cut_in_character,
    empty_body,
]


@pytest.mark.parametrize("make", ONE_SHARD_FAULTS)
def test_a_fault_in_get_records_changes_nothing(bench: Bench, make: Callable[[], Fault]) -> None:
    bench.write(300)
    bench.sim.rotate("orders")
    bench.write(300, seed=1)
    fault = make()
    bench.sim.faults.script("GetRecords", *[fault, None] * 5)
    bench.capture()
    assert bench.sim.faults.count(fault.name) == 5
    check(bench)


@pytest.mark.parametrize("seed", range(6))
def test_everything_at_once(bench: Bench, seed: int) -> None:
    """Writes, rotations, splits and every fault, at random, over several runs."""
    chance = random.Random(seed)
    faults = bench.sim.faults
    every_call = (throttled(), limit_exceeded(), internal_error(), unavailable(), reset(), cut())
    honest = (cut(honest_length=True), cut_in_character(), empty_body(), empty_page())
    for operation in ("DescribeStream", "GetShardIterator"):
        faults.chance(operation, 0.1, *every_call)
    faults.chance("GetRecords", 0.2, *every_call, *honest, reset(after_headers=True))
    faults.chance("DescribeStream", 0.2, parent_looks_open(), lagging())

    def churn(step: int) -> None:
        bench.write(chance.randrange(300), seed=step)
        for shard_id in bench.sim.open_shards("orders"):
            roll = chance.random()
            if roll < 0.3:
                bench.sim.rotate("orders", shard_id)
            elif roll < 0.4:
                bench.sim.split("orders", shard_id)

    for step in range(4):
        churn(step)
        faults.script("GetRecords", None, None, meanwhile(lambda step=step: churn(100 + step)))
        bench.capture()
    faults.clear()
    for _ in range(3):
        bench.capture()
    assert len([what for what, count in faults.counts.items() if count]) > 5
    check(bench)


@pytest.mark.parametrize("make", [children_missing, lagging, parent_looks_open])
def test_lagging_listings_only_delay(bench: Bench, make: Callable[[], Fault]) -> None:
    bench.write(200)
    bench.capture()
    bench.sim.rotate("orders")
    bench.write(200, seed=1)
    fault = make()
    bench.sim.faults.always("DescribeStream", fault)
    assert bench.capture().shards_finished == 4
    bench.sim.faults.clear()
    bench.capture()
    assert bench.sim.faults.count(fault.name) > 0
    check(bench)


def test_expired_iterators_are_replaced(bench: Bench) -> None:
    bench.write(3000, keys=8)

    def expire() -> None:
        bench.clock.advance(15 * 60)

    bench.sim.faults.script("GetRecords", None, meanwhile(expire), None, meanwhile(expire))
    options = CaptureOptions(poll_seconds=0, empty_polls=2, max_run_seconds=2 * HOUR)
    bench.capture(options)
    check(bench)


def test_small_batches(bench: Bench) -> None:
    bench.write(4500, keys=400)
    reported: list[LandedObject] = []
    options = CaptureOptions(poll_seconds=0, empty_polls=2, flush_rows=500, parallel_shards=2)
    result = bench.capture(options, report=reported.extend)
    assert result.entries > 2
    assert sum(landed.rows for landed in reported) == result.rows
    assert {landed.key for landed in reported} == set(bench.state().objects)
    check(bench)


def test_the_deadline_ends_a_run_early_and_loses_nothing(bench: Bench) -> None:
    bench.write(6000, keys=8)
    options = CaptureOptions(poll_seconds=0, empty_polls=2, max_run_seconds=5)
    bench.sim.faults.script(
        "GetRecords", *[None] * 3, meanwhile(lambda: bench.clock.advance(5)), None
    )
    first = bench.capture(options)
    total = len(bench.sim.records("orders"))
    assert 0 < first.rows < total
    assert first.watermark_us < bench.sim.clock() * 1_000_000
    assert first.rows + bench.capture().rows == total
    check(bench)


def test_changes_land_in_the_day_they_were_written(bench: Bench) -> None:
    bench.write(100)
    bench.clock.advance(12 * HOUR)
    bench.write(100, seed=1)
    result = bench.capture()
    assert sorted(result.days) == ["2026-01-01", "2026-01-02"]
    check(bench)


# -------------------------------------------------------------------------------- what fails


def unreadable(record: Record) -> dict[str, Any]:
    return {**json.loads(record.wire), "eventName": "UPSERT"}


def test_unreadable_records_are_quarantined_and_counted(bench: Bench) -> None:
    bench.write(400)
    records = bench.sim.records("orders")
    for record in records[7:100:30]:
        bench.sim.spoil(record, lambda _, record=record: unreadable(record))
    no_keys = records[150]
    bench.sim.spoil(no_keys, lambda r: {**r, "dynamodb": {**r["dynamodb"], "Keys": {}}})
    result = bench.capture()
    spoiled = {r.event_id for r in records[7:100:30]} | {no_keys.event_id}
    assert result.quarantined == len(spoiled) == 5
    good = [record for record in records if record.event_id not in spoiled]
    rows = bench.landed()
    assert sorted(map(found, rows), key=str) == sorted(map(expected, good), key=str)
    (quarantined,) = bench.state().quarantined.values()
    assert quarantined.reasons == {"an unknown event name": 4, "a record without keys": 1}
    lines = (bench.folder / quarantined.key).read_text().splitlines()
    kept = [json.loads(base64.b64decode(json.loads(line)["record_base64"])) for line in lines]
    assert {record["eventID"] for record in kept} == spoiled
    assert bench.capture().quarantined == 0


def test_a_failing_shard_does_not_stop_the_others(bench: Bench) -> None:
    bench.write(400)
    bad = bench.sim.open_shards("orders")[1]
    bench.sim.faults.always("GetRecords", internal_error(), shard=bad)
    with pytest.raises(CaptureFailedError) as caught:
        bench.capture()
    assert bad in caught.value.message
    assert "1 shards could not be read" in caught.value.message
    others = [r for r in bench.sim.records("orders") if r.shard_id != bad]
    check(bench, others)
    assert bench.state().watermark_us == bench.state().shards[bad].read_to_us == 0
    bench.sim.faults.clear()
    bench.capture()
    check(bench)


def test_children_of_a_failing_shard_wait(bench: Bench) -> None:
    bench.write(200)
    bad = bench.sim.open_shards("orders")[0]
    (child,) = bench.sim.rotate("orders", bad)
    bench.write(200, seed=1)
    bench.sim.faults.always("GetShardIterator", internal_error(), shard=bad)
    with pytest.raises(CaptureFailedError):
        bench.capture()
    assert child not in bench.readers()
    bench.sim.faults.clear()
    bench.capture()
    check(bench)


def trimmed(bench: Bench) -> set[str]:
    """The ids of the records that the stream no longer has."""
    shards = bench.sim.shards("orders")
    now = bench.clock()
    for shard in shards:
        shard.trim(now)
    return {r.event_id for shard in shards for r in shard.records[: shard.trimmed]}


def test_changes_trimmed_behind_the_checkpoint_are_a_gap(bench: Bench) -> None:
    bench.write(100)
    bench.capture()
    landed = bench.sim.records("orders")
    bench.write(100, seed=1)
    bench.clock.advance(25 * HOUR)
    bench.write(100, seed=2)
    gaps = bench.capture().gaps
    lost = trimmed(bench) - {record.event_id for record in landed}
    touched = {r.shard_id for r in bench.sim.records("orders") if r.event_id in lost}
    assert {gap.cause for gap in gaps} == {"trimmed"}
    assert {shard for gap in gaps for shard in gap.shards} == touched
    for record in bench.sim.records("orders"):
        if record.event_id in lost:
            (gap,) = (gap for gap in gaps if record.shard_id in gap.shards)
            # Stream times are rounded down to seconds.
            assert gap.from_us < (record.created + 1) * 1_000_000
            assert record.created * 1_000_000 < gap.to_us
    check(bench, [r for r in bench.sim.records("orders") if r.event_id not in lost])
    assert bench.capture().gaps == []


def test_a_head_trimmed_before_the_first_read_is_a_gap(bench: Bench) -> None:
    bench.capture()
    bench.write(100)
    bench.clock.advance(25 * HOUR)
    bench.write(100, seed=1)
    gaps = bench.capture().gaps
    lost = trimmed(bench)
    assert {gap.cause for gap in gaps} == {"head trimmed"}
    assert {shard for gap in gaps for shard in gap.shards} == set(bench.sim.open_shards("orders"))
    check(bench, [r for r in bench.sim.records("orders") if r.event_id not in lost])


def test_a_shard_that_expires_unread_is_a_gap(bench: Bench) -> None:
    bench.write(100)
    bench.capture()
    landed = bench.sim.records("orders")
    closed = bench.sim.open_shards("orders")
    bench.write(100, seed=1)
    bench.sim.rotate("orders")
    bench.clock.advance(25 * HOUR)
    bench.write(100, seed=2)
    gaps = bench.capture().gaps
    vanished = {s for gap in gaps if gap.cause == "shard vanished" for s in gap.shards}
    assert vanished == set(closed)
    lost = trimmed(bench) - {record.event_id for record in landed}
    check(bench, [r for r in bench.sim.records("orders") if r.event_id not in lost])


def test_nothing_is_a_gap_that_was_only_late(bench: Bench) -> None:
    bench.write(100)
    bench.capture()
    bench.clock.advance(20 * HOUR)
    bench.write(100, seed=1)
    bench.sim.rotate("orders")
    bench.clock.advance(3 * HOUR)
    assert bench.capture().gaps == []
    check(bench)


def test_shards_that_expire_after_they_were_read_are_forgotten(bench: Bench) -> None:
    bench.write(100)
    bench.sim.rotate("orders")
    bench.capture()
    for round_ in range(1, 9):
        bench.clock.advance(10 * HOUR)
        bench.write(100, seed=round_)
        bench.sim.rotate("orders")
        bench.capture()
    assert len(bench.state().shards) < len(bench.sim.shards("orders"))
    check(bench)


def test_a_stream_turned_off_is_read_to_its_end_and_the_hole_is_a_gap(bench: Bench) -> None:
    bench.write(100)
    bench.capture()
    bench.write(100, seed=1)
    bench.sim.disable_stream("orders")
    bench.sim.put("orders", {"pk": {"S": "unseen"}})
    bench.clock.advance(HOUR)
    bench.sim.enable_stream("orders")
    bench.write(100, seed=2)
    (gap,) = bench.capture().gaps
    assert gap.cause == "new stream"
    assert gap.from_us < gap.to_us
    check(bench)
    assert bench.capture().gaps == []


def test_a_recreated_table_is_a_gap(bench: Bench) -> None:
    bench.write(100)
    bench.capture()
    bench.sim.recreate_table("orders")
    bench.write(100, seed=1)
    (gap,) = bench.capture().gaps
    assert gap.cause == "table recreated"
    check(bench)


def test_an_open_shard_missing_from_a_listing_does_no_harm(bench: Bench) -> None:
    bench.write(200)
    bench.capture()
    bench.sim.faults.script("DescribeStream", shard_missing(bench.sim.open_shards("orders")[0]))
    bench.capture()
    check(bench)


def test_an_impossible_creation_time_is_quarantined(bench: Bench) -> None:
    bench.write(100)
    late = {"ApproximateCreationDateTime": 1_767_268_800_000}
    bench.sim.spoil(
        bench.sim.records("orders")[5], lambda r: {**r, "dynamodb": {**r["dynamodb"], **late}}
    )
    assert bench.capture().quarantined == 1


def test_a_service_that_denies_is_said_so(bench: Bench) -> None:
    bench.write(10)
    bench.sim.faults.always("GetRecords", error("AccessDeniedException", message="no"))
    with pytest.raises(CaptureFailedError, match="AccessDeniedException"):
        bench.capture()


def test_a_finished_shard_missing_from_a_listing_is_not_landed_again(bench: Bench) -> None:
    bench.write(200)
    parent = bench.sim.open_shards("orders")[0]
    bench.sim.rotate("orders")
    bench.write(200, seed=1)
    bench.capture()
    bench.sim.faults.script("DescribeStream", shard_missing(parent))
    bench.capture()
    assert bench.sim.faults.count("shard missing") == 1
    bench.capture()
    check(bench)


def test_a_parent_missing_from_the_first_listing_keeps_its_place(bench: Bench) -> None:
    bench.write(200, keys=6)
    parents = bench.sim.open_shards("orders")
    bench.sim.rotate("orders")
    bench.write(200, keys=6, seed=1)
    filled = next(p for p in parents if any(r.shard_id == p for r in bench.sim.records("orders")))
    bench.sim.faults.script("DescribeStream", *[shard_missing(filled)] * 2)
    for _ in range(3):
        bench.capture()
    check(bench)


@pytest.mark.parametrize("make", [lambda: cut(honest_length=True), empty_body])
def test_cut_listings_are_asked_for_again(bench: Bench, make: Callable[[], Fault]) -> None:
    bench.write(100)
    bench.sim.faults.script("DescribeStream", make())
    bench.capture()
    check(bench)


def test_cut_iterators_are_asked_for_again(bench: Bench) -> None:
    bench.write(100)
    bench.sim.faults.script("GetShardIterator", cut(honest_length=True))
    bench.capture()
    check(bench)


def test_cut_throttling_answers_are_retried(bench: Bench) -> None:
    bench.write(100)
    bench.sim.faults.script("GetRecords", cut_error())
    bench.capture()
    check(bench)


def test_a_shard_idle_for_a_day_has_lost_nothing(bench: Bench) -> None:
    bench.write(100)
    gaps = []
    for _ in range(6):
        gaps += bench.capture().gaps
        bench.clock.advance(6 * HOUR)
    assert gaps == []


@pytest.mark.parametrize("make", [children_missing, lagging])
def test_the_watermark_waits_for_shards_that_are_not_listed_yet(
    bench: Bench, make: Callable[[], Fault]
) -> None:
    bench.write(200)
    bench.capture()
    bench.clock.advance(10)
    bench.sim.rotate("orders")
    unlisted_us = int(bench.clock() * 1_000_000)
    bench.write(200, seed=1)
    bench.clock.advance(10)
    bench.sim.faults.always("DescribeStream", make())
    late = bench.capture()
    assert late.rows == 0
    assert late.watermark_us <= unlisted_us


# ------------------------------------------------------------------------------ two at once


def test_of_two_captures_at_once_the_slower_one_reads_on(bench: Bench) -> None:
    bench.write(400)
    bench.capture()
    bench.write(400, seed=1)
    inner: list[CaptureResult] = []

    turn = threading.Lock()

    def capture_meanwhile(_: float) -> None:
        with turn:
            if not inner:
                inner.append(bench.capture())

    lost = bench.capture(sleep=capture_meanwhile)
    assert (inner[0].conflicts, lost.conflicts) == (0, 1)
    assert inner[0].rows > 0
    check(bench)
    assert bench.parquet_files() == set(bench.state().objects), "it leaves what it wrote"


def test_what_landed_before_a_run_was_overtaken_counts(bench: Bench) -> None:
    """Its first batch stands; of the rest, what the other one did not land is landed behind it."""
    bench.write(300)
    reported: list[LandedObject] = []
    rows_of_others: list[int] = []

    def report(objects: list[LandedObject]) -> None:
        reported.extend(objects)
        if len(rows_of_others) < 2:
            rows_of_others.append(bench.capture(replace(OPTIONS, flush_rows=20)).rows)
            bench.write(50, seed=len(rows_of_others))

    options = replace(OPTIONS, flush_rows=20)
    result = capture_table(
        bench.log(), bench.source(), options, report=report, sleep=lambda _: None
    )
    assert 1 <= result.conflicts <= 2, "a run that finds nothing more has nothing to lose"
    assert result.rows == sum(landed.rows for landed in reported)
    assert result.rows + sum(rows_of_others) == len(bench.landed())
    bench.capture()  # what was written behind the run's last read
    check(bench)


def test_a_run_that_is_always_overtaken_ends_with_its_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no failure: others land what it reads. And it does not ask without pause."""
    pauses: list[float] = []
    append = CaptureLog.append

    def overtaken(log: CaptureLog, state: LogState, entry: Entry) -> bool:
        if log.store is not others.store:
            bench.write(20, seed=200 + len(pauses))
            bench.clock.advance(1)
            capture_table(others, bench.source(), OPTIONS, sleep=lambda _: None)
        return append(log, state, entry)

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        bench.write(1, seed=100 + len(pauses))  # else a run finds nothing, and has no entry to lose
        bench.clock.advance(seconds)

    others = bench.log()
    bench.write(50)
    bench.capture()
    bench.write(1, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(CaptureLog, "append", overtaken)
        options = replace(OPTIONS, max_run_seconds=60, poll_seconds=0)
        result = capture_table(bench.log(), bench.source(), options, sleep=pause)
    waited = [seconds for seconds in pauses if seconds]
    assert result.conflicts > 5
    assert result.rows == 0
    assert max(waited) > 5
    assert sum(waited) < 60
    assert result.watermark_us == bench.state().watermark_us
    bench.capture()
    check(bench)


def capture_into(outcomes: list[CaptureResult], bench: Bench, start: threading.Barrier) -> None:
    log, source = bench.log(), bench.source()
    start.wait()
    outcomes.append(capture_table(log, source, OPTIONS, sleep=lambda _: None))


def test_captures_racing_for_the_first_entry(bench: Bench) -> None:
    bench.write(600)
    for round_ in range(4):
        start = threading.Barrier(3)
        outcomes: list[CaptureResult] = []
        bench.clock.advance(2)
        threads = [
            threading.Thread(target=capture_into, args=(outcomes, bench, start)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 3, "who lost a race went on"
        bench.capture()
        check(bench)
        bench.write(300, seed=round_ + 1)
        bench.sim.rotate("orders")


# --------------------------------------------------------------------------- known to fail


def test_a_record_without_a_sequence_number_does_not_block_its_shard(bench: Bench) -> None:
    """There is no position behind it, so it is quarantined again; what follows it lands."""
    bench.write(100)
    last = bench.sim.records("orders")[-1]
    bench.sim.spoil(
        last, lambda r: {**r, "dynamodb": {**r["dynamodb"], "SequenceNumber": "unknown"}}
    )
    assert bench.capture().quarantined == 1
    bench.write(100, seed=1)
    assert bench.capture().quarantined == 1
    assert bench.capture().quarantined == 0


def test_a_lingering_run_tells_how_far_a_quiet_stream_was_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_pipeline.capture.shards.drain._QUIET_SECONDS", 0)
    monkeypatch.setattr("cdc_pipeline.capture.shards.drain._FLUSH_WAIT_SECONDS", 0)
    bench.write(20)
    meanwhile: list[int] = []

    def sleep(_: float) -> None:
        meanwhile.append(bench.state().watermark_us)
        time.sleep(0.02)  # landing takes at most a fifth of the time, by a real clock
        bench.clock.advance(5)

    begun_us = int(bench.clock() * 1_000_000)
    bench.capture(replace(OPTIONS, linger_seconds=600, flush_seconds=0.01), sleep=sleep)
    assert max(meanwhile) > begun_us + 60_000_000, "the last change is older than that"
    check(bench)
