"""One table in two places at once: DynamoDB, its backups and S3 in the sandbox, its stream in the
simulator, which has many shards and faults. Both stand at one time, which tests move."""

import contextlib
from typing import Any

import pytest

from cdc_pipeline.capture.landing.result import CaptureFailedError, CaptureResult
from cdc_pipeline.core.errors import ExportError, NotReadyError
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.state.base import handover_us
from cdc_pipeline.repair.heal import heal_gap, open_gaps
from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.snapshot.snapshot import take_snapshot
from cdc_pipeline_tests.e2e.world import World, key
from cdc_pipeline_tests.log_clock import set_log_clock
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.kinesis_server import KinesisSimulator
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

TABLE = "orders"
STREAM = "changes"
LATE = 2
"""Seconds that a change takes at most to come by Kinesis."""
EXPORT = {"poll_seconds": 0.02, "least_window_minutes": 1 / 60}


class Twin:
    """Every write goes to both, at the same microsecond of a clock that stands still."""

    def __init__(
        self, world: World, simulator: StreamsSimulator, clock: SimulatedClock, shards: int
    ) -> None:
        self.world, self.simulator, self.clock = world, simulator, clock
        world.make_table(TABLE)
        world.configure(self.settings(), export={**EXPORT, "bucket": world.bucket})
        self.sleep(1)
        described = world.dynamodb.describe_table(TableName=TABLE)["Table"]
        simulator.create_table(TABLE, key=("pk", "sk"), shards=shards)
        simulator.serve_as(TABLE, described["TableId"], described["LatestStreamArn"])

    def settings(self) -> dict[str, Any]:
        """The table's."""
        return {"name": TABLE}

    def activate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world.activate(monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB_STREAMS", self.simulator.endpoint_url)
        set_log_clock(monkeypatch, self.clock)
        monkeypatch.setattr("cdc_pipeline.core.changes.write_times.clock", self.clock)

    def sleep(self, seconds: float) -> None:
        """Let time pass, for everybody."""
        self.clock.advance(seconds)
        # Rounded as the simulators do, or the two would tell one write two times.
        control(self.world.endpoint_url, stand_at=round(self.clock() * 1_000_000))

    def put(self, pk: str, **attributes: dict[str, Any]) -> None:
        self.sleep(0.003)
        self.world.put(TABLE, pk, 1, **attributes)
        self.simulator.put(TABLE, {**key(pk), **attributes})

    def delete(self, pk: str) -> None:
        self.sleep(0.003)
        self.world.delete(TABLE, pk)
        self.simulator.delete(TABLE, key(pk))

    def capture(self) -> CaptureResult | None:
        """One run; None where it failed, as runs do while a shard cannot be read."""
        with contextlib.suppress(CaptureFailedError):
            return self.world.capture(TABLE)
        return None

    def bootstrap(self) -> None:
        lake, table = self.world.lake(), self.world.table(TABLE)
        take_snapshot(lake.table(table), context=RunContext(sleep=lambda _: self.sleep(1)))
        for _ in range(20):
            self.capture()
            state = lake.table(table).log.load()
            if state.staged and state.watermark_us >= handover_us(lake, state.staged):
                self.world.publish(TABLE)
                return
            self.sleep(1)
        pytest.fail("the stream never passed the export time")

    def heal(self, tries: int = 20) -> int:
        """Heal all that is open, capturing in between as the sensor would; how many heals.

        A gap waits as long as some shard cannot be read.
        """
        lake, table = self.world.lake(), self.world.table(TABLE)
        heals = 0
        for _ in range(tries):
            gaps = open_gaps(lake.table(table))
            if not gaps:
                break
            try:
                heal_gap(
                    lake.table(table), gaps[0], context=RunContext(sleep=lambda _: self.sleep(1))
                )
                heals += 1
            except (NotReadyError, ExportError):
                self.sleep(1)
                self.capture()
        return heals


class KinesisTwin(Twin):
    """A table whose changes the simulator tells by Kinesis, and whose losses by CloudWatch."""

    def __init__(self, world: World, simulator: KinesisSimulator, clock: SimulatedClock) -> None:
        super().__init__(world, simulator, clock, shards=1)
        self.kinesis = simulator
        arn = f"arn:aws:kinesis:us-east-1:{world.account}:stream/{STREAM}"
        simulator.create_kinesis(STREAM, shards=2)
        simulator.serve_kinesis_as(STREAM, arn)
        simulator.replicate(TABLE, STREAM)
        world.client("kinesis").create_stream(StreamName=STREAM, ShardCount=1)
        world.dynamodb.enable_kinesis_streaming_destination(TableName=TABLE, StreamArn=arn)

    def settings(self) -> dict[str, Any]:
        quick = {"late_seconds": LATE, "metric_minutes": 0}
        return {"name": TABLE, "transport": "kinesis", "kinesis": quick}

    def activate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().activate(monkeypatch)
        monkeypatch.setattr("cdc_pipeline.capture.sources.reading._READS_PER_SECOND", 1000)
        for service in ("KINESIS", "CLOUDWATCH"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", self.simulator.endpoint_url)
