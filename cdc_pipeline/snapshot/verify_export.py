"""Verification of a baseline's export: its files in S3 again, and what was staged of them."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cdc_pipeline.aws.export import ExportStatus, check_data_file, describe_export, read_manifest
from cdc_pipeline.core.errors import ExportError, NotReadyError
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.lake.engine.duckdb_session import connect_duckdb, files_relation
from cdc_pipeline.lake.iceberg.tables import data_files
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.current_state import published_base
from cdc_pipeline.lake.upkeep.verify import readable_files
from cdc_pipeline.transform.shred import typed_schema

_AT_ONCE = 4


@dataclass
class VerifiedExport:
    """What an export's manifests promise, and what there is.

    `gone`: why its files cannot be looked at any more, which is no fault of the lake: AWS forgets
    exports after some months, and buckets have lifecycles. `problems`: with fixes.
    """

    export_arn: str
    files: int = 0
    bytes: int = 0
    items: int = 0
    staged_rows: int | None = None
    gone: str | None = None
    problems: list[str] = field(default_factory=list)


def live_baseline(table: TableLake) -> Baseline:
    """The baseline behind current_state, before the first publication the staged one."""
    base, state = published_base(table), table.log.load()
    live = state.baselines.get(base.generation) if base else state.staged
    if live is None:
        raise NotReadyError(
            f"{table.safe_name}: there is no baseline yet",
            fix=f"materialise {table.safe_name}/pitr_export first",
        )
    return live


def verify_export(table: TableLake, *, context: RunContext = SILENT) -> VerifiedExport:
    """Compare the live baseline's export with its manifests, and the staged rows with their count.

    The files were counted when they were staged, and their MD5 vouches for that count. Raises
    `NotReadyError` when there is no baseline.
    """
    baseline = live_baseline(table)
    found = VerifiedExport(baseline.export_arn or "")
    fix = f"materialise {table.safe_name}/pitr_export: a fresh baseline"
    try:
        status = describe_export(table.source, found.export_arn)
    except ExportError as error:
        found.gone = error.message
    else:
        _check_files(table.lake, status, found, fix, context)
    expected = baseline.items if found.gone else found.items
    found.staged_rows = _staged_rows(table, baseline)
    if found.staged_rows != expected:
        found.problems.append(
            f"{table.safe_name}_snapshot holds {found.staged_rows} items, the export {expected}. "
            f"Fix: {fix}"
        )
    return found


def _check_files(
    lake: Lake, status: ExportStatus, found: VerifiedExport, fix: str, context: RunContext
) -> None:
    try:
        manifest = read_manifest(lake.aws, status)
    except ExportError as error:
        found.problems.append(f"{error.message}. Fix: {fix}")
        return
    found.items, found.files = manifest.items, len(manifest.files)

    def check(number: int) -> str | None:
        try:
            found.bytes += check_data_file(lake.aws, status, manifest.files[number])
        except ExportError as error:
            return f"{error.message}. Fix: {fix}"
        return None

    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        for number, problem in enumerate(pool.map(check, range(found.files)), 1):
            context.progress(f"file {number} of {found.files} of the export verified")
            if problem:
                found.problems.append(problem)


def _staged_rows(table: TableLake, baseline: Baseline) -> int:
    staged = table.iceberg("snapshot")
    assert staged is not None  # the log says that it was committed
    with readable_files(table.settings), connect_duckdb(table.lake) as connection:
        files = data_files(staged, baseline.snapshot_id)
        rows = files_relation(connection, files, typed_schema([]))
        return connection.execute(f"SELECT count(*) FROM {rows}").fetchall()[0][0]
