"""Baselines beside engines that expire snapshots and change rows: kept, refused, or found."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.publish.baselines import TAG, discard_baselines, tag_baselines
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.lake.upkeep.verify import BASELINE, verify_files
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    plain_view,
    temporary_lake,
)

_STATE = "SELECT _key, _item FROM orders.current_state ORDER BY _key"


@pytest.fixture
def built() -> Iterator[LakeBuilder]:
    """Two baselines of three items each, a change between them, the second one published."""
    with temporary_lake() as lake:
        lake.start()
        lake.stage({f"k{n}": {"n": {"N": str(n)}} for n in range(3)})
        lake.land([change("k0", 5, {"n": {"N": "50"}})])
        lake.read_to(START_US + MARGIN_US + 10_000_000)
        publish_current_state(lake.table_lake)
        assert lake.state.stream
        lake.append(stream=replace(lake.state.stream, generation=2))
        second = lake.stage({f"k{n}": {"n": {"N": str(n)}} for n in range(1, 4)}, generation=2)
        lake.append(baseline=replace(second, export_time_us=START_US + 30_000_000))
        lake.read_to(START_US + 60_000_000)
        yield lake


def _snapshots(built: LakeBuilder) -> Any:
    found = built.lake.iceberg.load("orders_snapshot")
    assert found is not None
    return found


def _expire_all(built: LakeBuilder) -> None:
    """As another engine does: whatever no ref names."""
    later = datetime.now(UTC) + timedelta(days=1)
    _snapshots(built).maintenance.expire_snapshots().older_than(later).commit()


def _as_of(built: LakeBuilder, seconds: int) -> list[tuple[Any, ...]]:
    at = datetime.fromtimestamp(START_US / 1e6 + seconds, UTC)
    with connect_lake(built.lake, as_of=at) as connection:
        return connection.execute(_STATE).fetchall()


def test_tagged_baselines_outlive_the_expiry_of_others(built: LakeBuilder) -> None:
    tag_baselines(built.table_lake)
    before = _as_of(built, 6)
    _expire_all(built)
    assert _as_of(built, 6) == before
    assert {n for n in _snapshots(built).metadata.refs if n != "main"} == {f"{TAG}1", f"{TAG}2"}


def test_maintenance_tags_the_baselines_of_older_lakes(built: LakeBuilder) -> None:
    maintain_table(built.table_lake)
    _expire_all(built)
    assert len(_as_of(built, 6)) == 3


def test_tags_of_what_is_no_baseline_any_more_go(built: LakeBuilder) -> None:
    tag_baselines(built.table_lake)
    _snapshots(built).manage_snapshots().create_tag(
        built.state.baselines[1].snapshot_id, "of somebody else"
    ).commit()
    built.append(baseline=replace(built.state.baselines[1], discarded=True))
    maintain_table(built.table_lake)
    refs = _snapshots(built).metadata.refs
    assert {name for name in refs if name != "main"} == {f"{TAG}2", "of somebody else"}


def test_a_past_state_of_a_lost_baseline_is_refused(built: LakeBuilder) -> None:
    _expire_all(built)
    with pytest.raises(LakeError, match=r"no snapshot(.|\n)*orders/pitr_export(.|\n)*--repair"):
        _as_of(built, 6)


def test_a_publication_over_a_lost_baseline_is_refused(built: LakeBuilder) -> None:
    built.stage({"k9": {"n": {"N": "9"}}}, generation=3)
    built.append(baseline=replace(built.state.baselines[3], discarded=True))
    _expire_all(built)  # of the discarded one, which is current, and the others'
    before = plain_view(built.lake, _STATE)
    assert len(before) == 3
    with pytest.raises(LakeError, match="another engine has expired it"):
        publish_current_state(built.table_lake)
    assert plain_view(built.lake, _STATE) == before
    with pytest.raises(duckdb.Error, match=r"expired it(.|\\n|\n)*orders/pitr_export"):
        plain_view(built.lake, "SELECT count(*) FROM orders.pitr_export")


def test_verification_finds_lost_baselines_and_a_repair_forgets_them(built: LakeBuilder) -> None:
    publish_current_state(built.table_lake)
    assert not verify_files(built.table_lake, content=True).damages
    _expire_all(built)
    (damage,) = verify_files(built.table_lake, content=False).damages
    assert (damage.kind, damage.generation) == (BASELINE, 1)
    assert "cdc-pipeline reconcile orders --full --repair" in str(damage)
    discard_baselines(built.table_lake, {1})
    discard_baselines(built.table_lake, {1})
    assert not verify_files(built.table_lake, content=False).damages
    assert built.table_lake.log.load().baselines[1].discarded


def test_verification_reads_the_files_of_earlier_baselines(built: LakeBuilder) -> None:
    publish_current_state(built.table_lake)
    (first,) = _snapshots(built).scan(snapshot_id=built.state.baselines[1].snapshot_id).plan_files()
    with Path(first.file.file_path.removeprefix("file://")).open("r+b") as file:
        file.seek(100)
        file.write(b"?")
    (damage,) = verify_files(built.table_lake, content=True).damages
    assert (damage.kind, damage.generation) == (BASELINE, 1)
    assert "altered" in damage.found


def test_a_state_that_lost_rows_to_another_engine_is_not_built_upon(built: LakeBuilder) -> None:
    publish_current_state(built.table_lake)
    published = built.lake.iceberg.load("orders_current_state")
    assert published is not None
    published.delete('_key = \'{"pk":{"S":"k3"}}\'')
    built.land([change("k1", 70, {"n": {"N": "20"}})], generation=2)
    built.read_to(START_US + 80_000_000)
    with pytest.raises(LakeError, match=r"2 rows .* 3: another engine(.|\n)*--full --repair"):
        publish_current_state(built.table_lake)
