"""Checksums of files: in the summary of a snapshot, or in a list that several snapshots name."""

import gzip
import json
import os
import random
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import Table

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg import checksums, files, writer
from cdc_pipeline.lake.iceberg.checksums import (
    CHECKSUM_LIST,
    CHECKSUMS,
    UNLISTED_CHECKSUMS,
    known_checksums,
)
from cdc_pipeline.lake.iceberg.row_delta import DeadRows, RowDelta
from cdc_pipeline.lake.iceberg.tables import Tables
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.lake.upkeep.verify import BASELINE, verify_files
from cdc_pipeline_tests.lake.builder import LakeBuilder

_NAME = "orders_current_state"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LakeBuilder:
    """A lake whose tables have a file for two rows, and a list for four files and more."""
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 2)
    monkeypatch.setattr(writer, "_FILE_BYTES", 1)
    monkeypatch.setattr(checksums, "LIMIT", 3)
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)
    return LakeBuilder.at(tmp_path)


def _rows(first: int, count: int) -> pa.Table:
    numbers = range(first, first + count)
    keys = pa.array([f"k{n:06d}" for n in numbers], pa.string())
    return pa.table({"_key": keys, "n": pa.array(numbers, pa.int64())})


def _table(tables: Tables) -> Table:
    table = tables.load(_NAME)
    assert table is not None
    return table


def _summary(tables: Tables) -> dict[str, str]:
    snapshot = _table(tables).current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    return snapshot.summary.additional_properties


def _live(table: Table) -> list[Any]:
    return [entry.data_file for entry in files.live_entries(table, table.current_snapshot())]


def _known(tables: Tables) -> dict[str, int | None]:
    table = _table(tables)
    return {**known_checksums(_live(table), table.current_snapshot(), table.io).sums}


def _real(tables: Tables) -> dict[str, int]:
    live = [file.file_path for file in _live(_table(tables))]
    return {path: zlib.crc32(Path(path.removeprefix("file://")).read_bytes()) for path in live}


def _replace(tables: Tables, first: int, count: int) -> None:
    rows = _rows(first, count)
    tables.replace(_NAME, rows.to_reader(), {}, over=tables.load(_NAME), key="_key")


def _delta(tables: Tables, first: int, count: int, removed: set[str] | None = None) -> None:
    """Add rows; the first row of the first file that stays is dead."""
    table, rows = _table(tables), _rows(first, count)
    live = files.live_files(table)
    stay = [
        e.data_file.file_path for e in live.data if e.data_file.file_path not in (removed or ())
    ]
    dead = [DeadRows(stay[0], pa.array([0], pa.int64()))] if stay else []
    tables.change_rows(
        table, RowDelta(rows.to_reader(), dead, live, removed or set()), rows.schema, {}
    )


def _lists(built: LakeBuilder) -> set[str]:
    return {built.lake.store.uri(k) for k in built.lake.store.list("_cdc/cdc/table-checksums/")}


def test_few_sums_are_in_the_summary_as_ever(built: LakeBuilder) -> None:
    tables = built.lake.iceberg
    _replace(tables, 0, 6)
    listed = ",".join(f"{crc32:08x}" for _, crc32 in sorted(_real(tables).items()))
    assert _summary(tables)[CHECKSUMS] == listed
    assert listed.count(",") == 2
    assert _lists(built) == set()


@pytest.mark.parametrize(
    ("line", "sums"),
    [
        ("0000000a,,ffffffff", {"a": 10, "b": None, "c": 0xFFFFFFFF}),
        ("", {"a": None, "b": None, "c": None}),
        (None, {"a": None, "b": None, "c": None}),
    ],
)
def test_summaries_of_older_versions_are_read(line: str | None, sums: dict[str, Any]) -> None:
    properties = {} if line is None else {"cdc_pipeline.crc32": line}
    summary = SimpleNamespace(additional_properties=properties)
    snapshot: Any = SimpleNamespace(summary=summary)
    present: Any = [SimpleNamespace(file_path=path) for path in "cab"]
    nothing: Any = None
    assert known_checksums(present, snapshot, nothing).sums == sums


