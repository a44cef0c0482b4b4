"""One deployment's lake: what its settings point at, opened on demand."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.storage.store import Store, open_store

if TYPE_CHECKING:
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

    def export_owner(self, table: Table) -> str | None:
        """The account of the exports' bucket, which AWS wants named if the table's is another.

        Raises `SourceError` where the lake's own account cannot be found out.
        """
        named = self.settings.export.bucket_owner
        return named or (self.aws.account() if table.role_arn else None)

    @property
    def database(self) -> str:
        """Glue database, or the namespace of a local lake's catalogue."""
        return self.settings.database

    def paths(self, table: Table) -> TablePaths:
        """Where a table lives."""
        return TablePaths(self.database, table.safe_name)

    def log(self, table: Table) -> CaptureLog:
        """The capture log of a table."""
        return CaptureLog(self.store, self.paths(table), margin_us=self.settings.clock_margin_us)

    @cached_property
    def tables(self) -> Tables:
        """The Iceberg tables."""
        from cdc_pipeline.lake.iceberg.catalog import chooses_location, open_catalog
        from cdc_pipeline.lake.iceberg.tables import Tables

        return Tables(
            open_catalog(self.settings, self.aws, self.store),
            self.database,
            self.store,
            places_tables=not chooses_location(self.settings),
        )
