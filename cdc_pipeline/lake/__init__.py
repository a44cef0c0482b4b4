"""The lake: its storage, capture log, landing objects, Iceberg tables and DuckDB views."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import duckdb


def connect(
    tables: "Iterable[str] | None" = None, as_of: "datetime | str | None" = None
) -> "duckdb.DuckDBPyConnection":
    """A DuckDB connection with a schema per table and its views, from the settings file.

    `tables`: names of the tables to load, None for all. Views: `pitr_export`, `raw_stream`,
    `cdc`, `current_state`, `history`, and `aggregates.<name>`. The connection shows the lake as
    it was when it was opened; when a query says that a file is gone, maintenance has merged it
    since: connect again.

    `as_of`: show the tables as they were at the end of that second (an ISO 8601 text or a
    datetime; without aggregates, which have no past). What may make such a state inexact is told
    as a warning. Raises `SettingsError`, `QueryError`, `LakeError`.
    """
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.lake.query.connection import connect_lake
    from cdc_pipeline.lake.query.time_travel import parse_moment
    from cdc_pipeline.settings.load import load_settings

    moment = None if as_of is None else parse_moment(as_of)
    return connect_lake(Lake.open(load_settings()), tables, as_of=moment)
