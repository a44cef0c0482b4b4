"""Failures that users of other pipelines reported, each as a test that ours does not share it.

Named after the failure and where it was reported. What belongs to another part is said to be so.
"""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.aws.export import DataFile, ExportStatus, Manifest
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureFailedError
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.change import export_item
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import Entry
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.defs.tables.checks import retention
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.snapshot import export, resumption, snapshot
from cdc_pipeline_tests.capture.shards.test_drain import HOUR, OPTIONS, Bench, check
from cdc_pipeline_tests.log_clock import set_log_clock
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.faults import (
    empty_page,
    error,
    internal_error,
    lagging,
    throttled,
)
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    clock = SimulatedClock()
    with StreamsSimulator(clock=clock) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=4)
        yield Bench(sim, clock, tmp_path)


def put(bench: Bench, name: str, **attributes: dict[str, Any]) -> None:
    bench.sim.put("orders", {"pk": {"S": name}, **attributes})


class Killed(BaseException):
    """The process is no more."""


def test_an_expired_shard_is_a_gap_not_complete__data_prepper_4401(bench: Bench) -> None:
    """data-prepper #4401: an expired shard is marked complete, and the pipeline sticks."""
    bench.capture()
    closed = bench.sim.open_shards("orders")
    bench.write(100)
    bench.sim.rotate("orders")
    bench.clock.advance(25 * HOUR)
    bench.write(100, seed=1)
    result = bench.capture()
    assert {gap.cause for gap in result.gaps} == {"shard vanished"}
    assert {shard for gap in result.gaps for shard in gap.shards} == set(closed)
    assert {bench.state().shards[shard].status for shard in closed} == {"lost"}
    # It does not stick: what came later has landed, and time goes on.
    assert result.watermark_us == int(bench.clock() * 1_000_000)
    check(bench, [r for r in bench.sim.records("orders") if r.shard_id not in closed])


def test_shards_closed_before_they_were_tracked_are_read__data_prepper_3614_6251(
    bench: Bench,
) -> None:
    """data-prepper PR #3614, #6251: shards missed because they closed before being tracked.

    And an empty read at their beginning is not an empty shard.
    """
    for round_ in range(3):
        bench.write(60, seed=round_)
        bench.sim.rotate("orders")
    for shard in bench.sim.shards("orders"):
        bench.sim.faults.script("GetRecords", empty_page(), shard=shard.shard_id)
    bench.capture()
    for round_ in range(3, 6):
        bench.sim.rotate("orders")
        bench.write(60, seed=round_)
    bench.capture()
    assert bench.sim.faults.count("empty page") > 4
    check(bench)


@pytest.mark.parametrize("make", [throttled, internal_error, lambda: error("LimitExceeded")])
def test_an_error_in_get_shard_iterator_completes_nothing__data_prepper_as_read(
    bench: Bench, make: Any
) -> None:
    """data-prepper, read in its code: a transient error there completes the shard: silent loss."""
    bench.write(100)
    bench.sim.rotate("orders")
    bench.sim.faults.always("GetShardIterator", make())
    with pytest.raises(CaptureFailedError):
        bench.capture()
    assert {shard.status for shard in bench.state().shards.values()} == {"reading"}
    assert bench.state().watermark_us == 0
    bench.sim.faults.clear()
    bench.capture()
    check(bench)


def test_numbers_keep_their_digits__data_prepper_3840(bench: Bench) -> None:
    """data-prepper #3840: an export turns 1702062202420 into 1.70E+12; Glue maps N to double.

    Here: the landed images, the plain JSON beside them, and a line of an export.
    """
    numbers = [
        "1702062202420",
        "12345678901234567890123456789012345678",
        "-0.1",
        "9007199254740993",
    ]
    for number in numbers:
        put(bench, number, n={"N": number}, deep={"M": {"l": {"L": [{"N": number}]}}})
    bench.capture()
    check(bench)
    for row in bench.landed():
        number = json.loads(row["keys"])["pk"]["S"]
        image = json.loads(row["new_image"])
        assert image["n"] == {"N": number}
        assert image["deep"]["M"]["l"]["L"] == [{"N": number}]
        plain = json.loads(row["data"], parse_int=str, parse_float=str)
        assert plain["n"] == number
        line = {"Item": {"pk": {"S": "a"}, "n": {"N": number}}}
        assert f'"n":{{"N":"{number}"}}' in export_item(line, ("pk",))[1]


