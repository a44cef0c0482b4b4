"""Capture of what Firehose wrote to S3, over a local AWS: whole tables are compared."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture.files import capture_files
from cdc_pipeline.capture.run import capture_options
from cdc_pipeline.core.capture_log import LogState
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_no_orphans,
    key,
    make_world,
    quick_sandbox,
)
from cdc_pipeline_tests.simulators.firehose import (
    HIVE,
    FirehoseFiles,
    envelope,
)

pytestmark = pytest.mark.slow

NAME = "orders"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with quick_sandbox() as process:
        yield process


@dataclass
class Delivery:
    """A table, what Firehose writes of it, and the lake."""

    world: World
    files: FirehoseFiles
    errors: FirehoseFiles

    def configure(self, **changes: Any) -> None:
        chosen = {
            "prefixes": [self.files.uri],
            "error_prefixes": [self.errors.uri],
            "lag_minutes": 0,
            **changes,
        }
        self.world.configure({"name": NAME, "transport": "firehose", "firehose": chosen})

    def write(self, op: str, pk: str, old: dict[str, Any] | None = None, **item: Any) -> Any:
        """Write an item to DynamoDB, and give the record that Kinesis gets."""
        if op == "D":
            self.world.delete(NAME, pk)
        else:
            self.world.put(NAME, pk, **item)
        new = None if op == "D" else {**key(pk), **item}
        before = None if old is None else {**key(pk), **old}
        return envelope(op, key(pk), new, before, time.time_ns() // 1000)

    def capture(self, **how: Any) -> Any:
        lake = self.world.lake()
        return capture_files(lake, self.world.table(NAME), capture_options(lake), **how)

    def state(self) -> LogState:
        return self.world.lake().log(self.world.table(NAME)).load()

    def landed(self) -> list[tuple[Any, ...]]:
        """Every landed change: op, keys, images, write time, generation."""
        return self.world.rows(
            "SELECT op, keys, new_image, old_image, write_time_us, generation "
            f"FROM {NAME}.raw_stream ORDER BY write_time_us, keys, op",
            NAME,
        )

    def quarantined(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for quarantined in self.state().quarantined.values():
            for reason, count in quarantined.reasons.items():
                found[reason] = found.get(reason, 0) + count
        return found


@pytest.fixture
def delivery(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Delivery:
    world = make_world(sandbox, tmp_path, "s3")
    world.activate(monkeypatch)
    world.make_table(NAME, view=None)
    s3 = world.client("s3")
    made = Delivery(
        world,
        FirehoseFiles(s3, world.bucket),
        FirehoseFiles(s3, world.bucket, "errors/orders/processing-failed/"),
    )
    made.errors.prefix = "errors/orders/"
    made.configure()
    return made


def test_a_mirror_from_files_alone(delivery: Delivery) -> None:
    write, files, world = delivery.write, delivery.files, delivery.world
    early = [write("I", "a", n={"N": "1"}), write("I", "b", raw={"B": b"\x12\x02\x08{"})]
    files.records(*early)
    world.bootstrap(NAME)
    files.records(
        write("U", "a", old={"n": {"N": "1"}}, n={"N": "2"}),
        write("D", "b", old={"raw": {"B": b"\x12\x02\x08{"}}),
        members=2,
        extension=".gz",
    )
    files.records(write("I", "c", text={"S": '}{ \u00e4 "{'}), folder=HIVE)
    result = world.capture(NAME)
    world.publish(NAME)
    assert result.rows == 3
    assert assert_mirrors(world, NAME) == 2
    assert_no_orphans(world, NAME)
    assert world.capture(NAME).rows == 0
    world.build_cdc(NAME)
    # History begins with the oldest file; what is older than the baseline is in no state.
    generations = [generation for *_, generation in delivery.landed()]
    assert generations == [0, 0, 1, 1, 1]
