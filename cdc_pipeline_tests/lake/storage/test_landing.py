"""Landing objects: a day each, in the landing columns, exactly what was given."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.names import TablePaths, entry_number
from cdc_pipeline.lake.storage.landing import (
    LANDING_SCHEMA,
    merge_landing,
    read_landing,
    read_object,
    write_landing,
    write_quarantine,
)
from cdc_pipeline.lake.storage.store import LocalStore, Store
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change

_DAY_SECONDS = 24 * 3600
_NONCE = "0123456789abcdef"


@pytest.fixture
def paths(built: LakeBuilder) -> TablePaths:
    return built.table_lake.paths


def test_changes_land_by_write_day(built: LakeBuilder, paths: TablePaths) -> None:
    changes = [
        change("b", 3, {"n": {"N": "9" * 38}}),
        change("a", _DAY_SECONDS, None),
        change("a", 1, {"s": {"S": ""}}),
    ]
    store = built.lake.store
    objects = write_landing(
        store, paths, changes, n=7, nonce=_NONCE, generation=3, landed_us=START_US
    )
    assert [landed.rows for landed in objects] == [2, 1]
    for landed in objects:
        assert (landed.entry, landed.generation, landed.shards) == (7, 3, ("shard-1",))
        table = pq.ParquetFile(store.uri(landed.key)).read()
        assert table.schema.remove_metadata() == LANDING_SCHEMA
        rows = table.to_pylist()
        assert len(rows) == landed.rows
        data = store.read(landed.key)
        assert data is not None
        assert len(data) == landed.bytes
        given = [c for c in changes if day_of(c.write_time_us).isoformat() == landed.day]
        given.sort(key=lambda c: c.position)
        for row, one in zip(rows, given, strict=True):
            for column in set(LANDING_SCHEMA.names) - {"time_stamp", "landed_at"}:
                assert row[column] == getattr(one, column)
            assert row["time_stamp"] == datetime.fromtimestamp(one.write_time_us / 1e6, UTC)
            assert row["landed_at"] == datetime.fromtimestamp(START_US / 1e6, UTC)
        assert landed.min_write_us == given[0].write_time_us
        assert landed.max_write_us == given[-1].write_time_us
        assert (landed.min_position, landed.max_position) == (
            given[0].position,
            given[-1].position,
        )


def test_nothing_to_land_is_no_object(built: LakeBuilder, paths: TablePaths) -> None:
    store = built.lake.store
    assert write_landing(store, paths, [], n=1, nonce=_NONCE, generation=1, landed_us=1) == []
    assert write_quarantine(store, paths, [], n=1, nonce=_NONCE, landed_us=1) == []
    assert isinstance(store, LocalStore)
    assert not store.root.exists()


def test_quarantine_keeps_the_bytes_and_counts_reasons(
    built: LakeBuilder, paths: TablePaths
) -> None:
    records = [("no keys", b"\xff\x00"), ("no keys", b"{}"), ("no time", b'{"a": "\n"}')]
    (written,) = write_quarantine(
        built.lake.store, paths, records, n=9, nonce=_NONCE, landed_us=START_US
    )
    assert (written.rows, written.reasons) == (3, {"no keys": 2, "no time": 1})
    assert entry_number(written.key) == 9
    assert written.key.startswith(paths.quarantine)
    data = built.lake.store.read(written.key)
    assert data is not None
    lines = [json.loads(line) for line in data.decode().splitlines()]
    assert [(x["reason"], base64.b64decode(x["record_base64"])) for x in lines] == records


def _read_changes(store: Store, landed: LandedObject) -> None:
    read_landing(store, landed.key)


def _read_columns(store: Store, landed: LandedObject) -> None:
    read_object(store, landed)


def _merge(store: Store, landed: LandedObject) -> None:
    merge_landing(store, f"{landed.key}-merged", [landed])


@pytest.mark.parametrize("read", [_read_changes, _read_columns, _merge])
def test_objects_that_cannot_be_read_are_named_with_a_fix(
    built: LakeBuilder, paths: TablePaths, read: Callable[[Store, LandedObject], None]
) -> None:
    store = built.lake.store
    (landed,) = write_landing(
        store, paths, [change("a", 1, None)], n=7, nonce=_NONCE, generation=3, landed_us=START_US
    )
    read(store, landed)
    store.write(landed.key, b"no Parquet")
    with pytest.raises(LakeError) as damaged:
        read(store, landed)
    assert damaged.value.message.startswith(
        f"landing object {landed.key} (10 bytes) cannot be read as Parquet: "
    )
    store.delete([landed.key])
    with pytest.raises(LakeError) as missing:
        read(store, landed)
    assert missing.value.message == (
        f"landing object {landed.key} is in the capture log but not in the lake"
    )
    fix = f"cdc-pipeline reconcile {paths.table} --full --repair"
    assert {damaged.value.fix, missing.value.fix} == {fix}


def test_merged_objects_that_lost_rows_are_named_with_a_fix(
    built: LakeBuilder, paths: TablePaths
) -> None:
    store, key = built.lake.store, f"{paths.landing}merged.parquet"
    (landed,) = write_landing(
        store, paths, [change("a", 1, None)], n=7, nonce=_NONCE, generation=3, landed_us=START_US
    )
    with pytest.raises(LakeError) as lost:
        merge_landing(store, key, [landed, replace(landed, rows=2)])
    assert lost.value.message == (
        f"2 landing objects have 2 rows; the capture log has 3 ({landed.key} to {landed.key})"
    )
    assert lost.value.fix == f"cdc-pipeline reconcile {paths.table} --full --repair"
    assert store.read(key) is None