def test_a_file_that_fails_half_way_costs_no_new_export_and_no_change__data_prepper_5461(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """data-prepper #5461: an S3 timeout restarts the whole file, and streaming never starts.

    Here: the same export is taken up again, and capture goes on between. Small files like these are
    read again; that larger ones are not is shown in test_snapshot_files.
    """
    begun: list[str] = []
    read: list[str] = []

    def request(*_: object) -> str:
        begun.append("arn:export")
        return begun[-1]

    def pieces(aws: object, status: object, file: DataFile) -> Iterator[bytes]:
        read.append(file.key)
        line = {"Item": {"pk": {"S": file.key}}}
        yield json.dumps(line).encode() + b"\n"
        if read == ["one", "two"]:
            raise LakeError("s3://bucket/two: read timeout")

    monkeypatch.setattr(snapshot, "request_export", request)
    done = ExportStatus("arn:export", "COMPLETED", "bucket", "", "manifest", "")
    files = [DataFile("one", "", 1), DataFile("two", "", 1)]
    monkeypatch.setattr(export, "describe_export", lambda *_: done)
    for module in (export, resumption):
        monkeypatch.setattr(module, "read_manifest", lambda *_: Manifest("bucket", 2, "", files))
    monkeypatch.setattr(snapshot, "read_data_file", pieces)
    with StreamsSimulator(clock=time.time) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=1)
        raw = {
            "lake": "lake",
            "region": "us-east-1",
            "handover_margin_seconds": 1,
            "export": {"bucket": "bucket"},
            "tables": [{"name": "orders"}],
        }
        settings = parse_settings(raw, tmp_path / "settings.yaml")
        lake = Lake(settings, session(sim), LocalStore(settings.lake_folder))
        table = lake.settings.tables[0]
        with pytest.raises(LakeError, match="read timeout"):
            snapshot.take_snapshot(lake.table(table))
        sim.put("orders", {"pk": {"S": "later"}})
        source = Source(
            "orders",
            sim.table_id("orders"),
            sim.stream_arn("orders"),
            "NEW_AND_OLD_IMAGES",
            DynamoDBStreams(lake.aws),
        )
        options = CaptureOptions(poll_seconds=0.01, empty_polls=2)
        assert capture_table(lake.table(table).log, source, options).rows == 1
        assert snapshot.take_snapshot(lake.table(table)).items == 2
        assert begun == ["arn:export"]
        assert read == ["one", "two", "one", "two"]


def test_a_backlog_is_held_in_bounded_batches__data_prepper_3914_airbyte_56350_60239(
    bench: Bench,
) -> None:
    """data-prepper #3914; airbyte #56350, #60239: the heap overflows, and the stream starves.

    Here: readers wait for the lander, so no batch is larger than two flushes and a page. The
    memory of a whole process is in test_scale; exports run in another asset than capture.
    """
    bench.write(12_000, keys=400)
    options = CaptureOptions(poll_seconds=0, empty_polls=2, flush_rows=500)
    bench.capture(options)
    batches: dict[int, int] = {}
    for landed in bench.state().objects.values():
        batches[landed.entry] = batches.get(landed.entry, 0) + landed.rows
    assert len(batches) > 4
    assert max(batches.values()) <= 2 * 500 + 1000
    check(bench)


