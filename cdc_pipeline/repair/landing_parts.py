"""Files of an incremental export landed by workers: objects that no log entry names yet."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from cdc_pipeline.aws.export import DataFile, ExportStatus
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.log.entries import Erasure, LandedObject
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.core.workers import Workers
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.landing import write_days
from cdc_pipeline.lake.storage.log import new_nonce
from cdc_pipeline.repair.incremental_export import batches, export_changes

LAND = "land the export"

_FILES_AT_ONCE = 64
"""Files between two log entries: a run that is killed lands so many again."""


class LandedHeal(msgspec.Struct):
    """What landing must know of a heal: its gap and generation, the time, and erased items."""

    gap: int
    generation: int
    now_us: int
    erased: list[Erasure]


class _Export(msgspec.Struct):
    arn: str
    bucket: str
    prefix: str
    table_id: str
    heal: LandedHeal


def land_changes(
    table: TableLake, heal: LandedHeal, changes: Iterable[Change]
) -> list[LandedObject]:
    """Write landing objects in batches; they become valid with a log entry."""
    objects: list[LandedObject] = []
    erased = Suppressions(heal.erased)
    for rows in batches(changes):
        kept = [c for c in rows if not erased.is_suppressed(c.keys, c.write_time_us)]
        keys = partial(table.paths.healed, gap=heal.gap, nonce=new_nonce())
        objects += write_days(table.lake.store, kept, keys, heal.generation, heal.now_us)
    return objects


def landed_by_workers(
    table: TableLake,
    workers: Workers,
    status: ExportStatus,
    files: Sequence[DataFile],
    table_id: str,
    heal: LandedHeal,
) -> Iterator[tuple[DataFile, list[LandedObject]]]:
    """Yield the objects of each file; raises the errors of `export_changes` and `WorkersError`."""
    shared = _Export(status.arn, status.bucket, status.prefix, table_id, heal)
    for some in batches(files, _FILES_AT_ONCE):
        landed = workers.map(LAND, msgspec.to_builtins(some), msgspec.to_builtins(shared))
        yield from zip(some, msgspec.convert(landed, list[list[LandedObject]]), strict=True)


def land_file(table: TableLake, shared: Any, argument: Any) -> Any:
    """Land the changes of one data file; a task of `LAND`."""
    export, file = msgspec.convert(shared, _Export), msgspec.convert(argument, DataFile)
    status = ExportStatus(export.arn, "COMPLETED", export.bucket, export.prefix, None, "")
    changes = export_changes(table.lake, status, file, export.table_id)
    return msgspec.to_builtins(land_changes(table, export.heal, changes))
