"""The distribution of tasks over the executors of a Spark."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import msgspec

from cdc_pipeline.core.errors import WorkersError
from cdc_pipeline.spark.job.tasks import Distribute, Log, Work, do_task

_LOOK_SECONDS = 2.0


@contextmanager
def open_spark() -> Iterator[Distribute]:
    """Start the Spark of this job; yield the function that distributes work over it."""
    from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]

    builder: Any = SparkSession.builder
    spark = builder.appName("cdc_pipeline").getOrCreate()
    try:
        yield lambda work, log, is_over: _distributed(spark, work, log, is_over)
    finally:
        spark.stop()


def _distributed(spark: Any, work: Work, log: Log, is_over: Callable[[], bool]) -> list[Any]:
    """Do the work, one Spark task for each argument; returns the outcomes in their order.

    Spark repeats a task that failed for another reason than its data (`spark.task.maxFailures`).
    """
    context = spark.sparkContext
    count, name = len(work.request.arguments), work.request.task
    # In a broadcast, not in the function: that goes to every task.
    shared = context.broadcast(msgspec.json.encode(work))

    # Not `mapInArrow`: it wants pandas (Spark 4.1), and only outcomes pass through Spark.
    tasks = context.parallelize(range(count), count)
    outcomes = tasks.map(lambda number: do_task(shared.value, number))
    started, done = time.monotonic(), -1
    with ThreadPoolExecutor(1, "spark action") as pool:
        action = pool.submit(outcomes.collect)
        while wait([action], _LOOK_SECONDS).not_done:
            if is_over():
                context.cancelAllJobs()
                return []
            if (now := _done(context, count)) > done:
                done = now
                log(f"{name}: {done} of {count} tasks done ({time.monotonic() - started:.0f} s)")
    shared.destroy()
    if error := action.exception():
        # Its text has a stack of Java and Python and may have values, which stay in Spark's log.
        raise WorkersError(
            f"Spark gave up on a task of {name!r}: {type(error).__name__}",
            fix="see the log of the job's driver and executors",
        ) from error
    log(f"{name}: {count} of {count} tasks done ({time.monotonic() - started:.0f} s)")
    return [msgspec.json.decode(outcome) for outcome in action.result()]


def _done(context: Any, count: int) -> int:
    tracker = context.statusTracker()
    stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    return sum(stage.numCompletedTasks for stage in stages if stage and stage.numTasks == count)
