"""Folds by workers, in ranges of keys: the rows, columns and facts of a sort of all."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdc_pipeline.core.errors import LakeError, UnsortedFilesError
from cdc_pipeline.lake.engine.sorted_files import SortedFiles
from cdc_pipeline.lake.iceberg import writer
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.publish import current_state
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.state import fold, fold_parts, fold_tasks, row_delta
from cdc_pipeline.lake.storage import sorted_parts
from cdc_pipeline.lake.upkeep.verify import verify_files
from cdc_pipeline.spark.job.tasks import Work
from cdc_pipeline_tests.lake.builder import LakeBuilder, change, plain_view
from cdc_pipeline_tests.lake.state.test_fold import _ALL, _facts, _start, _state, _story
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
    assert done[fold_tasks.WRITE] > 2 * done.total() // 9
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


def test_masked_states_are_folded_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New rules make everything anew, in another order of keys; then ranges have masked keys."""
    monkeypatch.setenv("CDC_MASKING_KEY", "0" * 64)
    monkeypatch.setattr(current_state, "publish_row_delta", lambda *_: None)
    done = Counter[str]()
    rules = {"pk": {"hash": True}, "n": {"mask": "-"}}
    alone, together = (_lake(tmp_path / name, done, columns=rules) for name in ("one", "many"))
    alone.lake.workers_of = None
    for built in (alone, together):
        _start(built)
        for number in range(1, 4):
            built.land(
                [
                    change(f"k{number}", 10 * number, {"n": {"N": "7"}}),
                    change(f"k{number + 20}", 10 * number + 1, None),
                    change(f"new{number}", 10 * number + 2, {"m": {"S": "x"}}),
                ]
            )
            publish_current_state(built.table_lake)
    assert _facts(together) == _facts(alone)
    assert len(plain_view(together.lake, "SELECT * FROM orders.current_state")) == 40
    assert done[fold_tasks.WRITE] > 3
    assert verify_files(together.table_lake, content=True).damages == []


def test_a_hot_key_is_one_row_of_each_group(tmp_path: Path) -> None:
    done = Counter[str]()
    built = _lake(tmp_path, done)
    _start(built)
    rows: list[int] = []

    def counted(work: Work, *rest: Any) -> list[Any]:
        outcomes = distributed_here(work, *rest)
        if work.request.task == fold_tasks.SORT:
            rows.extend(outcome["result"]["rows"] for outcome in outcomes)
        return outcomes

    built.lake.workers_of = lambda table: workers_here(table, distribute=counted)
    for group in range(3):
        built.land([change("k5", 100 * group + n, {"n": {"N": str(n)}}) for n in range(1, 50)])
    publish_current_state(built.table_lake)
    assert rows == [1, 1, 1]
    _check_files(built)
    assert plain_view(built.lake, _ALL)[35]["n"] == 49


def test_files_that_another_engine_sorted_otherwise_are_sorted_by_one_process(
    tmp_path: Path,
) -> None:
    done = Counter[str]()
    built = _lake(tmp_path, done)
    _start(built)
    table = _state(built)
    rows = table.scan().to_arrow()
    table.overwrite(rows.take(list(range(39, -1, -1))))
    built.land([change("k5", 1, {"n": {"N": "-5"}}), change("k6", 2, None)])
    publish_current_state(built.table_lake)
    _check_files(built)
    assert len(plain_view(built.lake, _ALL)) == 39


def test_a_fold_that_was_killed_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each commit: what is published is whole, and nothing is done twice."""
    done = Counter[str]()
    built = _lake(tmp_path, done)
    _start(built)
    before = _state(built).metadata.current_snapshot_id
    built.land([change("k5", 1, {"n": {"N": "-5"}}), change("k6", 2, None)])
    replace = type(built.lake.iceberg).replace

    def killed_at(kind: str) -> Any:
        def killed(tables: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            if name.endswith(kind):
                raise KeyboardInterrupt
            return replace(tables, name, *args, **kwargs)

        return killed

    for kind in ("tombstones", "current_state"):
        with monkeypatch.context() as patch:
            patch.setattr(type(built.lake.iceberg), "replace", killed_at(kind))
            with pytest.raises(KeyboardInterrupt):
                publish_current_state(built.table_lake)
        assert _state(built).metadata.current_snapshot_id == before
        rows = {row["_key"]: row["_item"] for row in plain_view(built.lake, _ALL)}
        assert rows == built.items()
    done.clear()
    publish_current_state(built.table_lake)
    # The tombstones are others now, so the changes are folded again; they are sorted already.
    assert done[fold_tasks.SORT] == 0
    _check_files(built)
    assert not list(built.lake.store.list(built.table_lake.paths.work))


def test_rows_that_workers_lost_are_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _lake(tmp_path, Counter[str]())
    _start(built)
    before = _state(built).metadata.current_snapshot_id

    class _Losing(SortedFiles):
        def merged(self, schema: Any, beside: Any) -> Any:
            return (batch.slice(1) for batch in super().merged(schema, beside))

    monkeypatch.setattr(fold_tasks, "SortedFiles", _Losing)
    built.land([change("k1", 1, {"n": {"N": "1"}})])
    with pytest.raises(LakeError, match="rows instead of 40"):
        publish_current_state(built.table_lake)
    assert _state(built).metadata.current_snapshot_id == before
