"""Changes as rows and as columns are the same changes."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.transports import BY_TIME
from cdc_pipeline.lake.storage.changes import CHANGE_SCHEMA, Changes
from cdc_pipeline.lake.storage.landing import DAY_US, read_landing, write_landing
from cdc_pipeline.lake.storage.store import LocalStore

_PATHS = TablePaths("cdc", "orders")
_DAY = 20_000 * DAY_US


def _change(number: int, day: int, shard: str, place: int, transport: str) -> Change:
    return Change(
        uuid=f"{number}",
        op="IUD"[number % 3],
        write_time_us=_DAY + day * DAY_US + place,
        data=None if number % 3 == 2 else "{}",
        keys='{"pk":{"S":"é"}}',
        new_image=None if number % 3 == 2 else "{}",
        old_image=None,
        position=f"{place:06d}",
        sequence_number=f"{number}",
        shard_id=shard,
        event_id="e",
        is_ttl_delete=[None, True, False][number % 3],
        transport=transport,
    )


_one = st.tuples(
    *(st.integers(0, 2), st.sampled_from(["b", "a"]), st.integers(0, 3)),
    st.sampled_from(["dynamodb_streams", "dynamodb_streams", "kinesis", "read"]),
)
_parts = st.lists(st.tuples(st.booleans(), st.lists(_one, max_size=4)), max_size=4)


def _both(parts: list[tuple[bool, list[Any]]]) -> tuple[list[Change], Changes]:
    rows: list[Change] = []
    changes = Changes()
    for is_table, ones in parts:
        part = [_change(len(rows) + n, *one) for n, one in enumerate(ones)]
        rows += part
        changes.extend(Changes([Changes.of(part).table()]) if is_table else part)
    return rows, changes


@budget(max_examples=60)
@given(_parts, st.data())
def test_a_sequence_of_changes(parts: list[tuple[bool, list[Any]]], data: st.DataObject) -> None:
    rows, changes = _both(parts)
    assert (len(changes), list(changes)) == (len(rows), rows)
    assert changes == rows
    assert [changes[n] for n in range(-len(rows), len(rows))] == rows * 2
    assert changes[1:3] == rows[1:3]
    assert changes.column("uuid") == [row.uuid for row in rows]
    assert changes.times_us().to_pylist() == [row.write_time_us for row in rows]
    assert changes.table().to_pylist() == [row._asdict() for row in rows]
    assert changes.table().schema == CHANGE_SCHEMA
    wanted = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    kept = changes.where(pa.array(wanted, pa.bool_()))
    expected = [row for row, is_kept in zip(rows, wanted, strict=True) if is_kept]
    assert kept == expected
    kept.extend(rows[:1])
    assert len(changes) == len(rows)
    with pytest.raises(IndexError):
        changes[len(rows)]


@budget(max_examples=60)
@given(_parts)
def test_changes_land_by_day_shard_and_position(parts: list[tuple[bool, list[Any]]]) -> None:
    rows, changes = _both(parts)
    with TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        objects = write_landing(store, _PATHS, changes, n=1, nonce="n", generation=1, landed_us=1)
        landed = [row for o in objects for row in read_landing(store, o.key)]

    def key(row: Change) -> tuple[int, str, str]:
        shard = "" if row.transport in BY_TIME else row.shard_id
        return row.write_time_us // DAY_US, shard, row.position

    assert [*map(key, landed)] == sorted(map(key, rows))
    assert sorted(landed, key=lambda row: row.uuid) == sorted(rows, key=lambda row: row.uuid)
    days = sorted({row.write_time_us // DAY_US for row in rows})
    assert [o.min_write_us // DAY_US for o in objects] == days
    assert [o.max_write_us // DAY_US for o in objects] == days
    assert all(o.bare is False for o in objects)
