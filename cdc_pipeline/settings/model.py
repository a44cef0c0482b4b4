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
    """Refuse a cron expression that Dagster refuses, or whose time never comes.

    croniter is the release bundled with Dagster 1.13. Dagster accepts the second kind, and then
    each tick of its scheduler fails.
    """
    from croniter import CroniterBadDateError, croniter  # an import of 50 ms, here for few commands

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
            "no date matches this cron expression; use one with existing dates, such as '0 3 * * 0'"
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
        "manual", description="auto: the first export is taken automatically (it costs)"
    )
    schedule: Cron | None = Field(
        None, description="cron (UTC) of repeated full exports; none: on manual materialisation"
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
        description="longest delay from a write to its change in Kinesis; the lake counts as "
        "complete up to this long ago",
    )
    metric_minutes: float = Field(
        5,
        ge=0,
        le=60,
        description="delay after which CloudWatch's delivery metrics are complete",
    )


class ColumnRule(_Strict):
    """Rule for one top-level attribute in the views of readers: exactly one of these."""

    hash: bool = Field(False, description="replaced by its HMAC-SHA256, equal for equal values")
    drop: bool = Field(False, description="left out, also in `_item`")
    mask: str | None = Field(None, description="replaced by this text")
    type: ColumnType | None = Field(
        None, description="the column's type; values that do not fit it go to `_rescued`"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> "ColumnRule":
        rules = [self.hash, self.drop, self.mask is not None, self.type is not None]
        if sum(rules) != 1:
            raise ValueError("set exactly one of hash: true, drop: true, mask, type")
        return self


_Prefix = Annotated[str, AfterValidator(_s3_folder)]


class Firehose(_Strict):
    """Location of a table's changes from Firehose, and how they are listed."""

    prefixes: Annotated[list[_Prefix], Field(min_length=1)] = Field(
        description="s3://bucket/folder/ of raw records or Parquet, up to the beginning of the "
        "date; without the last slash it is a prefix, as for `folder2026/11/21/`"
    )
    error_prefixes: list[_Prefix] = Field(
        [], description="s3://bucket/folder of records that Firehose could not process"
    )
    interval_seconds: int = Field(
        300, ge=5, description="interval between listings of all folders that may get objects"
    )
    layout: Annotated[str, AfterValidator(_layout)] | None = Field(
        None,
        description="date layout of keys after the prefix, if no built-in rule fits: a text with "
        "{yyyy}, {MM}, {dd} and * for anything, such as 'day-{dd}.{MM}.{yyyy}/'; or last_modified "
        "for keys without a day, which lists all objects each time",
    )
    window_days: int = Field(
        3, ge=2, le=60, description="how long after its day a folder may get objects"
    )
    lag_minutes: float = Field(
        20,
        ge=0,
        description="longest time from a write to its object: Firehose's buffer and a margin; "
        "used without `delivery_stream`, or if its metrics are missing",
    )
    delivery_stream: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")] | None = Field(
        None,
        description="name of the Firehose stream; its metrics then give the time up to which all "
        "changes have been delivered",
    )


class KinesisChannel(_Strict):
    """The Kinesis channel that writes a table's changes to S3, and how its objects are listed."""

    channel: ChannelName | None = Field(
        None,
        description="name or ARN; default: the one that writes the table's Kinesis stream to S3",
    )
    interval_seconds: int = Field(
        300, ge=5, description="interval between listings of all folders that may get objects"
    )
    window_days: int = Field(
        3, ge=2, le=60, description="how long after its day a folder may get objects"
    )
    lag_minutes: float = Field(
        30,
        ge=0,
        description="longest time from a write to its object: the channel's freshness and a "
        "margin; used if `measured` is off or the metrics are missing",
    )
    measured: bool = Field(
        True,
        description="take the time up to which all changes have been delivered from CloudWatch's "
        "metrics of the channel",
    )


