"""DuckDB and Spark behind one interface. Tables go in as Parquet and come out as Arrow."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq


class Engine(Protocol):
    """What runs SQL over named relations."""

    def provide(self, name: str, files: Sequence[str]) -> None:
        """Make the rows of Parquet files a relation, in a schema where the name has one."""
        ...

    def run(self, sql: str) -> pa.Table:
        """The result, its rows in the order the engine gives them in."""
        ...


class Duck:
    """DuckDB as the product opens it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def provide(self, name: str, files: Sequence[str]) -> None:
        schema = name.rpartition(".")[0]
        if schema:
            self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        self._connection.execute(
            f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM read_parquet({list(files)})"
        )

    def run(self, sql: str) -> pa.Table:
        return cast(pa.Table, self._connection.sql(sql).to_arrow_table())


class Spark:
    """A SparkSession. Results go through Parquet, which keeps types and time zones as they are."""

    def __init__(self, session: Any, folder: Path, has_iceberg: bool) -> None:
        self.session = session
        self.has_iceberg = has_iceberg
        self._folder = folder
        self._numbers = count()

    def provide(self, name: str, files: Sequence[str]) -> None:
        rows = self.session.read.parquet(*files)
        schema = name.rpartition(".")[0]
        if not schema:
            rows.createOrReplaceTempView(name)
            return
        self.session.sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        self.session.sql(f"DROP TABLE IF EXISTS {name}")
        rows.write.saveAsTable(name)

    def run(self, sql: str) -> pa.Table:
        return self.result(self.session.sql(sql))

    def result(self, rows: Any) -> pa.Table:
        """The rows of a DataFrame."""
        folder = self._folder / f"result-{next(self._numbers)}"
        rows.write.parquet(str(folder))
        parts = sorted(folder.glob("part-*.parquet"))
        return pa.concat_tables([pq.read_table(part) for part in parts])


def types(table: pa.Table) -> list[tuple[str, str]]:
    """Names and types of columns, whatever Arrow spells them like."""
    return [(field.name, _spell(field.type)) for field in table.schema]


def _spell(kind: pa.DataType) -> str:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_spell(kind.value_type)}>"
    text = str(kind).removeprefix("large_").removesuffix("_view")
    return text.replace("tz=Etc/UTC", "tz=UTC")


def rows(table: pa.Table) -> list[tuple[Any, ...]]:
    """The rows in an order of their own, to be compared with those of another engine."""
    cells = (column.to_pylist() for column in table.columns)
    return sorted(zip(*cells, strict=True), key=repr)


def assert_same(one: pa.Table, other: pa.Table) -> None:
    """The same columns of the same types with the same rows."""
    assert types(one) == types(other)
    assert rows(one) == rows(other)
