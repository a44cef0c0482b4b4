"""Iceberg commits on a local lake: whole tables, whole days, schemas that change, conflicts."""

import base64
import contextlib
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.tables import (
    CommitConflictError,
    Tables,
    data_files,
    table_property,
)
from cdc_pipeline_tests.lake.builder import LakeBuilder, temporary_lake

_ONE, _TWO = date(2026, 1, 1), date(2026, 1, 2)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return LakeBuilder.at(tmp_path).lake.tables


def _rows(values: list[Any], kind: pa.DataType | None = None, name: str = "v") -> pa.Table:
    keys = pa.array([f"k{n}" for n in range(len(values))], pa.string())
    return pa.table({"k": keys, name: pa.array(values, kind or pa.int64())})


def _replace(tables: Tables, rows: pa.Table, **properties: str) -> None:
    tables.replace("t", rows.to_reader(), properties, over=tables.load("t"))


def _read(tables: Tables, name: str = "t") -> list[dict[str, Any]]:
    table = tables.load(name)
    assert table is not None
    return sorted(table.scan().to_arrow().to_pylist(), key=str)


def test_a_table_is_replaced_whole_with_its_properties(tables: Tables) -> None:
    assert tables.load("t") is None
    _replace(tables, _rows([1, 2]), watermark="1", kept="yes")
    _replace(tables, _rows([3]), watermark="2")
    assert _read(tables) == [{"k": "k0", "v": 3}]
    table = tables.load("t")
    assert table is not None
    assert table_property(table, "watermark") == "2"
    assert table_property(table, "kept") == "yes"
    assert table_property(table, "nothing") is None
    assert len(data_files(table)) == 1


def test_no_rows_are_a_commit_too(tables: Tables) -> None:
    for values in ([], [1], [], [2]):
        _replace(tables, _rows(values), watermark=str(len(values)))
        assert [row["v"] for row in _read(tables)] == values
        table = tables.load("t")
        assert table is not None
        assert table_property(table, "watermark") == str(len(values))


_38 = Decimal("9" * 38)
_KINDS: list[tuple[pa.DataType, Any]] = [
    (pa.int64(), -5),
    (pa.decimal128(18, 2), Decimal("1.25")),
    (pa.decimal128(20, 3), Decimal("1.125")),
    (pa.decimal128(38, 2), Decimal("1.25")),
    (pa.decimal128(38, 0), _38),
    (pa.string(), "1E-100"),
    (pa.binary(), base64.b64decode("AAH/")),
    (pa.bool_(), True),
    (pa.list_(pa.string()), ["a", ""]),
    (pa.list_(pa.int64()), [1, 2]),
    (pa.list_(pa.decimal128(38, 1)), [Decimal("1.5")]),
    (pa.list_(pa.binary()), [b"\x00"]),
]


def test_a_column_may_change_to_any_type(tables: Tables) -> None:
    for kind, value in [*_KINDS, _KINDS[0]]:
        _replace(tables, _rows([value, None], kind))
        shown = [row["v"] for row in _read(tables)]
        assert shown == [value, None]


def test_columns_come_and_go_and_come_back(tables: Tables) -> None:
    _replace(tables, _rows([1], name="a"))
    _replace(tables, _rows([2], name="b"))
    assert _read(tables) == [{"k": "k0", "b": 2}]
    _replace(tables, _rows(["x"], pa.string(), name="a").append_column("B", [[3]]))
    assert _read(tables) == [{"k": "k0", "a": "x", "B": 3}]


def test_an_unchanged_schema_is_left_alone(tables: Tables) -> None:
    wide = _rows([["a"]], pa.list_(pa.string())).append_column("s", [["x"]])
    _replace(tables, wide)
    _replace(tables, wide)
    table = tables.load("t")
    assert table is not None
    assert len(table.metadata.schemas) == 1


def test_a_stale_commit_conflicts_and_the_winners_rows_stand(tables: Tables) -> None:
    _replace(tables, _rows([1]), watermark="1")
    stale = tables.load("t")
    _replace(tables, _rows([2]), watermark="2")
    with pytest.raises(CommitConflictError, match=r"cdc\.t: another writer committed first"):
        tables.replace("t", _rows([3]).to_reader(), {"watermark": "3"}, over=stale)
    with pytest.raises(CommitConflictError):
        tables.replace("t", _rows(["x"], pa.string()).to_reader(), {}, over=stale)
    assert _read(tables) == [{"k": "k0", "v": 2}]
    table = tables.load("t")
    assert table is not None
    assert table_property(table, "watermark") == "2"


def test_a_first_commit_conflicts_with_another_first_commit(tables: Tables) -> None:
    tables.replace("t", _rows([1]).to_reader(), {"watermark": "2"}, over=None)
    with pytest.raises(CommitConflictError):
        tables.replace("t", _rows([2]).to_reader(), {"watermark": "1"}, over=None)
    assert _read(tables) == [{"k": "k0", "v": 1}]


