"""IAM policies for the settings: the roles and the permissions each needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cdc_pipeline.aws.kinesis import active_destination
from cdc_pipeline.capture.sources.kinesis_channel import ChannelFiles, channel_folders, open_channel
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.core.plans.iam import (
    Policy,
    S3Location,
    SourceTable,
    Statement,
    bucket_policy,
    emr_serverless_statements,
    erase_statements,
    export_statements,
    glue_job_statements,
    glue_statements,
    key_statements,
    lake_statements,
    policy,
    role_statements,
    s3tables_statements,
    source_statements,
    statement,
    trust_policy,
)
from cdc_pipeline.core.transports import FIREHOSE, KINESIS, KINESIS_CHANNEL
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.table import Table
from cdc_pipeline.setup.checks.catalog_trial import TRIAL_TABLE
from cdc_pipeline.setup.checks.lake import export_place, glue_root, lake_place
from cdc_pipeline.transform.aggregates import broken_aggregates, load_aggregates


@dataclass(frozen=True)
class Policies:
    """Policy documents by purpose.

    `pipeline`: for the role that runs the pipeline. `roles`: roles in other accounts by ARN, with
    permission policy and trust policy. `export_bucket`: bucket policy for exports by these roles,
    None without such roles. `erase`: for people who erase items, in addition to `pipeline`.
    """

    pipeline: Policy
    erase: Policy
    roles: Mapping[str, tuple[Policy, Policy]] = field(default_factory=dict)
    export_bucket: Policy | None = None


def build_policies(
    lake: Lake,
    tables: Sequence[Table],
    *,
    account: str | None = None,
    keys: Sequence[str] = (),
) -> Policies:
    """Build the policies for some tables of the settings.

    `account`: the lake's account, by default looked up in AWS. `keys`: ARNs of KMS keys in use.
    The streams of tables on Kinesis are looked up in DynamoDB; if that fails, every stream of the
    account is allowed. Raises `SourceError`, `SettingsError`.
    """
    account = account or lake.aws.account()
    keys = sorted({*keys, *_keys_of_settings(lake)})
    sources = {table.label: _source_table(lake.table(table), account) for table in tables}
    exports = {table.label: export_place(lake.table(table)) for table in tables}
    own = [table for table in tables if table.role_arn is None]
    by_role: dict[str, list[Table]] = {}
    for table in tables:
        if table.role_arn:
            by_role.setdefault(table.role_arn, []).append(table)
    allowed: list[Statement] = []
    if own:
        allowed += source_statements([sources[table.label] for table in own])
        allowed += export_statements([exports[table.label] for table in own])
    allowed += role_statements(list(by_role))
    allowed += _lake_statements(lake, tables, exports)
    allowed += _glue_statements(lake, tables, account)
    allowed += _spark_statements(lake, account)
    if lake.settings.alarms.sns_topic:
        allowed.append(statement("Alarms", ["sns:Publish"], [lake.settings.alarms.sns_topic]))
    places = {*exports.values(), *([lake_place(lake)] if lake.settings.is_s3 else [])}
    erased = sorted(places, key=lambda place: (place.bucket, place.prefix))
    roles = {
        arn: _role(lake, own_tables, sources, exports, keys, account)
        for arn, own_tables in by_role.items()
    }
    (bucket,) = {place.bucket for place in exports.values()}
    folder = _common_folder([place.prefix for place in exports.values()])
    root = S3Location(bucket, folder, lake.aws.partition)
    return Policies(
        pipeline=policy([*allowed, *key_statements(keys)]),
        erase=policy(erase_statements([sources[table.label] for table in own], erased)),
        roles=roles,
        export_bucket=bucket_policy(root, sorted(roles)) if roles else None,
    )


def _source_table(table: TableLake, account: str) -> SourceTable:
    region = table.source.client("dynamodb").meta.region_name
    stream = channel = None
    if table.settings.transport in (KINESIS, KINESIS_CHANNEL):
        try:
            stream = active_destination(table.source, table.name)
            if table.settings.transport == KINESIS_CHANNEL:
                channel = open_channel(table).arn
        except CdcPipelineError:
            pass
    return SourceTable(
        table.name,
        region,
        table.settings.account or account,
        table.settings.transport,
        stream,
        partition=table.source.partition,
        channel_arn=channel,
        is_measured=bool(table.settings.firehose and table.settings.firehose.delivery_stream),
    )


def _keys_of_settings(lake: Lake) -> list[str]:
    """Return the ARNs of KMS keys in the settings."""
    keys = (lake.settings.kms_key, lake.settings.export.kms_key)
    return [key for key in keys if key and key.startswith("arn:")]


def _role(
    lake: Lake,
    tables: Sequence[Table],
    sources: Mapping[str, SourceTable],
    exports: Mapping[str, S3Location],
    keys: Sequence[str],
    account: str,
) -> tuple[Policy, Policy]:
    allowed = source_statements([sources[table.label] for table in tables])
    allowed += export_statements([exports[table.label] for table in tables])
    external_id = next((table.external_id for table in tables if table.external_id), None)
    return policy([*allowed, *key_statements(keys)]), trust_policy(
        account, external_id, lake.aws.partition
    )


def _lake_statements(
    lake: Lake, tables: Sequence[Table], exports: Mapping[str, S3Location]
) -> list[Statement]:
    own = lake_place(lake) if lake.settings.is_s3 else None
    read = list(exports.values())
    for table in tables:
        for uri in _folders(lake.table(table)):
            bucket, prefix = split_s3(uri)
            read.append(S3Location(bucket, prefix, lake.aws.partition))
    return lake_statements(own, read)


def _folders(table: TableLake) -> Sequence[str]:
    """Return the delivery folders of a table; a channel's come from AWS. Raises `SourceError`."""
    if table.settings.transport == FIREHOSE and table.settings.firehose is not None:
        return (*table.settings.firehose.prefixes, *table.settings.firehose.error_prefixes)
    if table.settings.transport == KINESIS_CHANNEL:
        files = open_channel(table).files
        assert isinstance(files, ChannelFiles)
        return channel_folders(files.channel, files.stream_arn)
    return ()


