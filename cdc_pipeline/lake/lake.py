"""One deployment's lake, and one table of it: what the settings point at, opened on demand."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import Store, open_store

if TYPE_CHECKING:
    from pyiceberg.table import Table as IcebergTable

    from cdc_pipeline.lake.iceberg.tables import Tables
    from cdc_pipeline.settings.model import Settings, Table


class Lake:
    """Storage, capture logs and Iceberg tables of one lake. Opening it touches no network."""

    def __init__(self, settings: Settings, aws: AwsSession, store: Store) -> None:
        self.settings = settings
        self.aws = aws
        self.store = store
        self._sources: dict[tuple[str | None, ...], AwsSession] = {}
        self._lock = threading.Lock()

    @staticmethod
    def open(settings: Settings) -> Lake:
        """The lake that the settings name."""
        aws = AwsSession(region=settings.region, endpoint_url=settings.endpoint_url)
        return Lake(settings, aws, open_store(settings, aws))

    def table(self, settings: Table) -> TableLake:
        """One table of this lake."""
        return TableLake(self, settings)

    def source(self, table: Table) -> AwsSession:
        """Access to the account and region that a DynamoDB table is in; touches no network."""
        where = (table.region, table.role_arn, table.external_id)
        if not any(where):
            return self.aws
        with self._lock:
            if where not in self._sources:
                self._sources[where] = self.aws.elsewhere(
                    region=table.region, role_arn=table.role_arn, external_id=table.external_id
                )
            return self._sources[where]

    @property
    def database(self) -> str:
        """Glue database, or the namespace of a local lake's catalogue."""
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


class TableLake:
    """One table of one lake: the handle that use cases take. Making it touches no network.

    `settings`: the table's own; `lake.settings` has those of the deployment.
    """

    def __init__(self, lake: Lake, settings: Table) -> None:
        self.lake = lake
        self.settings = settings

    @property
    def name(self) -> str:
        """The table's name in DynamoDB."""
        return self.settings.name

    @property
    def safe_name(self) -> str:
        """Its name in SQL, in the catalogue and in paths."""
        return self.settings.safe_name

    @property
    def source(self) -> AwsSession:
        """Access to the account and region of the DynamoDB table."""
        return self.lake.source(self.settings)

    @property
    def paths(self) -> TablePaths:
        """Where the table lives in the store."""
        return TablePaths(self.lake.database, self.safe_name)

    @property
    def log(self) -> CaptureLog:
        """The table's capture log."""
        return CaptureLog(self.lake.store, self.paths, margin_us=self.lake.settings.clock_margin_us)

    def iceberg(self, kind: str) -> IcebergTable | None:
        """One of its Iceberg tables, such as `current_state`, as it is now; None: there is none."""
        return self.lake.iceberg.load(f"{self.safe_name}_{kind}")

    def export_owner(self) -> str | None:
        """The account of the exports' bucket, which AWS wants named if the table's is another.

        Raises `SourceError` where the lake's own account cannot be found out.
        """
        named = self.lake.settings.export.bucket_owner
        return named or (self.lake.aws.account() if self.settings.role_arn else None)
