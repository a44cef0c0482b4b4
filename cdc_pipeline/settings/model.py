"""Settings: their keys, types, defaults and rules, as pydantic models."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.core.items.attributes import canonical_number
from cdc_pipeline.core.items.columns import MAX_COLUMNS, tags_of_type
from cdc_pipeline.core.items.entities import (
    MAX_DEPTH,
    RESERVED_ENTITIES,
    RESERVED_PREFIXES,
    Condition,
    Entity,
    unreachable,
)
from cdc_pipeline.core.names import LAKE_ZONES, OWNERS, is_owner, safe_name
from cdc_pipeline.core.plans.firehose_folders import by_layout
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, FIREHOSE, Transport

_RESERVED = {"aggregates", "error", "information_schema", "main", "pg_catalog", "system", "temp"}


def _cron(value: str) -> str:
    """Raise for a cron expression that Dagster refuses, and for one whose time never comes.

    croniter is the release that Dagster 1.13 carries in itself. Dagster takes the second kind, and
    then each tick of its scheduler fails.
    """
    from croniter import CroniterBadDateError, croniter  # 50 ms that most commands need not spend

    try:
        fields = croniter.expand(value)[0]
    except (ValueError, OverflowError, LookupError):
        fields = []
    if len(fields) != 5:
        raise ValueError(
            "a cron expression has five fields, minute to weekday, for example '0 3 * * 0'; or it "
            "is @hourly, @daily, @weekly, @monthly, @yearly"
        )
    try:
        croniter(value, datetime(2026, 1, 1, tzinfo=UTC)).get_prev()
    except CroniterBadDateError:
        raise ValueError(
            "a cron expression names dates that come, such as '0 3 * * 0'; no date is like that"
        ) from None
    return value


def _owner(value: str) -> str:
    if not is_owner(value):
        raise ValueError(f"an owner is {OWNERS}")
    return value


def _column_type(value: str) -> str:
    kind = "".join(value.split())
    if not tags_of_type(kind):
        raise ValueError(
            "a column type is string, boolean, binary, json, int64, decimal(p,s) with p up to 38, "
            "or list<...> of string, binary, int64 or decimal(p,s)"
        )
    return kind


def _s3_folder(value: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]*(/[^/!*?]+)*/?", value):
        raise ValueError("a folder in S3 is s3://bucket/folder, without expressions such as !{...}")
    return value


def _layout(value: str) -> str:
    by_layout(value)
    return value


AccountId = Annotated[str, Field(pattern=r"^[0-9]{12}$")]
ColumnType = Annotated[str, AfterValidator(_column_type)]
ChannelName = Annotated[
    str, Field(pattern=r"^(arn:aws[a-z-]*:kinesis:\S+:channel/\S+|[a-zA-Z0-9_.-]{1,128})$")
]
Cron = Annotated[str, AfterValidator(_cron)]
ExternalId = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_+=,.@:/-]+$", min_length=2, max_length=1224)
]
Owner = Annotated[str, AfterValidator(_owner)]
KmsKey = Annotated[
    str, Field(pattern=r"^(aws/s3|arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)$")
]
# us-east-1, us-gov-west-1, eusc-de-east-1
Region = Annotated[str, Field(pattern=r"^[a-z]{2,4}(-[a-z]+)+-[0-9]+$")]
RoleArn = Annotated[
    str, Field(pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+$")
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Snapshot(_Strict):
    """When full exports are taken."""

    first: Literal["manual", "auto"] = Field(
        "manual", description="auto: the first export is taken without being asked for (it costs)"
    )
    schedule: Cron | None = Field(
        None, description="cron (UTC) of repeated full exports; none: when materialised by hand"
    )


class Kinesis(_Strict):
    """How DynamoDB writes to the table's Kinesis stream."""

    binary_encodings: int = Field(
        2, ge=1, le=3, description="how often binary is base64-encoded in its records"
    )
    late_seconds: float = Field(
        60,
        ge=0,
        le=3600,
        description="how long after its write a change may come; the lake counts as complete up "
        "to that long ago",
    )
    metric_minutes: float = Field(
        5,
        ge=0,
        le=60,
        description="how late CloudWatch's metrics of the way to S3 or Kinesis are complete",
    )


