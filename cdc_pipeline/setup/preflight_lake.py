"""Preflight of the lake: credentials, its bucket, its encryption, its catalogue."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg.exceptions import CommitFailedException

from cdc_pipeline.aws.client.session import aws_errors, error_code
from cdc_pipeline.aws.s3.output import sse_parameters
from cdc_pipeline.core.errors import CdcPipelineError, LakeError
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.core.plans.iam import (
    Place,
    Statement,
    export_statements,
    glue_statements,
    lake_statements,
    s3tables_statements,
)
from cdc_pipeline.lake.glue_partitions import landing_table
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.setup.catalog_trial import NEEDED, USEFUL, try_catalog
from cdc_pipeline.setup.findings import PIPELINE, Asker, Finding, RedError
from cdc_pipeline.setup.optimizers import look_at_optimizers
from cdc_pipeline.setup.round_trip import round_trip
from cdc_pipeline.snapshot.export import export_target

_FILES_FIX = (
    "boto3 can write there, other clients cannot: check the network, the proxy and the authority "
    "(AWS_CA_BUNDLE) between this machine and the host that is named, and tell us if they are right"
)
_CATALOG_FIX = "see what its log says, or choose another catalogue (docs/catalogues.md)"


def look_at_lake(example: TableLake) -> list[Finding]:
    """The lake's findings; `example` is a table whose names stand for those of all."""
    account = _account(example.lake)
    storage = _collected(lambda: [_storage(example.lake)])
    findings = [account, *storage]
    tried = (
        example.lake.settings.catalog is not None and example.lake.settings.catalog_type != "glue"
    )
    if tried and not example.lake.settings.is_s3:
        findings.append(_catalog(example.lake))  # AWS has no part in it
    if not account.green:
        return findings
    if all(finding.green for finding in storage):
        findings.append(_files(example.lake))
    if example.lake.settings.has_glue:
        catalogue = _collected(lambda: [_glue(example)])
        findings += catalogue
        if all(finding.green for finding in catalogue):
            findings.append(look_at_optimizers(example.lake, example.lake.aws.account()))
    if tried and example.lake.settings.is_s3:
        findings.append(_catalog(example.lake))
    if example.lake.settings.catalog_type == "s3tables":
        findings += _collected(lambda: [_table_bucket(example.lake)])
    if example.lake.settings.export.bucket:
        findings += _collected(lambda: [_export_bucket(example)])
    return findings


