"""Views that add the names of `core.items.view_names` after the columns of their tables."""

import duckdb

from cdc_pipeline.core.items.view_names import STORED_NAMES
from cdc_pipeline.lake.engine.duckdb_session import identifier


def with_view_names(connection: duckdb.DuckDBPyConnection, view: str, relation: str) -> str:
    """Return SQL for the rows of `relation` with the names that `view` adds.

    A column with one of these names keeps it: an attribute of a table published before the names
    existed.
    """
    return f"SELECT {selected_columns(connection, view, relation)} FROM {relation}"


def selected_columns(connection: duckdb.DuckDBPyConnection, view: str, relation: str) -> str:
    """Return the list of columns that `with_view_names` selects from the relation."""
    described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    columns = {row[0] for row in described}
    added = [
        f"{_expression(stored)} AS {name}"
        for name, stored in STORED_NAMES[view].items()
        if name not in columns
    ]
    return ", ".join(["*", *added])


def _expression(stored: str) -> str:
    if stored == "_write_time_us":
        return "make_timestamptz(_write_time_us - _write_time_us % 1000)"
    return identifier(stored)