class Match(_Strict):
    """Condition on a top-level attribute of an entity's items: exactly one of these."""

    equals: list[StrictStr | StrictInt] = Field(
        [], description="one of these values: texts, or whole numbers for attributes of type N"
    )
    prefix: str = Field("", description="a text that begins with this")
    regex: str = Field(
        "", description="a text that this regular expression (Python's) matches in full"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "Match":
        if sum(map(bool, (self.equals, self.prefix, self.regex))) != 1:
            raise ValueError("give exactly one of a value, a list of values, {prefix: }, {regex: }")
        try:
            re.compile(self.regex)
        except re.error as error:
            raise ValueError(f"{self.regex!r} is no regular expression: {error}") from None
        if any(isinstance(value, int) and abs(value) >= 10**38 for value in self.equals):
            raise ValueError("DynamoDB's numbers have 38 digits at most")
        return self

    def condition(self, attribute: str) -> Condition:
        """Convert to the condition of `core.items.entities`."""
        equals = tuple(
            ("S", value) if isinstance(value, str) else ("N", canonical_number(str(value)))
            for value in self.equals
        )
        return Condition(attribute, equals, self.prefix, self.regex)


def _values(condition: Any) -> Any:
    if isinstance(condition, Mapping | Match):
        return condition
    values = condition if isinstance(condition, list) else [condition]
    if not all(isinstance(v, str | int) and not isinstance(v, bool) for v in values):
        raise ValueError(
            "give a text, a whole number, a list of these, {prefix: ...} or {regex: ...}"
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

    depth: int = Field(1, ge=1, le=MAX_DEPTH, description="number of levels of maps")


class EntityRule(_Strict):
    """One kind of item in a table of single-table design."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")] = Field(
        description="name of the view, and of the asset if it is a table"
    )
    when: Annotated[dict[str, When], Field(min_length=1)] = Field(
        description="conditions on its items, by top-level attribute: a value, a list of values, "
        "{prefix: ...} or {regex: ...}; all must hold"
    )
    table: bool = Field(
        False, description="keep it as an Iceberg table and asset of its own beside the view"
    )
    flatten: Flatten | None = Field(None, description="nested maps become columns")

    def entity(self) -> Entity:
        """Convert to the entity of `core.items.entities`."""
        conditions = tuple(match.condition(name) for name, match in self.when.items())
        return Entity(self.name, conditions, self.flatten.depth if self.flatten else 0)


class Table(_Strict):
    """One DynamoDB table to copy."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{3,255}$")]
    transport: Transport = Field(DYNAMODB_STREAMS, description="how changes get to the lake")
    kinesis: Kinesis = Kinesis()  # type: ignore[call-arg]
    owner: Owner | None = Field(None, description="e-mail address or team:name")
    firehose: Firehose | None = Field(None, description="needed with transport firehose")
    kinesis_channel: KinesisChannel = KinesisChannel()  # type: ignore[call-arg]
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")] | None = Field(
        None, description="Dagster asset group; default: the table's safe name"
    )
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = Field(
        None,
        description="the table's name in the lake; default: derived from `name`. For tables with "
        "one name in several accounts or regions",
    )
    region: Region | None = Field(None, description="AWS region of the table; default: the lake's")
    role_arn: RoleArn | None = Field(
        None, description="role in the table's account, assumed to read the table"
    )
    external_id: ExternalId | None = Field(
        None, description="external id that the role requires (AWS does not treat it as a secret)"
    )
    complete_by_read: bool = Field(
        False,
        description="accept a stream without new images; every changed item is read from the table",
    )
    snapshot: Snapshot = Snapshot()  # type: ignore[call-arg]
    columns: dict[str, ColumnRule] = Field(
        {}, description="rules for top-level attributes, by exact attribute name"
    )
    max_columns: int | None = Field(
        None,
        ge=1,
        le=5000,
        description="number of attributes with columns of their own in current_state and "
        "pitr_export, the most frequent ones; all are in _item. Default: "
        f"{MAX_COLUMNS}, or the table's present number if greater",
    )
    heal: Literal["auto", "ask"] = Field(
        "auto", description="auto: gaps are healed from exports (which cost) as soon as they open"
    )
    ttl_archive: bool = Field(
        False,
        description="keep items deleted by TTL, with their last image, as an asset of their own",
    )
    schema_contract: Literal["evolve", "refuse"] = Field(
        "evolve",
        description="refuse: new attributes and changed types leave current_state unchanged",
    )

    entities: list[EntityRule] = Field(
        [],
        description="single-table design: the kinds of items in the table, each with its own view; "
        "an item belongs to the first that matches",
    )

    @field_validator("entities")
    @classmethod
    def _sound_entities(cls, rules: list[EntityRule]) -> list[EntityRule]:
        names = [rule.name for rule in rules]
        for name in names:
            if name in RESERVED_ENTITIES or name.startswith(RESERVED_PREFIXES):
                raise ValueError(f"entity {name!r}: the name is reserved by the lake")
            if names.count(name) > 1:
                raise ValueError(f"entity {name!r} is listed twice")
        pair = unreachable([rule.entity() for rule in rules])
        if pair:
            later, earlier = pair
            raise ValueError(
                f"entity {later.name!r} can have no items: all that match belong to "
                f"{earlier.name!r}, which is listed before it; list the narrower one first"
            )
        return rules

    @model_validator(mode="after")
    def _entities_use_visible_attributes(self) -> "Table":
        for rule in self.entities:
            for attribute in rule.when:
                column_rule = self.columns.get(attribute)
                if column_rule is not None and column_rule.type is None:
                    raise ValueError(
                        f"entity {rule.name!r} uses attribute {attribute!r}, which `columns` "
                        "hash, mask or drop, so that readers' items do not have it; use another"
                    )
        return self

    @model_validator(mode="after")
    def _external_id_has_role(self) -> "Table":
        if self.external_id and not self.role_arn:
            raise ValueError("`external_id` is for the role in `role_arn`, which is missing")
        return self

    @model_validator(mode="after")
    def _transport_has_settings(self) -> "Table":
        if self.transport == FIREHOSE and self.firehose is None:
            raise ValueError(
                "transport firehose needs the location: firehose: {prefixes: [s3://...]}"
            )
        return self

    @property
    def safe_name(self) -> str:
        """SQL-safe name: asset key prefix, schema and folder name."""
        return self.alias or safe_name(self.name)

    @property
    def label(self) -> str:
        """Name of the table in runs and messages, unique in the settings."""
        return self.alias or self.name

    @property
    def account(self) -> str | None:
        """Account of the role that reads the table; None: the lake's account."""
        return self.role_arn.split(":")[4] if self.role_arn else None


