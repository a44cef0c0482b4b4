"""IAM policies of the pipeline: needed AWS actions and resources, as policy documents.

A test compares them with the pipeline's actual calls. Reason for each action: docs/aws.md; rules of
AWS: docs/aws_facts.md, IAM.
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
    """A captured DynamoDB table, its account and its region.

    `kinesis_arn`: of the Kinesis stream that is read instead of the table's own, or that feeds its
    channel, `channel_arn`. `reads_items`: reconcile or `complete_by_read` reads its items.
    `is_measured`: Firehose's metrics are read. `partition`: of the region, `aws`, `aws-cn`,
    `aws-us-gov`, ...: the beginning of its ARNs; IAM accepts only ARNs of its own partition.
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
        """Whether CloudWatch metrics of its transport are read."""
        return self.is_measured or self.transport in (KINESIS, KINESIS_CHANNEL)

    @property
    def channels(self) -> str:
        """ARN of its channel, or of every channel of its account if unknown."""
        return self.channel_arn or self._arn("kinesis", "channel/*")

    @property
    def arn(self) -> str:
        """The table's ARN."""
        return self._arn("dynamodb", f"table/{self.name}")

    @property
    def kinesis_streams(self) -> str:
        """ARN of its stream, or of every stream of its account if unknown."""
        return self.kinesis_arn or self.all_streams

    @property
    def all_streams(self) -> str:
        """The ARN of every stream of its account and region."""
        return self._arn("kinesis", "stream/*")

    def _arn(self, service: str, what: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{what}"


@dataclass(frozen=True)
class S3Location:
    """A bucket and a prefix of keys, mostly a folder. `partition`: of AWS, as in ARNs."""

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
    """Build a statement that allows actions on resources."""
    unique = sorted(set(resources))
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": unique}


def policy(statements: Iterable[Statement]) -> Policy:
    """Build a policy document."""
    return {"Version": "2012-10-17", "Statement": list(statements)}


def source_statements(tables: Sequence[SourceTable]) -> list[Statement]:
    """Build statements for reading tables of one account: description, exports, changes, items."""
    arns = [table.arn for table in tables]
    statements = [
        statement(
            "Describe", ["dynamodb:DescribeTable", "dynamodb:DescribeContinuousBackups"], arns
        ),
        statement("Export", ["dynamodb:ExportTableToPointInTime"], arns),
        statement("Exports", ["dynamodb:DescribeExport"], (f"{arn}/export/*" for arn in arns)),
    ]
    streams = [f"{t.arn}/stream/*" for t in tables if t.transport == DYNAMODB_STREAMS]
    if streams:
        reading = ["DescribeStream", "GetShardIterator", "GetRecords"]
        statements.append(statement("Streams", [f"dynamodb:{name}" for name in reading], streams))
    if any(t.transport == KINESIS for t in tables):
        statements += _kinesis_statements([t for t in tables if t.transport == KINESIS])
    if any(t.transport == KINESIS_CHANNEL for t in tables):
        statements += _channel_statements([t for t in tables if t.transport == KINESIS_CHANNEL])
    if any(t.measured for t in tables):
        # CloudWatch has no resource ARNs for metrics.
        statements.append(statement("Metrics", ["cloudwatch:GetMetricStatistics"], ["*"]))
    items = [table.arn for table in tables if table.reads_items]
    if items:
        statements.append(statement("Items", ["dynamodb:BatchGetItem", "dynamodb:Scan"], items))
    return statements


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
    """Find and describe channels; read their dead letters again from the stream."""
    streams = [table.kinesis_streams for table in tables]
    reading = ["DescribeStreamSummary", "GetShardIterator", "GetRecords"]
    return [
        statement(
            "ChannelDestination",
            ["dynamodb:DescribeKinesisStreamingDestination"],
            (t.arn for t in tables),
        ),
        statement("ChannelStream", [f"kinesis:{name}" for name in reading], streams),
        # ListChannels takes ARNs of streams, and needs all of them (Kinesis guide, "IAM
        # permissions for data delivery").
        statement("Channels", ["kinesis:ListChannels"], (t.all_streams for t in tables)),
        statement("Channel", ["kinesis:DescribeChannel"], (t.channels for t in tables)),
    ]


def export_statements(places: Sequence[S3Location]) -> list[Statement]:
    """Build the statement for DynamoDB's writes of exports, which run with the caller's rights."""
    actions = ["s3:PutObject", "s3:PutObjectAcl", "s3:AbortMultipartUpload"]
    return [statement("ExportFiles", actions, (place.objects for place in places))]


def lake_statements(lake: S3Location | None, read: Sequence[S3Location]) -> list[Statement]:
    """Build statements for the lake's folder, and read-only folders: exports, files of Firehose.

    Listing covers whole buckets: without it S3 answers 403, not 404, for a missing key.
    """
    statements = []
    if lake is not None:
        actions = ["GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"]
        statements.append(statement("Lake", [f"s3:{name}" for name in actions], [lake.objects]))
    if read:
        statements.append(statement("Read", ["s3:GetObject"], (place.objects for place in read)))
    buckets = {place.bucket_arn for place in [*read, *([lake] if lake else [])]}
    return [*statements, statement("List", ["s3:ListBucket"], buckets)]


def glue_statements(
    root: str, database: str, tables: Sequence[str], more: Sequence[str]
) -> list[Statement]:
    """Build statements for Glue: `tables` are safe names of tables, `more` full names in Glue.

    `root`: the beginning of the catalogue's ARNs, `arn:aws:glue:REGION:ACCOUNT:`.
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
        # Preflight lists active optimizers.
        statement("GlueOptimizers", ["glue:BatchGetTableOptimizer"], [*above, *of_tables]),
        statement(
            "GluePartitions",
            [f"glue:{name}" for name in partitions],
            [*above, *landing],
        ),
    ]


def emr_serverless_statements(application: str, role: str) -> list[Statement]:
    """Build statements for Spark jobs of an EMR Serverless application (its ARN).

    `role`: ARN of the role that the jobs have.
    """
    of_jobs = ["GetJobRun", "GetDashboardForJobRun", "CancelJobRun"]
    passing = statement("SparkRole", ["iam:PassRole"], [role])
    to_service = {"iam:PassedToService": "emr-serverless.amazonaws.com"}
    return [
        statement(
            "SparkApplication",
            ["emr-serverless:StartJobRun", "emr-serverless:GetApplication"],
            [application],
        ),
        statement(
            "SparkJobs",
            [f"emr-serverless:{name}" for name in of_jobs],
            [f"{application}/jobruns/*"],
        ),
        {**passing, "Condition": {"StringEquals": to_service}},
    ]


def glue_job_statements(job: str) -> list[Statement]:
    """Build the statement for Spark jobs as runs of a Glue job (its ARN)."""
    actions = ["glue:StartJobRun", "glue:GetJobRun", "glue:BatchStopJobRun"]
    return [statement("SparkJobs", actions, [job])]


def s3tables_statements(bucket: str) -> list[Statement]:
    """Build statements for a table bucket (its ARN); S3 Tables' actions also cover the files."""
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
    """Build the statement for KMS keys of streams, exports or the lake."""
    return [statement("Keys", ["kms:Decrypt", "kms:GenerateDataKey"], keys)] if keys else []


def erase_statements(
    tables: Sequence[SourceTable], places: Sequence[S3Location]
) -> list[Statement]:
    """Build the extra statements for `cdc-pipeline erase`: for people, not for the pipeline."""
    return [
        statement("SeeThatItIsGone", ["dynamodb:GetItem"], (table.arn for table in tables)),
        statement("Versions", ["s3:ListBucketVersions"], (place.bucket_arn for place in places)),
        statement(
            "Erase",
            ["s3:PutObject", "s3:DeleteObject", "s3:DeleteObjectVersion"],
            (place.objects for place in places),
        ),
    ]


def bucket_policy(place: S3Location, roles: Sequence[str]) -> Policy:
    """Build the policy of the export bucket that lets roles of other accounts export into it."""
    (exports,) = export_statements([place])
    allowed = {
        "Sid": "ExportsOfOtherAccounts",
        "Effect": "Allow",
        "Principal": {"AWS": list(roles)},
    }
    return policy([{**allowed, "Action": exports["Action"], "Resource": exports["Resource"]}])


def trust_policy(account: str, external_id: str | None, partition: str) -> Policy:
    """Build the trust policy of a role in another account, which lets this account assume it."""
    allowed: Statement = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{partition}:iam::{account}:root"},
        "Action": "sts:AssumeRole",
    }
    if external_id:
        allowed["Condition"] = {"StringEquals": {"sts:ExternalId": external_id}}
    return policy([allowed])


def turn_on_statements(tables: Sequence[SourceTable]) -> list[Statement]:
    """Build the statement for `cdc-pipeline preflight --fix`: for people, not for the pipeline."""
    actions = ["dynamodb:UpdateTable", "dynamodb:UpdateContinuousBackups"]
    return [statement("TurnOn", actions, (table.arn for table in tables))]


def role_statements(roles: Sequence[str]) -> list[Statement]:
    """Build the statement for assuming roles of other accounts to read their tables."""
    return [statement("Roles", ["sts:AssumeRole"], roles)] if roles else []


def statement_with(action: str, statements: Iterable[Statement]) -> Statement:
    """Return the first statement that allows an action; raises `LookupError`."""
    for candidate in statements:
        if action in candidate["Action"]:
            return candidate
    raise LookupError(f"no statement allows {action}")
