"""The lake: its storage, capture log, landing objects, Iceberg tables and DuckDB views."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb


def connect(tables: "Iterable[str] | None" = None) -> "duckdb.DuckDBPyConnection":
    """A DuckDB connection with a schema per table and its views, from the settings file.

    `tables`: names of the tables to load, None for all. Views: `pitr_export`, `raw_stream`,
    `cdc`, `current_state`, `history`, and `aggregates.<name>`. The connection shows the lake as
    it was when it was opened. Raises `SettingsError`, `LakeError`.
    """
    from cdc_pipeline.lake.connection import connect_lake
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings import load_settings

    return connect_lake(Lake.open(load_settings()), tables)
