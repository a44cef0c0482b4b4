"""Work in parts that workers beyond this process do, and the choice whether they do it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

Engine = Literal["local", "spark", "auto"]

SPARK, AUTO = "spark", "auto"


class Workers(Protocol):
    """Processes that do tasks of one table, in any order and possibly more than once each."""

    def map(self, task: str, arguments: Sequence[Any], shared: Any = None) -> list[Any]:
        """Do a task (a name in `spark.job.tasks`) once for each argument; return the results.

        `shared`: a further argument of all. Arguments and results are JSON. Raises the error of the
        first task that failed for a reason of its own, and `WorkersError` if the workers cannot go
        on.
        """
        ...


StartWorkers = Callable[[str], AbstractContextManager[Workers]]
"""Starts workers, or joins those that are at work; they end with the context.

Its argument is the prefix of the objects by which a run and its workers talk. Runs that do the same
work use the same prefix.
"""


def needs_workers(engine: Engine, size: int, auto_gb: float) -> bool:
    """Whether work on `size` bytes is for workers; `auto_gb`: GB from which `auto` chooses them."""
    return engine == SPARK or (engine == AUTO and size >= auto_gb * 1_000_000_000)
