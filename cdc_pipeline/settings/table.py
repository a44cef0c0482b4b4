"""Settings of one DynamoDB table, and conflicts between tables."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cdc_pipeline.core.items.columns import MAX_COLUMNS
from cdc_pipeline.core.items.entities import RESERVED_ENTITIES, RESERVED_PREFIXES, unreachable
from cdc_pipeline.core.names import safe_name
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, FIREHOSE, Transport
from cdc_pipeline.core.workers import Engine
from cdc_pipeline.settings.entities import EntityRule
from cdc_pipeline.settings.field_types import (
    ChannelName,
    ColumnType,
    Cron,
    ExternalId,
    Layout,
    Owner,
    Region,
    RoleArn,
    S3Folder,
    Strict,
)

_RESERVED = {"aggregates", "error", "information_schema", "main", "pg_catalog", "system", "temp"}


class Snapshot(Strict):
    """When full exports are taken."""

    first: Literal["manual", "auto"] = Field(
        "manual", description="auto: the first export is taken automatically (it costs)"
    )
    schedule: Cron | None = Field(
        None, description="cron (UTC) of repeated full exports; none: on manual materialisation"
    )


class Kinesis(Strict):
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


class ColumnRule(Strict):
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


class Firehose(Strict):
    """Location of a table's changes from Firehose, and how they are listed."""

    prefixes: Annotated[list[S3Folder], Field(min_length=1)] = Field(
        description="s3://bucket/folder/ of raw records or Parquet, up to the beginning of the "
        "date; without the last slash it is a prefix, as for `folder2026/11/21/`"
    )
    error_prefixes: list[S3Folder] = Field(
        [], description="s3://bucket/folder of records that Firehose could not process"
    )
    interval_seconds: int = Field(
        300, ge=5, description="interval between listings of all folders that may get objects"
    )
    layout: Layout | None = Field(
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


class KinesisChannel(Strict):
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


class Table(Strict):
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

    engine: Engine | None = Field(
        None, description="what does work on the whole table; default: the deployment's `engine`"
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
