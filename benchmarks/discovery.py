"""Requests that find a large stream's shards, by whole listings and by children of ended shards.

`python -m benchmarks.discovery` prints, for a table of 10,000 partitions whose stream lists 70,000
shards, how often one capture and one tick of the sensor call DescribeStream: with listings alone,
as for servers that do not know ShardFilter, and with it. A minute before, 42 shards have ended, as
many as end a minute if each lives for four hours. AWS answers ten such calls a second.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from cdc_pipeline.aws.shards import Page, StreamDescription
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.reading import StreamsProtocol
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.log.entries import ShardState
from cdc_pipeline.core.log.lineage import Shard
from cdc_pipeline.defs.tables.shard_sensor import _inspect
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline_tests.simulators import streams_model
from cdc_pipeline_tests.simulators.clients import session
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

_GENERATIONS = 7
_HOURS_OPEN = 3.4
_CALLS_PER_SECOND = 10
_SECOND = 1_000_000
_VIEW = "NEW_AND_OLD_IMAGES"
_OPTIONS = CaptureOptions(poll_seconds=0, empty_polls=1)


class QuietStreams(DynamoDBStreams):
    """Open shards have nothing to read, and answer here; `filters`: whether children are told."""

    filters = True
    open_shards: frozenset[str] = frozenset()

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        """None without the filter."""
        return super().children(arn, shard_id) if self.filters else None

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """The shard's own name."""
        return shard_id

    def read(self, iterator: str) -> Page:
        """An empty page."""
        return Page([], iterator if iterator in self.open_shards else None, 2)


class Stream:
    """A simulated table of many partitions, captured until a minute ago."""

    def __init__(self, sim: StreamsSimulator, folder: Path, partitions: int, ended: int) -> None:
        self.sim, self.clock = sim, sim.clock
        sim.create_table("orders", shards=partitions)
        listed = _with_ancestors(sim, self.clock())
        settings = parse_settings(
            {"lake": "lake", "region": "us-east-1", "tables": [{"name": "orders"}]},
            folder / "settings.yaml",
        )
        self.lake = Lake(settings, session(sim), LocalStore(settings.lake_folder))
        self.table = self.lake.table(settings.tables[0])
        self.log = CaptureLog(self.lake.store, self.table.paths, self.clock)
        self.streams = QuietStreams(self.lake.aws)
        now_us = int(self.clock() * _SECOND)
        lag_us = int(_OPTIONS.listing_lag_seconds * _SECOND)
        stream = self.source().ref(
            StreamDescription(sim.stream_arn("orders"), "ENABLED", _VIEW, []),
            1,
            now_us - 24 * 3600 * _SECOND,
        )
        begun = {
            "stream": stream,
            "shards": tuple(_captured(shard, now_us) for shard in listed),
            "discovered_us": now_us - lag_us,
        }
        self.log.commit(self.log.load(), lambda _: begun)
        assert isinstance(self.clock, SimulatedClock)
        self.clock.advance(55)
        for shard_id in sim.open_shards("orders")[:: partitions // ended][:ended]:
            sim.rotate("orders", shard_id)
        self.clock.advance(1)
        self.streams.open_shards = frozenset(sim.open_shards("orders"))

    def source(self) -> Source:
        """The table's stream."""
        sim = self.sim
        return Source(
            "orders", sim.table_id("orders"), sim.stream_arn("orders"), _VIEW, self.streams
        )

    def capture(self) -> None:
        """One run."""
        result = capture_table(self.log, self.source(), _OPTIONS, sleep=lambda _: None)
        expected = len(self.sim.open_shards("orders"))
        assert result.shards_open == expected, f"{result.shards_open} of {expected} shards"

    def tick(self) -> None:
        """A tick of the sensor for this table, between two captures."""
        _inspect(self.table, self.log, self.log.load())


def _with_ancestors(sim: StreamsSimulator, now: float) -> list[streams_model.Shard]:
    """Give each open shard a line of ended ones, as many as a day has; all of them."""
    stream = sim._stream("orders")
    made = list(stream.shards.values())
    for child in list(made):
        for generation in range(1, _GENERATIONS):
            closed_at = now - 3600 * _HOURS_OPEN * (generation - 0.5)
            opened_ms = int((closed_at - 3600 * _HOURS_OPEN) * 1000)
            parent = streams_model.Shard(
                shard_id=f"shardId-{opened_ms:020d}-{len(made):08x}",
                parent_id=None,
                low=child.low,
                high=child.high,
                starting=child.starting,
                last_number=child.starting,
                ending=child.starting,
                closed_at=closed_at,
            )
            child.parent_id = parent.shard_id
            stream.shards[parent.shard_id] = parent
            made.append(parent)
            child = parent
    return made


def _captured(shard: streams_model.Shard, now_us: int) -> ShardState:
    status = "reading" if shard.is_open else "finished"
    read_to_us = now_us if shard.is_open else int(shard.closed_at * _SECOND)
    return ShardState(shard.shard_id, shard.parent_id, 1000, status, read_to_us=read_to_us)


@contextmanager
def _listing_alone(streams: QuietStreams) -> Iterator[None]:
    streams.filters = False
    with patch.object(StreamsProtocol, "listing_seconds", lambda self, shards: 0):
        yield
    streams.filters = True


def main() -> None:
    """Print the calls and the seconds that they take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", type=int, default=10_000)
    parser.add_argument("--ended", type=int, default=42, help="shards that end in a minute")
    arguments = parser.parse_args()
    partitions, ended = arguments.partitions, arguments.ended
    shards = partitions * _GENERATIONS + ended
    print(f"{partitions:,} partitions, {shards:,} shards listed, {ended} ended since the last run")
    print(f"{'':44}{'DescribeStream':>15}{'s at AWS':>10}{'s here':>8}")
    found: dict[str, int] = {}
    for name, alone in (("listings alone", True), ("children asked for", False)):
        with (
            StreamsSimulator(clock=SimulatedClock()) as sim,
            tempfile.TemporaryDirectory() as path,
            patch.dict("os.environ", sim.environment()),
        ):
            stream = Stream(sim, Path(path), partitions, ended)
            for what, step in (("sensor tick", stream.tick), ("capture", stream.capture)):
                sim.requests.clear()
                begun = time.monotonic()
                if alone:
                    with _listing_alone(stream.streams):
                        step()
                else:
                    step()
                seconds = time.monotonic() - begun
                calls = sum(r.operation == "DescribeStream" for r in sim.requests)
                found[f"{what}, {name}"] = calls
                at_aws = calls / _CALLS_PER_SECOND
                print(f"{what + ', ' + name:44}{calls:>15,}{at_aws:>10,.1f}{seconds:>8.1f}")
    before, after = found["capture, listings alone"], found["capture, children asked for"]
    print(f"a capture: {before / max(after, 1):.0f} times fewer calls")
    whole = -(-shards // 100)
    before += 2 * found["sensor tick, listings alone"]
    print(
        f"a minute with a capture and two ticks, a whole listing every ten minutes included: "
        f"{before:,} calls before, {after + whole / 10:,.0f} after, "
        f"{before / (after + whole / 10):.0f} times fewer"
    )


if __name__ == "__main__":
    main()
