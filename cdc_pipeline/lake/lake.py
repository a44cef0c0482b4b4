"""The lake of one deployment, and one table of it; storage and catalogue open on first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.workers import StartWorkers, needs_workers
from cdc_pipeline.lake.iceberg.metadata_file import PROPERTY, NeedsPyIcebergError, read_properties
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import LocalStore, Store, open_s3

if TYPE_CHECKING:
    from pyiceberg.table import Table as IcebergTable

    from cdc_pipeline.aws.client.session import AwsSession
    from cdc_pipeline.lake.iceberg.tables import Tables
    from cdc_pipeline.lake.storage.residence import Residence
    from cdc_pipeline.settings.model import Settings
    from cdc_pipeline.settings.table import Table


class Lake:
    """Storage, capture logs and Iceberg tables of one lake. Opening it makes no network call.

    `aws`: the session of the lake's account; None: made on first use. `residence`: of a process
    that stays. `workers_of`: of a process that can start Spark jobs, such as a run of
    Dagster.
    """

    def __init__(self, settings: Settings, aws: AwsSession | None, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.residence: Residence | None = None
        self.workers_of: Callable[[TableLake], StartWorkers] | None = None
        self._aws = aws
        self._sources: dict[tuple[str | None, ...], AwsSession] = {}
        self._lock = threading.Lock()

    @staticmethod
    def open(settings: Settings) -> Lake:
        """Open the lake of these settings."""
        if not settings.is_s3:
            return Lake(settings, None, LocalStore(settings.lake_folder))
        aws = _open_session(settings)
        return Lake(settings, aws, open_s3(settings, aws))

    @property
    def aws(self) -> AwsSession:
        """The AWS session of the lake's own account and region."""
        with self._lock:
            if self._aws is None:
                self._aws = _open_session(self.settings)
            return self._aws

    def table(self, settings: Table) -> TableLake:
        """Return the handle of one table."""
        return TableLake(self, settings)

    def source(self, table: Table) -> AwsSession:
        """Return the AWS session of a DynamoDB table's account and region; no network call."""
        access = (table.region, table.role_arn, table.external_id)
        own = self.aws
        if not any(access):
            return own
        with self._lock:
            if access not in self._sources:
                self._sources[access] = own.elsewhere(
                    region=table.region, role_arn=table.role_arn, external_id=table.external_id
                )
            return self._sources[access]

    @property
    def database(self) -> str:
        """Glue database, or the namespace in a local lake's catalogue."""
        return self.settings.database

    @cached_property
    def iceberg(self) -> Tables:
        """The Iceberg tables."""
        from cdc_pipeline.lake.iceberg.catalog import chooses_location, open_catalog
        from cdc_pipeline.lake.iceberg.tables import Tables

        return Tables(
            open_catalog(self.settings, self.aws, self.store),
            self.database,
            self.store,
            places_tables=not chooses_location(self.settings),
        )


def _open_session(settings: Settings) -> AwsSession:
    from cdc_pipeline.aws.client.session import AwsSession

    return AwsSession(region=settings.region, endpoint_url=settings.endpoint_url)


class TableLake:
    """Handle of one table in one lake, the argument of use cases. Making it makes no network call.

    `settings`: the table's settings; `lake.settings` are those of the deployment.
    """

    def __init__(self, lake: Lake, settings: Table) -> None:
        self.lake = lake
        self.settings = settings

    @property
    def name(self) -> str:
        """Name in DynamoDB."""
        return self.settings.name

    @property
    def safe_name(self) -> str:
        """Name in SQL, in the catalogue and in paths."""
        return self.settings.safe_name

    @property
    def source(self) -> AwsSession:
        """AWS session of the DynamoDB table's account and region."""
        return self.lake.source(self.settings)

    @property
    def paths(self) -> TablePaths:
        """Object keys of the table in the store."""
        return TablePaths(self.lake.database, self.safe_name)

    @property
    def log(self) -> CaptureLog:
        """The table's capture log."""
        return CaptureLog(
            self.lake.store,
            self.paths,
            margin_us=self.lake.settings.clock_margin_us,
            residence=self.lake.residence,
        )

    def start_workers(self, size: int) -> StartWorkers | None:
        """Return how to start workers for work on `size` bytes; None: this process does it."""
        settings = self.lake.settings
        engine = self.settings.engine or settings.engine
        chosen = needs_workers(engine, size, settings.spark.auto_gb)
        workers_of = self.lake.workers_of
        return workers_of(self) if chosen and workers_of else None

    def iceberg(self, kind: str) -> IcebergTable | None:
        """Load an Iceberg table of this table, such as `current_state`; None: it has no commit.

        Each call reads the newest metadata.
        """
        return self.lake.iceberg.load(f"{self.safe_name}_{kind}")

    def properties(self, kind: str) -> Mapping[str, str] | None:
        """Return the `cdc_pipeline.` properties of an Iceberg table; None: it has no commit.

        As of the newest metadata, like those of `iceberg`, and cheaper: mostly without PyIceberg.
        """
        properties = self._all_properties(kind)
        if properties is None:
            return None
        own = (name for name in properties if name.startswith(PROPERTY))
        return {name.removeprefix(PROPERTY): properties[name] for name in own}

    def _all_properties(self, kind: str) -> Mapping[str, str] | None:
        lake = self.lake
        if "iceberg" not in vars(lake):
            with suppress(NeedsPyIcebergError):
                name = f"{self.safe_name}_{kind}"
                return read_properties(lake.settings, lake.store, name, lambda: lake.aws)
        table = self.iceberg(kind)
        return table.properties if table else None

    def export_owner(self) -> str | None:
        """Return the account of the export bucket, which AWS requires if the table's differs.

        None: the same account. Raises `SourceError` if the lake's own account cannot be determined.
        """
        bucket_owner = self.lake.settings.export.bucket_owner
        return bucket_owner or (self.lake.aws.account() if self.settings.role_arn else None)
