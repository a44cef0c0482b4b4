"""Portable statements on DuckDB and Spark: the same rows, and those of `core.changes.fold`."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdc_pipeline.core.changes.fold import Row
from cdc_pipeline.transform.sql import load_sql
from cdc_pipeline_tests.spark.engines import Duck, Engine, Spark, assert_same, rows
from cdc_pipeline_tests.spark.random_changes import Story, story

pytestmark = pytest.mark.spark

_SEEDS = range(4)
# In an order in which each finds the results that it reads; those that others read.
_FILES = (
    *("redundant_heals", "cdc", "history", "breaks", "baseline_changes"),
    *("winners", "effective", "fold", "tombstones", "ttl_archive"),
)
_READ = ("redundant_heals", "cdc", "winners", "effective")


@dataclass(frozen=True)
class Results:
    """A story and the result of every file, by engine."""

    story: Story
    duck: dict[str, pa.Table]
    spark: dict[str, pa.Table]


@pytest.fixture(scope="session")
def results_of(spark: Spark, parquet: Path) -> Callable[[int], Results]:
    """Each story is run once, for all tests."""
    done: dict[int, Results] = {}

    def tell(seed: int) -> Results:
        if seed not in done:
            made = story(seed)
            with duckdb.connect() as connection:
                connection.execute("SET TimeZone = 'UTC'")
                duck = _run_all(Duck(connection), made, parquet / f"duckdb-{seed}")
            done[seed] = Results(made, duck, _run_all(spark, made, parquet / f"spark-{seed}"))
        return done[seed]

    return tell


def _run_all(engine: Engine, made: Story, folder: Path) -> dict[str, pa.Table]:
    folder.mkdir()

    def provide(name: str, table: pa.Table) -> None:
        path = folder / f"{name}.parquet"
        pq.write_table(table, path, row_group_size=50)
        engine.provide(name, [str(path)])

    for name, table in made.relations.items():
        provide(name, table)
    results = {}
    for name in _FILES:
        results[name] = engine.run(load_sql(name))
        if name in _READ:
            provide(name, results[name])
    return results


@pytest.mark.parametrize("name", _FILES)
@pytest.mark.parametrize("seed", _SEEDS)
def test_both_engines_find_the_same_rows(
    seed: int, name: str, results_of: Callable[[int], Results]
) -> None:
    found = results_of(seed)
    assert found.duck[name].num_rows > 4
    one, other = (results[name] for results in (found.duck, found.spark))
    # Of a change that was delivered twice either copy will do.
    if "place" in one.column_names:
        one, other = (_at_their_places(found.story, result) for result in (one, other))
    assert_same(one, other)


def _at_their_places(story: Story, result: pa.Table) -> pa.Table:
    """The changes at the places in a result, beside its other columns."""
    changes = story.relations["changes"].drop(["place"]).take(result["place"])
    for name in changes.column_names:
        result = result.append_column(f"change_{name}", changes[name])
    return result.drop(["place"])


@pytest.mark.parametrize("seed", _SEEDS)
def test_they_are_those_of_the_reference_fold(
    seed: int, results_of: Callable[[int], Results]
) -> None:
    found = results_of(seed)
    items = {k: row for k, row in found.story.expected.items() if row.item is not None}
    stones = {k: row for k, row in found.story.expected.items() if row.item is None}
    for results in (found.duck, found.spark):
        assert {k: Row(o, i) for k, o, i, _ in rows(results["fold"])} == items
        assert {k: Row(o, None) for k, o, _ in rows(results["tombstones"])} == stones
        assert results["fold"].num_rows == len(items)
        assert results["tombstones"].num_rows == len(stones)


@pytest.mark.parametrize("seed", _SEEDS)
def test_both_leave_out_what_captured_records_tell(
    seed: int, results_of: Callable[[int], Results]
) -> None:
    found = results_of(seed)
    for results in (found.duck, found.spark):
        places = zip(*_cells(results["cdc"].select(["uuid", "generation"])), strict=True)
        assert found.story.of_heals <= {*places}
        left_out = zip(*_cells(results["redundant_heals"]), strict=True)
        assert not found.story.of_heals & {*left_out}


@pytest.mark.parametrize("seed", _SEEDS)
def test_both_engines_order_texts_by_their_bytes(
    seed: int, results_of: Callable[[int], Results]
) -> None:
    found = results_of(seed)
    for results in (found.duck, found.spark):
        places = results["cdc"].select(["keys", "order_key"])
        encoded = [(k.encode(), o.encode()) for k, o in zip(*_cells(places), strict=True)]
        assert all(one <= other for one, other in itertools.pairwise(encoded))


def _cells(table: pa.Table) -> list[list[str]]:
    return [column.to_pylist() for column in table.columns]


def test_every_file_is_run() -> None:
    names = (path.name for path in files("cdc_pipeline.transform.sql").iterdir())
    assert {name.removesuffix(".sql") for name in names if name.endswith(".sql")} == set(_FILES)
