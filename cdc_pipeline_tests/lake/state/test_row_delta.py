"""Publications of few changes: after each one every reader has what the reference fold says."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from pyiceberg.table import Table

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.engine import masking
from cdc_pipeline.lake.iceberg import checksums
from cdc_pipeline.lake.iceberg.checksums import CHECKSUM_LIST
from cdc_pipeline.lake.iceberg.files import LiveFiles, data_files, live_files
from cdc_pipeline.lake.iceberg.tables import CommitConflictError
from cdc_pipeline.lake.publish import current_state
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.view_script import view_script
from cdc_pipeline.lake.state import row_delta
from cdc_pipeline.lake.state.rewrite import rewrite_without
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.lake.upkeep.verify import verify_files
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    key_of,
    plain_view,
)

_VIEW = "SELECT _key, _item, _order_key FROM orders.current_state"


_ways: list[bool] = []
"""Of each publication, whether it was a row delta."""


@pytest.fixture(autouse=True)
def _few_items_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(*args: Any) -> Any:
        result = row_delta.publish_row_delta(*args)
        _ways.append(result is not None)
        return result

    monkeypatch.setattr(current_state, "publish_row_delta", noted)
    monkeypatch.setattr(row_delta, "SMALL_ITEMS", -1)
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


@pytest.fixture
def built(tmp_path: Path) -> LakeBuilder:
    return _lake(tmp_path)


def _lake(folder: Path, fold_percent: int = 100, **settings: Any) -> LakeBuilder:
    settings.setdefault("current_state", {"fold_percent": fold_percent})
    return LakeBuilder.at(folder, **settings)


def _start(built: LakeBuilder, items: int = 40) -> None:
    built.start()
    built.stage({f"k{n}": {"n": {"N": str(n)}} for n in range(items)})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)


def _state(built: LakeBuilder) -> Table:
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    return table


def _live(built: LakeBuilder) -> LiveFiles:
    return live_files(_state(built))


def _check(built: LakeBuilder) -> None:
    """Every reader sees the expected items, and the files are those that were written."""
    expected = built.items()
    orders = {key: row.order_key for key, row in built.expected.items() if row.item is not None}
    rows = [(row["_key"], row["_item"], row["_order_key"]) for row in plain_view(built.lake, _VIEW)]
    assert sorted(rows) == sorted((key, item, orders[key]) for key, item in expected.items())
    _check_items(built)
    scanned = _state(built).scan().to_arrow()
    pairs = zip(scanned["_key"].to_pylist(), scanned["_item"].to_pylist(), strict=True)
    assert sorted(pairs) == sorted(expected.items())
    assert verify_files(built.table_lake, content=True).damages == []
    summary = _state(built).properties
    assert summary["cdc_pipeline.items"] == str(len(expected))


def _check_items(built: LakeBuilder) -> None:
    """The macro `item` gives the view's rows, whatever is dead, late or of another schema."""
    with connect_lake(built.lake) as connection:
        view = connection.execute("FROM orders.current_state ORDER BY _key").fetchall()
        for key in [*(row[0] for row in view), *(set(built.expected) - {row[0] for row in view})]:
            rows = connection.execute("FROM orders.item(?)", [key]).fetchall()
            assert rows == [row for row in view if row[0] == key]


def _published(built: LakeBuilder) -> bool:
    """Publish; return whether it was a row delta."""
    publish_current_state(built.table_lake)
    return _ways[-1]


def data_files_of(built: LakeBuilder) -> list[str]:
    return _live(built).paths


def test_changed_rows_are_added_and_the_old_ones_are_dead(built: LakeBuilder) -> None:
    _start(built)
    (base,) = data_files_of(built)
    built.land(
        [
            change("k1", 1, {"n": {"N": "-1"}}),
            change("k2", 2, None),
            change("new", 3, {"n": {"N": "7"}}),
            change("never", 4, None),
        ]
    )
    result = publish_current_state(built.table_lake)
    assert (result.items, result.changes_folded) == (40, 4)
    assert base in data_files_of(built)
    live = _live(built)
    assert [entry.data_file.record_count for entry in live.deletes] == [2]
    assert sorted(entry.data_file.record_count for entry in live.data) == [2, 40]
    _check(built)


def test_deletes_alone_add_no_data_file(built: LakeBuilder) -> None:
    _start(built)
    built.land([change("k1", 1, None)])
    assert publish_current_state(built.table_lake).items == 39
    assert len(data_files_of(built)) == 1
    _check(built)
    built.land([change("k1", 2, {"n": {"N": "1"}})])
    assert publish_current_state(built.table_lake).items == 40
    _check(built)


