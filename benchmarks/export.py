"""From a full export to typed Parquet: ours, libraries for Python, and engines told the types.

Run by `make bench`. Every contender reads the same GZIP files from disk and writes Parquet with a
column for each attribute. Ours also verifies MD5s and counts, writes each item's exact canonical
JSON and a rescue column, and takes the columns' types from all items; the libraries take them from
the first file, the engines (`export_engines`) are told. The second work is what `pitr_export` does
after that: sorted by key and in an Iceberg table. "large" is ours as of an export of more than
`transform.spool.PLAIN_BYTES`, whose temporary files are compressed and kept. An earlier build of
the product does the same works; it is checked out of git, so this needs a clone with its history.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import export_engines as engines
from benchmarks.earlier import checked_out, run_earlier
from benchmarks.export_data import KEY_NAMES, write_export
from benchmarks.measure import (
    Cost,
    Costs,
    Row,
    Target,
    cheaper,
    in_own_process,
    measure,
    report,
)
from cdc_pipeline.aws.export import DataFile
from cdc_pipeline.transform.precompile import precompile
from cdc_pipeline_tests.spark import session

_ITEMS = int(os.environ.get("EXPORT_ITEMS", "1000000"))
_RUNS = 3
_FILES = 16
_PEERS_FILES = 2  # each item costs a peer the same, and they take minutes
_WORK = "full export → typed Parquet"
_SORTED = f"{_WORK}, sorted and in Iceberg"
_COMMIT = "f5fdea5"
_BEFORE = f"build {_COMMIT}"
_LIST = "files.json"
_EARLIER = """
import sys
from pathlib import Path
from benchmarks.export import _contend
_contend(sys.argv[1], Path(sys.argv[2]))
"""


def ours(folder: Path, files: list[DataFile], out: Path) -> int:
    """The product's own functions, from the compressed bytes on, in threads as it has them."""
    return _typed(folder, files, out, sum(file.items for file in files))


def ours_as_of_a_large_export(folder: Path, files: list[DataFile], out: Path) -> int:
    """Ours as it converts more than `transform.spool.PLAIN_BYTES`: compressed, and kept as well."""
    return _typed(folder, files, out, 0)


def _typed(folder: Path, files: list[DataFile], out: Path, items: int) -> int:
    from cdc_pipeline.core.items.columns import columns_of
    from cdc_pipeline.lake.iceberg.writer import DICTIONARY_BYTES, ROW_GROUP_ROWS
    from cdc_pipeline.transform.shred import merge_stats, shred, typed_schema

    converted = _convert(folder, files, out, items)
    columns = columns_of(merge_stats(*(file.stats for file in converted)))
    schema = typed_schema(columns)

    def write(number: int) -> int:
        file, path = converted[number], out / f"typed-{number}.parquet"
        typed = shred(_items([file], out).rows(), columns, file.items)
        with pq.ParquetWriter(
            path, schema, compression="zstd", dictionary_pagesize_limit=DICTIONARY_BYTES
        ) as writer:
            for group in _groups(typed, ROW_GROUP_ROWS):
                writer.write_table(group)
        return file.items

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(write, range(len(converted))))


def _items(converted: list[Any], out: Path) -> Any:
    from cdc_pipeline.core.plans.erasure import Suppressions
    from cdc_pipeline.snapshot.items import ExportedItems

    return ExportedItems(converted, "000001.0", 1, out, "export", Suppressions(()))


def _groups(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Row groups as large as those of the product's tables."""
    parts: list[pa.RecordBatch] = []
    for batch in batches:
        parts.append(batch)
        if sum(map(len, parts)) >= rows:
            yield pa.Table.from_batches(parts)
            parts = []
    if parts:
        yield pa.Table.from_batches(parts)


def sorted_in_iceberg(folder: Path, files: list[DataFile], out: Path) -> int:
    """All that `pitr_export` does with the files once they are there."""
    return _sorted_in_iceberg(folder, files, out, sum(file.items for file in files))


def sorted_as_of_a_large_export(folder: Path, files: list[DataFile], out: Path) -> int:
    """The same as of more than `transform.spool.PLAIN_BYTES`."""
    return _sorted_in_iceberg(folder, files, out, 0)


def _sorted_in_iceberg(folder: Path, files: list[DataFile], out: Path, items: int) -> int:
    from cdc_pipeline.lake.lake import Lake
    from cdc_pipeline.settings.load import parse_settings

    raw = {"lake": str(out / "lake"), "region": "us-east-1", "tables": [{"name": "orders"}]}
    lake = Lake.open(parse_settings(raw, out / "settings.yaml"))
    exported = _items(_convert(folder, files, out, items), out)
    memory_mb = lake.settings.memory_mb
    return exported.commit(lake.iceberg, "orders", {}, over=None, memory_mb=memory_mb).rows


def _convert(folder: Path, files: list[DataFile], out: Path, items: int) -> list[Any]:
    from cdc_pipeline.aws.export import verified
    from cdc_pipeline.lake.storage.store import LocalStore
    from cdc_pipeline.snapshot.staging import Staging

    staging = Staging(LocalStore(out / "kept"), "export/", out, KEY_NAMES, items=items)

    def convert(file: DataFile) -> Any:
        with (folder / file.key).open("rb") as stream:
            return staging.convert(file, verified(stream, file, file.key), file.key)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(convert, files))