def _day(day: date, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    rows = _rows(values, kind)
    return rows.append_column("day", pa.array([day] * len(values), pa.date32()))


def _replace_day(tables: Tables, day: date, *chunks: pa.Table, **properties: str) -> None:
    over = tables.load("d")
    tables.replace_day("d", day, chunks[0].schema, chunks, properties, over=over)


def _by_day(tables: Tables) -> dict[date, list[Any]]:
    found: dict[date, list[Any]] = {}
    for row in _read(tables, "d"):
        found.setdefault(row["day"], []).append(row["v"])
    return {day: sorted(values, key=str) for day, values in found.items()}


def test_a_day_is_replaced_and_the_others_are_not_touched(tables: Tables) -> None:
    _replace_day(tables, _ONE, _day(_ONE, [1, 2]), _day(_ONE, [3]))
    _replace_day(tables, _TWO, _day(_TWO, [4]), watermark="7")
    before = tables.load("d")
    assert before is not None
    untouched = [path for path in data_files(before) if "day=2026-01-01" in path]
    assert untouched
    _replace_day(tables, _TWO, _day(_TWO, [5, 6]), watermark="8")
    assert _by_day(tables) == {_ONE: [1, 2, 3], _TWO: [5, 6]}
    after = tables.load("d")
    assert after is not None
    assert set(untouched) <= set(data_files(after))
    assert tables.days(after) == {_ONE, _TWO}
    assert table_property(after, "watermark") == "8"


def test_a_day_may_end_without_rows(tables: Tables) -> None:
    _replace_day(tables, _ONE, _day(_ONE, []))
    assert _by_day(tables) == {}
    _replace_day(tables, _ONE, _day(_ONE, [1]))
    _replace_day(tables, _TWO, _day(_TWO, [2]))
    _replace_day(tables, _ONE, _day(_ONE, []))
    assert _by_day(tables) == {_TWO: [2]}
    _replace_day(tables, _TWO, _day(_TWO, []))
    assert _by_day(tables) == {}


def _overtaken(monkeypatch: pytest.MonkeyPatch, tables: Tables, other: Callable[[], None]) -> None:
    """The next load answers as before, and then another writer commits."""
    load = tables.load

    def stale(name: str) -> Any:
        monkeypatch.setattr(tables, "load", load)
        found = load(name)
        other()
        return found

    monkeypatch.setattr(tables, "load", stale)


def test_days_conflict_too(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_day(tables, _ONE, _day(_ONE, [1]))
    _overtaken(monkeypatch, tables, lambda: _replace_day(tables, _TWO, _day(_TWO, [2])))
    with pytest.raises(CommitConflictError):
        _replace_day(tables, _ONE, _day(_ONE, [9]))
    assert _by_day(tables) == {_ONE: [1], _TWO: [2]}


def test_two_first_writers_of_a_day_do_not_add_up(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    _overtaken(monkeypatch, tables, lambda: _replace_day(tables, _ONE, _day(_ONE, [1, 2])))
    with contextlib.suppress(CommitConflictError):
        _replace_day(tables, _ONE, _day(_ONE, [1, 2]))
    assert _by_day(tables) == {_ONE: [1, 2]}


def test_a_day_of_another_type_keeps_the_other_days(tables: Tables) -> None:
    _replace_day(tables, _ONE, _day(_ONE, [1]))
    _replace_day(tables, _TWO, _day(_TWO, [Decimal("2.50")], pa.decimal128(18, 2)))
    assert _by_day(tables) == {_ONE: [1], _TWO: [Decimal("2.50")]}
    with pytest.raises(LakeError, match=r"column v of .* is date32\[day\], which cannot hold"):
        _replace_day(tables, _TWO, _day(_TWO, [_ONE], pa.date32()))
    assert _by_day(tables) == {_ONE: [1], _TWO: [Decimal("2.50")]}


def test_row_level_deletes_of_others_are_refused(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    _replace(tables, _rows([1]))
    table = tables.load("t")
    assert table is not None
    tasks = list(table.scan().plan_files())
    tasks[0].delete_files.add(tasks[0].file)

    class _Scan:
        def plan_files(self) -> list[Any]:
            return tasks

    monkeypatch.setattr(table, "scan", lambda **_: _Scan())
    with pytest.raises(LakeError, match="row-level delete files"):
        data_files(table)


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (pa.decimal128(18, 1), pa.decimal128(38, 1), True),
        (pa.list_(pa.decimal128(18, 1)), pa.list_(pa.decimal128(38, 1)), True),
        (pa.int32(), pa.int64(), True),
        # PyIceberg would let the scale change, Iceberg's specification does not.
        (pa.decimal128(18, 1), pa.decimal128(38, 2), False),
        (pa.decimal128(38, 1), pa.decimal128(18, 1), False),
        (pa.int64(), pa.decimal128(38, 0), False),
        (pa.int64(), pa.string(), False),
    ],
)
def test_a_column_stays_the_same_field_where_iceberg_has_a_promotion(
    old: pa.DataType, new: pa.DataType, kept: bool, tables: Tables
) -> None:
    fields = []
    for kind in (old, new):
        _replace(tables, _rows([None], kind))
        table = tables.load("t")
        assert table is not None
        fields.append(table.schema().find_field("v"))
    assert (fields[0].field_id == fields[1].field_id) == kept
    assert fields[0].field_type != fields[1].field_type


def test_a_table_of_many_chunks_has_a_file_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.append._FILE_BYTES", 1000)
    schema = pa.schema([("n", pa.int64())])
    rows = list(range(5000))
    batches = [pa.record_batch({"n": rows[i : i + 200]}, schema) for i in range(0, 5000, 200)]
    with temporary_lake() as built:
        tables = built.lake.tables
        for over in (False, True):
            reader = pa.RecordBatchReader.from_batches(schema, batches)
            before = tables.load("many") if over else None
            table = tables.replace("many", reader, {}, over=before)
            files = data_files(table)
            assert len(files) == len(set(files)) == len(batches)
            assert sorted(table.scan().to_arrow().column("n").to_pylist()) == rows