def test_rows_that_change_nothing_move_the_watermark_only(built: LakeBuilder) -> None:
    _start(built)
    built.land([change("k1", 5, {"n": {"N": "5"}})])
    publish_current_state(built.table_lake)
    before = _state(built)
    built.land([change("k1", 4, {"n": {"N": "4"}})])
    publish_current_state(built.table_lake)
    after = _state(built)
    assert before.metadata.current_snapshot_id == after.metadata.current_snapshot_id
    assert after.properties["cdc_pipeline.watermark"] == str(built.state.n)
    _check(built)


def test_a_late_row_behind_an_appended_tombstone_does_not_resurrect(built: LakeBuilder) -> None:
    _start(built)
    for number, item in ((10, None), (20, {"n": {"N": "1"}}), (30, None)):
        built.land([change("k1", number, item)])
        assert _published(built)
        _check(built)
    built.land([change("k1", 25, {"n": {"N": "2"}})])
    _check(built)
    assert _published(built)
    _check(built)
    tombstones = built.lake.iceberg.load("orders_tombstones")
    assert tombstones is not None
    assert len(data_files(tombstones)) == 2  # the first fold had none


def test_many_deletes_keep_the_tombstones_in_few_files(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.state.tombstones._MOST_FILES", 3)
    _start(built)
    for number in range(1, 9):
        built.land([change(f"k{number}", number, None)])
        assert _published(built)
        tombstones = built.lake.iceberg.load("orders_tombstones")
        assert tombstones is not None
        assert len(data_files(tombstones)) <= 3
        assert tombstones.scan().to_arrow().num_rows == number
    built.land([change("k3", 2, {"n": {"N": "0"}})])
    publish_current_state(built.table_lake)
    _check(built)


@pytest.mark.parametrize(
    ("seed", "steps"),
    [(0, 12), *(pytest.param(seed, 24, marks=pytest.mark.slow) for seed in (1, 2, 3))],
)
def test_random_histories(seed: int, steps: int, tmp_path: Path) -> None:
    """Late, repeated, deleted and re-put items, new attributes, merges and folds between."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    built = _lake(tmp_path, fold_percent=chance.choice([30, 100, 1000]))
    _start(built, 30)
    number, past, ways = 100, [], Counter[bool]()
    for _ in range(steps):
        changes = []
        for _ in range(chance.randrange(1, 7)):
            number += 1
            name, roll = f"k{chance.randrange(40)}", chance.random()
            item: dict[str, Any] | None = {"n": {"N": str(number)}}
            if roll < 0.25:
                item = None
            elif roll < 0.3:
                item = {"n": {"N": "1"}, f"more{chance.randrange(4)}": {"S": "x"}}
            late = number - chance.choice([0, 0, 0, 60])
            changes.append(change(name, late, item))
        if past and chance.random() < 0.3:
            changes += chance.sample(past, min(3, len(past)))
        # One position, one change: what is late must not meet another row's place.
        kept = {c.position: c for c in [*past, *changes]}
        changes = [kept[c.position] for c in changes]
        past += changes
        built.land(changes)
        if chance.random() < 0.8:
            ways[_published(built)] += 1
            _check(built)
    assert ways[True] > steps // 4, ways
    live = _live(built)
    assert len(live.data) < 20
    assert len(live.deletes) <= 8
    before = _filled(built)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(current_state, "publish_row_delta", lambda *_: None)
        built.land([change("k0", number + 1, {"n": {"N": "0"}})])
        publish_current_state(built.table_lake)
    _check(built)
    assert _live(built).deletes == []
    after = _filled(built)
    differing = [key for key, row in after.items() if row != before.get(key)]
    assert differing == [json.dumps(key_of("k0"), separators=(",", ":"))]


def _filled(built: LakeBuilder) -> dict[str, dict[str, Any]]:
    """Rows without empty cells: a fold drops columns of attributes that no item has any more."""
    rows = plain_view(built.lake, "SELECT * FROM orders.current_state")
    return {row["_key"]: {k: v for k, v in row.items() if v is not None} for row in rows}


def test_small_files_are_merged_by_size(tmp_path: Path) -> None:
    built = _lake(tmp_path, fold_percent=1000)
    _start(built)
    most = 0
    for number in range(1, 30):
        built.land([change(f"k{number % 40}", number, {"n": {"N": str(number)}})])
        assert _published(built)
        live = _live(built)
        most = max(most, len(live.data))
        assert len(live.deletes) <= 8
    assert most <= 15
    _check(built)
    keys = [pq.read_table(path)["_key"].to_pylist() for path in data_files_of(built)]
    assert all(part == sorted(part) for part in keys)


def test_too_many_dead_rows_are_folded(tmp_path: Path) -> None:
    built = _lake(tmp_path, fold_percent=10)
    _start(built)
    ways = []
    for number in range(1, 7):
        built.land([change(f"k{number}", number, {"n": {"N": "1"}})])
        ways.append(_published(built))
        _check(built)
    assert ways == [True, True, True, True, False, True]
    assert sum(entry.data_file.record_count for entry in _live(built).deletes) == 1


@pytest.mark.parametrize(
    ("item", "is_delta"),
    [
        ({"n": {"N": "12345678901234567890"}}, False),  # int64 is promoted to no decimal
        ({"n": {"S": "text"}}, True),  # rescued, as long as the column's type has values
        ({"n": {"N": "1"}, "more": {"L": [{"N": "1"}]}}, True),  # a new column
    ],
)
def test_columns_that_iceberg_cannot_promote_are_folded(
    item: dict[str, Any], is_delta: bool, built: LakeBuilder
) -> None:
    _start(built)
    built.land([change("k1", 1, item)])
    assert _published(built) == is_delta
    _check(built)
    built.land([change("k2", 2, {"n": {"N": "2"}})])
    assert _published(built)
    _check(built)


def test_an_attribute_that_had_no_column_is_not_empty_in_old_rows(tmp_path: Path) -> None:
    built = _lake(tmp_path, tables=[{"name": "orders", "max_columns": 1}])
    _start(built)
    built.land([change("k1", 1, {"n": {"N": "1"}, "b": {"S": "b"}})])
    publish_current_state(built.table_lake)
    built.land([change("k2", 2, {"b": {"S": "b"}})])
    publish_current_state(built.table_lake)
    _check(built)
    columns = set(_state(built).schema().column_names)
    assert "b" not in columns


def test_other_masks_are_folded_from_the_exact_rows(tmp_path: Path) -> None:
    built = _lake(tmp_path)
    _start(built)
    built.land([change("k1", 1, {"n": {"N": "1"}, "s": {"S": "secret"}})])
    assert _published(built)
    (table,) = built.lake.settings.tables
    hidden = type(table).model_validate({**table.model_dump(), "columns": {"s": {"drop": True}}})
    built.lake.settings = built.lake.settings.model_copy(update={"tables": [hidden]})
    result = publish_current_state(built.table_lake)
    assert result.rebuilt
    assert _live(built).deletes == []
    assert "secret" not in str(plain_view(built.lake, "SELECT * FROM orders.current_state"))
    built.land([change("k2", 2, {"n": {"N": "2"}, "s": {"S": "secret"}})])
    publish_current_state(built.table_lake)
    assert len(_live(built).deletes) == 1
    rows = plain_view(built.lake, "SELECT * FROM orders.current_state")
    assert "secret" not in str(rows)
    assert masking.published_rules(_state(built))


def test_a_crash_between_tombstones_and_rows_is_made_good(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(built)
    built.land([change("k1", 1, None)])
    publish_current_state(built.table_lake)
    built.land([change("k2", 2, None), change("k3", 3, {"n": {"N": "3"}})])
    real = row_delta.dead_rows
    monkeypatch.setattr(row_delta, "dead_rows", _dying)
    with pytest.raises(ZeroDivisionError):
        publish_current_state(built.table_lake)
    _check_view(built)
    monkeypatch.setattr(row_delta, "dead_rows", real)
    built.land([change("k2", 5, {"n": {"N": "5"}}), change("k1", 0, {"n": {"N": "0"}})])
    assert _published(built)
    _check(built)


def _check_view(built: LakeBuilder) -> None:
    rows = plain_view(built.lake, _VIEW)
    assert {row["_key"]: row["_item"] for row in rows} == built.items()
    _check_items(built)


def _dying(*_: Any) -> Iterator[Any]:
    raise ZeroDivisionError


@pytest.mark.parametrize("step", ["create_winners", "append_tombstones", "spool_narrow"])
def test_the_loser_of_a_race_leaves_the_winners_rows(
    step: str, built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(built)
    built.land([change("k9", 1, None)])
    publish_current_state(built.table_lake)
    built.land([change("k1", 2, {"n": {"N": "2"}}), change("k2", 3, None)])
    real = getattr(row_delta, step)

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(row_delta, step, real)
        built.land([change("k1", 5, None)])
        publish_current_state(built.table_lake)
        return real(*args, **kwargs)

    monkeypatch.setattr(row_delta, step, overtaken)
    with pytest.raises(CommitConflictError):
        publish_current_state(built.table_lake)
    _check(built)
    built.land([change("k1", 4, {"n": {"N": "4"}})])
    publish_current_state(built.table_lake)
    _check(built)


def test_rows_of_another_engine_are_noticed(built: LakeBuilder) -> None:
    _start(built)
    built.land([change("k1", 1, {"n": {"N": "1"}})])
    publish_current_state(built.table_lake)
    table = _state(built)
    table.append(table.scan(limit=1).to_arrow())
    built.land([change("k2", 2, {"n": {"N": "1"}})])
    with pytest.raises(LakeError, match="has 41 rows and was committed with 40"):
        publish_current_state(built.table_lake)


def test_files_are_verified_by_a_list_of_checksums_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random history in which two files are many, with maintenance and an erasure at its end."""
    monkeypatch.setattr(checksums, "LIMIT", 1)
    test_random_histories(4, 8, tmp_path / "random")
    built = _lake(tmp_path)
    _start(built)
    for number in (1, 2, 3):
        built.land([change(f"k{number}", number, {"n": {"N": "1"}})])
        assert _published(built)
    key = json.dumps(key_of("k1"), separators=(",", ":"))
    assert rewrite_without(built.lake, _state(built), [key]) == 1
    del built.expected[key]
    maintain_table(built.table_lake)
    _check(built)
    assert CHECKSUM_LIST in _state(built).current_snapshot().summary.additional_properties  # type: ignore[union-attr]


def test_a_lost_delete_file_is_damage(built: LakeBuilder) -> None:
    _start(built)
    built.land([change("k1", 1, {"n": {"N": "1"}})])
    publish_current_state(built.table_lake)
    (lost,) = (entry.data_file.file_path for entry in _live(built).deletes)
    path = Path(lost.removeprefix("file://"))
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"x" + content[-8:])
    (damage,) = verify_files(built.table_lake, content=True).damages
    assert "checksum differs" in damage.found
    path.unlink()
    (damage,) = verify_files(built.table_lake, content=False).damages
    assert damage.found == "is missing"