class ColumnRule(_Strict):
    """What becomes of one top-level attribute on its way to readers: exactly one of these."""

    hash: bool = Field(False, description="replaced by its HMAC-SHA256, equal for equal values")
    drop: bool = Field(False, description="left out, of `_item` too")
    mask: str | None = Field(None, description="replaced by this text")
    type: ColumnType | None = Field(
        None, description="the column's type; what does not fit it goes to `_rescued`"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> "ColumnRule":
        said = [self.hash, self.drop, self.mask is not None, self.type is not None]
        if sum(said) != 1:
            raise ValueError("say exactly one of hash: true, drop: true, mask, type")
        return self


_Prefix = Annotated[str, AfterValidator(_s3_folder)]


class Firehose(_Strict):
    """Where Firehose writes a table's changes, and how they are looked for."""

    prefixes: Annotated[list[_Prefix], Field(min_length=1)] = Field(
        description="s3://bucket/folder/ of raw records or Parquet, up to where the date begins; "
        "without its last slash also what begins with it, `folder2026/11/21/`"
    )
    error_prefixes: list[_Prefix] = Field(
        [], description="s3://bucket/folder of records that Firehose could not process"
    )
    interval_seconds: int = Field(
        300, ge=5, description="all folders that may get objects are listed this often"
    )
    layout: Annotated[str, AfterValidator(_layout)] | None = Field(
        None,
        description="how keys behind the prefix tell the day, where no rule covers it: a text with "
        "{yyyy}, {MM}, {dd} and * for anything, such as 'day-{dd}.{MM}.{yyyy}/'; or last_modified: "
        "they do not. All objects are listed each time then",
    )
    window_days: int = Field(
        3, ge=2, le=60, description="how long after its day a folder may get objects"
    )
    lag_minutes: float = Field(
        20,
        ge=0,
        description="longest time from a write to its object: Firehose's buffer and a margin; "
        "counts where `delivery_stream` is not named or its metrics say nothing",
    )
    delivery_stream: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")] | None = Field(
        None,
        description="name of the Firehose stream, whose metrics then say up to when all has been "
        "delivered",
    )


class KinesisChannel(_Strict):
    """The Kinesis channel that writes a table's changes to S3, and how its objects are found."""

    channel: ChannelName | None = Field(
        None,
        description="name or ARN; default: the one that writes the table's Kinesis stream to S3",
    )
    interval_seconds: int = Field(
        300, ge=5, description="all folders that may get objects are listed this often"
    )
    window_days: int = Field(
        3, ge=2, le=60, description="how long after its day a folder may get objects"
    )
    lag_minutes: float = Field(
        30,
        ge=0,
        description="longest time from a write to its object: the channel's freshness and a "
        "margin; counts where `measured` is off or the metrics say nothing",
    )
    measured: bool = Field(
        True,
        description="CloudWatch's metrics of the channel say up to when all has been delivered",
    )


