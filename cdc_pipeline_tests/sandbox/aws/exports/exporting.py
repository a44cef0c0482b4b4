"""Asking a sandbox for exports and reading what they wrote, as any client of AWS would."""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cdc_pipeline_tests.sandbox.clients import Aws, wait_for


def table_arn(aws: Aws, table: str) -> str:
    return aws.dynamodb.describe_table(TableName=table)["Table"]["TableArn"]


def export_table(aws: Aws, table: str, bucket: str, **more: Any) -> dict[str, Any]:
    """Request an export and return its description once it is over."""
    started = aws.dynamodb.export_table_to_point_in_time(
        TableArn=table_arn(aws, table), S3Bucket=bucket, **more
    )["ExportDescription"]
    assert started["ExportStatus"] == "IN_PROGRESS"
    return finished(aws, started["ExportArn"])


def finished(aws: Aws, arn: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        found = aws.dynamodb.describe_export(ExportArn=arn)["ExportDescription"]
        return None if found["ExportStatus"] == "IN_PROGRESS" else found

    return wait_for(over)


def objects(aws: Aws, bucket: str) -> dict[str, bytes]:
    listed = aws.s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    keys = [entry["Key"] for entry in listed]
    return {k: read(aws, bucket, k) for k in keys}


def read(aws: Aws, bucket: str, key: str) -> bytes:
    return aws.s3.get_object(Bucket=bucket, Key=key)["Body"].read()


def exported_lines(aws: Aws, description: dict[str, Any]) -> list[list[str]]:
    """Return the lines of each data file that the export's manifests name."""
    bucket = description["S3Bucket"]
    summary = json.loads(read(aws, bucket, description["ExportManifest"]))
    entries = map(json.loads, read(aws, bucket, summary["manifestFilesS3Key"]).splitlines())
    bodies = (read(aws, bucket, entry["dataFileS3Key"]) for entry in entries)
    return [gzip.decompress(body).decode().splitlines() for body in bodies]


def exported_items(aws: Aws, description: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the items of a full export."""
    return [json.loads(line)["Item"] for file in exported_lines(aws, description) for line in file]


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def refusal(call: Callable[..., Any], **arguments: Any) -> str:
    """Return the code of the error that the call ends with."""
    return refusal_with_message(call, **arguments)[0]


def refusal_with_message(call: Callable[..., Any], **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]
