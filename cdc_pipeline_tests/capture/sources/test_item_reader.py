"""Streams without new images, completed by consistent reads: the last state is exact."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources import item_reader
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.fold import KeyedChange, fold, items
from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.transports import READ
from cdc_pipeline.lake.storage.landing import read_landing
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

OPTIONS = CaptureOptions(poll_seconds=0, empty_polls=2)


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture(params=["KEYS_ONLY", "OLD_IMAGE"])
def sim(
    clock: SimulatedClock, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StreamsSimulator]:
    with StreamsSimulator(clock=clock) as simulator:
        use(simulator, monkeypatch)
        simulator.create_table("orders", shards=2, view_type=request.param)
        yield simulator


def _log(folder: Path, clock: SimulatedClock) -> CaptureLog:
    return CaptureLog(LocalStore(folder), TablePaths("cdc", "orders"), clock)


def _capture(sim: StreamsSimulator, log: CaptureLog, pause: Callable[[float], None]) -> None:
    aws = session(sim)
    reader = ItemReader(aws, "orders", ("pk",), items_per_second=100, sleep=pause)
    table_id, arn = sim.table_id("orders"), sim.stream_arn("orders")
    source = Source("orders", table_id, arn, "KEYS_ONLY", DynamoDBStreams(aws), reader)
    capture_table(log, source, OPTIONS, sleep=lambda _: None)


def _write(sim: StreamsSimulator, clock: SimulatedClock, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(60):
        key = {"pk": {"B": bytes([chance.randrange(12)])}}
        if chance.random() < 0.3:
            sim.delete("orders", key)
        else:
            sim.put("orders", {**key, "n": {"N": f"{seed}{number}.5"}, "s": {"BS": [b"b", b"a"]}})
    clock.advance(2)


def _folded(log: CaptureLog) -> set[str]:
    state = log.load()
    rows = [
        KeyedChange(row.keys, order_key(landed.generation, row.position), row.new_image)
        for landed in state.objects.values()
        for row in read_landing(log.store, landed.key)
        # What the SQL fold leaves out, too: an event that says nothing of the item.
        if row.op == "D" or row.new_image is not None
    ]
    return set(items(fold({}, rows)).values())


def _source_items(sim: StreamsSimulator) -> set[str]:
    return {to_json(canonical_item(item)) for item in sim.items("orders")}


def test_the_fold_of_completed_events_is_the_source(
    sim: StreamsSimulator, clock: SimulatedClock, tmp_path: Path
) -> None:
    log = _log(tmp_path, clock)
    pauses: list[float] = []
    for seed in range(3):
        _write(sim, clock, seed)
        _capture(sim, log, pauses.append)
        assert _folded(log) == _source_items(sim)
    state = log.load()
    assert state.incomplete == []
    bare = [o for o in state.objects.values() if o.bare]
    completing = [o for o in state.objects.values() if not o.bare]
    assert bare
    assert completing
    rows = [row for o in completing for row in read_landing(log.store, o.key)]
    assert READ in {row.transport for row in rows}
    # One read per item and batch, paced.
    assert sum(pauses) == pytest.approx(sum(o.rows for o in completing if o.rows) / 100, abs=0.5)


def test_a_capture_that_ends_before_its_reads_is_completed_by_the_next(
    sim: StreamsSimulator, clock: SimulatedClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _log(tmp_path, clock)
    _write(sim, clock, 0)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(item_reader.ItemReader, "read", killed)
        with pytest.raises(Killed):
            _capture(sim, log, lambda _: None)
    assert log.load().incomplete
    _write(sim, clock, 1)
    _capture(sim, log, lambda _: None)
    assert log.load().incomplete == []
    assert _folded(log) == _source_items(sim)
