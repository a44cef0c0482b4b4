"""Preflight of the lake: credentials, bucket, encryption, catalogue."""

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
    S3Location,
    Statement,
    export_statements,
    glue_statements,
    lake_statements,
    s3tables_statements,
)
from cdc_pipeline.lake.glue_partitions import landing_table
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.setup.checks.catalog_trial import NEEDED, USEFUL, try_catalog
from cdc_pipeline.setup.checks.findings import PIPELINE, AwsProbe, FailedCheckError, Finding
from cdc_pipeline.setup.checks.optimizers import check_optimizers
from cdc_pipeline.setup.checks.round_trip import round_trip
from cdc_pipeline.snapshot.export import export_target

_FILES_FIX = (
    "boto3 can write there, other clients cannot: check the network, the proxy and the certificate "
    "authority (AWS_CA_BUNDLE) between this machine and the named host; if they are right, report "
    "this as a bug"
)
_CATALOG_FIX = "check its log, or choose another catalogue (docs/catalogues.md)"


def check_lake(example: TableLake) -> list[Finding]:
    """Return the findings of the lake; `example`: one of its tables, whose names are used."""
    account = _account(example.lake)
    storage = _collected(lambda: [_storage(example.lake)])
    findings = [account, *storage]
    needs_trial = (
        example.lake.settings.catalog is not None and example.lake.settings.catalog_type != "glue"
    )
    if needs_trial and not example.lake.settings.is_s3:
        findings.append(_catalog(example.lake))  # without AWS
    if not account.green:
        return findings
    if all(finding.green for finding in storage):
        findings.append(_files(example.lake))
    if example.lake.settings.has_glue:
        catalogue = _collected(lambda: [_glue(example)])
        findings += catalogue
        if all(finding.green for finding in catalogue):
            findings.append(check_optimizers(example.lake, example.lake.aws.account()))
    if needs_trial and example.lake.settings.is_s3:
        findings.append(_catalog(example.lake))
    if example.lake.settings.catalog_type == "s3tables":
        findings += _collected(lambda: [_table_bucket(example.lake)])
    if example.lake.settings.export.bucket:
        findings += _collected(lambda: [_export_bucket(example)])
    return findings


