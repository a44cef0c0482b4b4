"""A capture process that dies without warning at any of its steps on disk, and what it leaves.

A real process captures from the Streams simulator into a lake on disk and kills itself right before
or right after one system call that changes the lake; then others go on until one ends well. Every
step of a story is tried, so also a temporary file that is half written or not linked yet. A disk
that loses what was never synced is not simulated; that syncing comes in the right order is checked.
"""

import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.streams import DynamoDBStreams
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.fold import KeyedChange, fold, items
from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.json_format import entry_from_json
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import TablePaths, object_name
from cdc_pipeline.lake.storage import log as log_module
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline_tests.capture.shards.test_drain import HOUR, check_order, expected, found
from cdc_pipeline_tests.simulators.clients import use
from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.faults import Reply
from cdc_pipeline_tests.simulators.streams_model import REGION, Record
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BEFORE, AFTER = "before", "after"
_SUMMARY_EVERY = 3

# ------------------------------------------------------------------------------- in the process


@dataclass(frozen=True)
class Job:
    """One capture of one table at one moment; `kill_at`: the step at which it dies.

    A step is named by its number, from 1, or by its kind: then it dies at the first of that kind.
    """

    folder: str
    table: str
    table_id: str
    arn: str
    view_type: str
    now: float
    flush_rows: int
    kill_at: int | str = 0
    when: str = BEFORE


