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
    """What capture needs to know of a table. `stream_arn` is None while its stream is off.

    `item_count` and `bytes` are some six hours old (botocore model). `key_types`: S, N or B by key
    attribute. `replicas`: the other Regions of a global table. `strongly_consistent`: reads in any
    of them show the last write (MultiRegionConsistency STRONG).
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
        """What a global table's stream holds less of than the writing Region's; None: no matter.

        Replication may merge changes of an item into one, and marks no TTL delete of another Region
        as one (developer guide, globaltables-CoreConcepts and time-to-live-ttl-streams).
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
    """DescribeTable; raises `SourceError` when the table is missing or out of reach."""
    with aws_errors(
        f"table {name}",
        ResourceNotFoundException="check the name, the account and the region in the settings",
    ):
        found = aws.client("dynamodb").describe_table(TableName=name)["Table"]
    stream = found.get("StreamSpecification", {})
    on = stream.get("StreamEnabled", False)
    return TableDescription(
        name=name,
        table_id=found.get("TableId") or found["TableArn"],
        arn=found["TableArn"],
        key_names=tuple(key["AttributeName"] for key in found["KeySchema"]),
        stream_arn=found.get("LatestStreamArn") if on else None,
        view_type=stream.get("StreamViewType") if on else None,
        item_count=found.get("ItemCount", 0),
        bytes=found.get("TableSizeBytes", 0),
        key_types=_key_types(found),
        replicas=_replicas(found, aws),
        strongly_consistent=found.get("MultiRegionConsistency") == "STRONG",
    )


def _replicas(table: Mapping[str, Any], aws: AwsSession) -> tuple[str, ...]:
    """Regions of a global table but its own; AWS may list that one, too."""
    own = aws.client("dynamodb").meta.region_name
    named = {replica["RegionName"] for replica in table.get("Replicas", ())}
    return tuple(sorted(named - {own}))


def _key_types(table: Mapping[str, Any]) -> dict[str, str]:
    types = {a["AttributeName"]: a["AttributeType"] for a in table["AttributeDefinitions"]}
    return {key["AttributeName"]: types[key["AttributeName"]] for key in table["KeySchema"]}


def has_item(aws: AwsSession, name: str, key: Mapping[str, Any]) -> tuple[bool, int]:
    """Whether the table has an item now, by a consistent read, and DynamoDB's time in seconds.

    `key` as botocore takes it (binary as bytes). The time is that of the answer's Date header,
    the clock closest to the one that write times are from. Raises `SourceError`.
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
    """Whether point-in-time recovery is on, and the times that it can restore."""

    enabled: bool
    earliest: datetime | None
    latest: datetime | None


def describe_backups(aws: AwsSession, name: str) -> BackupWindow:
    """DescribeContinuousBackups; raises `SourceError`."""
    with aws_errors(f"backups of table {name}"):
        answer = aws.client("dynamodb").describe_continuous_backups(TableName=name)
    recovery = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    return BackupWindow(
        enabled=recovery.get("PointInTimeRecoveryStatus") == "ENABLED",
        earliest=recovery.get("EarliestRestorableDateTime"),
        latest=recovery.get("LatestRestorableDateTime"),
    )


def scan_items(aws: AwsSession, name: str) -> Iterator[dict[str, Any]]:
    """Every item by a consistent Scan, as botocore gives it (binary as bytes)."""
    pages = aws.client("dynamodb").get_paginator("scan")
    with aws_errors(f"scan of table {name}"):
        for page in pages.paginate(TableName=name, ConsistentRead=True):
            yield from page["Items"]


_SEGMENTS_TRIED = 4


def scan_some(aws: AwsSession, table: TableDescription, wanted: int) -> Iterator[dict[str, Any]]:
    """Up to `wanted` keys from random places of a table, as botocore gives them.

    A segment of a parallel Scan is a range of hashed keys; with this many segments, one holds
    about as many items as are wanted. Read capacity: half a unit per 4 kB of items read.
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
    """An item as botocore gives it in the form it has on the wire: binary as base64 text."""
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
