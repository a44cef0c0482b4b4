"""One deployment's lake: what its settings point at, opened on demand."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from cdc_pipeline.aws.session import AwsSession
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.lake.log import CaptureLog
from cdc_pipeline.lake.store import Store, open_store

if TYPE_CHECKING:
    from cdc_pipeline.lake.tables import Tables
    from cdc_pipeline.settings import Settings, Table


class Lake:
    """Storage, capture logs and Iceberg tables of one lake. Opening it touches no network."""

    def __init__(self, settings: Settings, aws: AwsSession, store: Store) -> None:
        self.settings = settings
        self.aws = aws
        self.store = store

    @staticmethod
    def open(settings: Settings) -> Lake:
        """The lake that the settings name."""
        aws = AwsSession(region=settings.region, endpoint_url=settings.endpoint_url)
        return Lake(settings, aws, open_store(settings, aws))

    def source(self, table: Table) -> AwsSession:
        """Access to the account and region that a DynamoDB table is in."""
        return self.aws

    @property
    def database(self) -> str:
        """Glue database, or the namespace of a local lake's catalogue."""
        return self.settings.database

    def paths(self, table: Table) -> TablePaths:
        """Where a table lives."""
        return TablePaths(self.database, table.safe_name)

    def log(self, table: Table) -> CaptureLog:
        """The capture log of a table."""
        return CaptureLog(self.store, self.paths(table))

    @cached_property
    def tables(self) -> Tables:
        """The Iceberg tables."""
        from cdc_pipeline.lake.tables import Tables, open_catalog

        return Tables(open_catalog(self.settings, self.aws, self.store), self.database, self.store)