class Match(_Strict):
    """What a top-level attribute is in an entity's items: exactly one of these."""

    equals: list[StrictStr | StrictInt] = Field(
        [], description="one of these values: texts, or whole numbers for attributes of type N"
    )
    prefix: str = Field("", description="a text that begins with this")
    regex: str = Field(
        "", description="a text that this regular expression (Python's) matches as a whole"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "Match":
        if sum(map(bool, (self.equals, self.prefix, self.regex))) != 1:
            raise ValueError("say exactly one of a value, a list of values, {prefix: }, {regex: }")
        try:
            re.compile(self.regex)
        except re.error as error:
            raise ValueError(f"{self.regex!r} is no regular expression: {error}") from None
        if any(isinstance(value, int) and abs(value) >= 10**38 for value in self.equals):
            raise ValueError("DynamoDB's numbers have 38 digits at most")
        return self

    def condition(self, attribute: str) -> Condition:
        """As the splitting takes it."""
        equals = tuple(
            ("S", value) if isinstance(value, str) else ("N", canonical_number(str(value)))
            for value in self.equals
        )
        return Condition(attribute, equals, self.prefix, self.regex)


def _values(said: Any) -> Any:
    if isinstance(said, Mapping | Match):
        return said
    values = said if isinstance(said, list) else [said]
    if not all(isinstance(v, str | int) and not isinstance(v, bool) for v in values):
        raise ValueError(
            "it is a text or a whole number, a list of such, {prefix: ...} or {regex: ...}"
        )
    return {"equals": values}


When = Annotated[
    Match,
    BeforeValidator(
        _values, json_schema_input_type=StrictStr | StrictInt | list[StrictStr | StrictInt] | Match
    ),
]


class Flatten(_Strict):
    """Nested maps as columns of an entity."""

    depth: int = Field(1, ge=1, le=MAX_DEPTH, description="so many levels of maps; 1: the first")


class EntityRule(_Strict):
    """One kind of item in a table of single-table design."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")] = Field(
        description="of the view, and of the asset if it is a table"
    )
    when: Annotated[dict[str, When], Field(min_length=1)] = Field(
        description="what its items have in common, by top-level attribute: a value, a list of "
        "values, {prefix: ...} or {regex: ...}; all of it must hold"
    )
    table: bool = Field(
        False, description="keep it as an Iceberg table and asset of its own beside the view"
    )
    flatten: Flatten | None = Field(None, description="nested maps become columns")

    def entity(self) -> Entity:
        """As the splitting takes it."""
        conditions = tuple(match.condition(name) for name, match in self.when.items())
        return Entity(self.name, conditions, self.flatten.depth if self.flatten else 0)


class Table(_Strict):
    """One DynamoDB table to keep a copy of."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{3,255}$")]
    transport: Transport = Field(DYNAMODB_STREAMS, description="how changes come to the lake")
    kinesis: Kinesis = Kinesis()  # type: ignore[call-arg]
    owner: Owner | None = Field(None, description="e-mail address or team:name")
    firehose: Firehose | None = Field(None, description="needed with transport firehose")
    kinesis_channel: KinesisChannel = KinesisChannel()  # type: ignore[call-arg]
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")] | None = Field(
        None, description="Dagster asset group; default: the table's safe name"
    )
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = Field(
        None,
        description="the table's name in the lake; default: made from `name`. For tables of one "
        "name in several accounts or regions",
    )
    region: Region | None = Field(None, description="AWS region of the table; default: the lake's")
    role_arn: RoleArn | None = Field(
        None, description="role of the table's account that is assumed to read the table"
    )
    external_id: ExternalId | None = Field(
        None, description="external id that the role asks for (AWS treats it as no secret)"
    )
    complete_by_read: bool = Field(
        False,
        description="allow a stream without new images; every changed item is read from the table",
    )
    snapshot: Snapshot = Snapshot()  # type: ignore[call-arg]
    columns: dict[str, ColumnRule] = Field(
        {}, description="rules for top-level attributes, by exact attribute name"
    )
    max_columns: int | None = Field(
        None,
        ge=1,
        le=5000,
        description="attributes that have columns of their own in current_state and pitr_export, "
        f"the most frequent ones; all are in _item. Default: {MAX_COLUMNS}, or as many as the "
        "table has already",
    )
    heal: Literal["auto", "ask"] = Field(
        "auto", description="auto: gaps are healed from exports (which cost) as soon as they open"
    )
    ttl_archive: bool = Field(
        False,
        description="keep items that TTL deleted, with their last image, as an asset of their own",
    )
    schema_contract: Literal["evolve", "refuse"] = Field(
        "evolve",
        description="refuse: current_state stays as it is when attributes are new or change type",
    )

    entities: list[EntityRule] = Field(
        [],
        description="single-table design: the kinds of items in the table, each a view of its own; "
        "an item is of the first that matches",
    )

    @field_validator("entities")
    @classmethod
    def _sound_entities(cls, rules: list[EntityRule]) -> list[EntityRule]:
        names = [rule.name for rule in rules]
        for name in names:
            if name in RESERVED_ENTITIES or name.startswith(RESERVED_PREFIXES):
                raise ValueError(f"entity {name!r}: the name is taken by the lake")
            if names.count(name) > 1:
                raise ValueError(f"entity {name!r} is listed twice")
        found = unreachable([rule.entity() for rule in rules])
        if found:
            raise ValueError(
                f"entity {found[0].name!r} can have no items: all that match are of "
                f"{found[1].name!r}, which is listed before it; list the narrower one first"
            )
        return rules

    @model_validator(mode="after")
    def _sees_what_entities_are(self) -> "Table":
        for rule in self.entities:
            for attribute in rule.when:
                said = self.columns.get(attribute)
                if said is not None and said.type is None:
                    raise ValueError(
                        f"entity {rule.name!r} asks for attribute {attribute!r}, which `columns` "
                        "hash, mask or drop, so that readers' items do not have it; ask for another"
                    )
        return self

    @model_validator(mode="after")
    def _role_for_external_id(self) -> "Table":
        if self.external_id and not self.role_arn:
            raise ValueError("`external_id` is for the role in `role_arn`, which is missing")
        return self

    @model_validator(mode="after")
    def _has_its_transport(self) -> "Table":
        if self.transport == FIREHOSE and self.firehose is None:
            raise ValueError(
                "transport firehose needs to know where: firehose: {prefixes: [s3://...]}"
            )
        return self

    @property
    def safe_name(self) -> str:
        """The SQL-safe name: asset key prefix, schema and folder name."""
        return self.alias or safe_name(self.name)

    @property
    def label(self) -> str:
        """What runs and people call the table, unique in the settings."""
        return self.alias or self.name

    @property
    def account(self) -> str | None:
        """The account of the role that reads the table, None for that of the lake."""
        return self.role_arn.split(":")[4] if self.role_arn else None


