"""Iceberg commits on a local lake: whole tables, whole days, schemas that change, conflicts."""

import base64
import contextlib
import itertools
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestEntry,
    ManifestEntryStatus,
)
from pyiceberg.table import Table

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg import files, writer
from cdc_pipeline.lake.iceberg.files import data_files, live_entries, live_files
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.iceberg.row_delta import DeadRows, RowDelta
from cdc_pipeline.lake.iceberg.tables import CommitConflictError, Tables
from cdc_pipeline.lake.iceberg.writer import PARQUET_PROPERTIES
from cdc_pipeline_tests.lake.builder import LakeBuilder

_ONE, _TWO = date(2026, 1, 1), date(2026, 1, 2)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return LakeBuilder.at(tmp_path).lake.iceberg


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
    tables.replace_days("d", [day], chunks[0].schema, chunks, properties, over=over)


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


def _with_dead_rows(tables: Tables, values: list[int], dead: list[int]) -> Table:
    _replace(tables, _rows(values))
    table = tables.load("t")
    assert table is not None
    live = live_files(table)
    path = live.data[0].data_file.file_path
    delta = RowDelta(_rows([]).to_reader(), [DeadRows(path, pa.array(dead, pa.int64()))], live)
    return tables.change_rows(table, delta, _rows([]).schema, {})


def test_dead_rows_are_gone_for_pyiceberg_and_refused_where_none_can_be(tables: Tables) -> None:
    table = _with_dead_rows(tables, [1, 2, 3, 4], [1, 3])
    assert sorted(table.scan().to_arrow().column("v").to_pylist()) == [1, 3]
    with pytest.raises(LakeError, match="row-level deletes of another engine"):
        data_files(table)


def test_a_whole_replacement_leaves_no_dead_rows_behind(tables: Tables) -> None:
    _with_dead_rows(tables, [1, 2, 3], [0])
    _replace(tables, _rows([7, 8]))
    table = tables.load("t")
    assert table is not None
    assert live_files(table).deletes == []
    assert sorted(table.scan().to_arrow().column("v").to_pylist()) == [7, 8]
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.summary["total-position-deletes"] == "0"
    assert snapshot.summary["total-delete-files"] == "0"


def test_deletes_of_another_kind_are_refused(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = _with_dead_rows(tables, [1], [0])
    entries = [*live_entries(table, table.current_snapshot())]
    other = DataFile.from_args(
        content=DataFileContent.EQUALITY_DELETES,
        file_path="other.parquet",
        file_format=FileFormat.PARQUET,
    )
    entries.append(ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, data_file=other))
    monkeypatch.setattr(files, "live_entries", lambda *_: iter(entries))
    with pytest.raises(LakeError, match="not position deletes in Parquet"):
        live_files(table)


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


_MIXED = pa.schema(
    [
        pa.field("n", pa.int64(), nullable=False),
        pa.field("Sum of it, 1.", pa.decimal128(20, 2)),
        pa.field("texts", pa.list_(pa.string())),
        pa.field("long", pa.string()),
    ]
)


def _mixed(first: int, rows: int) -> pa.RecordBatch:
    numbers = range(first, first + rows)
    cells = [
        list(numbers),
        [None if n % 7 == 0 else Decimal(n) / 4 for n in numbers],
        [["a", str(n)][: n % 3] for n in numbers],
        [f"{n:09d}" + "x" * 30 for n in numbers],
    ]
    return pa.record_batch(cells, schema=_MIXED)


def _mixed_rows(sizes: list[int]) -> tuple[pa.RecordBatchReader, list[dict[str, Any]]]:
    firsts = itertools.accumulate(sizes, initial=0)
    batches = [_mixed(first, size) for first, size in zip(firsts, sizes, strict=False)]
    rows = [row for batch in batches for row in batch.to_pylist()]
    return pa.RecordBatchReader.from_batches(_MIXED, batches), rows


def _paths_in_order(table: Table) -> list[Path]:
    """They are numbered as they were written."""
    return sorted(map(Path, data_files(table)), key=lambda path: int(path.name.split("-")[1]))


def _files_in_order(table: Table) -> list[pq.ParquetFile]:
    return [pq.ParquetFile(path) for path in _paths_in_order(table)]


