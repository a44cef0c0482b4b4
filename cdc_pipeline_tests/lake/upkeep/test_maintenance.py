"""Compaction and maintenance: content stays, live files stay, and only what is old enough goes."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import Gap, LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.duckdb_session import arrow_table
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline.lake.storage import compaction
from cdc_pipeline.lake.storage.compaction import compact_landing, mergeable, remove_replaced
from cdc_pipeline.lake.storage.log import CaptureLog, remove_orphans
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.spark.package import ARCHIVE
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    plain_view,
    temporary_lake,
)

DAY_US = 24 * 3600 * 1_000_000
_STATE = "SELECT _key, _item, _order_key FROM orders.current_state ORDER BY _key"
_RAW = "SELECT * FROM orders.raw_stream ORDER BY position, uuid"


@pytest.fixture
def built() -> Iterator[LakeBuilder]:
    with temporary_lake() as lake:
        lake.start()
        lake.stage({f"k{n}": {"n": {"N": "0"}} for n in range(5)})
        lake.read_to(START_US + MARGIN_US)
        yield lake


def _land(built: LakeBuilder, first: int, count: int) -> None:
    """One object per change, so that there is something to merge."""
    for number in range(first, first + count):
        item = None if number % 7 == 0 else {"n": {"N": str(number)}}
        built.land([change(f"k{number % 5}", number, item)])


def _log(built: LakeBuilder) -> CaptureLog:
    return built.table_lake.log


def _files(built: LakeBuilder, prefix: str) -> set[str]:
    return set(built.lake.store.list(prefix))


def _age(built: LakeBuilder, hours: float) -> None:
    """Everything that is there now is that old."""
    then = time.time() - hours * 3600
    assert isinstance(built.lake.store, LocalStore)
    for path in built.lake.store.root.rglob("*"):
        os.utime(path, (then, then))


def test_merged_objects_hold_the_same_rows(built: LakeBuilder) -> None:
    _land(built, 1, 20)
    before = plain_view(built.lake, _RAW)
    done = compact_landing(_log(built), 0)
    assert (done.before, done.after, done.rows) == (20, 1, 20)
    assert plain_view(built.lake, _RAW) == before
    (merged,) = _log(built).load().objects.values()
    assert merged.entry == built.state.n  # the last entry whose rows it holds
    data = built.lake.store.read(merged.key)
    assert data is not None
    assert len(data) == merged.bytes


def test_the_published_state_and_the_delta_stay_the_same(built: LakeBuilder) -> None:
    _land(built, 1, 10)
    publish_current_state(built.table_lake)
    _land(built, 11, 10)
    before = plain_view(built.lake, _STATE)
    base = _published(built)
    compact_landing(_log(built), base)
    state = _log(built).load()
    # What is in the base already is not folded again because it was merged with what is not.
    assert sum(o.rows for o in state.delta(generation=1, after=base)) == 10
    assert plain_view(built.lake, _STATE) == before
    publish_current_state(built.table_lake)
    assert plain_view(built.lake, _STATE) == before
    assert {r["_key"]: r["_item"] for r in before} == built.items()


def _published(built: LakeBuilder) -> int:
    base = published_base(built.table_lake)
    assert base is not None
    return base.after


def test_cdc_of_a_merged_day_is_the_same(built: LakeBuilder) -> None:
    _land(built, 1, 12)
    built.land([change("k1", 1, {"n": {"N": "1"}})])  # delivered twice
    day = day_of(START_US)
    first = build_cdc_day(built.table_lake, day)
    compact_landing(_log(built), 0)
    again = build_cdc_day(built.table_lake, day)
    assert (again.rows, again.duplicates) == (first.rows, first.duplicates) == (12, 1)
    assert again.objects == 1


def _object(entry: int, **changed: Any) -> LandedObject:
    landed = LandedObject(f"d/{entry:012d}-{'0' * 16}.parquet", "2026-11-20", 1, 9, 1, *"0000", ())  # type: ignore[arg-type]
    return replace(landed, **changed)


@pytest.mark.parametrize(
    ("objects", "groups"),
    [
        ([_object(1), _object(2)], [[1, 2]]),
        ([_object(1)], []),
        ([_object(1), _object(2, day="2026-11-19"), _object(3)], [[1, 3]]),
        ([_object(1), _object(2, generation=3), _object(3, generation=3)], [[2, 3]]),
        ([_object(1), _object(2), _object(6), _object(7)], [[1, 2], [6, 7]]),
        ([_object(1), _object(2, bytes=60 << 20), _object(3)], [[1, 3]]),
        ([_object(n, bytes=30 << 20) for n in (1, 2, 3, 5)], [[1, 2], [3, 5]]),
        ([_object(n, day="2026-11-21") for n in range(1, 5)], []),
        ([_object(1), _object(4), _object(5)], [[1, 5]]),
    ],
)
def test_what_is_merged_with_what(objects: list[LandedObject], groups: list[list[int]]) -> None:
    state = LogState(n=9, objects={o.key + o.day: o for o in objects}, incomplete=[4])
    found = mergeable(state, date(2026, 11, 21), published=5)
    assert [[o.entry for o in group] for group in found] == groups


def test_a_frozen_state_does_not_see_what_landed_behind_its_gap(built: LakeBuilder) -> None:
    _land(built, 1, 9)
    gap = Gap("trimmed", ("shard-1",), START_US, START_US + DAY_US, heal_generation=2)
    stream = built.state.stream
    assert stream is not None
    built.append(gap=gap, stream=replace(stream, generation=3))
    for number in range(20, 29):
        built.land([change("k1", number, {"n": {"N": str(number)}})], generation=3)
    before = _log(built).load()
    compact_landing(_log(built), 0)
    after = _log(built).load()
    assert [len(s.objects) for s in (before, after)] == [18, 2]
    for state in (before, after):
        assert sum(o.rows for o in state.delta(generation=1, after=0)) == 9


def test_replaced_objects_go_later_and_only_they(built: LakeBuilder) -> None:
    _land(built, 1, 10)
    landing = built.table_lake.paths.landing
    small = _files(built, landing)
    opened = connect_lake(built.lake)
    before = arrow_table(opened, _RAW).to_pylist()
    compact_landing(_log(built), 0)
    # Capture removes orphans at each start; replaced objects are none.
    folders = [f"{key.rpartition('/')[0]}/" for key in small][:1]
    assert remove_orphans(built.lake.store, _log(built).load(), folders) == []
    assert arrow_table(opened, _RAW).to_pylist() == before  # who reads, goes on reading
    assert remove_replaced(_log(built), before_us=0) == 0
    assert small < _files(built, landing)
    assert remove_replaced(_log(built), before_us=_log(built).now_us() + 1) == 10
    assert len(_files(built, landing)) == 1
    assert _log(built).load().replaced == {}
    assert plain_view(built.lake, _RAW) == before


def test_capture_goes_on_while_objects_are_merged(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _land(built, 1, 10)
    real = compaction.merge_landing

    def meanwhile(*arguments: Any) -> Any:
        data = real(*arguments)
        built.state = _log(built).load()
        _land(built, 11, 1)
        return data

    monkeypatch.setattr(compaction, "merge_landing", meanwhile)
    compact_landing(_log(built), 0)
    state = _log(built).load()
    assert sorted(o.rows for o in state.objects.values()) == [1, 10]
    assert sum(o.rows for o in state.delta(generation=1, after=10 + 3)) == 1


def test_of_two_compactions_one_wins(built: LakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    _land(built, 1, 10)
    before = plain_view(built.lake, _RAW)
    real = compaction.merge_landing
    inner: list[int] = []

    def meanwhile(*arguments: Any) -> Any:
        if not inner:
            inner.append(1)
            compact_landing(_log(built), 0)
        return real(*arguments)

    monkeypatch.setattr(compaction, "merge_landing", meanwhile)
    assert compact_landing(_log(built), 0).after == 0
    assert plain_view(built.lake, _RAW) == before
    merged = [k for k in _files(built, built.table_lake.paths.landing) if "compacted" in k]
    assert merged == list(_log(built).load().objects)  # the loser's is gone


def test_an_object_that_lost_rows_is_not_merged(built: LakeBuilder) -> None:
    _land(built, 1, 10)
    damaged = next(iter(built.state.objects.values()))
    store = built.lake.store
    assert isinstance(store, LocalStore)
    path = store.root / damaged.key
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(LakeError, match="10 landing objects have 9 rows; the capture log has 10"):
        compact_landing(_log(built), 0)
    assert len(_log(built).load().objects) == 10


def test_maintenance_removes_what_nothing_names_and_is_old_enough(built: LakeBuilder) -> None:
    for first in range(1, 40, 10):
        _land(built, first, 10)
        publish_current_state(built.table_lake)
        build_cdc_day(built.table_lake, day_of(START_US))
    store = built.lake.store
    folder = next(iter(built.state.objects)).rpartition("/")[0]
    orphans = [f"{folder}/{1:012d}-{'f' * 16}.parquet", f"{folder}/compacted-1-2-ff.parquet"]
    orphans += [f"{folder}/{name}-ff.parquet" for name in ("heal-1", "backfill")]
    strangers = [f"{folder}/notes.txt", "iceberg/cdc/orders_cdc/data/day=2026-01-01/lost.parquet"]
    orphans.append("_cdc/tmp/0123456789abcdef")  # of a writer that was killed
    packaged = f"_cdc/spark/{ARCHIVE}"
    for key in (*orphans, *strangers, packaged):
        store.write(key, b"?")
    before = (plain_view(built.lake, _STATE), plain_view(built.lake, _RAW))
    young = maintain_table(built.table_lake)
    assert young.files == young.snapshots_expired == 0
    assert set(orphans) | set(strangers) <= _files(built, "")
    _age(built, 49)
    old = maintain_table(built.table_lake)
    there = _files(built, "")
    assert not {*orphans, strangers[1]} & there
    assert {strangers[0], packaged} <= there  # not ours and not named like ours; of Spark jobs
    assert (plain_view(built.lake, _STATE), plain_view(built.lake, _RAW)) == before
    assert old.files >= 3
    assert old.bytes > 0


def test_old_snapshots_go_but_never_a_baseline(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = built.lake.iceberg
    for first in range(1, 40, 10):
        _land(built, first, 10)
        publish_current_state(built.table_lake)
    first_baseline = next(iter(built.state.baselines.values())).snapshot_id
    built.append(stream=replace(built.state.stream, generation=2))  # type: ignore[type-var]
    built.stage({"k1": {"n": {"N": "100"}}}, generation=2)
    later = datetime.now(UTC) + timedelta(
        days=built.lake.settings.maintenance.keep_snapshot_days, hours=1
    )

    class Later:
        @staticmethod
        def now(_: Any) -> datetime:
            return later

    monkeypatch.setattr("cdc_pipeline.lake.upkeep.maintenance.datetime", Later)
    _age(built, 49)
    done = maintain_table(built.table_lake)
    assert done.snapshots_expired >= 3
    assert done.files > 0
    state, snapshot = tables.load("orders_current_state"), tables.load("orders_snapshot")
    assert state is not None
    assert snapshot is not None
    assert len(state.metadata.snapshots) == 1
    assert first_baseline in {s.snapshot_id for s in snapshot.metadata.snapshots}
    assert snapshot.scan(snapshot_id=first_baseline).to_arrow().num_rows == 5
    assert {r["_key"]: r["_item"] for r in plain_view(built.lake, _STATE)}


def test_a_table_that_was_never_committed_to_is_left_alone(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path)
    built.lake.store.write("iceberg/cdc/orders_cdc/data/first.parquet", b"?")
    _age(built, 100)
    maintain_table(built.table_lake)
    assert _files(built, "iceberg/") == {"iceberg/cdc/orders_cdc/data/first.parquet"}
