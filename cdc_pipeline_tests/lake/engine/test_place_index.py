"""Places of keys by an index on the worker's disk: the same as from the files."""

import random
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdc_pipeline.lake.engine import place_index as module
from cdc_pipeline.lake.engine.duckdb_session import FILE_ROWS
from cdc_pipeline.lake.engine.place_index import PlaceIndex, place_index
from cdc_pipeline.lake.iceberg.files import live_files
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.state import row_delta
from cdc_pipeline.lake.state.rewrite import rewrite_without
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change, plain_view


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker's disk of its own; few rows are many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MANY_ROWS", 0)
    monkeypatch.setattr(module, "LARGE_FILE", 20)
    monkeypatch.setattr(row_delta, "SMALL_ITEMS", -1)
    monkeypatch.setattr(row_delta, "FEW_KEYS", -1)
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)
    return tmp_path / "cache" / "cdc_pipeline" / "places"


@pytest.fixture
def built(tmp_path: Path) -> LakeBuilder:
    built = LakeBuilder.at(tmp_path, current_state={"fold_percent": 1000})
    built.start()
    built.stage({f"k{n}": {"n": {"N": str(n)}} for n in range(60)})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)
    return built


def _check(built: LakeBuilder) -> None:
    rows = plain_view(built.lake, "SELECT _key, _item FROM orders.current_state")
    assert sorted((row["_key"], row["_item"]) for row in rows) == sorted(built.items().items())


def _indexes(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.places"))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_random_histories(
    seed: int, built: LakeBuilder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late, repeated, deleted and re-put items, with merges of small files."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    used = []
    real = PlaceIndex.create_found
    monkeypatch.setattr(
        PlaceIndex, "create_found", lambda *args: used.append(len(args[0].files)) or real(*args)
    )
    number = 100
    for _ in range(12):
        changes = []
        for _ in range(chance.randrange(1, 9)):
            number += 1
            item = None if chance.random() < 0.3 else {"n": {"N": str(number)}}
            late = number - chance.choice([0, 0, 0, 70])
            changes.append(change(f"k{chance.randrange(80)}", late, item))
        built.land({c.position: c for c in changes}.values())
        publish_current_state(built.table_lake)
        _check(built)
    assert len(used) == 11  # the first publication finds a new disk
    assert len(_indexes(cache)) == used[-1] >= 1


def test_an_index_goes_with_its_file(built: LakeBuilder, cache: Path) -> None:
    for number in (1, 2):
        built.land([change("k1", number, {"n": {"N": "1"}})])
        publish_current_state(built.table_lake)
    (first,) = _indexes(cache)
    built.lake.settings = built.lake.settings.model_copy(
        update={
            "current_state": built.lake.settings.current_state.model_copy(
                update={"fold_percent": 0}
            )
        }
    )
    built.land([change("k2", 3, {"n": {"N": "1"}})])
    publish_current_state(built.table_lake)  # folds
    built.lake.settings = built.lake.settings.model_copy(
        update={
            "current_state": built.lake.settings.current_state.model_copy(
                update={"fold_percent": 1000}
            )
        }
    )
    built.land([change("k3", 4, {"n": {"N": "1"}})])
    publish_current_state(built.table_lake)
    (second,) = _indexes(cache)
    assert second.name != first.name
    _check(built)


@pytest.mark.parametrize("damage", ["changed", "cut", "empty"])
def test_a_damaged_index_is_made_anew(damage: str, built: LakeBuilder, cache: Path) -> None:
    for number in (1, 2):
        built.land([change("k1", number, {"n": {"N": "1"}})])
        publish_current_state(built.table_lake)
    (path,) = _indexes(cache)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"changed": bytes(data), "cut": bytes(data[:-1]), "empty": b""}[damage])
    built.land([change(f"k{n}", 10 + n, {"n": {"N": "-1"}}) for n in range(60)])
    publish_current_state(built.table_lake)
    _check(built)


def test_an_index_that_another_publisher_removed_is_made_anew(
    built: LakeBuilder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        built.land([change("k1", number, {"n": {"N": "1"}})])
        publish_current_state(built.table_lake)
    real = PlaceIndex.create_found

    def behind_another(self: PlaceIndex, *args: Any) -> None:
        for path in _indexes(cache):
            path.unlink()
        real(self, *args)

    monkeypatch.setattr(PlaceIndex, "create_found", behind_another)
    built.land([change(f"k{n}", 10 + n, {"n": {"N": "-1"}}) for n in range(60)])
    publish_current_state(built.table_lake)
    _check(built)
    assert _indexes(cache)


def test_a_disk_that_cannot_be_written_is_done_without(
    built: LakeBuilder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    built.land([change("k1", 1, {"n": {"N": "1"}})])
    publish_current_state(built.table_lake)
    _check(built)


def test_the_folder_is_its_owners_alone_and_ends_with_an_erasure(
    built: LakeBuilder, cache: Path
) -> None:
    for number in (1, 2):
        built.land([change("k1", number, {"n": {"N": "1"}})])
        publish_current_state(built.table_lake)
    (folder,) = cache.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    rewrite_without(built.lake, table, ['{"pk":{"S":"k1"}}'])
    assert not folder.exists()


def test_keys_with_equal_halves_of_hashes_are_told_apart() -> None:
    index = module._Index(
        np.array([5, 5, 5, 9], np.uint64),
        np.array([1, 2, 1, 1], np.uint64),
        np.array([40, 30, 20, 10], np.uint32),
    )
    upper, lower = np.array([5, 9, 7, 5], np.uint64), np.array([1, 2, 1, 2], np.uint64)
    matches = [
        (int(number), int(index.rows[row]))
        for numbers, rows in module._matches(index, upper, lower)
        for number, row in zip(numbers, rows, strict=True)
    ]
    assert sorted(matches) == [(0, 20), (0, 40), (3, 30)]


def test_many_keys_in_several_files(built: LakeBuilder, tmp_path: Path) -> None:
    keys = [f"key {n}" for n in range(3000)]
    files = [keys[:1000], keys[1000:2900], keys[2900:]]
    indexes = {}
    with duckdb.connect() as connection:
        for number, part in enumerate(files):
            source = tmp_path / f"{number}.parquet"
            pq.write_table(pa.table({"_key": part}), source)
            indexes[number] = (tmp_path / f"{number}.places", str(source))
        index = PlaceIndex("salt", indexes)
        sql = "SELECT 'key ' || n * 7 AS item_key FROM range(500) AS r(n)"
        index.create_found(connection, sql)
        made = connection.execute("FROM found ORDER BY place").fetchall()
        index.create_found(connection, sql)
        found = connection.execute("FROM found ORDER BY place").fetchall()
    assert all(path.exists() for path, _ in indexes.values())
    assert made == found
    wanted = [(f"key {n}", n) for n in range(0, 3000, 7)]
    start = [0, 1000, 2900]
    places = [
        (key, file * FILE_ROWS + n - start[file])
        for key, n in wanted
        for file in [2 if n >= 2900 else 1 if n >= 1000 else 0]
    ]
    assert found == places


def test_small_tables_have_none(built: LakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_ROWS", 1000)
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    assert place_index(table, live_files(table)) is None
