"""The rules of staleness, one by one; e2e/test_staleness.py has them at work."""

import json
from pathlib import Path

import pytest

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.iceberg.tables import CommitConflictError
from cdc_pipeline.lake.publish.cdc import build_cdc_days
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.publish.staleness import (
    Staleness,
    content_mark,
    stale_aggregate_days,
    stale_archive_days,
    stale_cdc_days,
)
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline_tests.lake.builder import MARGIN_US, START_US, LakeBuilder, change

DAY, NEXT = "2026-01-01", "2026-01-02"


def landed(entry: int, day: str, *, through: int = 0) -> LandedObject:
    key, last = f"{day}/{entry}", through or entry
    return LandedObject(key, day, 1, 1, 1, 0, 0, "", "", (), through=last)


def state_of(*objects: LandedObject) -> LogState:
    return LogState(n=100, objects={o.key: o for o in objects})


def test_a_day_lacks_what_was_logged_behind_its_watermark() -> None:
    state = state_of(landed(3, DAY), landed(7, DAY), landed(5, NEXT))
    assert stale_cdc_days(state, {}) == [DAY, NEXT]
    assert stale_cdc_days(state, {DAY: 6, NEXT: 5}) == [DAY]
    assert stale_cdc_days(state, {DAY: 7, NEXT: 99}) == []


def test_compaction_makes_no_day_stale() -> None:
    merged = landed(50, DAY, through=7)
    assert stale_cdc_days(state_of(merged), {DAY: 7}) == []
    assert stale_cdc_days(state_of(merged), {DAY: 6}) == [DAY]


def test_an_archive_lacks_other_versions_of_its_days() -> None:
    assert stale_archive_days({DAY: 7, NEXT: 9}, {DAY: 7}) == [NEXT]
    assert stale_archive_days({DAY: 7}, {DAY: 5}) == [DAY]
    assert stale_archive_days({}, {DAY: 5}) == []


def test_an_aggregate_lacks_other_versions_of_its_inputs() -> None:
    present = {DAY: {"a.cdc@": "7"}, NEXT: {"a.cdc@": "9", "a.current_state": "1"}}
    assert stale_aggregate_days({}, present) == [DAY, NEXT]
    assert stale_aggregate_days(present, present) == []
    older = {DAY: {"a.cdc@": "7", "a.current_state": "0"}, NEXT: {"a.cdc@": "9"}}
    assert stale_aggregate_days(older, present) == [NEXT]


def test_entries_that_land_nothing_change_no_contents() -> None:
    state = state_of(landed(3, DAY))
    before = content_mark(state)
    state.apply(Entry(101, "", "", 0, discovered_us=5))
    assert content_mark(state) == before
    state.apply(Entry(102, "", "", 0, objects=(landed(102, DAY),)))
    assert content_mark(state) != before
    assert json.loads(before)[0] == 3


@pytest.fixture
def built(tmp_path: Path) -> LakeBuilder:
    made = LakeBuilder.at(
        tmp_path, current_state={"fold_percent": 0, "publish_minutes": 0, "derive_minutes": 0}
    )
    made.start()
    made.stage({"a": {"n": {"N": "1"}}})
    made.read_to(START_US + 2 * MARGIN_US)
    return made


def stale(built: LakeBuilder) -> list[str]:
    found = Staleness(built.lake)
    found.load(built.table)
    return [s.asset for s in found.of_table(built.table)]


def test_a_table_from_its_first_export_on(built: LakeBuilder) -> None:
    assert stale(built) == ["current_state"]
    publish_current_state(built.table_lake)
    assert stale(built) == []
    built.land([change("a", 1, {"n": {"N": "2"}})])
    assert stale(built) == ["cdc", "current_state"]
    list(build_cdc_days(built.table_lake, [day_of(START_US)]))
    publish_current_state(built.table_lake)
    assert stale(built) == []


def test_a_large_day_is_built_when_a_tenth_is_new_or_it_is_old(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.publish.staleness.LARGE_DAY", 20)
    publish_current_state(built.table_lake)
    patience = built.lake.settings.current_state
    patient = patience.model_copy(update={"derive_minutes": 15})
    built.lake.settings = built.lake.settings.model_copy(update={"current_state": patient})
    built.land(change(f"k{n}", n, {}) for n in range(1, 31))
    assert "cdc" in stale(built)
    list(build_cdc_days(built.table_lake, [day_of(START_US)]))
    publish_current_state(built.table_lake)
    built.land([change("k1", 40, {}), change("k1", 41, {})])
    publish_current_state(built.table_lake)
    found = Staleness(built.lake)
    found.load(built.table)
    assert [s.asset for s in found.of_table(built.table)] == []
    assert found.is_waiting(built.table)  # or the sensor would not look again
    built.land([change("k1", 42, {})])
    publish_current_state(built.table_lake)
    assert stale(built) == ["cdc"]  # 3 of 30
    list(build_cdc_days(built.table_lake, [day_of(START_US)]))
    built.land([change("k1", 43, {})])
    publish_current_state(built.table_lake)
    assert stale(built) == []
    built.lake.settings = built.lake.settings.model_copy(update={"current_state": patience})
    assert stale(built) == ["cdc"]  # built longer ago than that


def test_a_quiet_table_is_complete_up_to_a_later_time_without_a_new_version(
    built: LakeBuilder,
) -> None:
    first = publish_current_state(built.table_lake)
    snapshot = first.table.current_snapshot()
    assert snapshot is not None
    built.read_to(START_US + 99 * MARGIN_US)
    assert stale(built) == []
    found = Staleness(built.lake)
    found.load(built.table)
    found.advance(built.table)
    base = published_base(built.table_lake)
    assert base is not None
    assert table_property(base.table, "watermark_us") == str(START_US + 99 * MARGIN_US)
    assert base.after == built.state.n
    assert base.table.metadata.current_snapshot_id == snapshot.snapshot_id
    # A publication by hand does the same.
    built.read_to(START_US + 100 * MARGIN_US)
    again = publish_current_state(built.table_lake)
    assert table_property(again.table, "watermark_us") == str(START_US + 100 * MARGIN_US)
    assert again.changes_folded == 0


def test_a_watermark_is_never_put_on_rows_that_others_published(built: LakeBuilder) -> None:
    publish_current_state(built.table_lake)
    base = published_base(built.table_lake)
    assert base is not None
    built.land([change("a", 1, {"n": {"N": "2"}})])
    publish_current_state(built.table_lake)
    with pytest.raises(CommitConflictError):
        built.lake.iceberg.set_properties(base.table, {"watermark": "0"})
    assert base.after < built.state.n
