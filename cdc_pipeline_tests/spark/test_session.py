"""A run and its job talk over a folder: answers, failures, jobs that are joined, sides that die."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.errors import ExportError, WorkersError
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.spark import session
from cdc_pipeline.spark.exchange import (
    FORMAT,
    JOB,
    RUN,
    Exchange,
    Request,
    Setup,
    Watch,
    code_version,
)
from cdc_pipeline.spark.job import main
from cdc_pipeline.spark.job.tasks import Distribute, Work
from cdc_pipeline.spark.session import SparkWorkers, open_workers

_SETUP = Setup(FORMAT, code_version(), "orders", {})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)
    monkeypatch.setattr(main, "_LIFE_SECONDS", 0.02)
    monkeypatch.setattr(session, "_LIFE_SECONDS", 0.02)


@pytest.fixture
def exchange(tmp_path: Path) -> Exchange:
    return Exchange(LocalStore(tmp_path), "_cdc/cdc/orders/work/one/")


def doubled(work: Work, log: Callable[[str], None], is_over: Callable[[], bool]) -> list[Any]:
    log(f"{len(work.request.arguments)} tasks")
    return [{"result": 2 * number} for number in work.request.arguments]


def serving(exchange: Exchange, distribute: Distribute = doubled) -> Callable[[int], None]:
    def run_job(_: int) -> None:
        main.serve(exchange, distribute, lambda _: None, poll_seconds=0.01)

    return run_job


@contextmanager
def opened(
    exchange: Exchange, run_job: Callable[[int], None], told: list[str] | None = None
) -> Iterator[SparkWorkers]:
    lines = [] if told is None else told
    context = RunContext(lines.append)
    with open_workers(exchange, _SETUP, run_job, context, poll_seconds=0.01) as workers:
        yield workers


def test_results_come_in_the_order_of_arguments(exchange: Exchange) -> None:
    with opened(exchange, serving(exchange)) as workers:
        assert workers.map("double", [3, 1, 2]) == [6, 2, 4]
        assert workers.map("double", []) == []
    life = exchange.life(JOB)
    assert life is not None
    assert life.ended


def test_answers_that_are_there_need_no_job(exchange: Exchange) -> None:
    with opened(exchange, serving(exchange)) as workers:
        workers.map("double", [1], {"shared": 1})

    def refused(_: int) -> None:
        raise AssertionError("no job is needed")

    with opened(exchange, refused) as workers:
        assert workers.map("double", [1], {"shared": 1}) == [2]


def test_an_error_of_a_task_keeps_its_class_and_is_tried_again(exchange: Exchange) -> None:
    failure = {"kind": "ExportError", "message": "a file is damaged", "fix": "export again"}

    def failing(*_: Any) -> list[Any]:
        return [{"result": 1}, {"failure": failure}]

    with (
        opened(exchange, serving(exchange, failing)) as workers,
        pytest.raises(ExportError, match="damaged\n  Fix: export again"),
    ):
        workers.map("double", [1, 2])
    with opened(exchange, serving(exchange)) as workers:
        assert workers.map("double", [1, 2]) == [2, 4]


def test_a_job_that_ends_early_is_an_error_and_the_next_one_is_another(exchange: Exchange) -> None:
    numbers = []

    def dying(ended: int) -> None:
        numbers.append(ended)
        raise RuntimeError("no room")

    for _ in range(2):
        with (
            opened(exchange, dying) as workers,
            pytest.raises(WorkersError, match="RuntimeError: no room"),
        ):
            workers.map("double", [1])
    # The same number means the same job.
    assert numbers == [0, 1]


def test_a_run_joins_the_job_of_a_killed_one(exchange: Exchange) -> None:
    exchange.write_setup(_SETUP)
    exchange.live(RUN)
    job = threading.Thread(target=serving(exchange), args=(0,))
    job.start()
    while exchange.life(JOB) is None:
        pass

    def refused(_: int) -> None:
        raise AssertionError("there is a job")

    told: list[str] = []
    with opened(exchange, refused, told) as workers:
        assert workers.map("double", [4]) == [8]
    life = exchange.life(JOB)
    assert life is not None
    assert life.ended
    job.join(20)
    assert not job.is_alive()
    assert told[0] == "a Spark job for this work is running already: joining it"


def test_a_joined_job_that_ends_is_replaced(exchange: Exchange) -> None:
    exchange.write_setup(_SETUP)
    over = threading.Event()

    def live() -> None:
        while not over.is_set():
            exchange.live(JOB, "working")

    pretended = threading.Thread(target=live)
    pretended.start()

    def stop_when_joined(line: str) -> None:
        if "joining" in line:
            over.set()
            pretended.join()
            exchange.live(JOB, ended=True)

    context = RunContext(stop_when_joined)
    with open_workers(exchange, _SETUP, serving(exchange), context, poll_seconds=0.01) as workers:
        assert workers.map("double", [5]) == [10]


def test_a_job_ends_when_its_run_is_silent(exchange: Exchange) -> None:
    exchange.write_setup(_SETUP)
    exchange.live(RUN)
    main.serve(exchange, doubled, lambda _: None, patience_seconds=0.05, poll_seconds=0.01)
    life = exchange.life(JOB)
    assert life is not None
    assert life.ended


def test_work_stops_when_its_run_has_ended(exchange: Exchange) -> None:
    exchange.write_setup(_SETUP)
    exchange.live(RUN)
    name = exchange.request(Request("double", [1]))
    stopped = []

    def endless(work: Work, log: Any, is_over: Callable[[], bool]) -> list[Any]:
        exchange.live(RUN, ended=True)
        while not is_over():
            pass
        stopped.append(work.request.task)
        return []

    main.serve(exchange, endless, lambda _: None, poll_seconds=0.01)
    assert stopped == ["double"]
    assert exchange.read_answer(name) is None


def test_a_job_of_another_version_refuses(exchange: Exchange) -> None:
    exchange.write_setup(Setup(FORMAT, "0.0.1", "orders", {}))
    exchange.live(RUN)
    with pytest.raises(WorkersError, match=r"of cdc_pipeline 0\.0\.1, the Spark job of"):
        main.serve(exchange, doubled, lambda _: None)


def test_a_job_without_a_run_says_so(exchange: Exchange) -> None:
    with pytest.raises(WorkersError, match="there is no Spark job to do at"):
        main.serve(exchange, doubled, lambda _: None)


def test_old_answers_are_not_used(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maintenance may have removed the files that they name."""
    with opened(exchange, serving(exchange)) as workers:
        workers.map("double", [1])
    monkeypatch.setattr(session, "_OLD_SECONDS", -1)
    done = []

    def counted(work: Work, *rest: Any) -> list[Any]:
        done.append(work.request.task)
        return doubled(work, *rest)

    with opened(exchange, serving(exchange, counted)) as workers:
        workers.map("double", [1])
    assert done == ["double"]


def test_silence_is_seen_by_changes_alone(exchange: Exchange) -> None:
    watch = Watch(exchange, RUN)
    assert watch.look() is None
    exchange.live(RUN, "first")
    before = watch.silent_seconds()
    life = watch.look()
    assert life is not None
    assert life.line == "first"
    assert watch.silent_seconds() < before or before == 0