def test_one_bad_shard_of_hundreds_stops_no_other_and_shows__redpanda_4737(bench: Bench) -> None:
    """Redpanda PR #4737: one shard's error aborted discovery of 684; RUNNING with a dead path."""
    for round_ in range(40):
        bench.write(20, seed=round_)
        bench.sim.rotate("orders")
    assert len(bench.sim.shards("orders")) == 164
    bad = bench.sim.open_shards("orders")[2]
    put(bench, "healthy")
    bench.sim.faults.always("GetRecords", internal_error(), shard=bad)
    with pytest.raises(CaptureFailedError, match=bad):
        bench.capture()
    check(bench, [r for r in bench.sim.records("orders") if r.shard_id != bad])
    # Health is progress: of this table nothing later than the bad shard's records is promised.
    before = bench.state().watermark_us
    bench.clock.advance(HOUR)
    with pytest.raises(CaptureFailedError):
        bench.capture()
    assert bench.state().watermark_us == before < (bench.clock() - HOUR) * 1_000_000


def test_a_checkpoint_never_passes_what_has_not_landed__redpanda_4510(bench: Bench) -> None:
    """Redpanda PR #4510: the checkpoint passed unacknowledged records."""
    bench.write(3000, keys=40)

    class DyingStore(LocalStore):
        left = 4

        def create(self, key: str, data: bytes) -> bool:
            DyingStore.left -= 1
            if not DyingStore.left:
                raise Killed
            return super().create(key, data)

    log = CaptureLog(DyingStore(bench.folder), TablePaths("cdc", "orders"), bench.clock)
    options = CaptureOptions(poll_seconds=0, empty_polls=2, flush_rows=200)
    bench.clock.advance(2)
    with pytest.raises(Killed):
        capture_table(log, bench.source(), options, sleep=lambda _: None)
    landed: dict[str, set[int]] = {}
    for row in bench.landed():
        landed.setdefault(row["shard_id"], set()).add(int(row["sequence_number"]))
    assert landed
    for shard in bench.state().shards.values():
        numbers = [
            int(r.sequence_number)
            for r in bench.sim.records("orders")
            if r.shard_id == shard.shard_id
        ]
        up_to = int(shard.sequence_number or -1)
        assert landed.get(shard.shard_id, set()) == {n for n in numbers if n <= up_to}
    bench.capture()
    bench.capture()  # removes what the killed one left behind
    check(bench)


def test_sequence_numbers_of_any_length_are_in_order__redpanda_4510(bench: Bench) -> None:
    """Redpanda PR #4510: sequence numbers compared as strings that were not padded."""
    assert "99" > "100"
    assert position(1, "9" * 21) < position(1, "1" + "0" * 21)
    bench.write(2500, keys=6)
    bench.capture()
    lengths = {len(row["sequence_number"]) for row in bench.landed()}
    assert len(lengths) > 1
    check(bench)


def test_a_deleted_shard_is_not_tried_for_ever__redpanda_4722(bench: Bench) -> None:
    """Redpanda #4722: infinite retry after a shard was deleted."""
    bench.write(40)
    bench.capture()
    gone = bench.sim.open_shards("orders")
    bench.sim.rotate("orders")
    bench.clock.advance(49 * HOUR)
    bench.sim.requests.clear()
    gaps = bench.capture().gaps
    vanished = {shard for g in gaps if g.cause == "shard vanished" for shard in g.shards}
    assert vanished == set(gone)
    tried = [r for r in bench.sim.requests if r.shard_id in gone]
    assert len(tried) <= 2 * len(gone)
    bench.sim.requests.clear()
    assert bench.capture().gaps == []
    assert not [r for r in bench.sim.requests if r.shard_id in gone]


def test_two_environments_do_not_share_checkpoints__redpanda_4319(bench: Bench) -> None:
    """Redpanda #4319: two environments overwrite each other's checkpoints.

    State lives in the lake: two lakes share nothing. In one lake, another environment's table of
    the same name is another table: a recorded break, and nothing that landed before is replaced.
    There is no owner of a lake that would refuse the second environment.
    """
    bench.write(60)
    bench.capture()
    other = Bench(bench.sim, bench.clock, bench.folder / "staging")
    assert other.capture().rows == len(bench.sim.records("orders"))
    assert bench.capture().rows == 0

    state, objects = bench.state(), bench.parquet_files()
    bench.sim.create_table("staging", shards=2)
    bench.sim.put("staging", {"pk": {"S": "another account's"}})
    source = Source(
        "orders",
        bench.sim.table_id("staging"),
        bench.sim.stream_arn("staging"),
        "NEW_AND_OLD_IMAGES",
        DynamoDBStreams(session(bench.sim)),
    )
    bench.clock.advance(2)
    (gap,) = capture_table(bench.log(), source, OPTIONS, sleep=lambda _: None).gaps
    assert gap.cause == "table recreated"
    assert objects < bench.parquet_files()
    after = bench.state()
    assert after.n > state.n
    assert after.generation > state.generation
    assert {key: after.objects[key] for key in state.objects} == state.objects


