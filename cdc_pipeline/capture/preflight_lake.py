"""Preflight of the lake: credentials, its bucket, its encryption, its catalogue."""

import secrets
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from cdc_pipeline.aws.session import error_code
from cdc_pipeline.capture.asking import PIPELINE, Asker, Finding, RedError
from cdc_pipeline.capture.snapshot import export_target
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.core.iam import (
    Place,
    Statement,
    export_statements,
    glue_statements,
    lake_statements,
)
from cdc_pipeline.lake.glue import landing_table
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import Table


def look_at_lake(lake: Lake, example: Table) -> list[Finding]:
    """The lake's findings; `example` is a table whose names stand for those of all."""
    account = _account(lake)
    findings = [account, *_collected(lambda: [_storage(lake)])]
    if not account.green:
        return findings
    if lake.settings.is_s3:
        findings += _collected(lambda: [_glue(lake, example)])
    if lake.settings.export.bucket:
        findings += _collected(lambda: [_export_bucket(lake, example)])
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
    bucket, _, prefix = lake.settings.lake.removeprefix("s3://").partition("/")
    return Place(bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "")


def export_place(lake: Lake, table: Table) -> Place:
    """Bucket and folder of a table's exports."""
    target = export_target(lake, table.model_copy(update={"role_arn": None}))
    return Place(target.bucket, f"{target.prefix}/")


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
    return _probe(lake, "lake", place, probe_key(place, "_cdc/"), lake_statements(place, []))


def _export_bucket(lake: Lake, example: Table) -> Finding:
    place = export_place(lake, example)
    allowed = [*export_statements([place]), *lake_statements(place, [])]
    return _probe(lake, "export bucket", place, probe_key(place), allowed)


def _probe(lake: Lake, check: str, place: Place, key: str, statements: list[Statement]) -> Finding:
    """Put an object unless it is there, read, list and delete it; tells the encryption it got."""
    s3 = lake.aws.client("s3")
    asker = Asker(PIPELINE, statements, {"NoSuchBucket": _make_bucket(place, s3.meta.region_name)})
    named, where = {"Bucket": place.bucket, "Key": key}, f"s3://{place.bucket}/{key}"
    with asker.asking(check, "s3:PutObject", f"writing {where}"):
        put = s3.put_object(**named, Body=b"preflight", IfNoneMatch="*")
    try:
        with asker.asking(check, "s3:GetObject", f"reading {where}"):
            s3.get_object(**named)["Body"].read()
        with asker.asking(check, "s3:ListBucket", f"listing {where}"):
            s3.list_objects_v2(Bucket=place.bucket, Prefix=key)
    finally:
        with asker.asking(check, "s3:DeleteObject", f"deleting {where}"):
            s3.delete_object(**named)
    encryption = " ".join(filter(None, (put.get("ServerSideEncryption"), put.get("SSEKMSKeyId"))))
    return Finding(check, True, f"{place.bucket} is writable, encryption {encryption or 'none'}")


def _make_bucket(place: Place, region: str) -> str:
    return f"aws s3 mb s3://{place.bucket} --region {region}"


def _glue(lake: Lake, example: Table) -> Finding:
    """Ask for what may be missing, and add no partition: these calls change nothing."""
    glue, database = lake.aws.client("glue"), lake.database
    asker = Asker(
        PIPELINE,
        glue_statements(
            glue.meta.region_name, lake.aws.account(), database, [example.safe_name], []
        ),
    )
    name = landing_table(example)
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