class Capture(_Strict):
    """How streams are read."""

    interval_seconds: int = Field(60, ge=5, description="a table is captured this often")
    max_run_seconds: int = Field(240, ge=1, description="a run stops reading after this long")
    empty_polls: int = Field(
        3,
        ge=1,
        description="consecutive empty reads after which a shard counts as read to its tip; more "
        "where the position is old (docs/aws.md)",
    )
    poll_seconds: float = Field(1.0, gt=0, le=60, description="pause between empty reads")
    listing_lag_seconds: float = Field(
        300, ge=0, le=3600, description="how long listings may lack a new shard"
    )
    parallel_shards: int = Field(16, ge=1, le=256, description="shards read at the same time")
    flush_rows: int = Field(25_000, ge=1, description="changes per landing object at most")
    flush_mb: int = Field(64, ge=1, description="MB of stream answers per landing object at most")
    linger_seconds: int = Field(
        0, ge=0, description="a run goes on reading at the tip for this long (continuous mode)"
    )
    flush_seconds: float = Field(
        1.0, gt=0, description="least pause between landing objects while a run lingers"
    )
    reads_per_second: float = Field(
        200, gt=0, description="items read per second and table with complete_by_read"
    )
    tables_per_run: int = Field(8, ge=1, le=64, description="tables that one run captures")
    runs: int = Field(2, ge=1, description="capture runs at the same time")
    warn_hours: float = Field(4, gt=0, lt=24, description="hours behind at which a check warns")
    fail_hours: float = Field(12, gt=0, lt=24, description="hours behind at which a check fails")


class Export(_Strict):
    """Where DynamoDB writes PITR exports and how long they may take."""

    bucket: str | None = Field(
        None, description="S3 bucket; default: the lake's. Needed when the lake is a local folder"
    )
    prefix: str = Field("", description="S3 prefix in that bucket when `bucket` is given")
    bucket_owner: AccountId | None = Field(
        None,
        description="account of the bucket, which exports from another account name; default: the "
        "lake's",
    )
    kms_key: KmsKey | None = Field(
        None,
        description="exports are encrypted with this KMS key (ARN, or aws/s3); default: the "
        "lake's `kms_key` where the bucket is the lake's, else as the bucket has it",
    )
    poll_seconds: float = Field(15.0, gt=0, description="pause between looks at a running export")
    timeout_minutes: int = Field(24 * 60, ge=1, description="give up waiting after this long")
    least_window_minutes: float = Field(
        15, gt=0, description="shortest incremental export; AWS takes none below 15 minutes"
    )


class Schedules(_Strict):
    """Cron expressions (UTC) and pauses of the automation."""

    yesterday: Cron = Field("20 0 * * *", description="re-materialise yesterday's partitions")
    downstream_seconds: int = Field(
        60, ge=5, description="pause between two looks for stale cdc, current_state, aggregates"
    )
    glue_seconds: int = Field(
        300, ge=5, description="pause between two looks for missing Glue partitions"
    )
    running: bool = Field(
        False, description="start sensors and schedules as soon as Dagster loads the tables"
    )


