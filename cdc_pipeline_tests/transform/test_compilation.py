"""When compiled code is loaded: never for little, without a cache only for much."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from cdc_pipeline.transform import compilation, fast
from cdc_pipeline.transform.compilation import (
    CACHED_BYTES,
    CELLS,
    COLD_BYTES,
    LINES,
    STATS,
    note_exact,
    pays,
)
from cdc_pipeline.transform.export_lines import LineConverter
from cdc_pipeline.transform.shred import NARROW_SCHEMA, collect_stats, shred

ROOT = Path(__file__).resolve().parents[2]
_LITTLE = CACHED_BYTES - 1


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_loaded", set())
    monkeypatch.setattr(compilation, "_exact", Counter())


@pytest.mark.parametrize("cached", [True, False])
def test_the_size_decides_together_with_the_cache(
    cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "is_cached", lambda function: cached)
    assert not pays(LINES, _LITTLE)
    assert pays(LINES, CACHED_BYTES) == cached
    assert pays(LINES, COLD_BYTES)


def test_loaded_code_pays_for_the_least_and_for_its_own_function_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "is_cached", lambda function: False)
    assert pays(LINES, COLD_BYTES)
    assert pays(LINES, 1)
    assert not pays(CELLS, 1)


def test_much_in_small_pieces_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "is_cached", lambda function: function == LINES)
    for function, needed in ((LINES, CACHED_BYTES), (STATS, COLD_BYTES)):
        note_exact(function, needed - 1)
        assert not pays(function, 1)
        note_exact(function, 1)
        assert pays(function, 1)


def test_the_size_of_an_export_is_estimated_from_its_first_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(compilation, "pays", lambda *asking: asked.append(asking))
    line = b'{"Item":{"pk":{"S":"a"}}}\n'
    converter = LineConverter(("pk",), "data file x", items=1000)
    converter.convert(line * 10)
    converter.convert(line)
    assert asked == [(LINES, 1000 * len(line))] * 2
    assert compilation._exact == {LINES: 11 * len(line)}


def _batch(item: str) -> pa.RecordBatch:
    columns = (["k"], ["o"], [item], [1])
    arrays = [pa.array(c * 10, f.type) for c, f in zip(columns, NARROW_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=NARROW_SCHEMA)


@pytest.mark.parametrize("rows", [0, 40])
def test_the_size_of_rows_is_that_of_all_batches(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[str, int]] = set()
    monkeypatch.setattr(compilation, "pays", lambda *asking: asked.add(asking))
    batch = _batch('{"pk":{"S":"a"}}')
    size = 4 * batch.column("item").nbytes
    collect_stats([batch] * 4, rows)
    assert len(list(shred([batch] * 4, [], rows))) == 4
    assert asked == {(STATS, size), (CELLS, size)}
    assert compilation._exact == {STATS: size, CELLS: size}


def test_batches_of_unknown_size_are_kept_only_until_they_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "CACHED_BYTES", 1000)
    monkeypatch.setattr(compilation, "pays", lambda *_: False)
    batch = _batch("{}" + " " * 98)
    taken = []
    typed = shred((taken.append(n) or batch for n in range(5)), [])
    next(typed)
    assert taken == [0]


def _index(folder: Path, *parts: str) -> None:
    (folder / f"{LINES}-57.py{sys.version_info[0]}{sys.version_info[1]}.nbi").write_bytes(
        b"\x80" + " ".join(parts).encode()
    )


def test_a_cache_counts_if_it_is_of_these_sources_and_this_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llvmlite", reason="the extra `fast` is missing")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NUMBA_CPU_NAME", "this-one")
    is_cached = compilation.is_cached.__wrapped__
    folder = compilation._cache_folder()
    assert folder.parent == tmp_path
    assert not is_cached(LINES)
    folder.mkdir()
    _index(folder, "other sources", "this-one")
    assert not is_cached(LINES)
    _index(folder, fast.sources_digest(), "other-one")
    assert not is_cached(LINES)
    _index(folder, fast.sources_digest(), "this-one")
    assert is_cached(LINES)
    assert not is_cached(STATS)


@pytest.mark.parametrize("chosen", [None, "chosen"])
@pytest.mark.parametrize("writable", [True, False])
def test_numba_looks_where_this_looks(
    chosen: str | None, writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caching = pytest.importorskip("numba.core.caching", reason="the extra `fast` is missing")
    from cdc_pipeline.transform.fast.canonical import canonical_lines

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(caching.config, "CACHE_DIR", "")
    if chosen:
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / chosen))
        monkeypatch.setattr(caching.config, "CACHE_DIR", str(tmp_path / chosen))
    if not writable:
        monkeypatch.setattr("os.access", lambda path, mode: False)
        monkeypatch.setattr(caching.InTreeCacheLocator, "from_function", lambda *_: None)
    made = caching.FunctionCache(canonical_lines.py_func)
    assert compilation._cache_folder() == Path(made.cache_path)


_ONE_ITEM = """
import json, sys
from cdc_pipeline.core.items.columns import columns_of
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.snapshot.staging import Staging
from cdc_pipeline.aws.export import DataFile
from cdc_pipeline.transform.shred import collect_stats, shred
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.snapshot.items import ExportedItems
from pathlib import Path

folder = Path(sys.argv[1])
staging = Staging(LocalStore(folder), "s/", folder, ("pk",), items=1)
line = b'{"Item":{"pk":{"S":"a"},"n":{"N":"1.50"}}}' + bytes([10])
converted = staging.convert(DataFile("a", "", 1), iter([line]), "data file a")
exported = ExportedItems([converted], "o", 1, folder, "export", Suppressions([]))
batches = list(exported.rows())
stats = collect_stats(batches)
assert stats == converted.stats
rows = [row for batch in shred(batches, columns_of(stats)) for row in batch.to_pylist()]
print(json.dumps([rows[0]["_item"], [m for m in ("numba", "llvmlite") if m in sys.modules]]))
"""


def test_an_export_of_one_item_compiles_nothing(tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
    }
    done = subprocess.run(
        [sys.executable, "-c", _ONE_ITEM, str(tmp_path)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    item, loaded = json.loads(done.stdout)
    assert item == '{"n":{"N":"1.5"},"pk":{"S":"a"}}'
    assert loaded == []
    assert not (tmp_path / "numba").exists()
