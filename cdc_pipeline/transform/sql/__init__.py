"""Portable SQL: the subset that DuckDB, Spark and Trino run alike, one statement per file.

Each file reads relations by fixed names (`base`, `changes`, ...) that an engine provides.
"""

from importlib.resources import files


def load_sql(name: str) -> str:
    """The text of `<name>.sql` beside this module."""
    return files(__name__).joinpath(f"{name}.sql").read_text("utf-8")