class Capture(_Strict):
    """How streams are read."""

    interval_seconds: int = Field(60, ge=5, description="interval between captures of a table")
    max_run_seconds: int = Field(240, ge=1, description="a run stops reading after this time")
    empty_polls: int = Field(
        3,
        ge=1,
        description="consecutive empty reads after which a shard counts as read to its tip; more "
        "if the position is old (docs/sizing.md)",
    )
    poll_seconds: float = Field(1.0, gt=0, le=60, description="pause between empty reads")
    listing_lag_seconds: float = Field(
        300, ge=0, le=3600, description="longest time without a new shard in listings"
    )
    parallel_shards: int = Field(16, ge=1, le=256, description="shards read at the same time")
    flush_rows: int = Field(25_000, ge=1, description="changes per landing object at most")
    flush_mb: int = Field(64, ge=1, description="MB of stream answers per landing object at most")
    linger_seconds: int = Field(
        0, ge=0, description="a run continues to read at the tip for this time (continuous mode)"
    )
    flush_seconds: float = Field(
        1.0, gt=0, description="least pause between landing objects in continuous mode"
    )
    reads_per_second: float = Field(
        200, gt=0, description="items read per second and table with complete_by_read"
    )
    tables_per_run: int = Field(8, ge=1, le=64, description="tables that one run captures")
    runs: int = Field(2, ge=1, description="capture runs at the same time")
    warn_hours: float = Field(4, gt=0, lt=24, description="hours behind at which a check warns")
    fail_hours: float = Field(12, gt=0, lt=24, description="hours behind at which a check fails")


class Export(_Strict):
    """Location, encryption and time limits of PITR exports."""

    bucket: str | None = Field(
        None, description="S3 bucket; default: the lake's. Needed when the lake is a local folder"
    )
    prefix: str = Field("", description="S3 prefix in that bucket when `bucket` is given")
    bucket_owner: AccountId | None = Field(
        None,
        description="account of the bucket, needed for exports from another account; default: the "
        "lake's",
    )
    kms_key: KmsKey | None = Field(
        None,
        description="exports are encrypted with this KMS key (ARN, or aws/s3); default: the "
        "lake's `kms_key` if the bucket is the lake's, else the bucket's own encryption",
    )
    poll_seconds: float = Field(15.0, gt=0, description="pause between checks of a running export")
    timeout_minutes: int = Field(24 * 60, ge=1, description="longest time to wait for an export")
    least_window_minutes: float = Field(
        15, gt=0, description="shortest incremental export; AWS accepts 15 minutes or more"
    )


