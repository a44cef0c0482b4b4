"""Random histories through Firehose's framing: whatever it does, current_state is the truth.

Duplicates, disorder, objects cut anywhere between records, GZIP or not, objects that come a day
late, eight ways to name a day, wrappers, changes from before capture, new baselines in between.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture.firehose.drain import capture_files
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.core.changes.kinesis import from_envelope
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.transports import FIREHOSE
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.world import World, make_world, quick_sandbox
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, key_of, plain_view
from cdc_pipeline_tests.simulators.firehose import (
    CALENDAR,
    HIVE,
    WEEK_YEAR,
    FirehoseFiles,
    concatenated,
    envelope,
    error_record,
    zstd,
)

pytestmark = pytest.mark.slow

STORIES = int(os.environ.get("CDC_PIPELINE_FIREHOSE_STORIES", "2"))
_NAMES = ("a", "b", "c", "d")
_FOLDERS = (
    *(CALENDAR, HIVE, WEEK_YEAR, "dt={0:%Y-%m-%d}/", "{0:%Y-%m-%d-%H}/", "year={0:%Y}/{0:%m/%d}/"),
    *("date={0:%Y-%m-%d}/hour={0:%H}/", "eu/{0:%Y%m%d}/"),
)
_HOUR_US = 3_600_000_000
_STEPS = 14


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with quick_sandbox() as process:
        yield process


@pytest.fixture
def world(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = make_world(sandbox, tmp_path, "local")
    made.activate(monkeypatch)
    made.dynamodb.create_table(
        TableName="orders",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return made


@dataclass
class Story:
    """One history; `truth`: the items as they are at `now_us`, `written`: every record."""

    world: World
    files: FirehoseFiles
    lake: LakeBuilder
    rng: random.Random
    now_us: int = START_US - 6 * 24 * _HOUR_US
    truth: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: list[dict[str, Any]] = field(default_factory=list)
    waiting: list[dict[str, Any]] = field(default_factory=list)
    objects: list[tuple[int, datetime, bytes]] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)

    def write(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            # Changes of one ms are settled by `capture.landing.ties`, which reads the item.
            self.now_us += self.rng.choice((2_001, 999_999, 60_000_001))
            name, n = self.rng.choice(_NAMES), len(self.written)
            old = self.truth.get(name)
            new = None if old and self.rng.random() < 0.4 else {"n": {"N": str(n)}, **key_of(name)}
            op = "D" if new is None else ("U" if old else "I")
            self.written.append(envelope(op, key_of(name), new, old, self.now_us))
            copies = 2 if self.rng.random() < 0.2 else 1
            self.waiting += [self.written[-1]] * copies
            self.truth.pop(name, None)
            self.truth |= {name: new} if new else {}

    def buffer(self) -> None:
        """Make objects of what waits; some are written only a day later, or nearly."""
        self.rng.shuffle(self.waiting)
        while self.waiting:
            size = self.rng.randint(1, 4)
            records, self.waiting = self.waiting[:size], self.waiting[size:]
            oldest_us = min(r["dynamodb"]["ApproximateCreationDateTime"] for r in records)
            late_us = self.rng.randint(0, 24 * _HOUR_US) if self.rng.random() < 0.3 else 0
            body = self.written_as(records)
            arrived = datetime.fromtimestamp(oldest_us / 1_000_000, UTC)
            self.objects.append((self.now_us + late_us, arrived, body))

    def written_as(self, records: list[dict[str, Any]]) -> bytes:
        """An object with these records, as Firehose or somebody's function writes it."""
        ways = [
            lambda: concatenated(records, members=self.rng.choice((0, 1, 2))),
            lambda: zstd(records),
            lambda: json.dumps(records, indent=1).encode(),
            lambda: b"\xef\xbb\xbf" + json.dumps({"Records": records}).encode(),
            lambda: concatenated([{"detail-type": "x", "detail": one} for one in records]),
            lambda: concatenated([error_record(concatenated(records))]),
        ]
        return self.rng.choice(ways)()

    def deliver(self) -> None:
        for due in [o for o in self.objects if o[0] <= self.now_us]:
            self.objects.remove(due)
            folder = self.rng.choice(_FOLDERS)
            self.uris.append(self.files.put(due[2], due[1], folder=folder))

    def capture(self) -> None:
        options = CaptureOptions(flush_rows=self.rng.choice((1, 3, 100)))
        capture_files(self.lake.lake.table(self.lake.table), options)

    def baseline(self) -> None:
        """What an export at this very time would be."""
        self.lake.state = self.lake.lake.table(self.lake.table).log.load()
        stream = self.lake.state.stream
        assert stream is not None
        if self.lake.state.baselines:
            stream = replace(stream, generation=stream.generation + 1, recorded_us=self.now_us)
            self.lake.append(stream=stream)
        staged = self.lake.stage(self.truth, generation=stream.generation)
        self.lake.append(
            baseline=replace(staged, recorded_us=self.now_us, export_time_us=self.now_us)
        )

    def publish(self) -> None:
        with suppress(NotReadyError):
            publish_current_state(self.lake.lake.table(self.lake.table))

    def pass_time(self, hours: float) -> None:
        self.now_us += int(hours * _HOUR_US)

    def check(self) -> None:
        found = plain_view(self.lake.lake, "SELECT _key, _item FROM orders.current_state")
        assert {row["_key"]: row["_item"] for row in found} == {
            to_json(key_of(name)): to_json(canonical_item(item))
            for name, item in self.truth.items()
        }
        state = self.lake.lake.table(self.lake.table).log.load()
        for day in sorted({landed.day for landed in state.objects.values()}):
            build_cdc_day(self.lake.lake.table(self.lake.table), datetime.fromisoformat(day).date())
        rows = plain_view(
            self.lake.lake, "SELECT uuid, op, new_image, old_image FROM orders.cdc ORDER BY uuid"
        )
        table_id = state.stream.table_id if state.stream else ""
        changes = [from_envelope(r, table_id=table_id, transport=FIREHOSE) for r in self.written]
        assert [tuple(row.values()) for row in rows] == sorted(
            (c.uuid, c.op, c.new_image, c.old_image) for c in changes
        )
        log = self.lake.lake.table(self.lake.table).log
        entries = log.entries_since(state, datetime(2020, 1, 1, tzinfo=UTC).date())
        taken = [file.uri for entry in entries for file in entry.files if file.whole]
        assert Counter(taken) == Counter(self.uris)


@pytest.mark.parametrize("seed", range(STORIES))
def test_whatever_firehose_does(
    seed: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FirehoseFiles(world.client("s3"), world.bucket, "raw/")
    firehose = {"prefixes": [files.uri], "lag_minutes": 0}
    table = {"name": "orders", "transport": "firehose", "firehose": firehose}
    lake = LakeBuilder.at(tmp_path / "lake", region="us-east-1", tables=[table])
    story = Story(world, files, lake, random.Random(seed))
    monkeypatch.setattr(CaptureLog, "now_us", lambda _: story.now_us)
    story.write()  # before capture
    story.buffer()
    story.pass_time(30)
    story.deliver()
    story.write()
    story.capture()
    story.baseline()
    for _ in range(_STEPS):
        story.pass_time(story.rng.choice((0.1, 1, 6, 13)))
        story.write()
        for step, chance in (
            (story.buffer, 0.7),
            (story.deliver, 0.9),
            (story.capture, 0.5),
            (story.baseline, 0.1),
            (story.publish, 0.2),
        ):
            if story.rng.random() < chance:
                step()
    story.buffer()
    story.pass_time(25)
    story.deliver()
    story.capture()
    story.publish()
    assert story.objects == [], "all is delivered"
    story.check()
