"""Full folds: rows merged in their order are the rows, columns and facts of a sort of all."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyiceberg.table import Table

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.errors import LakeError, UnsortedFilesError
from cdc_pipeline.core.items.columns import AttributeStats, Column, Stats, columns_of
from cdc_pipeline.lake.engine.item_table import prior_columns, prior_misfits, prior_stats
from cdc_pipeline.lake.engine.sorted_files import SortedFiles
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.publish import current_state
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.state import choice, fold, row_delta
from cdc_pipeline.lake.upkeep.verify import verify_files
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change, plain_view

_ALL = "SELECT * FROM orders.current_state ORDER BY _key"
_VALUES: list[dict[str, Any]] = [
    {"N": "1"},
    {"N": "123456789012345678901"},
    {"N": "0.25"},
    {"N": "-17.5"},
    {"S": "text"},
    {"NS": ["1", "2.5"]},
    {"SS": ["a", "b"]},
    {"NULL": True},
    {"L": [{"N": "1"}]},
]


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


def _start(built: LakeBuilder, items: int = 40) -> None:
    built.start()
    built.stage({f"k{n}": {"n": {"N": str(n)}} for n in range(items)})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)


def _state(built: LakeBuilder) -> Table:
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    return table


def _facts(built: LakeBuilder) -> tuple[Any, ...]:
    """Everything that a publication says, but for its snapshot and the names of its files."""
    table = _state(built)
    return (
        plain_view(built.lake, _ALL),
        prior_columns(table),
        prior_stats(table),
        prior_misfits(table),
        table.properties["cdc_pipeline.items"],
        table.properties["cdc_pipeline.watermark"],
        [field.name for field in table.schema().fields],
    )


def _check(built: LakeBuilder) -> None:
    rows = {row["_key"]: row["_item"] for row in plain_view(built.lake, _ALL)}
    assert rows == built.items()
    assert verify_files(built.table_lake, content=True).damages == []
    keys = [key for path in data_files(_state(built)) for key in pq.read_table(path)["_key"]]
    assert keys == sorted(keys, key=lambda key: key.as_py())


def _unsorted(*_: object) -> SortedFiles:
    raise UnsortedFilesError("unsorted")


def _story(chance: random.Random) -> Iterator[tuple[list[Change], bool, bool]]:
    """Changes, whether they are published, and whether that is a fold."""
    number = 0
    attributes = ["n", "a", "b", *chance.sample(["c", "d", "A", "e.f"], 2)]
    for _ in range(10):
        changes = []
        for _ in range(chance.randrange(1, 12)):
            number += 1
            item = {
                name: chance.choice(_VALUES[: chance.choice([2, 4, 9])])
                for name in chance.sample(attributes, chance.randrange(1, 4))
            }
            name = f"k{chance.randrange(60)}"
            changes.append(change(name, number, None if chance.random() < 0.2 else item))
        yield changes, chance.random() < 0.8, chance.random() < 0.7


@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 12))]
)
def test_folds_in_order_equal_folds_that_sort(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New, widened, retyped, vanishing, limited and pinned columns; row deltas in between."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    monkeypatch.setattr(row_delta, "SMALL_ITEMS", -1)
    settings = chance.choice(
        [{}, {"max_columns": 3}, {"columns": {"a": {"type": "decimal(4,1)"}}}, {"columns": {}}]
    )
    lakes = []
    for name in ("sorted", "merged"):
        (tmp_path / name).mkdir()
        tables = [{"name": "orders", **settings}]
        percent = {"fold_percent": 1000}
        lakes.append(LakeBuilder.at(tmp_path / name, tables=tables, current_state=percent))
    folds = Counter[str]()
    real, in_order = row_delta.publish_row_delta, fold._fold_in_order

    def noted(*args: Any, **kwargs: Any) -> Any:
        folds["in order"] += 1
        return in_order(*args, **kwargs)

    story = [([], True, True), *_story(chance)]
    facts: dict[Any, list[tuple[Any, ...]]] = {}
    for built, way in zip(lakes, (_unsorted, SortedFiles), strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(fold, "SortedFiles", way)
            patch.setattr(fold, "_fold_in_order", noted)
            _start(built)
            facts[way] = []
            folds["in order"] = 0
            for changes, is_published, is_fold in story:
                built.land(changes)
                patch.setattr(
                    current_state, "publish_row_delta", (lambda *_: None) if is_fold else real
                )
                if is_published:
                    publish_current_state(built.table_lake)
                    facts[way].append(_facts(built))
    assert folds["in order"] >= 3
    for one, other in zip(facts[SortedFiles], facts[_unsorted], strict=True):
        assert one == other
    monkeypatch.setattr(current_state, "publish_row_delta", lambda *_: None)
    lakes[1].land([change("k0", 1000, {"n": {"N": "0"}})])
    publish_current_state(lakes[1].table_lake)
    _check(lakes[1])


def test_what_stays_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the changed items are typed, and only what they replace is counted."""
    built = LakeBuilder.at(tmp_path)
    _start(built)
    typed, counted = Counter[str](), Counter[str]()
    reader, collect = choice.typed_reader, fold.collect_stats

    def typing(batches: Any, *args: Any) -> Any:
        batches = [*batches]
        typed["rows"] += sum(map(len, batches))
        return reader(iter(batches), *args)

    def counting(batches: Any, *args: Any) -> Any:
        batches = [*batches]
        counted["rows"] += sum(map(len, batches))
        return collect(batches, *args)

    monkeypatch.setattr(choice, "typed_reader", typing)
    monkeypatch.setattr(fold, "collect_stats", counting)
    changes = [change("k1", 1, {"n": {"N": "1"}}), change("k2", 2, None), change("x", 3, {})]
    built.land(changes)
    publish_current_state(built.table_lake)
    assert (typed["rows"], counted["rows"]) == (2, 0)
    _check(built)
    built.land([change("k3", 4, {"n": {"S": "text"}, "m": {"N": "0.5"}})])  # a new column
    publish_current_state(built.table_lake)
    assert typed["rows"] == 3
    _check(built)
    built.land([change("k3", 5, {"n": {"N": "0.5"}})])  # wider: int64 to decimal
    publish_current_state(built.table_lake)
    assert typed["rows"] == 4
    _check(built)
    assert sum(row["n"] or 0 for row in plain_view(built.lake, _ALL)) == pytest.approx(
        sum(range(40)) - 2 - 3 + 0.5
    )