class Schedules(_Strict):
    """Cron expressions (UTC) and intervals of the automation."""

    yesterday: Cron = Field("20 0 * * *", description="re-materialise yesterday's partitions")
    downstream_seconds: int = Field(
        60, ge=5, description="interval between checks for stale cdc, current_state and aggregates"
    )
    glue_seconds: int = Field(
        300, ge=5, description="interval between checks for missing Glue partitions"
    )
    running: bool = Field(
        False, description="start sensors and schedules as soon as Dagster loads the tables"
    )


class CurrentState(_Strict):
    """Automatic folds of changes into the published state; queries see the changes anyway."""

    fold_percent: float = Field(
        5, ge=0, description="fold when the changes are this many percent of the items"
    )
    fold_minutes: float = Field(15, ge=0, description="or when the last fold is this old")


class Maintenance(_Strict):
    """Schedule of the asset `maintenance`, and the ages of what it removes."""

    schedule: Cron = Field("41 * * * *", description="when small objects are merged (UTC)")
    keep_replaced_minutes: int = Field(
        60, ge=1, description="how long replaced landing objects stay"
    )
    keep_snapshot_days: int = Field(
        7, ge=1, description="how long Iceberg snapshots are kept; baselines are kept for ever"
    )
    unreferenced_hours: int = Field(
        48, ge=24, description="age at which an unreferenced file is removed"
    )


class Alarms(_Strict):
    """When a table counts as stale, and who is notified of failed checks and runs."""

    warn_minutes: float = Field(
        15, gt=0, description="the check `fresh` warns when the data in queries is older than this"
    )
    fail_minutes: float = Field(60, gt=0, description="and fails when it is older than this")
    sns_topic: Annotated[str, Field(pattern=r"^arn:[^:]+:sns:[^:]+:[0-9]{12}:.+$")] | None = Field(
        None, description="ARN of an SNS topic"
    )
    webhook_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None,
        description="environment variable with the address of a webhook; it receives JSON with a "
        "`text`, as Slack, Mattermost and Teams accept it",
    )