def _glue_statements(lake: Lake, tables: Sequence[Table], account: str) -> list[Statement]:
    if not lake.settings.has_glue:
        return []
    folder = lake.settings.aggregates_folder
    aggregates = [a.table for a in (*load_aggregates(folder), *broken_aggregates(folder))]
    if lake.settings.catalog_type == "glue-rest":
        aggregates.append(TRIAL_TABLE)  # of preflight
    names = [table.safe_name for table in tables]
    entities = [f"{t.safe_name}_{r.name}" for t in tables for r in t.entities if r.table]
    more = [*entities, *aggregates]
    statements = glue_statements(glue_root(lake, account), lake.database, names, more)
    if lake.settings.catalog_type == "s3tables" and lake.settings.catalog:
        statements += s3tables_statements(lake.settings.catalog.properties["warehouse"])
    return statements


def _spark_statements(lake: Lake, account: str) -> list[Statement]:
    """Build the statements for starting Spark jobs as the settings say."""
    options = lake.settings.spark
    if options.start == "emr_serverless" and options.application_id and options.role_arn:
        region = lake.aws.client("emr-serverless").meta.region_name
        where = f"arn:{lake.aws.partition}:emr-serverless:{region}:{account}"
        application = f"{where}:/applications/{options.application_id}"
        return emr_serverless_statements(application, options.role_arn)
    if options.start == "glue" and options.glue_job:
        return glue_job_statements(f"{glue_root(lake, account)}job/{options.glue_job}")
    return []


def _common_folder(prefixes: Sequence[str]) -> str:
    """Return the deepest common folder of the prefixes: '' or ending in '/'."""
    parts = [prefix.split("/") for prefix in prefixes]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    folder = "/".join(shared)
    return folder if not folder or folder.endswith("/") else f"{folder}/"
