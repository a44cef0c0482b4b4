"""Sections of the settings that hold for all tables, each with its keys and defaults."""

import warnings
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cdc_pipeline.settings.field_types import AccountId, Cron, KmsKey, RoleArn, S3Folder, Strict


class Capture(Strict):
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


class Export(Strict):
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


class Schedules(Strict):
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


class CurrentState(Strict):
    """Automatic publications of changes; queries with DuckDB see the changes anyway."""

    publish_minutes: float = Field(
        1, ge=0, description="publish changes when the last publication is this old"
    )
    fold_percent: float = Field(
        20,
        ge=0,
        description="rewrite the whole state when this many percent of its rows are dead, and "
        "publish at once when as many items have changed",
    )
    derive_minutes: float = Field(
        15,
        ge=0,
        description="make tables of entities and aggregates from it, and large days of cdc, at "
        "most this often",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_fold_minutes(cls, values: Any) -> Any:
        """Read the key of versions that rewrote the whole state with each publication."""
        if not isinstance(values, dict) or "fold_minutes" not in values:
            return values
        warnings.warn(
            "settings: current_state.fold_minutes is now publish_minutes (how often changes are "
            "published) and derive_minutes (how often tables are made from them): rename it",
            FutureWarning,
            stacklevel=2,
        )
        rest = {name: value for name, value in values.items() if name != "fold_minutes"}
        minutes = values["fold_minutes"]
        return {"publish_minutes": minutes, "derive_minutes": minutes, **rest}


class Maintenance(Strict):
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


class Alarms(Strict):
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


class Reconcile(Strict):
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


class Spark(Strict):
    """How Spark jobs are started, for tables whose engine is `spark` or `auto` (docs/spark.md)."""

    start: Literal["spark_submit", "emr_serverless", "glue"] = Field(
        "spark_submit", description="spark_submit: by the process of the run, see `master`"
    )
    auto_gb: float = Field(
        100,
        ge=0,
        description="GB of a table in DynamoDB from which engine `auto` chooses Spark "
        "(docs/spark.md has the measured sizes)",
    )
    master: str = Field(
        "local[*]", description="Spark's master: local[*], or spark://host:port of a cluster"
    )
    application_id: Annotated[str, Field(pattern=r"^[0-9a-z]{1,64}$")] | None = Field(
        None, description="id of the EMR Serverless application"
    )
    role_arn: RoleArn | None = Field(None, description="role of the job on EMR Serverless")
    glue_job: str | None = Field(None, description="name of the Glue job")
    package: S3Folder | None = Field(
        None,
        description="folder of what `cdc-pipeline spark package` has made; default: "
        "_cdc/spark/ in the lake",
    )
    conf: dict[str, str] = Field({}, description="more of Spark's settings, by their full names")
    timeout_minutes: int = Field(720, ge=1, description="a job that runs longer is ended")

    @model_validator(mode="after")
    def _is_whole(self) -> "Spark":
        needed = {
            "emr_serverless": ("application_id", "role_arn"),
            "glue": ("glue_job",),
            "spark_submit": (),
        }[self.start]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"start: {self.start} needs {' and '.join(missing)}")
        return self


class Glue(Strict):
    """How the landing zone is catalogued in Glue (a lake in S3)."""

    projection: bool = Field(
        False,
        description="Athena derives partitions of `<table>_raw_stream` from the table's "
        "parameters; none are registered, and engines without partition projection see no new days",
    )
