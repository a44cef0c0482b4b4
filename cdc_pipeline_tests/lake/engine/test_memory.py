"""Running out of memory is told as that, wherever DuckDB's error comes up."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from duckdb import DuckDBPyConnection as DuckDB

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, open_duckdb
from cdc_pipeline_tests.lake.builder import LakeBuilder

_SORT = "SELECT repeat('x', 100) || i AS s FROM range(2000000) AS t(i) ORDER BY s"
_LIST = "SELECT list(i) FROM range(20000000) AS t(i)"  # one value, which no disk helps


@pytest.fixture
def small(tmp_path: Path) -> LakeBuilder:
    return LakeBuilder.at(tmp_path, memory_mb=100)


def _failure(small: LakeBuilder, scratch: Path, work: Callable[[DuckDB], object]) -> LakeError:
    with pytest.raises(LakeError) as failed, open_duckdb(small.lake, scratch) as connection:
        work(connection)
    assert "Out of Memory" in failed.value.message
    assert "SET " not in str(failed.value)  # DuckDB's advice, of no use here
    return failed.value


def test_the_limit_of_the_settings_holds_and_is_named(small: LakeBuilder, tmp_path: Path) -> None:
    error = _failure(small, tmp_path, lambda connection: connection.execute(_LIST))
    assert "90.5 MiB used" in error.message  # 95 % of 100 MB
    assert error.fix == "raise `memory_mb` in the settings, now 100"


def test_a_full_disk_is_not_blamed_on_memory(small: LakeBuilder, tmp_path: Path) -> None:
    def sort(connection: DuckDB) -> None:
        connection.execute("SET max_temp_directory_size = '1MB'")
        connection.execute(f"CREATE TABLE sorted AS {_SORT}")

    error = _failure(small, tmp_path / "scratch", sort)
    assert error.fix == (f"free disk space below {tmp_path}, or point TMPDIR to another disk")


def test_in_the_middle_of_a_commit(small: LakeBuilder, tmp_path: Path) -> None:
    """There Arrow makes an `OSError` of it, which is not one of the lake's storage."""
    item = "repeat('x', CASE WHEN i < 40000 THEN 1 ELSE 200000000 END) AS item"

    def commit(connection: DuckDB) -> None:
        batches = arrow_batches(connection, f"SELECT {item} FROM range(40001) AS t(i)", 4_000)
        rows = pa.RecordBatchReader.from_batches(pa.schema([("item", pa.string())]), batches)
        small.lake.iceberg.replace("items", rows, {}, over=None)

    error = _failure(small, tmp_path, commit)
    assert error.fix == "raise `memory_mb` in the settings, now 100"
    assert small.lake.iceberg.load("items") is None
