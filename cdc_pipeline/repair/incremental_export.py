"""Lines of incremental exports as changes; waiting until an export can be made."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import msgspec

from cdc_pipeline.aws.export import (
    DataFile,
    ExportStatus,
    read_data_file,
    whole_lines,
)
from cdc_pipeline.aws.table import describe_backups
from cdc_pipeline.core.changes.change import Change, from_export_line
from cdc_pipeline.core.clock import utc
from cdc_pipeline.core.errors import ExportError, UnreadableError
from cdc_pipeline.core.items.attributes import TOO_DEEP
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.lake import Lake, TableLake

BATCH_ROWS = 10_000
WAIT_SECONDS = 5
_T = TypeVar("_T")


def export_changes(
    lake: Lake, status: ExportStatus, file: DataFile, table_id: str
) -> Iterator[Change]:
    """Read the changes of one data file; raises `ExportError` for a wrong checksum or count."""
    where, number = f"data file {file.key}", 0
    for block in whole_lines(read_data_file(lake.aws, status, file), where):
        for line in block.splitlines():
            number += 1
            yield _change(line, table_id, f"{where}, line {number}")
    if number != file.items:
        raise ExportError(f"{where} holds {number} items, its manifest promises {file.items}")


def _change(line: bytes, table_id: str, where: str) -> Change:
    try:
        return from_export_line(msgspec.json.decode(line), table_id=table_id)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ExportError(f"{where}: not JSON") from None
    except (UnreadableError, RecursionError) as error:
        raise ExportError(f"{where}: {getattr(error, 'reason', TOO_DEEP)}") from None


def wait_until_restorable(
    table: TableLake,
    until_us: int,
    context: RunContext,
) -> None:
    """Wait until recovery, typically five minutes behind the present, reaches a time."""
    while True:
        latest = describe_backups(table.source, table.name).latest
        if latest is not None and latest.timestamp() * 1_000_000 >= until_us:
            return
        context.progress(f"waiting until recovery reaches {utc(until_us):%H:%M:%S}")
        context.sleep(WAIT_SECONDS)


def batches(rows: Iterable[_T], size: int = BATCH_ROWS) -> Iterator[list[_T]]:
    """Split rows into batches of `size`."""
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch
