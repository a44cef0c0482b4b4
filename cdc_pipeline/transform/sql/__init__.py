"""Portable SQL: one statement per file, with equal results in DuckDB, Spark and Trino.

Each file reads relations by fixed names (`base`, `changes`, ...) that an engine provides.
"""

from importlib.resources import files


def load_sql(name: str) -> str:
    """Load the text of `<name>.sql` beside this module."""
    return files(__name__).joinpath(f"{name}.sql").read_text("utf-8")
