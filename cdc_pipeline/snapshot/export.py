"""One export of a table: target, token, waiting, and the checks of its manifest."""

import hashlib

from cdc_pipeline.aws.export import (
    FULL,
    INCREMENTAL,
    ExportStatus,
    ExportTarget,
    Manifest,
    check_data_file,
    describe_export,
    read_manifest,
)
from cdc_pipeline.core.errors import (
    ExportError,
    FailedExportError,
    RunningExportError,
    SettingsError,
    UnusableExportError,
)
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.model import Settings


def export_target(table: TableLake) -> ExportTarget:
    """Return the target of a table's exports: by default the lake's own bucket."""
    settings, folder = table.lake.settings, table.paths.exports
    owner = table.export_owner()
    if settings.export.bucket:
        prefix = settings.export.prefix.strip("/")
        key = f"{prefix}/{folder}" if prefix else folder
        return ExportTarget(settings.export.bucket, key, owner, _export_key(settings))
    if not settings.is_s3:
        raise SettingsError(
            "the lake is a local folder, but DynamoDB exports only to S3",
            fix="name a bucket in the settings: export: {bucket: my-bucket}",
        )
    bucket, prefix = split_s3(settings.lake)
    key = f"{prefix.strip('/')}/{folder}" if prefix.strip("/") else folder
    return ExportTarget(bucket, key, owner, _export_key(settings))


def _export_key(settings: Settings) -> str | None:
    """KMS key of exports: by default, and only in the lake's bucket, the lake's key."""
    lake_bucket = settings.is_s3 and split_s3(settings.lake)[0]
    is_lake_bucket = settings.export.bucket in (None, lake_bucket)
    return settings.export.kms_key or (settings.kms_key if is_lake_bucket else None)


def export_token(table_id: str, *parts: object) -> str:
    """Return a client token: AWS returns the same export for the same token for eight hours."""
    return hashlib.sha256("/".join(map(str, (table_id, *parts))).encode()).hexdigest()[:32]


def describe_own_export(table: TableLake, arn: str, table_id: str) -> ExportStatus:
    """Describe an export; raises `UnusableExportError` if it is of another table."""
    status = describe_export(table.source, arn)
    if status.table_id and status.table_id != table_id:
        raise UnusableExportError(f"export {arn} is of another table ({status.table_id})")
    return status


def wait_for_export(
    table: TableLake,
    arn: str,
    table_id: str,
    context: RunContext,
) -> ExportStatus:
    """Poll until AWS has written an export, for `export.timeout_minutes` at most.

    Raises `FailedExportError`; `RunningExportError` after that time, and the export continues;
    `UnusableExportError`.
    """
    options, clock = table.lake.settings.export, table.log.clock
    started = clock()
    while True:
        status = describe_own_export(table, arn, table_id)
        if status.status == "COMPLETED":
            return status
        waited_seconds = clock() - started
        if status.status == "FAILED":
            raise FailedExportError(f"export {arn} failed: {status.failure}")
        if waited_seconds > options.timeout_minutes * 60:
            raise RunningExportError(
                f"export {arn} is still {status.status} after {waited_seconds / 60:.0f} minutes",
                fix="run this again: it continues to wait for the same export",
            )
        context.progress(
            f"export {arn.rpartition('/')[2]} is {status.status} ({waited_seconds:.0f} s)"
        )
        context.sleep(options.poll_seconds)


def export_manifest(lake: Lake, status: ExportStatus, table_id: str, kind: str = FULL) -> Manifest:
    """Read an export's manifest; raises `ExportError`, `UnusableExportError` for another table."""
    manifest = read_manifest(lake.aws, status, kind)
    if manifest.table_id and manifest.table_id != table_id:
        raise UnusableExportError(f"export {status.arn} is of another table ({manifest.table_id})")
    return manifest


def is_whole(lake: Lake, status: ExportStatus) -> bool:
    """Whether the manifests and files of a complete incremental export are intact."""
    try:
        for file in read_manifest(lake.aws, status, INCREMENTAL).files:
            check_data_file(lake.aws, status, file)
    except ExportError:
        return False
    return True
