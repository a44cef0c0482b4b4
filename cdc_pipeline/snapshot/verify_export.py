"""Verification of a baseline's export: its files in S3, and the staged rows."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cdc_pipeline.aws.export import ExportStatus, check_data_file, describe_export, read_manifest
from cdc_pipeline.core.errors import ExportError, NotReadyError
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.lake.engine.duckdb_session import connect_duckdb, files_relation
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline.lake.upkeep.verify import readable_files
from cdc_pipeline.transform.shred import typed_schema

_AT_ONCE = 4


@dataclass
class VerifiedExport:
    """Files, bytes and items of an export, verified against its manifests.

    `gone`: why its files cannot be read any more, which is not an error of the lake: AWS forgets
    exports after some months, and buckets have lifecycle rules. `problems`: with fixes.
    """

    export_arn: str
    files: int = 0
    bytes: int = 0
    items: int = 0
    staged_rows: int | None = None
    gone: str | None = None
    problems: list[str] = field(default_factory=list)


def live_baseline(table: TableLake) -> Baseline:
    """Return the baseline of current_state; before the first publication, the staged one."""
    base, state = published_base(table), table.log.load()
    live = state.baselines.get(base.generation) if base else state.staged
    if live is None:
        raise NotReadyError(
            f"{table.safe_name}: there is no baseline yet",
            fix=f"materialise {table.safe_name}/pitr_export first",
        )
    return live


def verify_export(table: TableLake, *, context: RunContext = SILENT) -> VerifiedExport:
    """Compare the live baseline's export with its manifests, and the number of staged rows.

    The items of the files were counted when they were staged, and an equal MD5 proves that count.
    Raises `NotReadyError` if there is no baseline.
    """
    baseline = live_baseline(table)
    export = VerifiedExport(baseline.export_arn or "")
    fix = f"materialise {table.safe_name}/pitr_export: a fresh baseline"
    try:
        status = describe_export(table.source, export.export_arn)
    except ExportError as error:
        export.gone = error.message
    else:
        _check_files(table.lake, status, export, fix, context)
    expected = baseline.items if export.gone else export.items
    export.staged_rows = _staged_rows(table, baseline)
    if export.staged_rows != expected:
        export.problems.append(
            f"{table.safe_name}_snapshot holds {export.staged_rows} items, the export {expected}. "
            f"Fix: {fix}"
        )
    return export


def _check_files(
    lake: Lake, status: ExportStatus, export: VerifiedExport, fix: str, context: RunContext
) -> None:
    try:
        manifest = read_manifest(lake.aws, status)
    except ExportError as error:
        export.problems.append(f"{error.message}. Fix: {fix}")
        return
    export.items, export.files = manifest.items, len(manifest.files)

    def check(number: int) -> str | None:
        try:
            export.bytes += check_data_file(lake.aws, status, manifest.files[number])
        except ExportError as error:
            return f"{error.message}. Fix: {fix}"
        return None

    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        for number, problem in enumerate(pool.map(check, range(export.files)), 1):
            context.progress(f"file {number} of {export.files} of the export verified")
            if problem:
                export.problems.append(problem)


def _staged_rows(table: TableLake, baseline: Baseline) -> int:
    staged = table.iceberg("snapshot")
    assert staged is not None  # it was committed, by the log
    with readable_files(table.settings), connect_duckdb(table.lake) as connection:
        files = data_files(staged, baseline.snapshot_id)
        rows = files_relation(connection, files, typed_schema([]))
        return connection.execute(f"SELECT count(*) FROM {rows}").fetchall()[0][0]
