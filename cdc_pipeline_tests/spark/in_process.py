"""A Spark job without Spark: the job's loop in a thread, its tasks one after the other."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.core.workers import StartWorkers, Workers
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.spark.exchange import Exchange, setup_of
from cdc_pipeline.spark.job.main import serve
from cdc_pipeline.spark.job.tasks import Distribute, Log, Work, do_task
from cdc_pipeline.spark.session import open_workers


def distributed_here(work: Work, log: Log, is_over: Callable[[], bool]) -> list[Any]:
    """The outcomes of the tasks, done in this thread."""
    text = msgspec.json.encode(work)
    outcomes = []
    for number in range(len(work.request.arguments)):
        if is_over():
            return []
        outcomes.append(msgspec.json.decode(do_task(text, number)))
        log(f"{work.request.task}: {number + 1}")
    return outcomes


def workers_here(
    table: TableLake,
    *,
    distribute: Distribute = distributed_here,
    context: RunContext = SILENT,
    patience_seconds: float = 60.0,
) -> StartWorkers:
    """What `Lake.workers_of` returns for a table."""

    def start(prefix: str) -> AbstractContextManager[Workers]:
        exchange = Exchange(table.lake.store, prefix)

        def run_job(_: int) -> None:
            serve(
                exchange,
                distribute,
                lambda _: None,
                patience_seconds=patience_seconds,
                poll_seconds=0.01,
            )

        setup = setup_of(table)
        setup.settings["handover_margin_seconds"] = 1  # tests' lakes have less than is allowed
        return open_workers(exchange, setup, run_job, context, poll_seconds=0.01)

    return start