def boto3_way(folder: Path, files: list[DataFile], out: Path) -> int:
    """isal, orjson, boto3's TypeDeserializer, pyarrow."""
    from boto3.dynamodb.types import TypeDeserializer

    deserialize = TypeDeserializer().deserialize
    items = (
        [{name: deserialize(value) for name, value in item.items()} for item in page]
        for page in _pages(folder, files)
    )
    return _write(items, out)


def dynamodb_json_way(folder: Path, files: list[DataFile], out: Path) -> int:
    """isal, orjson, the library dynamodb_json, pyarrow."""
    from dynamodb_json import json_util

    return _write(([json_util.loads(item) for item in page] for page in _pages(folder, files)), out)


def _pages(folder: Path, files: list[DataFile]) -> Iterator[list[dict[str, Any]]]:
    """Items of each file, by the fastest parts that a user would take."""
    import orjson
    from isal import igzip

    for file in files:
        with igzip.open(folder / file.key) as lines:
            yield [orjson.loads(line)["Item"] for line in lines]


def _write(pages: Iterator[list[dict[str, Any]]], out: Path) -> int:
    writer, rows = None, 0
    for page in pages:
        shown = [{name: _shown(value) for name, value in item.items()} for item in page]
        table = pa.Table.from_pylist(shown, writer.schema if writer else None)
        writer = writer or pq.ParquetWriter(out / "typed.parquet", table.schema, compression="zstd")
        writer.write_table(table)
        rows += table.num_rows
    if writer:
        writer.close()
    return rows


def _shown(value: Any) -> Any:
    """Nested values as JSON and sets as lists, as ours has them."""
    if isinstance(value, set):
        return sorted(value)
    return json.dumps(value, default=str) if isinstance(value, dict | list) else value


CONTENDERS: dict[str, Callable[[Path, list[DataFile], Path], int]] = {
    "ours": ours,
    "large": ours_as_of_a_large_export,
    "boto3": boto3_way,
    "dynamodb_json": dynamodb_json_way,
    "clickhouse": engines.clickhouse,
    "datafusion": engines.datafusion,
    "duckdb": engines.duckdb,
    "sorted": sorted_in_iceberg,
    "sorted large": sorted_as_of_a_large_export,
}
_OURS = ("ours", "large", "sorted", "sorted large")
_LIBRARIES = ("boto3", "dynamodb_json")


def check_equal(folder: Path, told: Iterable[str]) -> None:
    """The same items with the same values, before anything is timed.

    Of nested values boto3's way has numbers as text. dynamodb_json turns numbers into floats, and
    whatever looks like a time into one: of its rows only keys are compared. Engines `told` the
    types have nested values as typed JSON, and the members of sets in any order.
    """
    files = write_export(folder, 3_000, files=2)
    found = {name: _rows(folder, name, files) for name in (*_OURS, *_LIBRARIES, *told)}
    assert [len(rows) for rows in found.values()] == [3_000] * len(found)
    assert all(found[name] == found["ours"] for name in _OURS)
    compared = (found[name] for name in ("ours", *_LIBRARIES))
    for mine, theirs, library in zip(*compared, strict=True):
        assert [mine[k] for k in KEY_NAMES] == [library[k] for k in KEY_NAMES]
        for name, value in theirs.items():
            nested = name in engines.NESTED
            assert _comparable(mine[name], nested) == _comparable(value, nested)
    if session.has_spark():
        (folder / _LIST).write_text(json.dumps([asdict(file) for file in files]))
        with tempfile.TemporaryDirectory() as out:
            in_own_process("benchmarks.export", "spark", str(folder), out)
            found["spark"] = _by_key(pq.read_table(f"{out}/typed").to_pylist())
    for name in found.keys() - {*_OURS, *_LIBRARIES}:
        for mine, theirs in zip(found["ours"], found[name], strict=True):
            _check_told(mine, theirs, nested=name != "spark")


