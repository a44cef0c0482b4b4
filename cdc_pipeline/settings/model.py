"""The whole settings file as a pydantic model: `Settings`."""

from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field, PrivateAttr, model_validator

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.core.names import LAKE_ZONES
from cdc_pipeline.core.workers import Engine
from cdc_pipeline.settings.catalog import AWS_CATALOGS, Catalog
from cdc_pipeline.settings.field_types import KmsKey, Strict
from cdc_pipeline.settings.sections import (
    Alarms,
    Capture,
    CurrentState,
    Export,
    Glue,
    Maintenance,
    Reconcile,
    Schedules,
    Spark,
)
from cdc_pipeline.settings.table import Table, clashes


class Settings(Strict):
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
    engine: Engine = Field(
        "local",
        description="what does work on whole tables, in runs of Dagster: this machine, Spark, or "
        "Spark from `spark.auto_gb` on",
    )
    spark: Spark = Spark()  # type: ignore[call-arg]
    tables: Annotated[list[Table], Field(min_length=1)]

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for _, reason in clashes(self.tables, self.region):
            raise ValueError(reason)
        if not self.is_s3 and "://" in self.lake:
            raise ValueError(f"lake {self.lake!r}: use s3://bucket/prefix or a local folder")
        if self.spark.start != "spark_submit" and not self.is_s3:
            raise ValueError(f"spark: start: {self.spark.start} needs a lake in S3")
        self._check_catalog()
        self._keep_firehose_out_of_the_lake()
        return self

    def _check_catalog(self) -> None:
        chosen = self.catalog
        if chosen is None:
            return
        if chosen.type in AWS_CATALOGS and not self.is_s3:
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
        return self.is_s3 and self.catalog_type in AWS_CATALOGS

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