def _collected(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except FailedCheckError as failed:
        return [failed.finding]


def _account(lake: Lake) -> Finding:
    try:
        return Finding("credentials", True, f"account {lake.aws.account()}")
    except CdcPipelineError as error:
        fix = error.fix or "give the pipeline AWS credentials: `aws sts get-caller-identity` works"
        return Finding("credentials", False, error.message, fix)


def lake_place(lake: Lake) -> S3Location:
    """Return the bucket and folder of a lake in S3."""
    bucket, prefix = split_s3(lake.settings.lake)
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    return S3Location(bucket, folder, lake.aws.partition)


def glue_root(lake: Lake, account: str) -> str:
    """Return the common beginning of ARNs of the lake's catalogue in Glue."""
    region = lake.aws.client("glue").meta.region_name
    return f"arn:{lake.aws.partition}:glue:{region}:{account}:"


def export_place(table: TableLake) -> S3Location:
    """Return the bucket and folder of a table's exports."""
    target = export_target(_in_own_account(table))
    return S3Location(target.bucket, f"{target.prefix}/", table.lake.aws.partition)


def _in_own_account(table: TableLake) -> TableLake:
    """Return the table as if it were in the lake's account: its exports are in the same bucket."""
    return table.lake.table(table.settings.model_copy(update={"role_arn": None}))


def trial_key(place: S3Location, folder: str = "") -> str:
    """Return a key for a small object that is put and deleted again."""
    return f"{place.prefix}{folder}preflight-{secrets.token_hex(8)}"


def _storage(lake: Lake) -> Finding:
    if not lake.settings.is_s3:
        with AwsProbe(PIPELINE, ()).check("lake", "", f"lake {lake.settings.lake_folder}"):
            key = trial_key(S3Location(""), "_cdc/")
            lake.store.create(key, b"")
            lake.store.delete([key])
        return Finding("lake", True, f"{lake.settings.lake_folder} is writable")
    place = lake_place(lake)
    trial = _TrialObject(trial_key(place, "_cdc/"), lake.settings.kms_key, "kms_key")
    return _try_object(lake, "lake", place, trial, lake_statements(place, []))


def _files(lake: Lake) -> Finding:
    """Write and read a small Iceberg table with the clients of conversion, publication, queries."""
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
    trial = _TrialObject(trial_key(place), kms_key, "export.kms_key")
    return _try_object(example.lake, "export bucket", place, trial, allowed)


@dataclass(frozen=True)
class _TrialObject:
    """An object to put, its KMS key in the settings, and the name of that setting."""

    key: str
    kms_key: str | None
    setting: str


def _try_object(
    lake: Lake, check: str, place: S3Location, trial: _TrialObject, statements: list[Statement]
) -> Finding:
    """Put an object unless it exists, read, list and delete it; report its encryption."""
    s3 = lake.aws.client("s3")
    fixes = {"NoSuchBucket": _make_bucket(place, s3.meta.region_name)}
    probe = AwsProbe(PIPELINE, statements, fixes)
    target, where = {"Bucket": place.bucket, "Key": trial.key}, f"s3://{place.bucket}/{trial.key}"
    try:
        with probe.check(check, "s3:PutObject", f"writing {where}"):
            sse = sse_parameters(trial.kms_key)
            put = s3.put_object(**target, Body=b"preflight", IfNoneMatch="*", **sse)
    except FailedCheckError as failed:
        if trial.kms_key is None and _accepts_encrypted(s3, target):
            problem = f"{failed.finding.found}; with SSE-KMS it can be written"
            fix = f"`{trial.setting}: aws/s3` in the settings, or the ARN of the bucket's KMS key"
            raise FailedCheckError(Finding(check, False, problem, fix)) from None
        raise
    try:
        with probe.check(check, "s3:GetObject", f"reading {where}"):
            s3.get_object(**target)["Body"].read()
        with probe.check(check, "s3:ListBucket", f"listing {where}"):
            s3.list_objects_v2(Bucket=place.bucket, Prefix=trial.key)
    finally:
        with probe.check(check, "s3:DeleteObject", f"deleting {where}"):
            s3.delete_object(**target)
    encryption = " ".join(filter(None, (put.get("ServerSideEncryption"), put.get("SSEKMSKeyId"))))
    return Finding(check, True, f"{place.bucket} is writable, encryption {encryption or 'none'}")


def _accepts_encrypted(s3: Any, target: dict[str, str]) -> bool:
    """Return whether a bucket that refused an object accepts it with SSE-KMS."""
    try:
        s3.put_object(**target, Body=b"preflight", IfNoneMatch="*", **sse_parameters("aws/s3"))
        s3.delete_object(**target)
    except (ClientError, BotoCoreError):
        return False
    return True


def _make_bucket(place: S3Location, region: str) -> str:
    return f"aws s3 mb s3://{place.bucket} --region {region}"


def _catalog(lake: Lake) -> Finding:
    """Try the features that the lake needs of its catalogue on a small table."""
    kind = lake.settings.catalog_type
    try:
        failed = try_catalog(lake).failed
    except CdcPipelineError as error:
        return Finding("catalogue", False, error.message, error.fix or _CATALOG_FIX)
    except (OSError, CommitFailedException) as error:
        return Finding("catalogue", False, f"{kind}: {error}", _CATALOG_FIX)
    missing = [f"{text}: {failed[name]}" for name, text in NEEDED.items() if name in failed]
    if missing:
        problem = f"{kind} does not {'; does not '.join(missing)}"
        return Finding("catalogue", False, problem, _CATALOG_FIX)
    without = [text for name, text in USEFUL.items() if name in failed]
    summary = f"{kind} has all features that the lake needs"
    return Finding("catalogue", True, "; does not ".join([summary, *without]))


def _table_bucket(lake: Lake) -> Finding:
    """Check that S3 Tables does not expire baselines: tags without an age are not protected."""
    check, chosen = "baselines", lake.settings.catalog
    assert chosen is not None  # s3tables is never a default
    bucket = chosen.properties["warehouse"]
    s3tables = lake.aws.client("s3tables", bucket.split(":")[3])
    probe = AwsProbe(PIPELINE, s3tables_statements(bucket))
    names = [f"{table.safe_name}_snapshot" for table in lake.settings.tables]
    active = []
    for name in names:
        place = {"tableBucketARN": bucket, "namespace": lake.database, "name": name}
        with probe.check(check, "s3tables:GetTableMaintenanceConfiguration", f"table {name}"):
            try:
                answer = s3tables.get_table_maintenance_configuration(**place)
            except ClientError as error:
                if error_code(error) != "NotFoundException":
                    raise
                continue  # the table does not exist yet
        management = answer["configuration"].get("icebergSnapshotManagement", {})
        if management.get("status") == "enabled":
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
    """Call actions on objects that may be missing, and add no partition: nothing changes."""
    glue, database = example.lake.aws.client("glue"), example.lake.database
    probe = AwsProbe(
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
        with probe.check("glue", action, f"{action} of {database}"):
            try:
                call()
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    raise
                missing.add(action)
    will = ", which will be created" if "glue:GetDatabase" in missing else ""
    return Finding("glue", True, f"database {database}{will}")
