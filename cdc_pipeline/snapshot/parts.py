"""A full export as a baseline by workers: each converts data files, then writes ranges of keys."""

import hashlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from pyiceberg.table.metadata import TableMetadataUtil

from cdc_pipeline.aws.export import DataFile, ExportStatus, Manifest, read_data_file
from cdc_pipeline.core.changes.order import SNAPSHOT_POSITION, order_key
from cdc_pipeline.core.errors import ExportError
from cdc_pipeline.core.items.columns import Column, columns_of
from cdc_pipeline.core.log.entries import Baseline, Erasure
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.core.workers import Workers
from cdc_pipeline.lake.engine.item_table import (
    TypedResult,
    column_names,
    description_text,
    prior_columns,
    size_properties,
    typed_reader,
)
from cdc_pipeline.lake.engine.written_files import (
    FileDescriptor,
    commit_name,
    describe_file,
    written_files,
)
from cdc_pipeline.lake.iceberg.catalog import open_files
from cdc_pipeline.lake.iceberg.checksums import ChecksumIO
from cdc_pipeline.lake.iceberg.writer import write_rows
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.sorted_parts import KeyRange, SortedParts, key_ranges
from cdc_pipeline.snapshot.items import ExportedItems
from cdc_pipeline.snapshot.staging import ConvertedFile, Staging
from cdc_pipeline.transform.pinned_types import count_misfits
from cdc_pipeline.transform.shred import merge_stats, stats_from_json, stats_to_json, typed_schema
from cdc_pipeline.transform.spool import ITEMS_SCHEMA, SpoolWriter

CONVERT, WRITE = "convert the export", "write the baseline"

_RANGE_BYTES = 512 << 20
"""Text of a range, the least of which a task is worth it."""

_SLICE_BYTES = 1 << 20
"""Text that a range should have of each data file: less makes many small reads."""

_READERS = 8
_FORMAT = 1


class _Export(msgspec.Struct):
    """What every task must know of the export. `items`: of all its files."""

    arn: str
    bucket: str
    prefix: str
    staging: str
    key_names: tuple[str, ...]
    items: int

    def status(self) -> ExportStatus:
        return ExportStatus(self.arn, "COMPLETED", self.bucket, self.prefix, None, "")


class _Baseline(msgspec.Struct):
    """What every task that writes must know. `metadata`: of the table as the commit makes it."""

    export: _Export
    files: list[DataFile]
    order_key: str
    write_time_us: int
    columns: list[Column]
    stats: str
    metadata: str
    erased: list[Erasure]


class _Note(msgspec.Struct):
    """What a converted file's part says beside its rows."""

    bytes: int
    stats: str


class _Converted(msgspec.Struct):
    """The result of a conversion: `sample` has some of the file's keys."""

    items: int
    bytes: int
    stats: str
    sample: list[str]


class _Written(msgspec.Struct):
    """The result of a range: `items` were read, the files have those that are not erased."""

    items: int
    rows: int
    files: list[FileDescriptor]