def test_a_scan_longer_than_a_day_loses_no_change__spice_10582_trustpilot_24(
    bench: Bench,
) -> None:
    """spice #10582, trustpilot PR #24: a scan longer than 24 h makes the stream unresumable.

    Here: capture drains from the beginning, however long the export of the baseline takes.
    """
    bench.write(50)
    bench.capture()
    log, state = bench.log(), bench.state()
    now_us = log.now_us()
    baseline = Baseline(0, now_us, now_us + 300_000_000, export_arn="arn:export")
    assert log.append(state, Entry(0, "0" * 16, "export", 0, baseline=baseline))
    gaps = []
    for hours in range(5):
        bench.clock.advance(8 * HOUR)
        bench.write(50, seed=hours + 1)
        bench.sim.rotate("orders")
        gaps += bench.capture().gaps
    assert gaps == []
    assert bench.state().staged is None
    check(bench)


def test_freshness_follows_the_watermark_not_the_last_run__spice_10754(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """spice #10754: the consumer dies, and "fresh" snapshots are still published."""
    raw = {"lake": "lake", "tables": [{"name": "orders"}]}
    settings = parse_settings(raw, tmp_path / "settings.yaml")
    clock = bench.clock
    set_log_clock(monkeypatch, clock)
    lake = Lake(settings, session(bench.sim), LocalStore(bench.folder))
    table = settings.tables[0]
    bench.write(40)
    bench.capture()
    assert retention(lake.table(table), bench.state()).passed
    dead = bench.sim.open_shards("orders")[0]
    bench.sim.faults.always("GetRecords", internal_error(), shard=dead)
    for hours in range(1, 6):
        clock.advance(HOUR)
        put(bench, f"later {hours}")
        with pytest.raises(CaptureFailedError):
            bench.capture()
        state = bench.state()
        # A run has just ended and has landed something; the table is as old as its dead shard.
        assert state.at_us == int(clock() * 1_000_000)
        assert retention(lake.table(table), state).passed == (hours < 4)
    bench.sim.faults.clear()
    bench.capture()
    assert retention(lake.table(table), bench.state()).passed


def test_capture_goes_on_behind_the_end_of_shards__kcl_adapter_20_40(bench: Bench) -> None:
    """dynamodb-streams-kinesis-adapter #20, #40: idle for ever after SHARD_END, at the 4 h turn."""
    watermark = 0
    for turn in range(12):
        bench.write(30, seed=turn)
        bench.sim.rotate("orders")
        bench.clock.advance(4 * HOUR)
        result = bench.capture()
        assert result.rows > 0
        assert result.gaps == []
        assert result.watermark_us > watermark
        watermark = result.watermark_us
    check(bench)


def test_parents_come_before_children__artie_422(bench: Bench) -> None:
    """artie #422: parent and child shards are read in parallel."""
    chance = random.Random(1)
    for round_ in range(4):
        bench.write(120, keys=5, seed=round_)
        bench.sim.split("orders", chance.choice(bench.sim.open_shards("orders")))
        bench.sim.rotate("orders")
    bench.capture()
    readers = bench.readers()
    for shard in bench.sim.shards("orders"):
        if shard.parent_id is not None:
            last_of_parent = len(readers) - 1 - readers[::-1].index(shard.parent_id)
            assert last_of_parent < readers.index(shard.shard_id)
    check(bench)


def test_a_child_does_not_wait_for_a_deleted_parent__spanner_migration_tool_347(
    bench: Bench,
) -> None:
    """spanner-migration-tool #347: a child waits for ever for a parent that was deleted."""
    bench.write(40)
    bench.sim.rotate("orders")
    bench.clock.advance(25 * HOUR)
    bench.write(40, seed=1)
    # Nobody captured before: the table as it was is the baseline's, so this is no gap.
    result = bench.capture()
    assert result.gaps == []
    roots = set(bench.sim.open_shards("orders"))
    check(bench, [r for r in bench.sim.records("orders") if r.shard_id in roots])


def test_a_missing_parent_that_nobody_read_is_a_gap__spanner_migration_tool_347(
    bench: Bench,
) -> None:
    """As above, in a table that is captured: the deleted parent held changes that are lost."""
    bench.write(40)
    bench.sim.rotate("orders")
    bench.sim.faults.always("DescribeStream", lagging())
    bench.capture()  # reads the parents to their ends; their children are not listed yet
    bench.sim.faults.clear()
    unread = set(bench.sim.open_shards("orders"))
    bench.write(40, seed=1)
    lost = [r for r in bench.sim.records("orders") if r.shard_id in unread]
    bench.sim.rotate("orders")
    bench.clock.advance(25 * HOUR)
    bench.write(40, seed=2)
    gaps = bench.capture().gaps
    for record in lost:
        (gap,) = (gap for gap in gaps if record.shard_id in gap.shards)
        assert gap.from_us <= (record.created + 1) * 1_000_000
        assert record.created * 1_000_000 <= gap.to_us
    check(bench, [r for r in bench.sim.records("orders") if r.shard_id not in unread])


def test_counters_do_not_count_twice_after_a_crash__data_prepper_as_read(bench: Bench) -> None:
    """data-prepper, read in its code: the checkpoint's file counter double-counts after a crash."""
    for round_ in range(4):
        bench.write(50, seed=round_)

        def die(_: object) -> None:
            raise Killed

        with pytest.raises(Killed):
            bench.capture(report=die)  # behind the log entry, before anyone heard of it
        bench.capture()
    check(bench)
    assert sum(shard.rows for shard in bench.state().shards.values()) == len(bench.landed())


def test_order_survives_restarts_within_one_second__data_prepper_as_read(bench: Bench) -> None:
    """data-prepper, read in its code: ties of a second get a counter that a restart resets."""
    for number in range(40):
        put(bench, "the same", n={"N": str(number)})
        if number % 8 == 7:
            # No time passes: all changes carry the same second.
            capture_table(bench.log(), bench.source(), OPTIONS, sleep=lambda _: None)
    bench.capture()
    assert len({row["write_time_us"] for row in bench.landed()}) == 1
    check(bench)


def test_keys_are_not_joined__data_prepper_as_read(bench: Bench) -> None:
    """data-prepper, read in its code: `pk|sk` is ambiguous; a|b and c, a and b|c are one."""
    bench.sim.create_table("pairs", key=("pk", "sk"), shards=1)
    keys = [
        {"pk": {"S": "a|b"}, "sk": {"S": "c"}},
        {"pk": {"S": "a"}, "sk": {"S": "b|c"}},
        {"pk": {"S": "1"}, "sk": {"S": "x"}},
        {"pk": {"N": "1"}, "sk": {"S": "x"}},
        {"pk": {"S": 'a","sk'}, "sk": {"S": "c"}},
    ]
    for key in keys:
        bench.sim.put("pairs", key)
    source = Source(
        "pairs",
        bench.sim.table_id("pairs"),
        bench.sim.stream_arn("pairs"),
        "NEW_AND_OLD_IMAGES",
        DynamoDBStreams(session(bench.sim)),
    )
    bench.clock.advance(2)
    assert capture_table(bench.log(), source, OPTIONS, sleep=lambda _: None).rows == len(keys)
    assert len({row["keys"] for row in bench.landed()}) == len(keys)
    assert sorted(map(str, keys)) == sorted(str(json.loads(r["keys"])) for r in bench.landed())