class _Steps:
    """Tells every step that changes the lake on disk, and ends the process at the chosen one."""

    def __init__(self, job: Job, tell: Callable[[str], None]) -> None:
        self._root = Path(job.folder)
        self._paths = TablePaths("cdc", job.table)
        self._kill_at, self._when = job.kill_at, job.when
        self._tell = tell
        self._count = 0
        self._lock = threading.Lock()

    def take(self, what: str, step: Callable[[], Any]) -> Any:
        with self._lock:
            self._count += 1
            here = self._kill_at in (self._count, what)
        self._tell(f"+{what}")
        if here and self._when == BEFORE:
            _die()
        done = step()
        if here and self._when == AFTER:
            _die()
        return done

    def kind(self, path: Any) -> str | None:
        """What a path in the lake is; None for one that is elsewhere."""
        try:
            key = Path(os.fspath(path)).relative_to(self._root).as_posix()
        except (TypeError, ValueError):
            return None
        paths = self._paths
        folders = {
            "landing": paths.landing,
            "quarantine": paths.quarantine,
            "entry": paths.entries,
            "summary": paths.summaries,
            "heartbeat": paths.heartbeat,
            "temporary": "_cdc/tmp/",
        }
        return next((kind for kind, at in folders.items() if key.startswith(at)), "folder")

    def install(self) -> None:
        """Let what the package calls of the operating system be steps. This process only."""
        for name in ("link", "rename", "replace", "unlink", "remove", "mkdir"):
            setattr(os, name, self._call(name, getattr(os, name)))
        os.fsync = self._fsync
        self._open = io.open
        io.open = self._open_file

    def _call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*paths: Any, **rest: Any) -> Any:
            kind = self.kind(paths[1] if name in ("link", "rename", "replace") else paths[0])
            vain = name == "mkdir" and Path(paths[0]).exists()
            if kind is None or vain:
                return call(*paths, **rest)
            return self.take(f"{name} {kind}", lambda: call(*paths, **rest))

        return stepped

    def _fsync(self, handle: int) -> None:
        """Nothing to do: the kernel lives on when the process does not."""
        what = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        self.take(f"fsync {what}", lambda: None)

    def _open_file(self, file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        kind = self.kind(file) if mode[0] in "wxa" else None
        if kind is None:
            return self._open(file, mode, *rest, **more)
        opened = self.take(f"open {kind}", lambda: self._open(file, mode, *rest, **more))
        return _HalfAndHalf(opened, self)


class _HalfAndHalf:
    """A file whose writes reach the disk in two parts, with a step between."""

    def __init__(self, file: Any, steps: _Steps) -> None:
        self._file = file
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_HalfAndHalf":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._steps.take("second half", lambda: self._file.write(data[len(data) // 2 :]))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def serve() -> None:
    """Fork a capture for each job on standard input: importing takes longer than capturing."""
    aws = AwsSession(region=REGION)
    streams = DynamoDBStreams(aws)
    aws.client("dynamodb")
    log_module._SUMMARY_EVERY = _SUMMARY_EVERY
    for line in sys.stdin:
        print(json.dumps(_fork(Job(**json.loads(line)), aws, streams)), flush=True)


def _fork(job: Job, aws: AwsSession, streams: DynamoDBStreams) -> dict[str, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _capture(job, aws, streams, lambda text: os.write(writing, f"{text}\n".encode()))
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    return {
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "steps": [line[1:] for line in lines if line.startswith("+")],
        "error": "\n".join(line[1:] for line in lines if line.startswith("!")),
    }


def _capture(
    job: Job, aws: AwsSession, streams: DynamoDBStreams, tell: Callable[[str], Any]
) -> None:
    try:
        _Steps(job, tell).install()
        reader = None
        if job.view_type == "KEYS_ONLY":
            reader = ItemReader(aws, job.table, ("pk",), 1e9, sleep=lambda _: None)
        source = Source(job.table, job.table_id, job.arn, job.view_type, streams, reader)
        store, paths = LocalStore(Path(job.folder)), TablePaths("cdc", job.table)
        options = CaptureOptions(poll_seconds=0, empty_polls=2, flush_rows=job.flush_rows)
        capture_table(CaptureLog(store, paths, lambda: job.now), source, options)
    except BaseException:  # noqa: BLE001 - told to the parent, which fails the test
        for line in traceback.format_exc().splitlines():
            tell(f"!{line}")
    finally:
        os._exit(0)  # neither exit handlers nor buffers of the process it was forked from


# ------------------------------------------------------------------------------------ in the test


@dataclass(frozen=True)
class Ended:
    """How a capture ended, and the steps on disk that it began."""

    killed: bool
    steps: list[str]
    error: str


class PatientSimulator(StreamsSimulator):
    """A simulator whose clients may die between the head and the body of a request."""

    def answer(self, operation: str, body: bytes) -> Reply:
        return super().answer(operation, body) if body else Reply(400, b"")


class Captures:
    """The process that forks captures, seen from the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: Job) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        ended = Ended(**json.loads(self._process.stdout.readline()))
        assert not ended.error, ended.error
        return ended

    def close(self) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)


@dataclass
class Scene:
    """A table with a story, and its lake as it is when the capture in question begins."""

    sim: StreamsSimulator
    clock: SimulatedClock
    captures: Captures
    table: str
    lake: Path
    view_type: str = "NEW_AND_OLD_IMAGES"
    flush_rows: int = 8
    lost: list[Record] = field(default_factory=list)
    spoiled: list[Record] = field(default_factory=list)
    _written: int = 0

    def write(self, writes: int) -> list[Record]:
        """Puts and deletes of a dozen items; their records."""
        records = []
        for _ in range(writes):
            self._written += 1
            chance = random.Random(self._written)
            key = {"pk": {"S": f"größe {chance.randrange(12)}"}}
            if chance.random() < 0.2:
                records.append(self.sim.delete(self.table, key, by_ttl=chance.random() < 0.5))
            else:
                item = {**key, "n": {"N": f"{self._written}.10"}, "b": {"B": b"\x00\xff"}}
                records.append(self.sim.put(self.table, item))
        self.clock.advance(2)
        return [record for record in records if record is not None]

    def spoil(self, records: list[Record]) -> None:
        for record in records:
            self.sim.spoil(record, lambda wire: {**wire, "eventName": "SURPRISE"})
        self.spoiled += records

    def leave_orphans(self) -> None:
        """What captures that were killed before have left: objects that no entry names."""
        state = self.state(self.lake)
        for landed in list(state.objects.values())[:2]:
            path = self.lake / landed.key
            shutil.copy(path, path.with_name(object_name(landed.entry, "0" * 16)))
        folder = self.lake / self.paths.quarantine / "unreadable-record/year=2026/month=01/day=02"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / object_name(state.n, "0" * 16, "jsonl")).write_text("{}\n")

    @property
    def paths(self) -> TablePaths:
        return TablePaths("cdc", self.table)

    def log(self, lake: Path) -> CaptureLog:
        return CaptureLog(LocalStore(lake), self.paths, self.clock)

    def state(self, lake: Path) -> LogState:
        return self.log(lake).load()

    def capture(
        self, lake: Path | None = None, kill_at: int | str = 0, when: str = BEFORE
    ) -> Ended:
        job = Job(
            str(lake or self.lake),
            self.table,
            self.sim.table_id(self.table),
            self.sim.stream_arn(self.table),
            self.view_type,
            self.clock(),
            self.flush_rows,
            kill_at,
            when,
        )
        return self.captures.run(job)

    def finish(self, lake: Path) -> None:
        """Captures as they are started again; the last one removes what the first left behind."""
        for _ in range(2):
            assert not self.capture(lake).killed


@dataclass(frozen=True)
class Landed:
    """Everything that a log says and its objects hold, but for how it came there."""

    rows: list[str]
    quarantined: list[str]
    gaps: list[str]
    shards: dict[str, Any]
    watermark_us: int
    incomplete: list[int]


def read_rows(lake: Path, state: LogState) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for landed in state.objects.values():
        table = pq.read_table(pa.BufferReader((lake / landed.key).read_bytes()))
        assert table.num_rows == landed.rows
        mine = table.drop_columns(["landed_at"]).to_pylist()
        rows += [{**r, "order_key": order_key(landed.generation, r["position"])} for r in mine]
    return rows


def read_all(scene: Scene, lake: Path) -> Landed:
    state = scene.state(lake)
    rows = [{**row, "order_key": None} for row in read_rows(lake, state)]
    bad = [line for key in state.quarantined for line in (lake / key).read_text().splitlines()]
    return Landed(
        rows=sorted(map(repr, rows)),
        quarantined=sorted(bad),
        # Which shard's gap is met first is by chance, and so are the generations that follow.
        gaps=sorted(repr((g.cause, g.shards, g.from_us, g.to_us)) for g in state.gaps.values()),
        shards=dict(sorted(state.shards.items())),
        watermark_us=state.watermark_us,
        incomplete=state.incomplete,
    )


def check_lake(scene: Scene, lake: Path) -> None:
    """What must be true of a lake whatever happened to those who wrote it."""
    state = scene.state(lake)
    assert state.heartbeat is not None
    assert state.heartbeat.clean
    state.set_heartbeat(None)
    replayed = LogState()
    for path in sorted((lake / scene.paths.entries).iterdir()):
        replayed.apply(entry_from_json(path.read_bytes(), path.name))
    assert state == replayed, "a summary and the entries say different things"
    zones = [lake / scene.paths.landing, lake / scene.paths.quarantine]
    files = {p.relative_to(lake).as_posix() for z in zones for p in z.rglob("*") if p.is_file()}
    assert files == state.objects.keys() | state.quarantined.keys()
    rows = read_rows(lake, state)
    assert len({row["uuid"] for row in rows}) == len(rows)
    for gap in state.gaps.values():
        before = [o.generation for o in state.objects.values() if o.entry < gap.entry]
        behind = [o.generation for o in state.objects.values() if o.entry > gap.entry]
        assert max(before, default=-1) < gap.heal_generation
        assert min(behind, default=1 << 20) > gap.heal_generation
    not_landed = {r.event_id for r in scene.lost + scene.spoiled}
    records = [r for r in scene.sim.records(scene.table) if r.event_id not in not_landed]
    if scene.view_type == "KEYS_ONLY":
        check_items(scene, rows)
    else:
        assert sorted(map(found, rows), key=str) == sorted(map(expected, records), key=str)
        check_order(rows, records)


def check_items(scene: Scene, rows: list[dict[str, Any]]) -> None:
    """Events without images and the items read for them: together they are the table."""
    events = [row["event_id"] for row in rows if row["transport"] != "read"]
    assert sorted(events) == sorted(r.event_id for r in scene.sim.records(scene.table))
    whole = [row for row in rows if row["op"] == "D" or row["new_image"] is not None]
    changes = (KeyedChange(row["keys"], row["order_key"], row["new_image"]) for row in whole)
    there = [to_json(canonical_item(item)) for item in scene.sim.items(scene.table)]
    assert sorted(items(fold({}, changes)).values()) == sorted(there)


# ---------------------------------------------------------------------------------------- stories


def the_first_capture(scene: Scene) -> None:
    scene.write(20)
    scene.sim.rotate(scene.table)
    scene.write(10)


def gaps_splits_and_bad_records(scene: Scene) -> None:
    """Over midnight, a day after the last capture, with orphans of an earlier crash."""
    scene.write(30)
    scene.sim.rotate(scene.table)
    scene.write(10)
    # As many entries as summaries are kept for: from here on each new one removes an old one.
    while scene.state(scene.lake).n < 3 * _SUMMARY_EVERY:
        scene.write(1)
        scene.capture()
    scene.lost = scene.write(12)
    scene.clock.advance(25 * HOUR)
    scene.spoil(scene.write(20)[::7])
    scene.sim.split(scene.table, scene.sim.open_shards(scene.table)[0])
    scene.clock.advance(11 * HOUR)
    scene.write(20)
    scene.sim.rotate(scene.table, scene.sim.open_shards(scene.table)[-1])
    scene.spoil(scene.write(20)[::9])
    scene.leave_orphans()


def a_stream_that_was_renewed(scene: Scene) -> None:
    scene.write(20)
    scene.capture()
    scene.write(20)
    scene.sim.disable_stream(scene.table)
    scene.write(5)  # no stream tells of these
    scene.sim.enable_stream(scene.table, shards=2)
    scene.write(20)


def bare_events_completed_by_reads(scene: Scene) -> None:
    scene.write(20)
    scene.capture()
    scene.write(20)


_WRITES = ("open temporary", "second half", "fsync file", "fsync folder", "rename landing")
_COMMITS = ("link entry", "unlink temporary", "rename heartbeat")
_RARE = ("rename quarantine", "link summary", "unlink summary")
_ORPHANS = ("unlink landing", "unlink quarantine")
STORIES: dict[str, tuple[Callable[[Scene], None], tuple[str, ...], int]] = {
    "first": (the_first_capture, (*_WRITES, *_COMMITS, "mkdir landing"), 0),
    "gaps": (gaps_splits_and_bad_records, (*_WRITES, *_COMMITS, *_RARE, *_ORPHANS), 2),
    "renewed": (a_stream_that_was_renewed, (*_WRITES, *_COMMITS, "link summary"), 1),
    "bare": (bare_events_completed_by_reads, (*_WRITES, *_COMMITS), 0),
}
"""Each with the kinds of steps that its capture must go through, and its gaps."""


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[StreamsSimulator, SimulatedClock, Captures]]:
    clock = SimulatedClock()
    with PatientSimulator(clock=clock) as sim, pytest.MonkeyPatch.context() as patch:
        use(sim, patch)
        captures = Captures()
        try:
            yield sim, clock, captures
        finally:
            captures.close()


def make_scene(
    world: tuple[StreamsSimulator, SimulatedClock, Captures], name: str, folder: Path
) -> Scene:
    scene = Scene(*world, name, folder)
    if name.startswith("bare"):
        # One batch per capture: which events a read completes depends on what is in a batch.
        scene.view_type, scene.flush_rows = "KEYS_ONLY", 1000
    scene.sim.create_table(name, view_type=scene.view_type, shards=2)
    STORIES[name.split("_")[0]][0](scene)
    return scene


def copy_of(scene: Scene) -> Path:
    """A fresh lake as the scene begins."""
    lake = scene.lake.with_name("lake under test")
    shutil.rmtree(lake, ignore_errors=True)
    if scene.lake.exists():
        shutil.copytree(scene.lake, lake)
    return lake


def sides(step: str) -> tuple[str, ...]:
    """What is right after a step is right before the next one, but the commits are for sure."""
    commits = step.split()[0] in ("link", "rename", "unlink") and not step.endswith("temporary")
    return (BEFORE, AFTER) if commits else (BEFORE,)


@pytest.mark.parametrize("name", STORIES)
def test_killed_at_any_step_nothing_is_lost_or_doubled(
    name: str, world: tuple[StreamsSimulator, SimulatedClock, Captures], tmp_path: Path
) -> None:
    begun = time.monotonic()
    scene = make_scene(world, name, tmp_path / "lake")
    _, kinds, gaps = STORIES[name]
    lake = copy_of(scene)
    whole = scene.capture(lake)
    assert set(kinds) <= set(whole.steps), sorted(set(whole.steps))
    check_syncing(whole.steps)
    scene.finish(lake)
    check_lake(scene, lake)
    undisturbed = read_all(scene, lake)
    assert len(undisturbed.gaps) == gaps
    assert len(undisturbed.quarantined) == len(scene.spoiled)
    killed: Counter[str] = Counter()
    for number in count(1):
        died = kill_and_finish(scene, number, undisturbed, killed)
        if not died and number > len(whole.steps):
            break
    # On a busy machine the same number may be another step in each run: what was missed, by kind.
    for kind in sorted(set(kinds) - killed.keys()):
        assert kill_and_finish(scene, kind, undisturbed, killed), kind
    seconds = time.monotonic() - begun
    print(f"\n{name}: {len(whole.steps)} steps, {killed.total()} kills, {seconds:.0f} s: {killed}")
    assert set(kinds) <= killed.keys()


def kill_and_finish(
    scene: Scene, step: int | str, undisturbed: Landed, killed: Counter[str]
) -> bool:
    """Kill a run at `step`, finish by another run, compare; count what was killed, if anything."""
    lake = copy_of(scene)
    died = scene.capture(lake, step)
    for when in sides(died.steps[-1]) if died.killed else ():
        if when == AFTER:
            lake = copy_of(scene)
            died = scene.capture(lake, step, when)
        where = f"killed {when} step {step}, {died.steps[-1]}"
        killed[died.steps[-1]] += died.killed
        scene.finish(lake)
        check_lake(scene, lake)
        assert read_all(scene, lake) == undisturbed, where
    return died.killed


def check_syncing(steps: list[str]) -> None:
    """An object is on disk before it has its name, and its name before anything is built on it."""
    named = [n for n, step in enumerate(steps) if step.split()[0] in ("link", "rename")]
    for n in named:
        assert steps[n - 1] == "fsync file", steps[n - 5 : n + 1]
        behind = [step for step in steps[n + 1 : n + 3] if step != "unlink temporary"]
        assert behind[:1] == ["fsync folder"], steps[n : n + 3]


def test_killed_again_and_again(
    world: tuple[StreamsSimulator, SimulatedClock, Captures], tmp_path: Path
) -> None:
    """Each attempt dies some steps later than the one before, in what that one left."""
    scene = make_scene(world, "gaps_again", tmp_path / "lake")
    lake = copy_of(scene)
    scene.finish(lake)
    undisturbed = read_all(scene, lake)
    lake, kills = copy_of(scene), 0
    for number in count(1):
        if not scene.capture(lake, number, (BEFORE, AFTER)[number % 2]).killed:
            break
        kills += 1
    print(f"\n{kills} kills in a row")
    assert kills > 10
    scene.finish(lake)
    check_lake(scene, lake)
    assert read_all(scene, lake) == undisturbed
