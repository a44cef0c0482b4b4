"""DynamoDB tables as sources: their description, and consistent scans."""

import base64
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from cdc_pipeline.aws.client.session import AwsSession, aws_errors


@dataclass(frozen=True)
class TableDescription:
    """Properties of a table. `stream_arn`: None while its stream is off.

    `item_count` and `bytes` are some six hours old (botocore model). `key_types`: S, N or B by key
    attribute. `replicas`: the other Regions of a global table. `strongly_consistent`: reads in
    every Region show the last write (MultiRegionConsistency STRONG).
    """

    name: str
    table_id: str
    arn: str
    key_names: tuple[str, ...]
    stream_arn: str | None
    view_type: str | None
    item_count: int
    bytes: int = 0
    key_types: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[str, ...] = ()
    strongly_consistent: bool = False

    @property
    def global_note(self) -> str | None:
        """Limits of a global table's stream compared with the writing Region's; None: not global.

        Replication may merge changes of an item into one, and does not mark another Region's TTL
        deletes (developer guide, globaltables-CoreConcepts and time-to-live-ttl-streams).
        """
        if not self.replicas:
            return None
        if self.strongly_consistent:
            return f"global, with {', '.join(self.replicas)}: the same changes in every Region"
        return (
            f"global, with {', '.join(self.replicas)}: of changes made there, history may lack "
            "versions, and deletes by TTL are not marked; mirror the Region that is written to"
        )


def describe_table(aws: AwsSession, name: str) -> TableDescription:
    """Describe a table; raises `SourceError` for a missing or unreachable one."""
    with aws_errors(
        f"table {name}",
        ResourceNotFoundException="check the name, the account and the region in the settings",
    ):
        table = aws.client("dynamodb").describe_table(TableName=name)["Table"]
    stream = table.get("StreamSpecification", {})
    is_on = stream.get("StreamEnabled", False)
    return TableDescription(
        name=name,
        table_id=table.get("TableId") or table["TableArn"],
        arn=table["TableArn"],
        key_names=tuple(key["AttributeName"] for key in table["KeySchema"]),
        stream_arn=table.get("LatestStreamArn") if is_on else None,
        view_type=stream.get("StreamViewType") if is_on else None,
        item_count=table.get("ItemCount", 0),
        bytes=table.get("TableSizeBytes", 0),
        key_types=_key_types(table),
        replicas=_replicas(table, aws),
        strongly_consistent=table.get("MultiRegionConsistency") == "STRONG",
    )


def _replicas(table: Mapping[str, Any], aws: AwsSession) -> tuple[str, ...]:
    """List the Regions of a global table except its own, which AWS may list, too."""
    own = aws.client("dynamodb").meta.region_name
    named = {replica["RegionName"] for replica in table.get("Replicas", ())}
    return tuple(sorted(named - {own}))


def _key_types(table: Mapping[str, Any]) -> dict[str, str]:
    types = {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]}
    return {key["AttributeName"]: types[key["AttributeName"]] for key in table["KeySchema"]}


def has_item(aws: AwsSession, name: str, key: Mapping[str, Any]) -> tuple[bool, int]:
    """Check by a consistent read whether an item exists; returns DynamoDB's time in seconds, too.

    `key` in botocore's form (binary as bytes). The time is from the answer's Date header, the
    clock closest to that of write times. Raises `SourceError`.
    """
    with aws_errors(f"reading an item of table {name}"):
        answer = aws.client("dynamodb").get_item(
            TableName=name,
            Key=key,
            ConsistentRead=True,
            ProjectionExpression="#k",
            ExpressionAttributeNames={"#k": next(iter(key))},
        )
    date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
    return "Item" in answer, int(parsedate_to_datetime(date).timestamp())


@dataclass(frozen=True)
class BackupWindow:
    """Status of point-in-time recovery, and its range of restorable times."""

    enabled: bool
    earliest: datetime | None
    latest: datetime | None


def describe_backups(aws: AwsSession, name: str) -> BackupWindow:
    """Describe point-in-time recovery; raises `SourceError`."""
    with aws_errors(f"backups of table {name}"):
        answer = aws.client("dynamodb").describe_continuous_backups(TableName=name)
    recovery = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    return BackupWindow(
        enabled=recovery.get("PointInTimeRecoveryStatus") == "ENABLED",
        earliest=recovery.get("EarliestRestorableDateTime"),
        latest=recovery.get("LatestRestorableDateTime"),
    )


def scan_items(aws: AwsSession, name: str) -> Iterator[dict[str, Any]]:
    """Yield every item by a consistent Scan, in botocore's form (binary as bytes)."""
    pages = aws.client("dynamodb").get_paginator("scan")
    with aws_errors(f"scan of table {name}"):
        for page in pages.paginate(TableName=name, ConsistentRead=True):
            yield from page["Items"]


_SEGMENTS_TRIED = 4


def scan_some(aws: AwsSession, table: TableDescription, wanted: int) -> Iterator[dict[str, Any]]:
    """Yield up to `wanted` keys from random segments of a table, in botocore's form.

    A segment of a parallel Scan is a range of hashed keys; the number of segments is chosen so that
    one has about `wanted` items. Read capacity: half a unit per 4 kB of items read.
    """
    segments = min(max(1, table.item_count // wanted), 1_000_000)
    tries = random.sample(range(segments), min(segments, _SEGMENTS_TRIED))
    names = {f"#k{number}": name for number, name in enumerate(table.key_names)}
    with aws_errors(f"scan of table {table.name}"):
        for segment in tries:
            page = aws.client("dynamodb").scan(
                TableName=table.name,
                Limit=wanted,
                ProjectionExpression=",".join(names),
                ExpressionAttributeNames=names,
                **({"Segment": segment, "TotalSegments": segments} if segments > 1 else {}),
            )
            yield from page["Items"]
            wanted -= len(page["Items"])
            if wanted <= 0:
                return


def wire_form(item: dict[str, Any]) -> dict[str, Any]:
    """Convert an item from botocore's form to the wire form: binary as base64 text."""
    return {name: _wire_value(value) for name, value in item.items()}


def _wire_value(value: dict[str, Any]) -> dict[str, Any]:
    ((tag, content),) = value.items()
    if tag == "B":
        return {tag: base64.b64encode(content).decode()}
    if tag == "BS":
        return {tag: [base64.b64encode(member).decode() for member in content]}
    if tag == "L":
        return {tag: [_wire_value(element) for element in content]}
    if tag == "M":
        return {tag: wire_form(content)}
    return value
