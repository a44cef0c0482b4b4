"""Items of an export become one typed table, sorted by key, or nothing at all."""

import base64
import gzip
import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdc_pipeline.aws.export import DataFile, verified
from cdc_pipeline.core.errors import ExportError, LakeError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.items.columns import Stats, columns_of, observe
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.snapshot import items as exported
from cdc_pipeline.snapshot import staging
from cdc_pipeline.snapshot.items import ExportedItems
from cdc_pipeline.snapshot.staging import Staging
from cdc_pipeline.transform import ranges, spool
from cdc_pipeline.transform.shred import NARROW_SCHEMA, shred
from cdc_pipeline.transform.spool import SpoolWriter
from cdc_pipeline_tests.transform.ways import both_ways, converted_by

Item = dict[str, Any]


class _Without(Suppressions):
    """Erased keys by name, without their hashes."""

    def __init__(self, *keys: str) -> None:
        self._keys = {*keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def is_suppressed(self, keys: str, write_time_us: int) -> bool:
        return keys in self._keys


def _mixed(count: int) -> list[Item]:
    """Hostile names and keys, attributes of several types, wide items, and large ones."""
    rng = random.Random(3)
    values = [
        {"N": "1"},
        {"N": "-12.50"},
        {"N": "1E+20"},
        {"S": 'a"\\\n\x01ü\U0001f600'},
        {"NULL": True},
        {"BOOL": False},
        {"SS": ["b", "a", "ä"]},
        {"L": [{"M": {"z": {"N": "2"}, "a": {"S": "x"}}}]},
        {"B": "AQI="},
    ]
    names = ["a", "A", "ä", "a b", 'quo"te', "_key", "new\nline", "\U0001f600", "plain"]
    found = []
    for number in range(count):
        item = {name: rng.choice(values) for name in rng.sample(names, 5)}
        if number % 50 == 7:
            item |= {f"wide{n:03}": {"N": str(n)} for n in range(60)}
        if number in (11, 12):
            item["large"] = {"S": chr(97 + number) * 400_000}
        found.append({"pk": {"S": f'{rng.choice("aZä")}"{number}'}, **item})
    rng.shuffle(found)
    return found


def _convert(folder: Path, found: list[Item], *, files: int = 3) -> list[staging.ConvertedFile]:
    (folder / "scratch").mkdir()
    store = LocalStore(folder / "kept")
    kept = Staging(store, "s/e/", folder / "scratch", ("pk",), items=len(found))
    converted = []
    for number in range(files):
        mine = found[number::files]
        lines = b"".join(json.dumps({"Item": item}).encode() + b"\n" for item in mine)
        data = gzip.compress(lines)
        file = DataFile(f"{number}.gz", _md5(data), len(mine))
        converted.append(kept.convert(file, verified(io.BytesIO(data), file, "x"), "x"))
    return converted


def _md5(data: bytes) -> str:

    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _lake(folder: Path) -> Lake:
    raw = {"lake": "lake", "region": "us-east-1", "tables": [{"name": "orders"}]}
    return Lake.open(parse_settings(raw, folder / "settings.yaml"))


def _commit(
    folder: Path, found: list[Item], erased: Suppressions | None = None
) -> tuple[pa.Table, int]:
    """The table's rows in the order of its files, and the number that its commit tells."""
    lake = _lake(folder)
    files = _convert(folder, found)
    kept = Suppressions(()) if erased is None else erased
    items = ExportedItems(files, "000001.0", 5, folder / "scratch", "export x", kept)
    staged = items.commit(lake.iceberg, "orders", {}, over=None, memory_mb=100)
    assert list((folder / "scratch").iterdir()) == []
    tables = [pq.read_table(path) for path in data_files(staged.table)]
    return pa.concat_tables(tables) if tables else pa.table({}), staged.rows


def _expected(found: list[Item]) -> pa.Table:
    """The same by the exact path, sorted as Python sorts."""
    stats: Stats = {}
    rows = []
    for item in found:
        canonical = canonical_item(item)
        observe(stats, canonical)
        rows.append((to_json({"pk": canonical["pk"]}), to_json(canonical)))
    rows.sort()
    keys, texts = ([row[place] for row in rows] for place in range(2))
    arrays = [keys, ["000001.0"] * len(rows), texts, [5] * len(rows)]
    narrow = pa.RecordBatch.from_arrays(
        [pa.array(a, f.type) for a, f in zip(arrays, NARROW_SCHEMA, strict=True)],
        schema=NARROW_SCHEMA,
    )
    with converted_by("exact"):
        return pa.Table.from_batches(shred([narrow], columns_of(stats)))


@both_ways
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("at_once", [200_000, 1 << 30])
def test_any_items_as_by_the_exact_path(
    tmp_path: Path, way: str, at_once: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "sorted_at_once", lambda _: at_once)
    monkeypatch.setattr(spool, "PLAIN_BYTES", 1 << 40 if plain else 0)
    found = _mixed(300)
    expected = _expected(found)
    with converted_by(way):
        table, rows = _commit(tmp_path, found)
    assert rows == 300
    assert table.column_names == expected.column_names
    for name in table.column_names:
        assert table[name].to_pylist() == expected[name].to_pylist(), name


@pytest.mark.parametrize("count", [0, 1])
def test_few_items(tmp_path: Path, count: int) -> None:
    table, rows = _commit(tmp_path, _mixed(count))
    assert (table.num_rows, rows) == (count, count)


@pytest.mark.parametrize("at_once", [1, 1 << 30])
def test_erased_items_are_left_out(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "sorted_at_once", lambda _: at_once)
    found = [{"pk": {"S": str(n)}} for n in range(20)]
    gone = [to_json({"pk": {"S": str(n)}}) for n in (3, 19)]
    table, rows = _commit(tmp_path, found, _Without(*gone))
    assert rows == 18
    assert not {*gone} & {*table["_key"].to_pylist()}
    assert table.num_rows == 18


def _failing(folder: Path, found: list[Item], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _commit(folder, found)
    assert _lake(folder).iceberg.load("orders") is None


@pytest.mark.parametrize("at_once", [1, 200, 1 << 30])
def test_a_key_that_repeats_prevents_the_commit(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the two are: in one batch, on both sides of a batch or of a range."""
    monkeypatch.setattr(exported, "sorted_at_once", lambda _: at_once)
    found = [{"pk": {"S": f"{n:02}"}} for n in range(30)]
    _failing(tmp_path, [*found, found[17]], ExportError, "31 items but 30 keys")


def _full(path: Path, *, compressed: bool) -> SpoolWriter:
    return SpoolWriter(Path("/dev/full"), compressed=compressed)


@pytest.mark.parametrize("where", [staging, ranges])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, where: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "sorted_at_once", lambda _: 100)
    monkeypatch.setattr(spool, "PLAIN_BYTES", 0)
    monkeypatch.setattr(where, "SpoolWriter", _full)
    _failing(tmp_path, _mixed(40), LakeError, "disk")


def test_only_what_is_compressed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "KEEP_BYTES", 1)
    for plain, kept in ((1 << 40, 0), (0, 3)):
        folder = tmp_path / str(plain)
        folder.mkdir()
        monkeypatch.setattr(spool, "PLAIN_BYTES", plain)
        _convert(folder, _mixed(30))
        assert len(list(folder.glob("kept/**/*.json"))) == kept
