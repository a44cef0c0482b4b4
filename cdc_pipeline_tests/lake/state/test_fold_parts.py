"""Folds by workers, in ranges of keys: the rows, columns and facts of a sort of all."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdc_pipeline.core.errors import UnsortedFilesError
from cdc_pipeline.lake.engine.sorted_files import SortedFiles
from cdc_pipeline.lake.iceberg import writer
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.publish import current_state
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.state import fold, fold_parts, row_delta
from cdc_pipeline.lake.storage import sorted_parts
from cdc_pipeline.lake.upkeep.verify import verify_files
from cdc_pipeline.spark.job.tasks import Work
from cdc_pipeline_tests.lake.builder import LakeBuilder, change
from cdc_pipeline_tests.lake.state.test_fold import _facts, _start, _state, _story
from cdc_pipeline_tests.spark.in_process import distributed_here, workers_here


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many files, ranges and parts for few rows; no waiting for disks."""
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 5)
    monkeypatch.setattr(writer, "_FILE_BYTES", 1)
    monkeypatch.setattr(fold_parts, "_RANGE_BYTES", 20_000)
    monkeypatch.setattr(fold_parts, "_GROUP_BYTES", 1)
    monkeypatch.setattr(sorted_parts, "_LEAST_ROWS", 2)


def _lake(folder: Path, done: Counter[str], **settings: Any) -> LakeBuilder:
    folder.mkdir(exist_ok=True)
    built = LakeBuilder.at(
        folder,
        tables=[{"name": "orders", **settings}],
        current_state={"fold_percent": 1000},
        engine="spark",
    )

    def counted(work: Work, *rest: Any) -> list[Any]:
        done[work.request.task] += len(work.request.arguments)
        return distributed_here(work, *rest)

    built.lake.workers_of = lambda table: workers_here(table, distribute=counted)
    return built


@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 12))]
)
def test_folds_by_workers_equal_folds_that_sort(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    monkeypatch.setattr(row_delta, "SMALL_ITEMS", -1)
    settings = chance.choice(
        [{}, {"max_columns": 3}, {"columns": {"a": {"type": "decimal(4,1)"}}}, {"columns": {}}]
    )
    done = Counter[str]()
    alone, together = (_lake(tmp_path / name, done, **settings) for name in ("one", "many"))
    alone.lake.workers_of = None
    real = row_delta.publish_row_delta
    story = [([], True, True), *_story(chance)]
    facts: dict[int, list[tuple[Any, ...]]] = {}
    for built in (alone, together):
        facts[id(built)] = []
        with monkeypatch.context() as patch:
            if built is alone:
                patch.setattr(fold, "SortedFiles", _unsorted)
            _start(built)
            for changes, is_published, is_fold in story:
                built.land(changes)
                patch.setattr(
                    current_state, "publish_row_delta", (lambda *_: None) if is_fold else real
                )
                if is_published:
                    publish_current_state(built.table_lake)
                    facts[id(built)].append(_facts(built))
    for one, other in zip(facts[id(together)], facts[id(alone)], strict=True):
        assert one == other
    assert done[fold_parts.WRITE] > 2 * done.total() // 9
    monkeypatch.setattr(current_state, "publish_row_delta", lambda *_: None)
    together.land([change("k0", 1000, {"n": {"N": "0"}})])
    publish_current_state(together.table_lake)
    _check_files(together)
    paths = together.table_lake.paths
    assert not list(together.lake.store.list(paths.work))


def _check_files(built: LakeBuilder) -> None:
    """Whole files, each sorted, which have every item once."""
    assert verify_files(built.table_lake, content=True).damages == []
    files = [pq.read_table(path)["_key"].to_pylist() for path in data_files(_state(built))]
    assert all(keys == sorted(keys) for keys in files)
    assert sorted(key for keys in files for key in keys) == sorted(built.items())


def _unsorted(*_: object) -> SortedFiles:
    raise UnsortedFilesError("unsorted")
