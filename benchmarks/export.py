"""From a full export to typed Parquet: ours, boto3's way, dynamodb_json's, and Spark's.

Run by `make bench`. Every contender reads the same GZIP files from disk and writes Parquet with a
column for each attribute. Ours also verifies MD5s and counts, writes each item's exact canonical
JSON and a rescue column, and takes the columns' types from all items instead of from the first
file. The second work is what `pitr_export` does after that: sorted by key and in an Iceberg table.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.export_data import KEY_NAMES, write_export
from benchmarks.measure import (
    Cost,
    Row,
    cheaper,
    cheapest,
    cpu_of,
    in_own_process,
    measure,
    peak_mb,
    report,
)
from cdc_pipeline.aws.export import DataFile
from cdc_pipeline.transform.precompile import precompile
from cdc_pipeline_tests.spark import session

_ITEMS = 1_000_000
_RUNS = 2
_FILES = 16
_PEERS_FILES = 2  # each item costs a peer the same, and they take minutes
_WORK = "full export → typed Parquet"
_LIST = "files.json"
_NESTED = ["payment", "shipping", "lines"]


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


# Tag, its type for `from_json`, and the column's.
_SPARK_TYPES = {
    **dict.fromkeys(("customer_id", "order_id", "status", "ordered_at"), ("S", "STRING", "STRING")),
    **dict.fromkeys(("updated_at", "currency", "warehouse"), ("S", "STRING", "STRING")),
    **dict.fromkeys(("source", "note", "coupon"), ("S", "STRING", "STRING")),
    **dict.fromkeys(("payment", "shipping"), ("M", "STRING", "STRING")),
    "lines": ("L", "STRING", "STRING"),
    "version": ("N", "STRING", "BIGINT"),
    "total": ("N", "STRING", "DECIMAL(18,2)"),
    "gift": ("BOOL", "BOOLEAN", "BOOLEAN"),
    "tags": ("SS", "ARRAY<STRING>", "ARRAY<STRING>"),
}


def _spark(folder: Path, files: list[DataFile], out: Path) -> Cost:
    """Spark told the types, when the JVM is warm; the JVM's CPU and memory count.

    It neither verifies nor looks for other types; nested values stay typed JSON.
    """
    spark = session.start(out, memory="3g")
    spark.sparkContext.setLogLevel("OFF")
    types = _SPARK_TYPES.items()
    fields = ", ".join(f"{name}: STRUCT<{tag} {kind}>" for name, (tag, kind, _) in types)
    columns = [f"CAST(item.{name}.{tag} AS {kind}) AS {name}" for name, (tag, _, kind) in types]

    def write(chosen: list[DataFile]) -> None:
        lines = spark.read.text([str(folder / file.key) for file in chosen])
        items = lines.selectExpr(f"from_json(value, 'Item STRUCT<{fields}>').Item AS item")
        items.selectExpr(*columns).write.mode("overwrite").parquet(str(out / "typed"))

    write(files[:_PEERS_FILES])
    jvm = spark.sparkContext._gateway.proc.pid
    before, wall = cpu_of(jvm), time.perf_counter()
    write(files)
    cpu, wall = cpu_of(jvm) - before, time.perf_counter() - wall
    return Cost(cpu, wall, peak_mb(jvm), sum(file.items for file in files))


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
    "boto3": boto3_way,
    "dynamodb_json": dynamodb_json_way,
    "sorted": sorted_in_iceberg,
    "large": ours_as_of_a_large_export,
    "sorted large": sorted_as_of_a_large_export,
}


def check_equal(folder: Path) -> None:
    """The same items with the same values, before anything is timed.

    Of nested values boto3's way has numbers as text. dynamodb_json turns numbers into floats, and
    whatever looks like a time into one: of its rows only keys are compared.
    """
    files = write_export(folder, 3_000, files=2)
    names = ("ours", "boto3", "dynamodb_json", "sorted")
    found = {name: _rows(folder, name, files) for name in names}
    assert [len(rows) for rows in found.values()] == [3_000] * len(names)
    assert found["ours"] == found["sorted"]
    compared = (found[name] for name in ("ours", "boto3", "dynamodb_json"))
    for mine, theirs, library in zip(*compared, strict=True):
        assert [mine[k] for k in KEY_NAMES] == [library[k] for k in KEY_NAMES]
        for name, value in theirs.items():
            assert _comparable(mine[name], name in _NESTED) == _comparable(value, name in _NESTED)
    if session.has_spark():
        (folder / _LIST).write_text(json.dumps([asdict(file) for file in files]))
        for mine, theirs in zip(found["ours"], _rows_of_spark(folder), strict=True):
            shown = {name: mine[name] for name in theirs}
            assert shown == theirs | {"tags": sorted(theirs["tags"])}


def _rows_of_spark(folder: Path) -> list[dict[str, Any]]:
    """Without the nested values, which it leaves typed."""
    with tempfile.TemporaryDirectory() as out:
        in_own_process("benchmarks.export", "spark", str(folder), out)
        table = pq.read_table(f"{out}/typed").drop_columns(_NESTED)
    return sorted(table.to_pylist(), key=lambda row: [row[key] for key in KEY_NAMES])


def _rows(folder: Path, name: str, files: list[DataFile]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        CONTENDERS[name](folder, files, out)
        pattern = "lake/iceberg/**/*.parquet" if name == "sorted" else "typed*.parquet"
        rows = [row for path in out.glob(pattern) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: [row[key] for key in KEY_NAMES])


def _comparable(value: Any, nested: bool) -> Any:
    if nested:
        return json.loads(value, parse_float=str, parse_int=str)
    return value if isinstance(value, str | list | bool | None) else Decimal(value)


def run() -> list[Row]:
    """Each contender and each run of it in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        check_equal(folder)
        precompile()  # processes of the product find the cache filled
        files = [asdict(file) for file in write_export(folder, _ITEMS, _FILES)]
        (folder / _LIST).write_text(json.dumps(files))
        rows = []
        for name in CONTENDERS:
            cost = cheapest(_RUNS, partial(in_own_process, "benchmarks.export", name, scratch))
            rows.append(
                (f"{_WORK}, sorted and in Iceberg", "ours", cost)
                if name == "sorted"
                else (_WORK, name, cost)
            )
        if session.has_spark():
            rows.insert(-1, (_WORK, "spark", in_own_process("benchmarks.export", "spark", scratch)))
        return rows


TARGETS = [
    cheaper(
        "typing a full export: CPU time of isal + orjson + boto3 + pyarrow",
        6,
        _WORK,
        "ours",
        "boto3",
    ),
    cheaper("typing a full export: CPU time of dynamodb_json", 12, _WORK, "ours", "dynamodb_json"),
]


def _contend(name: str, folder: Path, kept: str = "") -> None:
    files = [DataFile(**file) for file in json.loads((folder / _LIST).read_text())]
    chosen = files[:_PEERS_FILES] if name in ("boto3", "dynamodb_json") else files
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(kept or scratch)
        if name == "spark":
            report(_spark(folder, chosen, out))
        else:
            report(measure(lambda: CONTENDERS[name](folder, chosen, out)))


if __name__ == "__main__":
    _contend(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
