"""A run's side of a Spark job: starts or joins it, gives it work, and ends it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import cdc_pipeline.core.errors as known_errors
from cdc_pipeline.core.errors import CdcPipelineError, WorkersError
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.spark.exchange import JOB, RUN, Exchange, Failure, Request, Setup, Watch

_LIFE_SECONDS = 15.0
_JOIN_SECONDS = 40.0
"""A job writes a sign of life more often than that."""

_LOST_SECONDS = 300.0
"""Silence after which a job that was joined counts as lost."""

_END_SECONDS = 90.0
"""How long a run waits for its job to end; the job ends without it, too."""

_OLD_SECONDS = 12 * 3600
"""Age at which answers are not used any more: maintenance removes files that no commit names."""

RunJob = Callable[[int], None]
"""Runs a job until it has ended; raises an error if it failed. Its argument is the number of
earlier jobs of the same work that have ended: a repeated request for the same number joins."""


@contextmanager
def open_workers(
    exchange: Exchange,
    setup: Setup,
    run_job: RunJob,
    context: RunContext,
    *,
    poll_seconds: float = 1.0,
) -> Iterator["SparkWorkers"]:
    """Yield workers of a Spark job, which starts with the first task and ends with the block.

    Raises `WorkersError` if the job fails.
    """
    _forget_old(exchange)
    exchange.write_setup(setup)
    exchange.live(RUN)
    workers = SparkWorkers(exchange, run_job, context, poll_seconds)
    over = threading.Event()

    def live() -> None:
        while not over.wait(_LIFE_SECONDS):
            with suppress(CdcPipelineError):  # the next sign may succeed
                exchange.live(RUN)

    thread = threading.Thread(target=live, name="spark life", daemon=True)
    thread.start()
    try:
        yield workers
    finally:
        over.set()
        thread.join()
        exchange.live(RUN, ended=True)
        workers.wait_for_end()


def _forget_old(exchange: Exchange) -> None:
    files = list(exchange.store.files(exchange.prefix))
    until = datetime.now(UTC).timestamp() - _OLD_SECONDS
    if any(file.modified < until for file in files):
        exchange.store.delete(file.key for file in files)


class SparkWorkers:
    """See `core.workers.Workers`. Not thread-safe."""

    def __init__(
        self, exchange: Exchange, run_job: RunJob, context: RunContext, poll_seconds: float
    ) -> None:
        self._exchange = exchange
        self._run_job = run_job
        self._context = context
        self._poll_seconds = poll_seconds
        self._watch = Watch(exchange, JOB)
        self._job: Future[None] | None = None
        self._joined = False
        self._line = ""

    def map(self, task: str, arguments: Sequence[Any], shared: Any = None) -> list[Any]:
        """See `Workers`."""
        if not arguments:
            return []
        name = self._exchange.request(Request(task, list(arguments), shared))
        answer = self._exchange.read_answer(name)
        if answer is not None and answer.failure is not None:
            self._exchange.drop_answer(name)  # of an earlier run
            answer = None
        while answer is None:
            if self._job is not None and self._job.done():
                answer = self._exchange.read_answer(name)  # it may have come before the end
                if answer is None:
                    raise self._failed(self._job.exception())
                break
            self._need_job()
            self._context.sleep(self._poll_seconds)
            answer = self._exchange.read_answer(name)
        if answer.failure is not None:
            raise _error(answer.failure)
        return answer.results

    def wait_for_end(self) -> None:
        """Wait until the job has seen the end; one that does not is left to end by itself.

        What it writes last would stay, once the caller has removed the exchange.
        """
        if self._job is not None:
            wait([self._job], _END_SECONDS)
        deadline = time.monotonic() + _END_SECONDS
        while self._joined and time.monotonic() < deadline:
            life = self._watch.look()
            if life is None or life.ended:
                return
            self._context.sleep(self._poll_seconds)

    def _need_job(self) -> None:
        life = self._watch.look()
        if self._job is None and not self._joined:
            if life is not None and not life.ended and self._changes():
                self._context.progress("a Spark job for this work is running already: joining it")
                self._joined = True
            else:
                self._start()
        elif self._joined:
            if life is None or life.ended or self._watch.silent_seconds() > _LOST_SECONDS:
                self._context.progress("the Spark job that was joined has ended: starting another")
                self._joined = False
                self._start()
            elif life.line != self._line:
                # The run that started the job sees its log; this one only this line.
                self._line = life.line
                self._context.progress(life.line)

    def _changes(self) -> bool:
        """Whether the other side's object changes within some seconds."""
        waited = 0.0
        before = self._watch.last
        while waited < _JOIN_SECONDS:
            self._context.sleep(self._poll_seconds)
            waited += self._poll_seconds
            life = self._watch.look()
            if life is None or life.ended:
                return False
            if before is not None and life.nonce != before.nonce:
                return True
        return False

    def _start(self) -> None:
        ended = len(list(self._exchange.store.list(f"{self._exchange.prefix}ended/")))

        def run() -> None:
            try:
                self._run_job(ended)
            finally:
                # Else a repeated request would return this job instead of starting another.
                with suppress(CdcPipelineError):
                    note_end(self._exchange)

        self._job = ThreadPoolExecutor(1, "spark job").submit(run)

    def _failed(self, error: BaseException | None) -> CdcPipelineError:
        if isinstance(error, CdcPipelineError):
            return error
        last = f"; its last line: {self._watch.last.line}" if self._watch.last else ""
        kind = f" ({type(error).__name__}: {error})" if error else ""
        failed = WorkersError(
            f"the Spark job ended before its work was done{kind}{last}",
            fix="see the job's own log; materialise the asset again to continue",
        )
        failed.__cause__ = error
        return failed


def note_end(exchange: Exchange) -> None:
    """Note that a job has ended, so that the next request starts another one."""
    number = len(list(exchange.store.list(f"{exchange.prefix}ended/")))
    exchange.store.create(f"{exchange.prefix}ended/{number:06d}.json", b"{}")


def _error(failure: Failure) -> CdcPipelineError:
    kind = getattr(known_errors, failure.kind, None)
    raised: type[CdcPipelineError] = WorkersError
    if isinstance(kind, type) and issubclass(kind, CdcPipelineError):
        raised = kind
    error = raised(failure.message, fix=failure.fix)
    if failure.caused:
        error.__cause__ = WorkersError("see the log of the Spark job")
    return error