def stage_by_workers(
    table: TableLake,
    status: ExportStatus,
    manifest: Manifest,
    baseline: Baseline,
    key_names: tuple[str, ...],
    erased: Callable[[], list[Erasure]],
    context: RunContext,
    workers: Workers,
) -> tuple[TypedResult, int]:
    """Let workers verify, convert, sort and write every file; commit them as `<table>_snapshot`.

    Returns the table, and the export's bytes of text. Raises the errors of `snapshot.take_snapshot`
    and `WorkersError`. Memory: descriptions of files.
    """
    export = _Export(
        status.arn,
        status.bucket,
        status.prefix,
        staging_prefix(table, status),
        key_names,
        manifest.items,
    )
    context.progress(f"{len(manifest.files)} files with {manifest.items} items, on Spark")
    converted = [
        msgspec.convert(done, _Converted)
        for done in workers.map(CONVERT, manifest.files, msgspec.to_builtins(export))
    ]
    stats = merge_stats(*(stats_from_json(done.stats) for done in converted))
    size = sum(done.bytes for done in converted)
    # The table before the log: an erasure after the call of `erased` makes the commit fail.
    over = table.iceberg("snapshot")
    left_out = erased()
    columns = columns_of(
        stats,
        prior_columns(over),
        limit=table.settings.max_columns,
        names=column_names(table.lake.iceberg, table.safe_name),
    )
    name, schema = f"{table.safe_name}_snapshot", typed_schema(columns)
    planned = table.lake.iceberg.planned(name, schema, over=over, key="_key")
    shared = _Baseline(
        export,
        manifest.files,
        order_key(baseline.generation, SNAPSHOT_POSITION),
        baseline.export_time_us,
        columns,
        stats_to_json(stats),
        planned.model_dump_json(),
        left_out,
    )
    sample = [key for done in converted for key in done.sample]
    least_bytes = max(_RANGE_BYTES, len(converted) * _SLICE_BYTES)
    ranges = key_ranges(sample, size // least_bytes + 1)
    context.progress(f"sorting and typing {manifest.items} items in {len(ranges)} ranges of keys")
    written = [
        msgspec.convert(done, _Written, str_keys=True)
        for done in workers.map(WRITE, ranges, msgspec.to_builtins(shared))
    ]
    items, rows = sum(done.items for done in written), sum(done.rows for done in written)
    if items != manifest.items:
        raise ExportError(f"export {status.arn} holds {manifest.items} items but {items} keys")
    files = [file for done in written for file in done.files]
    committed = table.lake.iceberg.replace(
        name,
        written_files(files, schema, planned),
        {**baseline_properties(baseline, status), **size_properties(rows, None)},
        over=over,
        key="_key",
        described=description_text(stats, columns, count_misfits((), columns, stats)),
    )
    return TypedResult(committed, columns, rows), size


def staging_prefix(table: TableLake, status: ExportStatus) -> str:
    """Return the folder of an export's converted files."""
    return f"{table.paths.staging}{status.arn.rpartition('/')[2]}/"


def baseline_properties(baseline: Baseline, status: ExportStatus) -> dict[str, str]:
    """Return the table properties that say what a baseline was made from."""
    return {
        "generation": str(baseline.generation),
        "export_arn": status.arn,
        "export_time_us": str(baseline.export_time_us),
    }


def convert_part(table: TableLake, shared: Any, argument: Any) -> Any:
    """Verify, convert and sort a data file, unless an earlier attempt has; a task of `CONVERT`."""
    export, file = msgspec.convert(shared, _Export), msgspec.convert(argument, DataFile)
    parts = SortedParts(table.lake.store, export.staging, ITEMS_SCHEMA)
    kept = parts.kept(_part_name(file))
    if kept is None:
        with tempfile.TemporaryDirectory() as folder:
            staging = Staging(
                table.lake.store, "", Path(folder), export.key_names, items=export.items
            )
            pieces = read_data_file(table.lake.aws, export.status(), file)
            converted = staging.convert(file, pieces, f"data file {file.key}", keep=False)
            rows = converted.sorted(Path(folder), table.lake.settings.memory_mb)
            note = msgspec.json.encode(_Note(converted.bytes, stats_to_json(converted.stats)))
            kept = parts.keep(_part_name(file), rows, converted.items, note.decode())
    note = msgspec.json.decode(kept.note, type=_Note)
    return msgspec.to_builtins(_Converted(kept.rows, note.bytes, note.stats, kept.sample()))


def _part_name(file: DataFile) -> str:
    inputs = (_FORMAT, file.key, file.md5)
    return hashlib.sha256(repr(inputs).encode()).hexdigest()[:32]


def write_range(table: TableLake, shared: Any, argument: Any) -> Any:
    """Write the items of a range of keys as sorted, typed files; a task of `WRITE`."""
    baseline, keys = msgspec.convert(shared, _Baseline), msgspec.convert(argument, KeyRange)
    metadata = TableMetadataUtil.parse_raw(baseline.metadata)
    io = ChecksumIO(open_files(table.lake.settings, table.lake.aws))
    with tempfile.TemporaryDirectory() as folder:
        spooled = _spool_range(table, baseline, keys, Path(folder))
        items = ExportedItems(
            [spooled],
            baseline.order_key,
            baseline.write_time_us,
            Path(folder),
            f"export {baseline.export.arn}",
            Suppressions(baseline.erased),
        )
        narrow = items.ordered(table.lake.settings.memory_mb)
        stats = stats_from_json(baseline.stats)
        typed = typed_reader(narrow, baseline.columns, stats, spooled.items)
        files = list(write_rows(metadata, io, typed, commit_name()))
    described = [describe_file(file, io.sums[file.file_path]) for file in files]
    rows = sum(file.record_count for file in files)
    return msgspec.to_builtins(_Written(spooled.items, rows, described))


def _spool_range(
    table: TableLake, baseline: _Baseline, keys: KeyRange, scratch: Path
) -> ConvertedFile:
    """Gather the rows of a range from all data files in a temporary file."""
    parts = SortedParts(table.lake.store, baseline.export.staging, ITEMS_SCHEMA)
    names = [_part_name(file) for file in baseline.files]
    path, items, size = scratch / "range.arrow", 0, 0
    with ThreadPoolExecutor(_READERS, "read") as pool, SpoolWriter(path, compressed=False) as spool:
        # A few at a time: the results wait in memory.
        for start in range(0, len(names), _READERS):
            some = names[start : start + _READERS]
            for batches in pool.map(lambda name: parts.read(name, keys), some):
                for batch in batches:
                    spool.write(batch)
                    items, size = items + len(batch), size + batch.nbytes
    return ConvertedFile([path], items, size, {}, compressed=False)
