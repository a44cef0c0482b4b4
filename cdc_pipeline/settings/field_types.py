"""Types of single settings: their patterns and validators, and the base of all models."""

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cdc_pipeline.core.items.columns import tags_of_type
from cdc_pipeline.core.names import OWNERS, is_owner
from cdc_pipeline.core.plans.firehose_folders import by_layout


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
Layout = Annotated[str, AfterValidator(_layout)]
# us-east-1, us-gov-west-1, eusc-de-east-1
Region = Annotated[str, Field(pattern=r"^[a-z]{2,4}(-[a-z]+)+-[0-9]+$")]
RoleArn = Annotated[
    str, Field(pattern=r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]+$")
]
S3Folder = Annotated[str, AfterValidator(_s3_folder)]


class Strict(BaseModel):
    """Base of all models: unknown keys are refused, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
