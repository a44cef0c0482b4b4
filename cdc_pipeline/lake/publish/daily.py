"""Iceberg tables that are built day by day: what their builds share."""

from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import partial
from typing import TypeVar

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.lake.engine.masking import days_under_rules, forget_earlier
from cdc_pipeline.lake.iceberg.tables import over_conflicts
from cdc_pipeline.lake.lake import Lake

_D = TypeVar("_D")
_R = TypeVar("_R")


def days_under_other_rules(table: IcebergTable | None, masking: Masking) -> set[date]:
    """The days that were built under other masking rules than those of the settings."""
    published = days_under_rules(table) if table else {}
    return {date.fromisoformat(day) for day, rules in published.items() if not masking.made(rules)}


def build_groups(
    build: Callable[[_D], tuple[_R, IcebergTable]],
    stale: Iterable[_D],
    asked: Iterable[_D],
    *,
    lake: Lake,
    forget: bool,
) -> Iterator[_R]:
    """Build one day, or group of days, after the other: `stale` ones first, then what was asked.

    `build`: returns what it built and the table as committed; it decides again when another commit
    comes first. `forget`: earlier versions show what readers may not see any more.
    Yields what was asked for, each once it stands.
    """
    for group in stale:
        over_conflicts(partial(build, group))
    for group in asked:
        built, committed = over_conflicts(partial(build, group))
        if forget:
            forget_earlier(lake, committed)
        yield built
