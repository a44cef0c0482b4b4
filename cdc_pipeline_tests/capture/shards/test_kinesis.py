"""Capture from Kinesis into a real lake: what the transport must do, one thing per test."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.aws.kinesis import KinesisStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureFailedError, CaptureResult
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.reading import KinesisProtocol
from cdc_pipeline.capture.sources.source_choice import followed_source, open_source
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline.setup.checks.stream import unusual_settings
from cdc_pipeline.snapshot.snapshot import take_snapshot
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, plain_view
from cdc_pipeline_tests.log_clock import set_log_clock
from cdc_pipeline_tests.simulators import faults
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock, WrongClock
from cdc_pipeline_tests.simulators.kinesis_model import HASHES, Precision
from cdc_pipeline_tests.simulators.kinesis_server import KinesisSimulator

HOUR = 3600
STREAM = "changes"
OPTIONS = CaptureOptions(poll_seconds=0, empty_polls=2, listing_lag_seconds=0)
ODD = {
    "number": {"N": "12345678901234567890123456789012345678"},
    "trailing": {"N": "1.50"},
    "binary": {"B": b"\x12\x02\x08\x7b"},
    "binaries": {"BS": [b"\x00", b"\xff\xfe", b""]},
    "nested": {"M": {"l": {"L": [{"B": b"\x00"}, {"NULL": True}, {"SS": ["b", "a"]}]}}},
    "text": {"S": "größe"},
    "a": {"BOOL": True},
    "A": {"S": ""},
}


@dataclass
class Bench:
    """One simulated AWS, and lakes of tables that are captured one way or another."""

    sim: KinesisSimulator
    clock: SimulatedClock
    folder: Path
    transport: str = "kinesis"
    lakes: dict[tuple[str, ...], tuple[Lake, Table]] = field(default_factory=dict)

    def table_lake(self) -> TableLake:
        lake, table = self.lake()
        return lake.table(table)

    def lake(self, table: str = "orders") -> tuple[Lake, Table]:
        """The lake of a table as the settings of now tell of it."""
        place = (table, self.transport)
        if place not in self.lakes:
            self.lakes[place] = self._open(table)
        return self.lakes[place]

    def _open(self, table: str) -> tuple[Lake, Table]:
        raw = {
            "lake": f"lake-{table}",
            "region": "us-east-1",
            "handover_margin_seconds": 1,
            "export": {"bucket": "exports"},
            "tables": [{"name": table, "transport": self.transport}],
        }
        settings = parse_settings(raw, self.folder / "settings.yaml")
        aws = session(self.sim)
        return Lake(settings, aws, LocalStore(settings.lake_folder)), settings.tables[0]

    def capture(
        self, table: str = "orders", options: CaptureOptions = OPTIONS, sleep: Any = lambda _: None
    ) -> CaptureResult:
        """One run, begun after everything that was written before it."""
        self.clock.advance(2)
        lake, found = self.lake(table)
        return capture_table(
            lake.table(found).log,
            open_source(lake.table(found)),
            options,
            former=lambda stream: followed_source(lake.table(found), stream),
            sleep=sleep,
        )

    def settle(self, table: str = "orders") -> None:
        """Capture until nothing that was written by now can still be on its way."""
        until_us = int(self.clock() * 1_000_000)
        for _ in range(10):
            self.clock.advance(60)
            self.capture(table)
            if self.state(table).watermark_us > until_us:
                return
        pytest.fail(f"the watermark stands still: {self.state(table)}")

    def settle_switch(self) -> None:
        """Capture until the log follows the transport, and knows what was not replicated."""
        for _ in range(20):
            self.capture()
            self.clock.advance(60)
        stream = self.state().stream
        assert stream is not None
        assert stream.transport == self.transport

    def state(self, table: str = "orders") -> LogState:
        lake, found = self.lake(table)
        return lake.table(found).log.load()

    def landed(self, table: str = "orders") -> list[dict[str, Any]]:
        lake, _ = self.lake(table)
        return plain_view(lake, f"SELECT * FROM {table}.raw_stream ORDER BY order_key")

    def readers(self) -> list[str | None]:
        """The shards in the order in which Kinesis' GetRecords was called for them."""
        return [r.shard_id for r in self.sim.requests if r.operation == "kinesis:GetRecords"]

    # ------------------------------------------------------------------- what readers see

    def begin_empty(self) -> None:
        """A baseline without items, so that there is a current state."""
        self.capture()
        lake, _ = self.lake()
        LakeBuilder(lake, self.state()).stage({})

    def check(self, changes: int | None = None) -> None:
        """The lake equals the table, item by item, and cdc has each change once and in order."""
        lake, table = self.lake()
        publish_current_state(lake.table(table))
        found = plain_view(lake, "SELECT _key, _item FROM orders.current_state")
        there = {row["_key"]: row["_item"] for row in found}
        assert len(there) == len(found)
        items = map(canonical_item, self.sim.items("orders"))
        assert there == {to_json({"pk": item["pk"]}): to_json(item) for item in items}
        days = {o.day for o in self.state().objects.values()}
        for day in sorted(days):
            build_cdc_day(lake.table(table), date.fromisoformat(day))
        sql = "SELECT * FROM orders.cdc ORDER BY order_key"
        cdc = [row for row in plain_view(lake, sql) if row["transport"] != "read"]
        by_key: dict[str, list[tuple[Any, ...]]] = {}
        for row in cdc:
            images = (row["op"], row["old_image"], row["new_image"])
            by_key.setdefault(row["keys"], []).append(images)
        truth: dict[str, list[tuple[Any, ...]]] = {}
        for c in self.sim.changes("orders"):
            images = ({"I": "I", "M": "U", "R": "D"}[c.event_name[0]], c.old_image, c.new_image)
            change = (images[0], *(i and to_json(canonical_item(i)) for i in images[1:]))
            truth.setdefault(to_json(canonical_item(c.keys)), []).append(change)
        assert by_key == truth
        assert len(cdc) == len(self.sim.changes("orders"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    clock = SimulatedClock(START_US / 1_000_000 + 0.5)
    with KinesisSimulator(clock=clock) as sim:
        use(sim, monkeypatch)
        set_log_clock(monkeypatch, clock)
        monkeypatch.setattr("cdc_pipeline.core.changes.write_times.clock", clock)
        sim.create_kinesis(STREAM, shards=2)
        sim.create_table("orders")
        sim.replicate("orders", STREAM)
        yield Bench(sim, clock, tmp_path)


def item(pk: str, **values: Any) -> dict[str, Any]:
    return {"pk": {"S": pk}, **values}


def n(value: int | str) -> dict[str, str]:
    return {"N": str(value)}


def write(bench: Bench, rounds: int, keys: int = 10) -> None:
    for _ in range(rounds):
        for key in range(keys):
            number = len(bench.sim.changes("orders"))
            bench.sim.put("orders", item(f"k{key}", n=n(number)))
            bench.clock.advance(0.000_001)


@pytest.mark.parametrize("late", [0, 1])
def test_a_merge_waits_for_both_parents(bench: Bench, late: int) -> None:
    sim = bench.sim
    bench.capture()
    write(bench, 2)
    parents = sim.open_kinesis(STREAM)
    child = sim.merge_kinesis(STREAM, *parents)
    write(bench, 2)
    assert {c.deliveries[0].shard_id for c in sim.changes("orders")} == {*parents, child}
    denied = faults.error("AccessDeniedException")
    sim.faults.always("kinesis:GetRecords", denied, shard=parents[late])
    sim.requests.clear()
    with pytest.raises(CaptureFailedError, match=parents[late]):
        bench.capture()
    assert bench.state().shards[parents[1 - late]].status == "finished"
    assert child not in bench.readers()
    sim.faults.clear()
    bench.capture()
    shards = bench.state().shards
    assert [shards[s].status for s in (*parents, child)] == ["finished", "finished", "reading"]
    assert len(bench.landed()) == 40


def test_one_run_reads_a_whole_lineage(bench: Bench) -> None:
    """Also where the answer with a closed shard's last record does not say yet that it is that."""
    bench.sim.end_with_empty_pages()
    bench.capture()
    shards = bench.sim.open_kinesis(STREAM)
    for _ in range(3):
        write(bench, 1)
        shards = bench.sim.split_kinesis(STREAM, bench.sim.merge_kinesis(STREAM, *shards))
    write(bench, 1)
    bench.capture()
    assert len(bench.landed()) == 40
    reading = [s.shard_id for s in bench.state().shards.values() if s.status == "reading"]
    assert sorted(reading) == sorted(shards)


def test_a_split_of_one_of_two_roots(bench: Bench) -> None:
    """Only half of a stream's hash range is split, at a hash that is not its middle."""
    left, right = bench.sim.open_kinesis(STREAM)
    bench.capture()
    write(bench, 1)
    children = bench.sim.split_kinesis(STREAM, left, HASHES // 3)
    write(bench, 1)
    bench.settle()
    assert bench.state().shards.keys() == {left, right, *children}
    assert len(bench.landed()) == 20


def test_a_trimmed_position_without_an_error_is_a_gap(bench: Bench) -> None:
    bench.sim.put("orders", item("a"))
    bench.settle()
    read_to_us = bench.state().watermark_us
    bench.sim.put("orders", item("a", lost=n(1)))
    bench.clock.advance(25 * HOUR)
    bench.sim.put("orders", item("a", there=n(2)))
    bench.settle()
    lost, there = bench.sim.changes("orders")[1:]
    gaps = bench.state().gaps.values()
    assert {gap.cause for gap in gaps} == {"trimmed", "head trimmed"} or gaps
    (owner,) = {c.deliveries[0].shard_id for c in bench.sim.changes("orders")}
    (gap,) = [gap for gap in gaps if owner in gap.shards]
    assert gap.cause == "trimmed"
    assert read_to_us <= gap.from_us <= lost.time_us < gap.to_us
    assert [json.loads(row["new_image"]) for row in bench.landed()] == [
        canonical_item(item("a")),
        canonical_item(item("a", there=n(2))),
    ]
    assert there.time_us < bench.state().watermark_us


def test_a_late_change_in_a_shard_that_no_listing_showed(bench: Bench) -> None:
    """What is still on its way may come by a shard that begins only then."""
    sim = bench.sim
    bench.settle()
    sim.hold("orders")
    sim.put("orders", item("a"))
    bench.clock.advance(15)
    bench.capture()
    for shard in sim.open_kinesis(STREAM):
        sim.split_kinesis(STREAM, shard)
    sim.release("orders")
    (change,) = sim.changes("orders")
    denied = faults.error("AccessDeniedException")
    child = change.deliveries[0].shard_id
    sim.faults.always("kinesis:GetRecords", denied, shard=child)
    with pytest.raises(CaptureFailedError, match=child):
        bench.capture()
    assert bench.landed() == []
    assert bench.state().watermark_us <= change.time_us
    sim.faults.clear()
    bench.settle()
    assert len(bench.landed()) == 1


def test_a_longer_retention_saves_what_would_be_lost(bench: Bench) -> None:
    bench.sim.set_retention(STREAM, 48)
    bench.capture()
    write(bench, 2)
    bench.clock.advance(40 * HOUR)
    bench.settle()
    assert not bench.state().gaps
    assert len(bench.landed()) == 20


def test_a_cut_answer_is_no_end_of_a_shard(bench: Bench) -> None:
    write(bench, 3)
    bench.capture()
    write(bench, 3)
    for fault in (
        faults.cut(honest_length=True),
        faults.cut(0.99, honest_length=True),
        faults.cut(),
        faults.empty_body(),
        faults.empty_page(),
    ):
        before = bench.sim.faults.count(fault.name)
        bench.sim.faults.script("kinesis:GetRecords", fault, fault)
        write(bench, 1)
        bench.capture()
        assert bench.sim.faults.count(fault.name) == before + 2, fault
        assert {shard.status for shard in bench.state().shards.values()} == {"reading"}
    bench.settle()
    assert len({row["uuid"] for row in bench.landed()}) == 110


def test_aggregated_records_stop_loudly(bench: Bench) -> None:
    bench.capture()
    write(bench, 1)
    unlucky, other = bench.sim.open_kinesis(STREAM)
    record = bench.sim.put_data(STREAM, b"\xf3\x89\x9a\xc2\x0a\x01a", unlucky)
    write(bench, 1)
    for _ in range(2):
        with pytest.raises(CaptureFailedError) as caught:
            bench.capture()
        assert unlucky in str(caught.value)
        assert record.sequence_number in str(caught.value)
        assert "aggregated" in str(caught.value)
    # It is not passed by, and what the other shard holds has landed.
    shard = bench.state().shards[unlucky]
    assert int(shard.sequence_number or 0) < int(record.sequence_number)
    homes = [c.deliveries[0].shard_id for c in bench.sim.changes("orders")]
    assert len(bench.landed()) >= homes.count(other) > 0
    assert bench.state().quarantined == {}


def test_a_skipped_record_becomes_a_gap(bench: Bench) -> None:
    bench.capture()
    write(bench, 1)
    bench.settle()
    bench.sim.skip_next("orders")
    bench.sim.put("orders", item("k1", skipped=n(1)))
    bench.clock.advance(1)
    write(bench, 1)
    (skipped,) = [c for c in bench.sim.changes("orders") if c.skipped]
    for _ in range(4):
        bench.clock.advance(5 * 60)
        bench.capture()
    # Once is enough.
    (gap,) = bench.state().gaps.values()
    assert gap.cause == "not replicated"
    assert gap.from_us <= skipped.time_us <= gap.to_us
    assert gap.to_us - gap.from_us < 30 * 60 * 1_000_000
    bench.settle()
    assert list(bench.state().gaps.values()) == [gap]


def test_values_are_exact_and_the_same_by_either_road(bench: Bench) -> None:
    bench.sim.put("orders", item("a", **ODD))
    bench.clock.advance(1)
    bench.sim.put("orders", item("a", **{**ODD, "more": n(1)}))
    bench.clock.advance(1)
    bench.sim.delete("orders", item("a"), by_ttl=True)
    bench.settle()
    landed = bench.landed()
    streamed = Bench(bench.sim, bench.clock, bench.folder / "streams", "dynamodb_streams")
    streamed.settle()
    columns = ("op", "keys", "new_image", "old_image", "data", "is_ttl_delete")
    assert [[row[c] for c in columns] for row in landed] == [
        [row[c] for c in columns] for row in streamed.landed()
    ]
    assert json.loads(landed[0]["new_image"]) == canonical_item(
        bench.sim.changes("orders")[0].new_image
    )
    assert landed[2]["is_ttl_delete"]


def test_tables_that_share_a_stream_are_told_apart(bench: Bench) -> None:
    bench.sim.create_table("users")
    bench.sim.replicate("users", STREAM, precision="MILLISECOND")
    for number in range(10):
        bench.sim.put("orders", item("a", n=n(number)))
        bench.sim.put("users", item("a", u=n(number)))
        bench.clock.advance(0.01)
    for table in ("orders", "users"):
        bench.settle(table)
        found = [json.loads(row["new_image"]) for row in bench.landed(table)]
        changes = bench.sim.changes(table)
        assert found == [canonical_item(change.new_image) for change in changes]


def test_precision_changes_in_mid_stream(bench: Bench) -> None:
    for number in range(30):
        bench.sim.set_precision("orders", ("MICROSECOND", "MILLISECOND", None)[number % 3])
        bench.sim.put("orders", item("a", n=n(number)))
        bench.clock.advance(0.001_3)
    bench.settle()
    landed = bench.landed()
    changes = bench.sim.changes("orders")
    assert [row["write_time_us"] for row in landed] == [change.time_us for change in changes]
    assert [json.loads(row["new_image"])["n"]["N"] for row in landed] == [
        str(number) for number in range(30)
    ]


def test_iterators_expire_while_a_run_is_slow(bench: Bench) -> None:
    bench.capture()
    write(bench, 2)
    late = faults.meanwhile(lambda: bench.clock.advance(6 * 60))
    bench.sim.faults.script("kinesis:GetRecords", late, None, late)
    bench.capture(options=replace(OPTIONS, max_run_seconds=HOUR))
    bench.settle()
    assert len(bench.landed()) == 20
    assert not bench.state().gaps


def test_reading_keeps_to_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedClock(START_US / 1_000_000 + 0.5)
    with KinesisSimulator(clock=clock, limits=True) as sim:
        use(sim, monkeypatch)
        set_log_clock(monkeypatch, clock)
        monkeypatch.setattr("cdc_pipeline.core.changes.write_times.clock", clock)
        sim.create_kinesis(STREAM)
        sim.create_table("orders")
        sim.replicate("orders", STREAM)
        bench = Bench(sim, clock, tmp_path)
        bench.capture(sleep=clock.sleep)
        for number in range(45):
            sim.put("orders", item(f"k{number}", text={"S": "x" * 300_000}))
        monkeypatch.setattr("cdc_pipeline.aws.shards._ATTEMPTS", 1)
        bench.capture(sleep=clock.sleep)
        assert len(bench.landed()) == 45


def test_a_listing_whose_token_expires_begins_again(bench: Bench) -> None:
    sim = bench.sim
    for _ in range(700):
        sim.merge_kinesis(STREAM, *sim.open_kinesis(STREAM))
        sim.split_kinesis(STREAM, sim.open_kinesis(STREAM)[0])
    late = faults.meanwhile(lambda: bench.clock.advance(301))
    sim.faults.script("kinesis:ListShards", None, late)
    found = KinesisStreams(session(sim), "orders").describe(sim.kinesis_arn(STREAM)).shards
    there = {shard.shard_id: shard.parents for shard in sim.kinesis_shards(STREAM)}
    assert {shard.shard_id: shard.parents for shard in found} == there
    assert len(found) == 2102
    assert [r.operation for r in sim.requests].count("kinesis:ListShards") == 5


def test_a_stream_of_the_same_name_is_noticed(bench: Bench) -> None:
    bench.capture()
    write(bench, 1)
    bench.settle()
    write(bench, 1)
    lost = bench.sim.changes("orders")[-10:]
    bench.sim.delete_kinesis(STREAM)
    bench.clock.advance(10)
    bench.sim.put("orders", item("k1", unseen=n(1)))
    unseen = bench.sim.changes("orders")[-1]
    bench.clock.advance(10)
    bench.sim.create_kinesis(STREAM, shards=2)
    bench.sim.replicate("orders", STREAM)
    write(bench, 1)
    bench.settle()
    gaps = bench.state().gaps.values()
    for change in (*lost, unseen):
        assert any(gap.from_us <= change.time_us <= gap.to_us for gap in gaps)
    landed = [row["new_image"] for row in bench.landed()]
    changes = bench.sim.changes("orders")
    captured = [c for c in changes if c not in (*lost, unseen)]
    assert sorted(landed) == sorted(to_json(canonical_item(c.new_image or {})) for c in captured)


@pytest.mark.parametrize("seconds", [1, 30, 59])
def test_a_record_skipped_just_before_a_switch_away_is_a_gap(bench: Bench, seconds: int) -> None:
    bench.settle()
    bench.clock.advance(60 - bench.clock() % 60 + seconds)
    bench.sim.skip_next("orders")
    bench.sim.put("orders", item("a", skipped=n(1)))
    bench.transport = "dynamodb_streams"
    bench.settle_switch()
    assert_in_gap(bench)


@pytest.mark.parametrize("seconds", [0, 30, 90])
def test_a_record_skipped_just_behind_a_switch_is_a_gap(bench: Bench, seconds: int) -> None:
    bench.transport = "dynamodb_streams"
    bench.settle()
    bench.transport = "kinesis"
    bench.capture()  # logs the cut, which the other transport has not reached
    bench.clock.advance(1)
    bench.sim.skip_next("orders")
    bench.sim.put("orders", item("a", skipped=n(1)))
    bench.clock.advance(seconds)
    bench.settle_switch()
    assert_in_gap(bench)


def assert_in_gap(bench: Bench) -> None:
    (skipped,) = bench.sim.changes("orders")
    assert skipped.skipped
    assert skipped.time_us not in [row["write_time_us"] for row in bench.landed()]
    (gap,) = bench.state().gaps.values()
    assert gap.cause == "not replicated"
    assert gap.from_us <= skipped.time_us < gap.to_us


@pytest.mark.parametrize("error", [-300, -60, 60, 300])
def test_a_repeat_does_not_beat_a_baseline_that_a_wrong_clock_recorded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """The export shows the newer one of two changes; the older one comes again behind it."""
    local = WrongClock(bench.clock, error)
    set_log_clock(monkeypatch, local, margin_us=300_000_000)
    bench.begin_empty()
    bench.clock.advance(HOUR)
    for value in (1, 2):
        bench.sim.put("orders", item("k0", n=n(value)))
        bench.clock.advance(1)
    bench.capture()

    class Stopped(Exception):
        """While the export's time was waited for."""

    def stop(_: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        take_snapshot(bench.table_lake(), context=RunContext(sleep=stop))
    begun = max(bench.state().baselines)
    assert begun == bench.state().generation > 1
    bench.sim.again(bench.sim.changes("orders")[0])
    bench.clock.advance(2 * HOUR)
    bench.sim.put("orders", item("k1", n=n(3)))
    bench.capture()
    over_it = [row["keys"] for row in bench.landed() if row["generation"] >= begun]
    assert over_it == [to_json(item("k1"))]


@pytest.mark.slow
def test_a_table_goes_from_one_transport_to_the_other_and_back(bench: Bench) -> None:
    """Writes go on all the time; duplicates and late ones are told around the cuts, too."""
    sim, clock = bench.sim, bench.clock
    sim.disturb("orders", duplicates=0.2, late=0.2)
    bench.transport = "dynamodb_streams"
    bench.begin_empty()
    counter = iter(range(1_000_000))

    def some() -> None:
        for key in range(6):
            number = next(counter)
            if number % 7 == 6:
                sim.delete("orders", item(f"k{key}"))
            else:
                sim.put("orders", item(f"k{key}", n=n(number)))
            clock.advance(0.002)

    legs: tuple[tuple[str, Precision], ...] = (
        ("dynamodb_streams", None),
        ("kinesis", "MICROSECOND"),
        ("dynamodb_streams", "MICROSECOND"),
        ("kinesis", None),
    )
    for transport, precision in legs:
        bench.transport = transport
        sim.set_precision("orders", precision)
        for seconds in (0.3, 0.9, 1, 5, 20, 61, 61, 61):
            some()
            clock.advance(seconds)
            some()
            bench.capture()
        sim.release("orders")
        bench.settle()
        stream = bench.state().stream
        assert stream is not None
        assert stream.transport == transport
        assert not bench.state().gaps
        bench.check()
    assert {row["transport"] for row in bench.landed()} == {"dynamodb_streams", "kinesis"}


def test_records_without_partition_keys_in_any_shard(bench: Bench) -> None:
    """The distribution AUTO: order is by write times and images, whatever shard a record is in."""
    bench.sim.ignore_partition_keys(STREAM)
    bench.begin_empty()
    for _ in range(5):
        write(bench, 4, keys=3)
        bench.capture()
    deliveries = [d for c in bench.sim.changes("orders") for d in c.deliveries]
    assert all(b"PartitionKey" not in d.wire for d in deliveries)
    homes: dict[str, set[str]] = {}
    for change in bench.sim.changes("orders"):
        homes.setdefault(str(change.keys), set()).update(d.shard_id for d in change.deliveries)
    assert max(len(shards) for shards in homes.values()) > 1
    bench.settle()
    bench.check()


def test_records_of_ten_mebibytes(bench: Bench) -> None:
    """Nothing here knows of a largest record; what the stream refuses is a gap."""
    bench.sim.set_largest_record(STREAM, 10_240)
    bench.begin_empty()
    bench.sim.put("orders", item("large", text={"S": "x" * (10_200 << 10)}))
    bench.sim.put("orders", item("small", n=n(1)))
    bench.settle()
    largest = max(len(d.data) for c in bench.sim.changes("orders") for d in c.deliveries)
    assert 10_100 << 10 < largest <= 10_240 << 10
    assert bench.state().gaps == {}
    bench.check()


def test_preflight_prints_what_is_unusual_about_a_stream(bench: Bench) -> None:
    def unusual() -> str:
        kinesis = session(bench.sim).client("kinesis")
        return unusual_settings(
            kinesis.describe_stream_summary(StreamName=STREAM)["StreamDescriptionSummary"]
        )

    assert unusual() == ""
    bench.sim.set_largest_record(STREAM, 10_240)
    bench.sim.ignore_partition_keys(STREAM)
    assert unusual() == (
        ", records up to 10 MiB, any record in any shard (order is by write time in any case)"
    )


def test_a_former_tables_records_are_its_own_and_have_its_keys(bench: Bench) -> None:
    bench.capture()
    stream = bench.state().stream
    assert stream is not None
    for table_id, keys in ((stream.table_id, {"pk": "S"}), ("of the former one", {})):
        source = followed_source(bench.table_lake(), replace(stream, table_id=table_id))
        assert isinstance(source.reading, KinesisProtocol)
        target = source.reading.target
        assert (target.table_id, target.key_types) == (table_id, keys)
        assert source.reading.of_former("x").target == replace(target, table_id="x", key_types={})
