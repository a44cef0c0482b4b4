"""IAM policies of the pipeline: which AWS actions it needs, on what, as policy documents.

A test holds them to what the pipeline really calls. Why each action is there: docs/aws.md; what
AWS demands: docs/aws_facts.md, IAM.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.core.transports import DYNAMODB_STREAMS, KINESIS, KINESIS_CHANNEL

Statement = dict[str, Any]
Policy = dict[str, Any]

ICEBERG_TABLES = ("snapshot", "cdc", "current_state", "tombstones", "ttl_archive")
"""Suffixes of a table's Iceberg tables in Glue."""
LANDING_TABLE = "raw_stream"
"""Suffix of its landing zone's table in Glue."""


@dataclass(frozen=True)
class SourceTable:
    """A DynamoDB table that is read, and the account and region that it is in.

    `kinesis_arn`: of the Kinesis stream that is read instead of the table's own, or behind its
    channel, `channel_arn`. `reads_items`: it is compared with its source, or completed by reads.
    `is_measured`: Firehose's metrics are read. `partition`: of the region, `aws`, `aws-cn`,
    `aws-us-gov`, ...: ARNs begin with it, and IAM takes those of its own alone.
    """

    name: str
    region: str
    account: str
    transport: str = DYNAMODB_STREAMS
    kinesis_arn: str | None = None
    reads_items: bool = True
    partition: str = "aws"
    channel_arn: str | None = None
    is_measured: bool = False

    @property
    def measured(self) -> bool:
        """Whether CloudWatch is asked of its changes."""
        return self.is_measured or self.transport in (KINESIS, KINESIS_CHANNEL)

    @property
    def channels(self) -> str:
        """The ARN of its channel, of any of its account where unknown."""
        return self.channel_arn or self._arn("kinesis", "channel/*")

    @property
    def arn(self) -> str:
        """The table's ARN."""
        return self._arn("dynamodb", f"table/{self.name}")

    @property
    def kinesis_streams(self) -> str:
        """The ARN of the stream that it is read from, of any of its account where unknown."""
        return self.kinesis_arn or self.all_streams

    @property
    def all_streams(self) -> str:
        """The ARN of every stream of its account and region."""
        return self._arn("kinesis", "stream/*")

    def _arn(self, service: str, what: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{what}"


@dataclass(frozen=True)
class Place:
    """A bucket and what the keys in it begin with, mostly a folder. `partition`: its AWS's."""

    bucket: str
    prefix: str = ""
    partition: str = "aws"

    @property
    def bucket_arn(self) -> str:
        """The bucket's ARN."""
        return f"arn:{self.partition}:s3:::{self.bucket}"

    @property
    def objects(self) -> str:
        """The ARN of every object in the folder."""
        return f"{self.bucket_arn}/{self.prefix}*"


def statement(sid: str, actions: Sequence[str], resources: Iterable[str]) -> Statement:
    """What allows some actions on some resources."""
    found = sorted(set(resources))
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": found}


def policy(statements: Iterable[Statement]) -> Policy:
    """A policy document."""
    return {"Version": "2012-10-17", "Statement": list(statements)}


def source_statements(tables: Sequence[SourceTable]) -> list[Statement]:
    """What reading tables of one account needs: description, exports, changes, items."""
    arns = [table.arn for table in tables]
    found = [
        statement(
            "Describe", ["dynamodb:DescribeTable", "dynamodb:DescribeContinuousBackups"], arns
        ),
        statement("Export", ["dynamodb:ExportTableToPointInTime"], arns),
        statement("Exports", ["dynamodb:DescribeExport"], (f"{arn}/export/*" for arn in arns)),
    ]
    streams = [f"{t.arn}/stream/*" for t in tables if t.transport == DYNAMODB_STREAMS]
    if streams:
        reading = ["DescribeStream", "GetShardIterator", "GetRecords"]
        found.append(statement("Streams", [f"dynamodb:{name}" for name in reading], streams))
    if any(t.transport == KINESIS for t in tables):
        found += _kinesis_statements([t for t in tables if t.transport == KINESIS])
    if any(t.transport == KINESIS_CHANNEL for t in tables):
        found += _channel_statements([t for t in tables if t.transport == KINESIS_CHANNEL])
    if any(t.measured for t in tables):
        # CloudWatch knows no resources for metrics.
        found.append(statement("Metrics", ["cloudwatch:GetMetricStatistics"], ["*"]))
    items = [table.arn for table in tables if table.reads_items]
    if items:
        found.append(statement("Items", ["dynamodb:BatchGetItem", "dynamodb:Scan"], items))
    return found


def _kinesis_statements(tables: Sequence[SourceTable]) -> list[Statement]:
    streams = [table.kinesis_streams for table in tables]
    reading = ["DescribeStreamSummary", "ListShards", "GetShardIterator", "GetRecords"]
    return [
        statement(
            "KinesisDestination",
            ["dynamodb:DescribeKinesisStreamingDestination"],
            (t.arn for t in tables),
        ),
        statement("Kinesis", [f"kinesis:{name}" for name in reading], streams),
    ]


def _channel_statements(tables: Sequence[SourceTable]) -> list[Statement]:
    """A channel is found and described; its dead letters are read again from the stream."""
    streams = [table.kinesis_streams for table in tables]
    reading = ["DescribeStreamSummary", "GetShardIterator", "GetRecords"]
    return [
        statement(
            "ChannelDestination",
            ["dynamodb:DescribeKinesisStreamingDestination"],
            (t.arn for t in tables),
        ),
        statement("ChannelStream", [f"kinesis:{name}" for name in reading], streams),
        # Channels are listed on the level of streams, of all of them (Kinesis guide, "IAM
        # permissions for data delivery").
        statement("Channels", ["kinesis:ListChannels"], (t.all_streams for t in tables)),
        statement("Channel", ["kinesis:DescribeChannel"], (t.channels for t in tables)),
    ]


def export_statements(places: Sequence[Place]) -> list[Statement]:
    """What DynamoDB does in the caller's name while it writes exports."""
    actions = ["s3:PutObject", "s3:PutObjectAcl", "s3:AbortMultipartUpload"]
    return [statement("ExportFiles", actions, (place.objects for place in places))]


def lake_statements(lake: Place | None, read: Sequence[Place]) -> list[Statement]:
    """The lake's own folder, and folders that are only read: exports, files of Firehose.

    Listing is not bound to folders: without it S3 answers 403, not 404, for what is not there.
    """
    found = []
    if lake is not None:
        actions = ["GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"]
        found.append(statement("Lake", [f"s3:{name}" for name in actions], [lake.objects]))
    if read:
        found.append(statement("Read", ["s3:GetObject"], (place.objects for place in read)))
    buckets = {place.bucket_arn for place in [*read, *([lake] if lake else [])]}
    return [*found, statement("List", ["s3:ListBucket"], buckets)]


def glue_statements(
    root: str, database: str, tables: Sequence[str], more: Sequence[str]
) -> list[Statement]:
    """The catalogue: `tables` are safe names of tables, `more` full names of others in Glue.

    `root`: what ARNs of the catalogue begin with, `arn:aws:glue:REGION:ACCOUNT:`.
    """
    above = [f"{root}catalog", f"{root}database/{database}"]
    suffixes = (*ICEBERG_TABLES, LANDING_TABLE)
    names = [*(f"{table}_{suffix}" for table in tables for suffix in suffixes), *more]
    of_tables = [f"{root}table/{database}/{name}" for name in names]
    landing = [f"{root}table/{database}/{table}_{LANDING_TABLE}" for table in tables]
    partitions = [
        "GetPartitions",
        "BatchCreatePartition",
        "BatchUpdatePartition",
        "DeletePartition",
    ]
    return [
        statement("GlueDatabase", ["glue:GetDatabase", "glue:CreateDatabase"], above),
        statement(
            "GlueTables",
            ["glue:GetTable", "glue:CreateTable", "glue:UpdateTable"],
            [*above, *of_tables],
        ),
        # Preflight names optimizers that are active.
        statement("GlueOptimizers", ["glue:BatchGetTableOptimizer"], [*above, *of_tables]),
        statement(
            "GluePartitions",
            [f"glue:{name}" for name in partitions],
            [*above, *landing],
        ),
    ]


def s3tables_statements(bucket: str) -> list[Statement]:
    """A table bucket (its ARN) as the catalogue; S3 Tables' actions also cover the files."""
    of_bucket = ["GetTableBucket", "GetNamespace", "CreateNamespace", "CreateTable", "ListTables"]
    of_tables = [
        *("GetTable", "GetTableMetadataLocation", "UpdateTableMetadataLocation"),
        *("GetTableData", "PutTableData", "GetTableMaintenanceConfiguration"),
    ]
    return [
        statement("TableBucket", [f"s3tables:{name}" for name in of_bucket], [bucket]),
        statement("Tables", [f"s3tables:{name}" for name in of_tables], [f"{bucket}/table/*"]),
    ]


def key_statements(keys: Sequence[str]) -> list[Statement]:
    """KMS keys that encrypt streams, exports or the lake."""
    return [statement("Keys", ["kms:Decrypt", "kms:GenerateDataKey"], keys)] if keys else []


def erase_statements(tables: Sequence[SourceTable], places: Sequence[Place]) -> list[Statement]:
    """What `cdc-pipeline erase` needs beyond the pipeline: for people, not for the pipeline."""
    return [
        statement("SeeThatItIsGone", ["dynamodb:GetItem"], (table.arn for table in tables)),
        statement("Versions", ["s3:ListBucketVersions"], (place.bucket_arn for place in places)),
        statement(
            "Erase",
            ["s3:PutObject", "s3:DeleteObject", "s3:DeleteObjectVersion"],
            (place.objects for place in places),
        ),
    ]


def bucket_policy(place: Place, roles: Sequence[str]) -> Policy:
    """What the bucket of exports says to let roles of other accounts export into it."""
    (found,) = export_statements([place])
    allowed = {
        "Sid": "ExportsOfOtherAccounts",
        "Effect": "Allow",
        "Principal": {"AWS": list(roles)},
    }
    return policy([{**allowed, "Action": found["Action"], "Resource": found["Resource"]}])


def trust_policy(account: str, external_id: str | None, partition: str) -> Policy:
    """What a role in another account says to let this account assume it."""
    allowed: Statement = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{partition}:iam::{account}:root"},
        "Action": "sts:AssumeRole",
    }
    if external_id:
        allowed["Condition"] = {"StringEquals": {"sts:ExternalId": external_id}}
    return policy([allowed])


def turn_on_statements(tables: Sequence[SourceTable]) -> list[Statement]:
    """What `cdc-pipeline preflight --fix` needs: for people, not for the pipeline."""
    actions = ["dynamodb:UpdateTable", "dynamodb:UpdateContinuousBackups"]
    return [statement("TurnOn", actions, (table.arn for table in tables))]


def role_statements(roles: Sequence[str]) -> list[Statement]:
    """Roles of other accounts that are assumed to read their tables."""
    return [statement("Roles", ["sts:AssumeRole"], roles)] if roles else []


def statement_with(action: str, statements: Iterable[Statement]) -> Statement:
    """The first of some statements that allows an action; raises `LookupError`."""
    for found in statements:
        if action in found["Action"]:
            return found
    raise LookupError(f"no statement allows {action}")