def _cells(file: pq.ParquetFile) -> list[tuple[Any, ...]]:
    """Rows without the names of columns, which Iceberg spells its way in files."""
    return [tuple(row.values()) for row in file.read().to_pylist()]


def test_a_large_table_has_full_files_of_full_row_groups(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 150)
    monkeypatch.setattr(writer, "_FILE_BYTES", 10_000)
    for over in (False, True):
        reader, rows = _mixed_rows([200, 0, 700, 10, 1, 1, 3088, 50])
        table = tables.replace("t", reader, {}, over=tables.load("t") if over else None)
        files = _files_in_order(table)
        assert len(files) > 3
        assert [row for file in files for row in _cells(file)] == [
            tuple(row.values()) for row in rows
        ]
        groups = [
            m.row_group(n) for f in files for m in [f.metadata] for n in range(m.num_row_groups)
        ]
        assert [group.num_rows for group in groups] == [150] * 27
        # Full, by not more than a row group and the footer.
        sizes = [path.stat().st_size for path in _paths_in_order(table)]
        assert all(10_000 <= size < 20_000 for size in sizes[:-1])
        assert table.scan().to_arrow().sort_by("n").to_pylist() == rows


def test_a_row_group_of_large_rows_is_full_sooner(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_ROW_GROUP_BYTES", 10_000)
    reader, rows = _mixed_rows([100] * 10)
    (file,) = _files_in_order(tables.replace("t", reader, {}, over=None))
    assert file.num_row_groups == 5
    assert _cells(file) == [tuple(row.values()) for row in rows]


def test_files_are_described_as_pyiceberg_describes_its_own(tables: Tables) -> None:
    """Counts, bounds, sizes, field ids: engines skip files and row groups by them."""
    reader, _ = _mixed_rows([30_000, 15_000])
    ours = tables.replace("t", reader, {}, over=None)
    reader, _ = _mixed_rows([30_000, 15_000])
    theirs = tables.replace("other", _MIXED.empty_table().to_reader(), {}, over=None)
    with theirs.transaction() as transaction:
        transaction.set_properties(PARQUET_PROPERTIES)
    theirs.append(reader.read_all())
    files = [next(iter(table.scan().plan_files())).file for table in (ours, theirs)]
    described = [list(file._data) for file in files]
    assert [d.pop(1) for d in described] == [file.file_path for file in files]
    assert described[0] == described[1]
    assert files[0].record_count == 45_000
    assert len(files[0].lower_bounds) == len(files[0].upper_bounds) == 3
    (one,), (other,) = (_files_in_order(table) for table in (ours, theirs))
    assert one.schema == other.schema
    assert one.schema_arrow.equals(other.schema_arrow, check_metadata=True)
    assert one.num_row_groups == other.num_row_groups == 3


def _files_of(table: Table, key: str) -> int:
    return len(list(table.scan(row_filter=f"_key == '{key}'").plan_files()))


@pytest.mark.parametrize("made_by", ["this version", "an older one"])
def test_keys_that_begin_alike_are_told_apart_by_the_bounds_of_files(
    tables: Tables, monkeypatch: pytest.MonkeyPatch, made_by: str
) -> None:
    """Iceberg cuts bounds at 16 characters, and no engine could leave a file out."""
    monkeypatch.setattr("cdc_pipeline.lake.iceberg.writer._FILE_BYTES", 1)
    monkeypatch.setattr("cdc_pipeline.lake.iceberg.writer.ROW_GROUP_ROWS", 10)
    keys = [f'{{"customer_id":{{"S":"c{n:03d}"}}}}' for n in range(50)]
    rows = pa.table({"_key": keys})
    if made_by == "an older one":
        cut = tables.replace("t", rows.to_reader(), {}, over=None)
        assert _files_of(cut, keys[7]) == 5
    table = tables.replace("t", rows.to_reader(), {}, over=tables.load("t"), key="_key")
    assert len(data_files(table)) == 5
    assert [_files_of(table, key) for key in (keys[0], keys[7], keys[49])] == [1, 1, 1]
    files = [task.file for task in table.scan().plan_files()]
    assert sorted(file.lower_bounds[1].decode() for file in files) == keys[::10]
    assert sorted(file.upper_bounds[1].decode() for file in files) == keys[9::10]