def _check_told(mine: dict[str, Any], theirs: dict[str, Any], *, nested: bool) -> None:
    """`nested`: whether the engine keeps nested values; Spark's are only known to be there."""
    item = json.loads(mine["_item"])
    for name, value in theirs.items():
        if name in engines.NESTED:
            ((_, content),) = item[name].items()
            shown = json.loads(value) if isinstance(value, str) and nested else value
            assert shown == content if nested else value
        else:
            assert mine[name] == (sorted(value) if name == "tags" else value)


def _rows(folder: Path, name: str, files: list[DataFile]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        CONTENDERS[name](folder, files, out)
        pattern = "lake/iceberg/**/*.parquet" if name.startswith("sorted") else "typed*"
        return _by_key(row for path in out.glob(pattern) for row in pq.read_table(path).to_pylist())


def _by_key(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: [row[key] for key in KEY_NAMES])


def _comparable(value: Any, nested: bool) -> Any:
    if nested:
        return json.loads(value, parse_float=str, parse_int=str)
    return value if isinstance(value, str | list | bool | None) else Decimal(value)


def run() -> list[Row]:
    """Each contender and each run of it in a process of its own."""
    told = engines.installed()
    with tempfile.TemporaryDirectory() as scratch, checked_out(_COMMIT) as earlier:
        folder = Path(scratch)
        check_equal(folder, told)
        precompile()  # processes of the product find the cache filled
        files = [asdict(file) for file in write_export(folder, _ITEMS, _FILES)]
        (folder / _LIST).write_text(json.dumps(files))
        costs: dict[tuple[str, str], list[Cost]] = {}
        # In rounds, so that whatever else the machine does meets all of them. The first run of the
        # earlier build compiles what its others run.
        for _ in range(_RUNS):
            for name in (*_OURS, *told, *_LIBRARIES):
                work = _SORTED if name.startswith("sorted") else _WORK
                shown = {"sorted": "ours", "sorted large": "large"}.get(name, name)
                cost = in_own_process("benchmarks.export", name, scratch)
                costs.setdefault((work, shown), []).append(cost)
            for name, work in (("ours", _WORK), ("sorted", _SORTED)) if earlier else ():
                cost = run_earlier(earlier, _EARLIER, name, folder)
                costs.setdefault((work, _BEFORE), []).append(cost)
        if session.has_spark():
            costs[_WORK, "spark"] = [in_own_process("benchmarks.export", "spark", scratch)]
        rows = [(*names, min(tried, key=_cpu)) for names, tried in costs.items()]
        return sorted(rows, key=lambda row: row[0])


def _cpu(cost: Cost) -> float:
    return cost.cpu


def _fastest_engine(costs: Costs) -> float:
    present = [costs[_WORK, name] for name in engines.NAMES if (_WORK, name) in costs]
    return min((cost.per_row for cost in present), default=math.nan) / costs[_WORK, "ours"].per_row


def _ratio_to_before(costs: Costs) -> float:
    before = costs.get((_SORTED, _BEFORE))
    return before.per_row / costs[_SORTED, "ours"].per_row if before else math.nan


TARGETS = [
    cheaper(
        "typing a full export: CPU time of isal + orjson + boto3 + pyarrow",
        6,
        _WORK,
        "ours",
        "boto3",
    ),
    cheaper("typing a full export: CPU time of dynamodb_json", 12, _WORK, "ours", "dynamodb_json"),
    Target(
        "typing a full export: speed per CPU s, as a share of the fastest engine told the types",
        True,
        0.9,
        _fastest_engine,
    ),
    Target(f"an export sorted in Iceberg: CPU time of the {_BEFORE}", True, 1.35, _ratio_to_before),
]


def _contend(name: str, folder: Path, kept: str = "") -> None:
    files = [DataFile(**file) for file in json.loads((folder / _LIST).read_text())]
    chosen = files[:_PEERS_FILES] if name in _LIBRARIES else files
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(kept or scratch)
        if name == "spark":
            report(engines.spark(folder, chosen, out, _PEERS_FILES))
        else:
            report(measure(lambda: CONTENDERS[name](folder, chosen, out)))


if __name__ == "__main__":
    _contend(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