class CurrentState(_Strict):
    """When changes are folded into the published state by themselves; queries see them anyway."""

    fold_percent: float = Field(
        5, ge=0, description="fold when the changes are this many percent of the items"
    )
    fold_minutes: float = Field(15, ge=0, description="or when the last fold is this old")


class Maintenance(_Strict):
    """What the asset `maintenance` may remove, and when."""

    schedule: Cron = Field("41 * * * *", description="when small objects are merged (UTC)")
    keep_replaced_minutes: int = Field(
        60, ge=1, description="landing objects stay this long after others took their place"
    )
    keep_snapshot_days: int = Field(
        7, ge=1, description="Iceberg snapshots kept; those that are baselines are kept for ever"
    )
    unreferenced_hours: int = Field(
        48, ge=24, description="age at which a file that nothing refers to is removed"
    )


class Alarms(_Strict):
    """When a table counts as stale, and who is told of failing checks and runs."""

    warn_minutes: float = Field(
        15, gt=0, description="the check `fresh` warns when queries see nothing younger"
    )
    fail_minutes: float = Field(60, gt=0, description="and fails when they see nothing younger")
    sns_topic: Annotated[str, Field(pattern=r"^arn:[^:]+:sns:[^:]+:[0-9]{12}:.+$")] | None = Field(
        None, description="ARN of an SNS topic"
    )
    webhook_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None,
        description="environment variable with the address of a webhook; it is sent JSON with a "
        "`text`, as Slack, Mattermost and Teams take it",
    )


class Reconcile(_Strict):
    """How the lake is compared with the source again and again."""

    schedule: Cron | None = Field(
        "23 4 * * *", description="when samples of all tables are compared (UTC); none: never"
    )
    sample: int = Field(
        300, ge=3, description="items of a sample; each costs one read unit per 4 kB"
    )
    reads_per_second: float = Field(50, gt=0, description="items read per second and table")
    full_schedule: Cron | None = Field(
        None, description="cron (UTC) of comparisons with a fresh full export (which costs)"
    )


class Glue(_Strict):
    """How the landing zone is catalogued in Glue (a lake in S3)."""

    projection: bool = Field(
        False,
        description="Athena makes partitions of `<table>_raw_stream` from the table's parameters; "
        "none are registered, and engines that know no projection see no new days",
    )


_CATALOG_SECRET = re.compile(
    r"token$|credential|password|secret|authorization|(access|api|private)[-_.]?key", re.IGNORECASE
)
_URI_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@|[?&;]password=", re.IGNORECASE)
_TABLE_BUCKET = re.compile(r"arn:aws[a-z-]*:s3tables:[a-z0-9-]+:[0-9]{12}:bucket/[a-z0-9-]+")
_CATALOG_KEYS = {
    "glue": {"glue.skip-archive"},
    "glue-rest": {"uri", "warehouse"},
    "s3tables": {"uri", "warehouse"},
    "sql": {"uri", "init_catalog_tables"},
}
_CATALOG_NEEDS = {"s3tables": "warehouse", "rest": "uri"}
_AWS_CATALOGS = {"glue", "glue-rest", "s3tables"}
_FILE_KEYS = ("s3.", "client.", "gcs.", "adls.", "hf.", "py-io-impl", "py-catalog-impl", "type")


