"""The loop of a server, with passes and publications that tests make up."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.run import Captured, Failed
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.service import server as server_module
from cdc_pipeline.service.publication import Look
from cdc_pipeline.service.server import NotPublished, Server, ServerEvent
from cdc_pipeline.settings.load import parse_settings


@dataclass
class Stage:
    """Tables, what their passes do, and what was seen of them."""

    lake: Lake
    passes: Counter[str] = field(default_factory=Counter)
    looks: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    events: list[ServerEvent] = field(default_factory=list)
    act: Callable[[str], None] = lambda _: None
    look: Callable[[str], Look] = lambda _: Look(is_settled=True)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def server(self, **options: Any) -> Server:
        return Server(self.lake, self.lake.settings.tables, 0.02, self.events.append, **options)

    def run(self, seconds: float, **options: Any) -> Server:
        server = self.server(**options)
        threading.Timer(seconds, server.stop).start()
        assert server.run()
        return server

    def capture(self, name: str) -> CaptureResult:
        with self.lock:
            self.passes[name] += 1
            self.busy[name] += 1
            assert self.busy[name] == 1, "two passes over one table"
            self.most_at_once = max(self.most_at_once, sum(self.busy.values()))
        try:
            self.act(name)
        finally:
            with self.lock:
                self.busy[name] -= 1
        return CaptureResult(name, watermark_us=int(time.time() * 1_000_000))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    tables = [{"name": f"tab{number}"} for number in range(6)]
    raw = {"lake": "lake", "region": "us-east-1", "tables": tables}
    stage = Stage(Lake.open(parse_settings(raw, tmp_path / "settings.yaml")))

    class Passes:
        def __init__(self, table: Any, _: float) -> None:
            self._name = table.name

        def run(self, _: object) -> CaptureResult:
            return stage.capture(self._name)

    def look_after(table: Any) -> Look:
        stage.looks[table.name] += 1
        return stage.look(table.name)

    monkeypatch.setattr(server_module, "Passes", Passes)
    monkeypatch.setattr(server_module, "look_after_state", look_after)
    monkeypatch.setattr(CaptureLog, "look", lambda _: LogState(n=3))
    return stage


def test_a_failing_table_stops_no_other(stage: Stage) -> None:
    def act(name: str) -> None:
        if name == "tab0":
            raise SourceError("its stream is off", fix="turn it on")
        if name == "tab1":
            raise ValueError("a value of an item")

    stage.act = act
    server = stage.run(0.5)
    assert stage.passes["tab0"] == stage.passes["tab1"] == 1, "tried again after a pause only"
    assert min(stage.passes[f"tab{n}"] for n in range(2, 6)) >= 5
    failed = [event for event in stage.events if isinstance(event, Failed)]
    assert [event.table.name for event in failed] == ["tab0", "tab1"]
    assert "Fix: turn it on" in str(failed[0].error)
    assert "a value of an item" not in str(failed[1].error)
    assert {*server.status().failing} == {"tab0", "tab1"}


def test_few_workers_serve_all_tables_in_turn(stage: Stage) -> None:
    stage.act = lambda _: time.sleep(0.04)
    stage.run(0.6, workers=2)
    assert [event for event in stage.events if isinstance(event, Failed)] == []
    assert stage.most_at_once == 2
    assert max(stage.passes.values()) - min(stage.passes.values()) <= 2
    assert sum(isinstance(event, Captured) for event in stage.events) == stage.passes.total()


def test_a_pass_that_takes_longer_than_the_pause_is_alone(stage: Stage) -> None:
    stage.act = lambda _: time.sleep(0.06)
    stage.run(0.3, workers=20)
    assert stage.most_at_once == 6
    assert [event for event in stage.events if isinstance(event, Failed)] == []


def test_a_long_publication_delays_no_capture_and_no_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 0.2)
    end = threading.Event()

    def look(_: str) -> Look:
        end.wait(10)
        return Look(is_settled=True)

    stage.look = look
    server = stage.server()
    threading.Timer(0.4, server.stop).start()
    began = time.monotonic()
    assert not server.run(), "it is abandoned"
    assert time.monotonic() - began < 2
    end.set()
    assert min(stage.passes.values()) >= 5


def test_states_are_looked_after_one_at_a_time_and_only_with_news(stage: Stage) -> None:
    stage.run(0.5)
    assert stage.looks == {f"tab{n}": 1 for n in range(6)}


def test_what_is_not_settled_is_looked_at_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_LOOK_AGAIN_SECONDS", 0.05)

    def look(name: str) -> Look:
        if name == "tab1":
            raise SourceError("no")
        return Look(is_settled=name != "tab0")

    stage.look = look
    stage.run(0.5)
    assert stage.looks["tab0"] >= 3
    assert stage.looks["tab1"] == stage.looks["tab2"] == 1
    assert [e.table.name for e in stage.events if isinstance(e, NotPublished)] == ["tab1"]


def test_once_gives_each_table_one_pass(stage: Stage) -> None:
    def act(name: str) -> None:
        if name == "tab0":
            raise SourceError("no")

    stage.act = act
    server = stage.server()
    assert server.run(once=True)
    assert set(stage.passes.values()) == {1}
    assert set(stage.looks.values()) == {1}
    assert [*server.status().failing] == ["tab0"]
