"""The tasks that run on executors, by name: functions of a table and two arguments in JSON.

The first argument is the same for all tasks of a request.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.state import fold_tasks
from cdc_pipeline.repair import landing_parts
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.snapshot import parts
from cdc_pipeline.spark.exchange import Request, Setup

_TASKS: Mapping[str, Callable[[TableLake, Any, Any], Any]] = {
    parts.CONVERT: parts.convert_part,
    parts.WRITE: parts.write_range,
    landing_parts.LAND: landing_parts.land_file,
    fold_tasks.SORT: fold_tasks.sort_changes,
    fold_tasks.PREPARE: fold_tasks.prepare_range,
    fold_tasks.COUNT: fold_tasks.count_range,
    fold_tasks.WRITE: fold_tasks.write_range,
}


class Work(msgspec.Struct):
    """A request, with what its tasks must know."""

    setup: Setup
    request: Request


Log = Callable[[str], None]
Distribute = Callable[[Work, Log, Callable[[], bool]], list[Any]]
"""Does work: returns the outcome of each task. It tells its progress, and stops when its last
argument, called again and again, says that nobody waits for it."""


def do_task(work: bytes, number: int) -> bytes:
    """Do one task of work, both as JSON; an error that a user can act on becomes its result."""
    try:
        table, request = _opened(work)
        task, argument = _TASKS[request.task], request.arguments[number]
        return msgspec.json.encode({"result": task(table, request.shared, argument)})
    except CdcPipelineError as error:
        # Callers distinguish errors of data from those of services, which have a cause.
        failure = {
            "kind": type(error).__name__,
            "message": error.message,
            "fix": error.fix,
            "caused": error.__cause__ is not None,
        }
        return msgspec.json.encode({"failure": failure})


@lru_cache(maxsize=2)
def _opened(work: bytes) -> tuple[TableLake, Request]:
    """Open the lake once in each process."""
    decoded = msgspec.json.decode(work, type=Work)
    settings = parse_settings(decoded.setup.settings, Path("settings.yaml"))
    lake = Lake.open(settings)
    return lake.table(settings.table(decoded.setup.table)), decoded.request