def test_many_sums_of_an_older_version_move_into_a_list(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = built.lake.iceberg
    with monkeypatch.context() as older:
        older.setattr(checksums, "LIMIT", 1000)
        _replace(tables, 0, 20)
    before = _real(tables)
    assert _known(tables) == before
    assert _lists(built) == set()
    _delta(tables, 100, 1)
    assert _known(tables) == _real(tables)
    assert before.items() < _known(tables).items()
    assert CHECKSUMS not in _summary(tables)
    assert {_summary(tables)[CHECKSUM_LIST]} == _lists(built)


def test_a_list_is_written_once_and_named_by_row_deltas(built: LakeBuilder) -> None:
    tables = built.lake.iceberg
    _replace(tables, 0, 40)
    (written,) = _lists(built)
    content = json.loads(gzip.decompress(Path(written).read_bytes()))
    assert content == {path: f"{crc32:08x}" for path, crc32 in _real(tables).items()}
    added: set[str] = set()
    for number in range(6):
        old = {*_known(tables)}
        _delta(tables, 100 + number, 1, removed=added)  # the row delta before it is merged
        added = {*_known(tables)} - old
        assert _known(tables) == _real(tables)
        assert len(_summary(tables)[UNLISTED_CHECKSUMS]) == 17
        assert _summary(tables)[CHECKSUM_LIST] == written
        assert CHECKSUMS not in _summary(tables)
    assert _lists(built) == {written}


@pytest.mark.parametrize("seed", range(6))
def test_random_commits(seed: int, built: LakeBuilder) -> None:
    """Whole tables, row deltas, removed files, rewrites without sums, and old versions."""
    chance, tables = random.Random(seed), built.lake.iceberg
    _replace(tables, 0, chance.choice([2, 30]))
    was_list: set[bool] = set()
    for number in range(1, 16):
        first = 1000 * number
        roll = chance.random()
        if roll < 0.1:
            _replace(tables, first, chance.choice([0, 2, 5, 30]))
        elif roll < 0.2:
            before = _real(tables)
            key = _rows(first - 1000, 1)["_key"][0].as_py()
            tables.remove_rows(_table(tables), "_key", {key})
            assert _known(tables) == dict.fromkeys(_real(tables))
            _replace(tables, first, len(before))
        else:
            live = sorted(_real(tables))
            removed = {*chance.sample(live, chance.choice([0, 0, min(3, len(live)), len(live)]))}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(checksums, "LIMIT", 3 if chance.random() < 0.9 else 1000)
                _delta(tables, first, chance.choice([0, 1, 2, 9]), removed)
        assert _known(tables) == _real(tables)
        was_list.add(CHECKSUM_LIST in _summary(tables))
        assert len(_summary(tables).get(UNLISTED_CHECKSUMS, "")) <= 9 * 3
    assert was_list == {True, False}


def _damaged(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-6] + b"?" + content[-5:])


def _foreign(path: Path) -> None:
    path.write_bytes(gzip.compress(b"[1]"))


_HARM: list[Callable[[Path], object]] = [
    Path.unlink,
    _damaged,
    _foreign,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
]


@pytest.mark.parametrize("harm", _HARM)
def test_without_their_list_sums_are_unknown_and_commits_go_on(
    harm: Callable[[Path], object], built: LakeBuilder
) -> None:
    tables = built.lake.iceberg
    _replace(tables, 0, 20)
    old = {*_known(tables)}
    (written,) = _lists(built)
    harm(Path(written))
    with pytest.raises(checksums.LostChecksumsError, match="list of checksums"):
        _known(tables)
    for number in (1, 2):
        _delta(tables, number * 100, 1)
        real = _real(tables)
        assert _known(tables) == real | dict.fromkeys(old)
    assert len(_lists(built) - {written}) == 1  # has the files whose sums are unknown, too


def test_sums_are_not_given_up_for_storage_that_does_not_answer(built: LakeBuilder) -> None:
    tables = built.lake.iceberg
    _replace(tables, 0, 20)
    (written,) = _lists(built)
    path, content = Path(written), Path(written).read_bytes()
    path.unlink()
    path.mkdir()
    with pytest.raises(LakeError, match="lake: writing below"):
        _delta(tables, 100, 1)
    path.rmdir()
    path.write_bytes(content)
    _delta(tables, 100, 1)
    assert _known(tables) == _real(tables)


def test_lists_live_as_long_as_a_snapshot_names_them(built: LakeBuilder) -> None:
    tables = built.lake.iceberg
    names: list[str] = []
    for number in range(4):
        _replace(tables, number, 20)
        names.append(_summary(tables)[CHECKSUM_LIST])
        _delta(tables, 100, 1)
        assert _summary(tables)[CHECKSUM_LIST] == names[-1]
        if number == 1:
            tagged = _table(tables).metadata.current_snapshot_id
            tables.tag(_table(tables), "kept", {"kept": tagged})
    built.start()
    assert _lists(built) == {*names}
    _age(built)
    maintain_table(built.table_lake)
    assert _lists(built) == {*names}
    tables.expire(_table(tables), datetime(2999, 1, 1, tzinfo=UTC), ())
    maintain_table(built.table_lake)
    assert _lists(built) == {names[1], names[3]}
    assert _known(tables) == _real(tables)


def _age(built: LakeBuilder) -> None:
    for path in Path(built.lake.store.uri("")).rglob("*"):
        os.utime(path, (0, 0))


def test_verification_compares_with_lists_and_reports_lost_ones(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.start()
    built.stage({f"k{n}": {"n": {"N": str(n)}} for n in range(20)})
    (written,) = _lists(built)
    assert verify_files(built.table_lake, content=True).damages == []
    staged = built.lake.iceberg.load("orders_snapshot")
    assert staged is not None
    data = Path(_live(staged)[0].file_path.removeprefix("file://"))
    whole = data.read_bytes()
    data.write_bytes(whole[:50] + b"?" + whole[51:])
    (damage,) = verify_files(built.table_lake, content=True).damages
    assert damage.found == "was altered: its checksum differs"
    data.write_bytes(whole)
    Path(written).unlink()
    for content in (False, True):
        (damage,) = verify_files(built.table_lake, content=content).damages
        assert (damage.kind, damage.generation) == (BASELINE, 1)
        assert damage.found == f"has no checksums: the list of checksums {written} is missing"
        assert "reconcile orders --full --repair" in damage.fix