def test_a_column_goes_with_its_last_value(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path)
    _start(built)
    built.land([change("k1", 1, {"n": {"N": "1"}, "m": {"S": "once"}})])
    publish_current_state(built.table_lake)
    assert prior_stats(_state(built))["m"].tags == {"S": 1}
    built.land([change("k1", 2, {"n": {"N": "1"}}), change("k2", 3, None)])
    publish_current_state(built.table_lake)
    assert "m" not in [field.name for field in _state(built).schema().fields]
    assert {name: seen.tags for name, seen in prior_stats(_state(built)).items()} == {
        "n": {"N": 39},
        "pk": {"S": 39},
    }
    _check(built)


def test_values_that_do_not_fit_a_pinned_column_are_counted(tmp_path: Path) -> None:
    pins = {"n": {"type": "decimal(3,1)"}}
    built = LakeBuilder.at(tmp_path, tables=[{"name": "orders", "columns": pins}])
    _start(built)
    for number, text in ((1, "12345"), (2, "0.25"), (3, "1.5")):
        built.land([change(f"k{number}", number, {"n": {"N": text}})])
        publish_current_state(built.table_lake)
    assert prior_stats(_state(built))["n"].tags == {"N": 40}
    assert prior_misfits(_state(built)) == {"n": 2}
    _check(built)


def test_files_that_another_engine_sorted_otherwise_are_sorted(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path)
    _start(built)
    table = _state(built)
    rows = table.scan().to_arrow()
    table.overwrite(rows.take(list(range(39, -1, -1))))
    built.land([change("k5", 1, {"n": {"N": "-5"}}), change("k6", 2, None)])
    publish_current_state(built.table_lake)
    _check(built)
    assert len(plain_view(built.lake, _ALL)) == 39


def test_a_row_too_few_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = LakeBuilder.at(tmp_path)
    _start(built)
    before = _state(built).metadata.current_snapshot_id

    class _Losing(SortedFiles):
        def merged(self, schema: Any, beside: Any) -> Any:
            return (batch.slice(1) for batch in super().merged(schema, beside))

    monkeypatch.setattr(fold, "SortedFiles", _Losing)
    built.land([change("k1", 1, {"n": {"N": "1"}})])
    with pytest.raises(LakeError, match="40 items after the changes gave"):
        publish_current_state(built.table_lake)
    assert _state(built).metadata.current_snapshot_id == before


def test_an_item_with_two_rows_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the place of a replaced row had not been found."""
    built = LakeBuilder.at(tmp_path)
    _start(built)
    create = fold.create_effective

    def forgetful(connection: Any) -> None:
        create(connection)
        connection.execute("UPDATE effective SET replaces = NULL")

    monkeypatch.setattr(fold, "create_effective", forgetful)
    built.land([change("k1", 1, {"n": {"N": "1"}})])
    with pytest.raises(LakeError, match="an item has two rows"):
        publish_current_state(built.table_lake)


def test_large_changes_are_sorted_in_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = LakeBuilder.at(tmp_path)
    _start(built)
    monkeypatch.setattr(fold, "_SORT_BYTES", 300)
    ranges = Counter[int]()
    split = fold.key_ranges

    def noted(*args: Any) -> Any:
        found = split(*args)
        ranges[len(found)] += 1
        return found

    monkeypatch.setattr(fold, "key_ranges", noted)
    built.land(change(f"k{n * 7 % 97}", n, {"n": {"N": str(-n)}}) for n in range(1, 90))
    publish_current_state(built.table_lake)
    assert min(ranges) > 2
    _check(built)


def test_a_pinned_column_is_no_reason_to_widen() -> None:
    old = Column("n", "n", "N", "int64")
    stats: Stats = {}
    assert choice.stay_as_they_are([old], [old], stats)
    wide = Column("n", "n", "N", "decimal(38,2)")
    assert choice.stay_as_they_are([old], [wide], stats)
    assert not choice.stay_as_they_are([old], [Column("n", "n", "N", "decimal(4,2)", True)], stats)
    assert not choice.stay_as_they_are([wide], [old], stats)
    assert not choice.stay_as_they_are([old], [Column("n", "N", "N", "int64")], stats)
    assert not choice.stay_as_they_are([old], [Column("n", "n", "S", "string")], stats)


def test_columns_of_attributes_that_rows_have_are_made_from_them() -> None:
    kept = {"a": AttributeStats(Counter({"S": 3}))}
    (a,) = columns_of(kept)
    assert not choice.stay_as_they_are([], [a], kept)
    assert not choice.stay_as_they_are([a], [], kept)
    assert choice.stay_as_they_are([a], [a], kept)
    gone = Column("b", "b", "S", "string")
    assert choice.stay_as_they_are([a, gone], [a], kept)
    assert choice.stay_as_they_are([a], [a, gone], kept)