def _collected(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except RedError as red:
        return [red.finding]


def _account(lake: Lake) -> Finding:
    try:
        return Finding("credentials", True, f"account {lake.aws.account()}")
    except CdcPipelineError as error:
        fix = error.fix or "give the pipeline AWS credentials: `aws sts get-caller-identity` works"
        return Finding("credentials", False, error.message, fix)


def lake_place(lake: Lake) -> Place:
    """Bucket and folder of a lake in S3."""
    bucket, prefix = split_s3(lake.settings.lake)
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    return Place(bucket, folder, lake.aws.partition)


def glue_root(lake: Lake, account: str) -> str:
    """What ARNs of the lake's catalogue in Glue begin with."""
    region = lake.aws.client("glue").meta.region_name
    return f"arn:{lake.aws.partition}:glue:{region}:{account}:"


def export_place(table: TableLake) -> Place:
    """Bucket and folder of a table's exports."""
    target = export_target(_in_own_account(table))
    return Place(target.bucket, f"{target.prefix}/", table.lake.aws.partition)


def _in_own_account(table: TableLake) -> TableLake:
    """The table as if it were in the lake's account: its exports lie in the same bucket."""
    return table.lake.table(table.settings.model_copy(update={"role_arn": None}))


def probe_key(place: Place, folder: str = "") -> str:
    """The key of a small object that is put and deleted again."""
    return f"{place.prefix}{folder}preflight-{secrets.token_hex(8)}"


def _storage(lake: Lake) -> Finding:
    if not lake.settings.is_s3:
        with Asker(PIPELINE, ()).asking("lake", "", f"lake {lake.settings.lake_folder}"):
            key = probe_key(Place(""), "_cdc/")
            lake.store.create(key, b"")
            lake.store.delete([key])
        return Finding("lake", True, f"{lake.settings.lake_folder} is writable")
    place = lake_place(lake)
    probe = _Probe(probe_key(place, "_cdc/"), lake.settings.kms_key, "kms_key")
    return _probe(lake, "lake", place, probe, lake_statements(place, []))


def _files(lake: Lake) -> Finding:
    """Write and read a small Iceberg table as conversion, publication and queries do it."""
    try:
        with aws_errors("a small Iceberg table", LakeError):
            bytes_written = round_trip(lake)
    except CdcPipelineError as error:
        return Finding("files", False, error.message, error.fix or _FILES_FIX)
    return Finding("files", True, f"Parquet and Iceberg: {bytes_written} bytes written and read")


def _export_bucket(example: TableLake) -> Finding:
    place = export_place(example)
    allowed = [*export_statements([place]), *lake_statements(place, [])]
    kms_key = export_target(_in_own_account(example)).kms_key
    probe = _Probe(probe_key(place), kms_key, "export.kms_key")
    return _probe(example.lake, "export bucket", place, probe, allowed)


@dataclass(frozen=True)
class _Probe:
    """An object to put, the KMS key that the settings name for it, and where they name it."""

    key: str
    kms_key: str | None
    setting: str


def _probe(
    lake: Lake, check: str, place: Place, probe: _Probe, statements: list[Statement]
) -> Finding:
    """Put an object unless it is there, read, list and delete it; tells the encryption it got."""
    s3 = lake.aws.client("s3")
    asker = Asker(PIPELINE, statements, {"NoSuchBucket": _make_bucket(place, s3.meta.region_name)})
    named, where = {"Bucket": place.bucket, "Key": probe.key}, f"s3://{place.bucket}/{probe.key}"
    try:
        with asker.asking(check, "s3:PutObject", f"writing {where}"):
            sse = sse_parameters(probe.kms_key)
            put = s3.put_object(**named, Body=b"preflight", IfNoneMatch="*", **sse)
    except RedError as red:
        if probe.kms_key is None and _takes_encrypted(s3, named):
            found = f"{red.finding.found}; with SSE-KMS it may be written"
            fix = f"`{probe.setting}: aws/s3` in the settings, or the ARN of the bucket's KMS key"
            raise RedError(Finding(check, False, found, fix)) from None
        raise
    try:
        with asker.asking(check, "s3:GetObject", f"reading {where}"):
            s3.get_object(**named)["Body"].read()
        with asker.asking(check, "s3:ListBucket", f"listing {where}"):
            s3.list_objects_v2(Bucket=place.bucket, Prefix=probe.key)
    finally:
        with asker.asking(check, "s3:DeleteObject", f"deleting {where}"):
            s3.delete_object(**named)
    encryption = " ".join(filter(None, (put.get("ServerSideEncryption"), put.get("SSEKMSKeyId"))))
    return Finding(check, True, f"{place.bucket} is writable, encryption {encryption or 'none'}")


def _takes_encrypted(s3: Any, named: dict[str, str]) -> bool:
    """Whether a bucket that refused an object takes it with SSE-KMS."""
    try:
        s3.put_object(**named, Body=b"preflight", IfNoneMatch="*", **sse_parameters("aws/s3"))
        s3.delete_object(**named)
    except (ClientError, BotoCoreError):
        return False
    return True


def _make_bucket(place: Place, region: str) -> str:
    return f"aws s3 mb s3://{place.bucket} --region {region}"


def _catalog(lake: Lake) -> Finding:
    """Try on a small table what the lake asks of its catalogue."""
    kind = lake.settings.catalog_type
    try:
        failed = try_catalog(lake).failed
    except CdcPipelineError as error:
        return Finding("catalogue", False, error.message, error.fix or _CATALOG_FIX)
    except (OSError, CommitFailedException) as error:
        return Finding("catalogue", False, f"{kind}: {error}", _CATALOG_FIX)
    lacking = [f"{text}: {failed[name]}" for name, text in NEEDED.items() if name in failed]
    if lacking:
        found = f"{kind} does not {'; does not '.join(lacking)}"
        return Finding("catalogue", False, found, _CATALOG_FIX)
    without = [text for name, text in USEFUL.items() if name in failed]
    found = f"{kind} does all that the lake needs"
    return Finding("catalogue", True, "; does not ".join([found, *without]))


def _table_bucket(lake: Lake) -> Finding:
    """Whether S3 Tables would expire baselines: it promises to spare no tag without an age."""
    check, chosen = "baselines", lake.settings.catalog
    assert chosen is not None  # s3tables is never a default
    bucket = chosen.properties["warehouse"]
    s3tables = lake.aws.client("s3tables", bucket.split(":")[3])
    asker = Asker(PIPELINE, s3tables_statements(bucket))
    names = [f"{table.safe_name}_snapshot" for table in lake.settings.tables]
    active = []
    for name in names:
        place = {"tableBucketARN": bucket, "namespace": lake.database, "name": name}
        with asker.asking(check, "s3tables:GetTableMaintenanceConfiguration", f"table {name}"):
            try:
                said = s3tables.get_table_maintenance_configuration(**place)["configuration"]
            except ClientError as error:
                if error_code(error) != "NotFoundException":
                    raise
                continue  # there is none yet
        if said.get("icebergSnapshotManagement", {}).get("status") == "enabled":
            active.append(name)
    if not active:
        return Finding(check, True, "S3 Tables expires no snapshots of them")
    fix = (
        "for name in {names}; do aws s3tables put-table-maintenance-configuration "
        "--table-bucket-arn {bucket} --namespace {database} --name $name --type "
        "icebergSnapshotManagement --value '{value}'; done; maintenance here expires them"
    ).format(
        names=" ".join(active),
        bucket=bucket,
        database=lake.database,
        value='{"status": "disabled"}',
    )
    return Finding(check, False, f"S3 Tables may expire snapshots of {', '.join(active)}", fix)


def _glue(example: TableLake) -> Finding:
    """Ask for what may be missing, and add no partition: these calls change nothing."""
    glue, database = example.lake.aws.client("glue"), example.lake.database
    asker = Asker(
        PIPELINE,
        glue_statements(
            glue_root(example.lake, example.lake.aws.account()), database, [example.safe_name], []
        ),
    )
    name = landing_table(example.settings)
    table = {"DatabaseName": database, "TableName": name}
    calls: dict[str, Callable[[], Any]] = {
        "glue:GetDatabase": lambda: glue.get_database(Name=database),
        "glue:GetTable": lambda: glue.get_table(DatabaseName=database, Name=name),
        "glue:GetPartitions": lambda: glue.get_partitions(**table, MaxResults=1),
        "glue:BatchCreatePartition": lambda: glue.batch_create_partition(
            **table, PartitionInputList=[]
        ),
    }
    missing: set[str] = set()
    for action, call in calls.items():
        with asker.asking("glue", action, f"{action} of {database}"):
            try:
                call()
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    raise
                missing.add(action)
    will = ", which will be created" if "glue:GetDatabase" in missing else ""
    return Finding("glue", True, f"database {database}{will}")
