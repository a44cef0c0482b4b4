"""Shared steps of Iceberg tables that are built day by day."""

from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import partial
from typing import TypeVar

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.lake.engine.masking import expire_earlier_versions, rules_by_day
from cdc_pipeline.lake.iceberg.tables import retry_on_conflict
from cdc_pipeline.lake.lake import Lake

_D = TypeVar("_D")
_R = TypeVar("_R")


def days_under_other_rules(table: IcebergTable | None, masking: Masking) -> set[date]:
    """Return the days built under other masking rules than those of the settings."""
    published = rules_by_day(table) if table else {}
    return {date.fromisoformat(day) for day, rules in published.items() if not masking.made(rules)}


def build_groups(
    build: Callable[[_D], tuple[_R, IcebergTable]],
    stale: Iterable[_D],
    requested: Iterable[_D],
    *,
    lake: Lake,
    forget: bool,
) -> Iterator[_R]:
    """Build days, or groups of days, one after the other: `stale` ones, then `requested` ones.

    `build`: returns the result and the committed table; called again after a commit conflict.
    `forget`: whether to remove earlier versions, because they show values that readers may no
    longer see. Yields the results of `requested`, each after its commit.
    """
    for group in stale:
        retry_on_conflict(partial(build, group))
    for group in requested:
        built, committed = retry_on_conflict(partial(build, group))
        if forget:
            expire_earlier_versions(lake, committed)
        yield built