class Catalog(_Strict):
    """Where the Iceberg tables are catalogued; the lake's files are reached as `lake` says."""

    type: Literal["glue", "glue-rest", "s3tables", "rest", "sql"] = Field(
        description="Glue, by its own calls or by its Iceberg REST endpoint; a table bucket of S3 "
        "Tables; any Iceberg REST catalogue; a SQL database"
    )
    properties: dict[str, str] = Field(
        {},
        description="properties by PyIceberg's names: `uri`, `warehouse` (of s3tables the table "
        "bucket's ARN), for rest also `scope`, `oauth2-server-uri`, `header.X-...`, "
        "`rest.sigv4-enabled` and others",
    )
    secrets: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = Field(
        {},
        description="properties that are secret, each with the environment variable that holds it, "
        "such as `credential: CATALOG_CREDENTIAL`",
    )

    @model_validator(mode="after")
    def _known(self) -> "Catalog":
        given = [*self.properties, *self.secrets]
        allowed = _CATALOG_KEYS.get(self.type)
        for name in given:
            if allowed is not None and name not in allowed:
                raise ValueError(f"{self.type} has no property {name!r}: {', '.join(allowed)}")
            if name.startswith(_FILE_KEYS):
                raise ValueError(
                    f"property {name!r}: files are reached as `lake`, `endpoint_url` and AWS's "
                    "credential chain say, whatever the catalogue"
                )
        needed = _CATALOG_NEEDS.get(self.type)
        if needed and needed not in given:
            raise ValueError(f"{self.type} needs the property {needed!r}")
        for name, value in self.properties.items():
            if name in self.secrets:
                raise ValueError(f"{name!r} is in `properties` and in `secrets`")
            if _CATALOG_SECRET.search(name) or _URI_PASSWORD.search(value):
                raise ValueError(
                    f"property {name!r} holds a secret: put it into an environment variable, and "
                    f"the variable's name into `secrets: {{{name}: NAME}}`"
                )
        if self.type == "s3tables" and not _TABLE_BUCKET.fullmatch(
            self.properties.get("warehouse", "")
        ):
            raise ValueError(
                "the warehouse of s3tables is the ARN of a table bucket, "
                "arn:aws:s3tables:REGION:ACCOUNT:bucket/NAME"
            )
        return self


