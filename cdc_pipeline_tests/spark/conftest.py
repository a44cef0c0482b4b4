"""One Spark for all tests of the folder; where it cannot run they are skipped and say why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cdc_pipeline_tests.spark import session
from cdc_pipeline_tests.spark.engines import Duck, Spark


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spark]:
    reason = session.unavailable()
    if reason:
        pytest.skip(f"Spark: {reason}")
    folder = tmp_path_factory.mktemp("spark")
    started, has_iceberg = _start(folder)
    yield Spark(started, folder, has_iceberg)
    started.stop()


def _start(folder: Path) -> tuple[Any, bool]:
    from pyspark.errors import PySparkRuntimeError  # pyright: ignore[reportMissingImports]

    try:
        return session.start(folder, iceberg=True), True
    except PySparkRuntimeError:
        return session.start(folder), False


@pytest.fixture
def iceberg(spark: Spark) -> Spark:
    if not spark.has_iceberg:
        pytest.skip(
            f"Spark could not fetch {session.ICEBERG}: no network to Maven; see standard error"
        )
    return spark


@pytest.fixture
def duck() -> Iterator[Duck]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield Duck(connection)


@pytest.fixture(scope="session")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parquet")