class Reconcile(_Strict):
    """Regular comparisons of the lake with the source."""

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
        description="Athena derives partitions of `<table>_raw_stream` from the table's "
        "parameters; none are registered, and engines without partition projection see no new days",
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
    """Catalogue of the Iceberg tables; access to the lake's files depends on `lake` alone."""

    type: Literal["glue", "glue-rest", "s3tables", "rest", "sql"] = Field(
        description="Glue, by its own calls or by its Iceberg REST endpoint; a table bucket of S3 "
        "Tables; any Iceberg REST catalogue; a SQL database"
    )
    properties: dict[str, str] = Field(
        {},
        description="properties by PyIceberg's names: `uri`, `warehouse` (for s3tables the table "
        "bucket's ARN), for rest also `scope`, `oauth2-server-uri`, `header.X-...`, "
        "`rest.sigv4-enabled` and others",
    )
    secrets: dict[str, Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = Field(
        {},
        description="secret properties, each with the environment variable that contains it, "
        "such as `credential: CATALOG_CREDENTIAL`",
    )

    @model_validator(mode="after")
    def _known(self) -> "Catalog":
        given = [*self.properties, *self.secrets]
        allowed = _CATALOG_KEYS.get(self.type)
        for name in given:
            if allowed is not None and name not in allowed:
                raise ValueError(
                    f"{self.type} has no property {name!r}; allowed: {', '.join(allowed)}"
                )
            if name.startswith(_FILE_KEYS):
                raise ValueError(
                    f"property {name!r}: access to files depends on `lake`, `endpoint_url` and "
                    "AWS's credential chain, not on the catalogue; remove it"
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
    """All settings of a deployment. No secrets: they come from AWS's credential chain."""

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
        "aws/s3 for AWS's own), for buckets whose policy requires it; default: the bucket's own "
        "encryption",
    )
    catalog: Catalog | None = Field(
        None,
        description="catalogue of the Iceberg tables; default: Glue for a lake in S3, a SQLite "
        "file in the lake for a local folder",
    )
    handover_margin_seconds: float = Field(
        300, ge=1, description="distance between stream positions and export time at a handover"
    )
    clock_margin_seconds: float | None = Field(
        None,
        ge=0,
        description="largest offset of this machine's clock from AWS's (which refuses requests "
        "with more than 5 minutes); default: handover_margin_seconds",
    )
    memory_mb: int = Field(
        1000, ge=100, description="memory for DuckDB's folds and sorts; the rest goes to disk"
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
        for _, reason in clashes(self.tables, self.region):
            raise ValueError(reason)
        if not self.is_s3 and "://" in self.lake:
            raise ValueError(f"lake {self.lake!r}: use s3://bucket/prefix or a local folder")
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
        """Refuse shared folders: the lake would remove foreign objects, or read them as landed."""
        if not self.is_s3:
            return
        zones = [f"{self.lake.rstrip('/')}/{zone}" for zone in LAKE_ZONES]
        for table in self.tables:
            chosen = table.firehose
            for prefix in [*chosen.prefixes, *chosen.error_prefixes] if chosen else []:
                folder = f"{prefix.rstrip('/')}/"
                shared = [z for z in zones if folder.startswith(z) or z.startswith(folder)]
                if shared:
                    raise ValueError(
                        f"table {table.name!r}: {folder} is Firehose's and {shared[0]} the lake's "
                        "own; neither may be in the other"
                    )

    @property
    def clock_margin_us(self) -> int:
        """Largest offset of this machine's clock from AWS's, in µs."""
        seconds = self.clock_margin_seconds
        return int((self.handover_margin_seconds if seconds is None else seconds) * 1_000_000)

    @property
    def is_s3(self) -> bool:
        """Whether the lake is in S3 (else a local folder)."""
        return self.lake.startswith("s3://")

    @property
    def catalog_type(self) -> str:
        """Type of the Iceberg catalogue: a `type` of `catalog`."""
        return self.catalog.type if self.catalog else "glue" if self.is_s3 else "sql"

    @property
    def has_glue(self) -> bool:
        """Whether Glue catalogues the landing zone: lake in S3, and one of AWS's catalogues."""
        return self.is_s3 and self.catalog_type in _AWS_CATALOGS

    @property
    def lake_folder(self) -> Path:
        """The local lake's folder; a relative path starts at the settings file."""
        return (self._folder / Path(self.lake).expanduser()).resolve()

    @property
    def aggregates_folder(self) -> Path:
        """Folder of aggregates' SQL files; a relative path starts at the settings file."""
        return (self._folder / self.aggregates).resolve()

    def table(self, name: str) -> Table:
        """Find a table by alias, DynamoDB name or safe name; raises `SettingsError`."""
        for table in self.tables:
            if name in (table.label, table.safe_name):
                return table
        namesakes = [table for table in self.tables if table.name == name]
        if len(namesakes) == 1:
            return namesakes[0]
        labels = ", ".join(t.label for t in namesakes or self.tables)
        number = f"{len(namesakes)} tables" if namesakes else "no table"
        raise SettingsError(f"{number} {name!r} in the settings", fix=f"use one of: {labels}")


def clashes(tables: Iterable[Table], region: str | None) -> Iterator[tuple[int, str]]:
    """Yield position and reason for each table that conflicts with an earlier one.

    `region`: default region of tables.
    """
    tables = list(tables)
    names: dict[str, str] = {}
    places: set[tuple[str | None, ...]] = set()
    kept = {f"{t.safe_name}_{kind}": t for t in tables for kind in RESERVED_ENTITIES}
    for position, table in enumerate(tables):
        for own in [f"{table.safe_name}_{rule.name}" for rule in table.entities if rule.table]:
            if own in kept:
                why = f"would be kept as {own!r}, which is a name of table {kept[own].name!r}"
                yield position, f"table {table.name!r}: an entity {why}; rename the entity"
            kept[own] = table
        name = table.safe_name
        place = (table.name, table.region or region, table.account)
        if name in _RESERVED:
            yield position, f"table {table.name!r}: the name {name!r} is reserved by the lake"
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
