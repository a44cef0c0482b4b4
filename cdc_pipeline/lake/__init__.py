"""The lake: its storage, capture log, landing objects, Iceberg tables and DuckDB views."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import duckdb


def connect(
    tables: "Iterable[str] | None" = None, as_of: "datetime | str | None" = None
) -> "duckdb.DuckDBPyConnection":
    """Open a DuckDB connection with one schema of views per table, as the settings file names them.

    `tables`: names of the tables to load; None: all. Views: `pitr_export`, `raw_stream`, `cdc`,
    `current_state`, `history`, and `aggregates.<name>`; the macro `item(key)` reads one item of
    many files. The connection shows the lake as of its opening. A query fails for a missing file
    when maintenance has merged the file since: connect again.

    `as_of`: show the tables as of the end of that second (ISO 8601 text or datetime), without
    aggregates, which have no past. A warning names each cause that may make this state inexact.
    Raises `SettingsError`, `QueryError`, `LakeError`.
    """
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.lake.query.connection import connect_lake
    from cdc_pipeline.lake.query.time_travel import parse_moment
    from cdc_pipeline.settings.load import load_settings

    moment = None if as_of is None else parse_moment(as_of)
    return connect_lake(Lake.open(load_settings()), tables, as_of=moment)