class Settings(_Strict):
    """Everything a deployment can say. Secrets never: they come from AWS's credential chain."""

    lake: str = Field(description="lake root: s3://bucket/prefix or a local folder")
    database: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = Field(
        "cdc", description="Glue database (S3 lake) or catalogue namespace (local lake)"
    )
    region: str | None = Field(None, description="AWS region; default: AWS's own chain")
    endpoint_url: str | None = Field(
        None, description="one endpoint for every AWS service; default: AWS_ENDPOINT_URL, then AWS"
    )
    kms_key: KmsKey | None = Field(
        None,
        description="objects of the lake in S3 are written with SSE-KMS and this key (ARN, or "
        "aws/s3 for AWS's own), as buckets demand it whose policy denies anything else; default: "
        "as the bucket has it",
    )
    catalog: Catalog | None = Field(
        None,
        description="where the Iceberg tables are catalogued; default: Glue for a lake in S3, a "
        "SQLite file in the lake for a local folder",
    )
    handover_margin_seconds: float = Field(
        300, ge=1, description="distance between stream positions and export time at a handover"
    )
    clock_margin_seconds: float | None = Field(
        None,
        ge=0,
        description="how far this machine's clock may be off AWS's (which refuses requests that "
        "are off by more than 5 minutes); default: as handover_margin_seconds",
    )
    memory_mb: int = Field(
        1000, ge=100, description="memory for DuckDB's folds and sorts; what is more goes to disk"
    )
    start_date: date = Field(
        date(2026, 1, 1), ge=date(1970, 1, 1), description="first daily partition (UTC)"
    )
    aggregates: str = Field("aggregates", description="folder of *.sql aggregates")
    masking_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        "CDC_MASKING_KEY", description="environment variable with the key of hashed columns"
    )
    capture: Capture = Capture()  # type: ignore[call-arg]
    export: Export = Export()  # type: ignore[call-arg]
    schedules: Schedules = Schedules()  # type: ignore[call-arg]
    current_state: CurrentState = CurrentState()  # type: ignore[call-arg]
    maintenance: Maintenance = Maintenance()  # type: ignore[call-arg]
    alarms: Alarms = Alarms()  # type: ignore[call-arg]
    reconcile: Reconcile = Reconcile()  # type: ignore[call-arg]
    glue: Glue = Glue()  # type: ignore[call-arg]
    tables: Annotated[list[Table], Field(min_length=1)]

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for _, why in clashes(self.tables, self.region):
            raise ValueError(why)
        if not self.is_s3 and "://" in self.lake:
            raise ValueError(
                f"lake {self.lake!r}: allowed are s3://bucket/prefix and local folders"
            )
        self._check_catalog()
        self._keep_firehose_out_of_the_lake()
        return self

    def _check_catalog(self) -> None:
        chosen = self.catalog
        if chosen is None:
            return
        if chosen.type in _AWS_CATALOGS and not self.is_s3:
            raise ValueError(f"catalog: {chosen.type} needs a lake in S3, s3://bucket/prefix")
        if (
            chosen.type == "sql"
            and self.is_s3
            and "uri"
            not in {
                **chosen.properties,
                **chosen.secrets,
            }
        ):
            raise ValueError("catalog: sql needs the property 'uri' for a lake in S3")

    def _keep_firehose_out_of_the_lake(self) -> None:
        """What lies in our folders and is not ours would be removed, or read as landed."""
        if not self.is_s3:
            return
        ours = [f"{self.lake.rstrip('/')}/{zone}" for zone in LAKE_ZONES]
        for table in self.tables:
            chosen = table.firehose
            for prefix in [*chosen.prefixes, *chosen.error_prefixes] if chosen else []:
                folder = f"{prefix.rstrip('/')}/"
                inside = [z for z in ours if folder.startswith(z) or z.startswith(folder)]
                if inside:
                    raise ValueError(
                        f"table {table.name!r}: {folder} is Firehose's and {inside[0]} the lake's "
                        "own; neither may be in the other"
                    )

    @property
    def clock_margin_us(self) -> int:
        """How far this machine's clock may be off AWS's, in µs."""
        seconds = self.clock_margin_seconds
        return int((self.handover_margin_seconds if seconds is None else seconds) * 1_000_000)

    @property
    def is_s3(self) -> bool:
        """Whether the lake is in S3 (else a local folder)."""
        return self.lake.startswith("s3://")

    @property
    def catalog_type(self) -> str:
        """The kind of catalogue of the Iceberg tables: a `type` of `catalog`."""
        return self.catalog.type if self.catalog else "glue" if self.is_s3 else "sql"

    @property
    def has_glue(self) -> bool:
        """Whether the landing zone is catalogued in Glue: in S3, with a catalogue of AWS's."""
        return self.is_s3 and self.catalog_type in _AWS_CATALOGS

    @property
    def lake_folder(self) -> Path:
        """The local lake's folder; a relative one counts from the settings file."""
        return (self._folder / Path(self.lake).expanduser()).resolve()

    @property
    def aggregates_folder(self) -> Path:
        """Where aggregates' SQL files are; a relative one counts from the settings file."""
        return (self._folder / self.aggregates).resolve()

    def table(self, name: str) -> Table:
        """The table with this alias, DynamoDB or safe name; raises `SettingsError`."""
        for table in self.tables:
            if name in (table.label, table.safe_name):
                return table
        of_this_name = [table for table in self.tables if table.name == name]
        if len(of_this_name) == 1:
            return of_this_name[0]
        known = ", ".join(t.label for t in of_this_name or self.tables)
        found = f"{len(of_this_name)} tables" if of_this_name else "no table"
        raise SettingsError(f"{found} {name!r} in the settings", fix=f"use one of: {known}")


def clashes(tables: Iterable[Table], region: str | None) -> Iterator[tuple[int, str]]:
    """Positions of tables that cannot stand beside those before them, and why.

    `region`: that of tables which name none.
    """
    tables = list(tables)
    names: dict[str, str] = {}
    places: set[tuple[str | None, ...]] = set()
    kept = {f"{t.safe_name}_{kind}": t for t in tables for kind in RESERVED_ENTITIES}
    for position, table in enumerate(tables):
        for own in [f"{table.safe_name}_{rule.name}" for rule in table.entities if rule.table]:
            if own in kept:
                why = f"would be kept as {own!r}, which is one of table {kept[own].name!r}"
                yield position, f"table {table.name!r}: an entity {why}; call it otherwise"
            kept[own] = table
        name = table.safe_name
        place = (table.name, table.region or region, table.account)
        if name in _RESERVED:
            yield position, f"table {table.name!r}: the name {name!r} is taken by the lake"
        elif place in places:
            yield position, f"table {table.name!r} is listed twice"
        elif name in names:
            yield (
                position,
                f"tables {names[name]!r} and {table.name!r} have one safe name, {name!r}; give "
                "one of them an `alias`",
            )
        names.setdefault(name, table.name)
        places.add(place)