def test_an_erased_item_is_in_no_file_dead_or_live(built: LakeBuilder) -> None:
    _start(built)
    for number in (1, 2, 3):
        built.land([change("k1", number, {"s": {"S": f"erased {number}"}, "n": {"N": "1"}})])
        built.land([change("k2", number, {"s": {"S": "kept"}, "n": {"N": "1"}})])
        publish_current_state(built.table_lake)
    key = json.dumps(key_of("k1"), separators=(",", ":"))
    table = _state(built)
    before = {*data_files_of(built)}
    assert rewrite_without(built.lake, table, [key]) == 1
    for path in data_files_of(built):
        assert key not in pq.read_table(path)["_key"].to_pylist()
    assert len(before & {*data_files_of(built)}) == 0  # every file had a copy of it
    names = {
        entry.data_file.file_path
        for manifest in _state(built).current_snapshot().manifests(table.io)  # type: ignore[union-attr]
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False)
    }
    assert not {name.removeprefix("file://") for name in names} & before
    del built.expected[key]
    _check(built)


def test_erasing_leaves_files_without_the_item_as_they_are(built: LakeBuilder) -> None:
    _start(built)
    (base,) = data_files_of(built)
    built.land([change("new", 1, {"n": {"N": "1"}}), change("k2", 2, {"n": {"N": "2"}})])
    publish_current_state(built.table_lake)
    key = json.dumps(key_of("new"), separators=(",", ":"))
    assert rewrite_without(built.lake, _state(built), [key]) == 1
    assert base in data_files_of(built)
    assert [entry.data_file.record_count for entry in _live(built).deletes] == [1]
    del built.expected[key]
    _check(built)
    assert rewrite_without(built.lake, _state(built), [key]) == 0
    _check(built)


def test_snapshots_of_row_deltas_expire_with_the_commit_and_folds_stay(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(built)
    folded = _state(built).metadata.current_snapshot_id
    monkeypatch.setattr(row_delta, "_KEPT", timedelta(0))
    for number in range(1, 6):
        built.land([change("k1", number, {"n": {"N": str(number)}})])
        assert _published(built)
    snapshots = {snapshot.snapshot_id for snapshot in _state(built).metadata.snapshots}
    assert folded in snapshots
    assert len(snapshots) <= 4  # with the fold's delete, the last and the one before it
    maintain_table(built.table_lake)
    _check(built)


def test_printed_views_leave_out_dead_rows(built: LakeBuilder) -> None:
    _start(built)
    built.land([change("k1", 1, {"n": {"N": "-1"}}), change("k2", 2, None)])
    publish_current_state(built.table_lake)
    built.land([change("k3", 3, {"n": {"N": "-3"}})])
    with duckdb.connect() as connection:
        connection.execute("".join(view_script(built.lake)))
        rows = connection.execute("SELECT _key, _item FROM orders.current_state").fetchall()
    assert dict(rows) == built.items()
    assert len(rows) == len(built.items())
