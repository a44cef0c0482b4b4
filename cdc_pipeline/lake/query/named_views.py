"""Views with the names of `core.items.view_names` behind the columns that their tables have."""

import duckdb

from cdc_pipeline.core.items.view_names import STORED_NAMES
from cdc_pipeline.lake.engine.duckdb_session import identifier


def named(connection: duckdb.DuckDBPyConnection, view: str, relation: str) -> str:
    """SQL for the rows of `relation`, which `view` shows.

    A column that has one of the names already keeps it: an attribute of a table that was published
    before these names were.
    """
    described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    have = {row[0] for row in described}
    added = [
        f"{_expression(stored)} AS {name}"
        for name, stored in STORED_NAMES[view].items()
        if name not in have
    ]
    return f"SELECT {', '.join(['*', *added])} FROM {relation}"


def _expression(stored: str) -> str:
    if stored == "_write_time_us":
        return "make_timestamptz(_write_time_us - _write_time_us % 1000)"
    return identifier(stored)
