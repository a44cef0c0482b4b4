"""Engines that read an export's JSON themselves, told attributes and types: contenders of `export`.

None of them verifies a file or keeps what it was not told: other attributes vanish, a value of
another type is null or an error, absent and NULL are one, and a number with more digits than its
column is rounded (12.555 in DECIMAL(18,2) is 12.56, ClickHouse has 12.55). Nested values stay typed
JSON, as structs in DataFusion and Spark.
"""

import json
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa

from benchmarks.measure import Cost, cpu_of, peak_mb
from cdc_pipeline.aws.export import DataFile
from cdc_pipeline_tests.spark import session

NESTED = ("payment", "shipping", "lines")

# Tag and Spark's type.
_TYPES = {
    **dict.fromkeys(("customer_id", "order_id", "status", "ordered_at"), ("S", "STRING")),
    **dict.fromkeys(("updated_at", "currency", "warehouse"), ("S", "STRING")),
    **dict.fromkeys(("source", "note", "coupon"), ("S", "STRING")),
    **dict.fromkeys(("payment", "shipping"), ("M", "STRING")),
    "lines": ("L", "STRING"),
    "version": ("N", "BIGINT"),
    "total": ("N", "DECIMAL(18,2)"),
    "gift": ("BOOL", "BOOLEAN"),
    "tags": ("SS", "ARRAY<STRING>"),
}
_DUCKDB = {"STRING": "VARCHAR", "ARRAY<STRING>": ["VARCHAR"]}
_CLICKHOUSE = {
    "STRING": "String",
    "BIGINT": "Int64",
    "DECIMAL(18,2)": "Decimal(18, 2)",
    "BOOLEAN": "Bool",
    "ARRAY<STRING>": "Array(String)",
}


def clickhouse(folder: Path, files: list[DataFile], out: Path) -> int:
    """ClickHouse local (chdb), in a thread for each core."""
    import chdb  # pyright: ignore[reportMissingImports]

    fields = ", ".join(
        f"{name} Tuple({tag} {'Nullable(String)' if name == 'coupon' else _CLICKHOUSE[kind]})"
        for name, (tag, kind) in _TYPES.items()
    )
    columns = ", ".join(f"Item.{name}.{tag} AS {name}" for name, (tag, _) in _TYPES.items())
    paths = f"{folder}/{{{','.join(file.key for file in files)}}}"
    settings = {
        "max_threads": os.cpu_count(),
        "input_format_json_read_objects_as_strings": 1,
        "input_format_json_read_arrays_as_strings": 1,
        "input_format_json_ignore_unknown_keys_in_named_tuple": 1,
        "output_format_parquet_compression_method": "'zstd'",
        "output_format_compression_level": 1,
    }
    chdb.query(
        f"INSERT INTO FUNCTION file('{out}/typed.parquet', Parquet) SELECT {columns} "
        f"FROM file('{paths}', JSONEachRow, 'Item Tuple({fields})') "
        f"SETTINGS {', '.join(f'{name} = {value}' for name, value in settings.items())}"
    )
    return sum(file.items for file in files)


def duckdb(folder: Path, files: list[DataFile], out: Path) -> int:
    """DuckDB's `json_transform`."""
    import duckdb

    structure = {
        "Item": {
            name: {tag: "JSON" if name in NESTED else _DUCKDB.get(kind, kind)}
            for name, (tag, kind) in _TYPES.items()
        }
    }
    columns = ", ".join(f"item.{name}.{tag} AS {name}" for name, (tag, _) in _TYPES.items())
    paths = [str(folder / file.key) for file in files]
    with duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(
            f"COPY (SELECT {columns} FROM (SELECT json_transform(json, '{json.dumps(structure)}')"
            f".Item AS item FROM read_ndjson_objects({paths}))) "
            f"TO '{out}/typed.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
        )
    return sum(file.items for file in files)


def datafusion(folder: Path, files: list[DataFile], out: Path) -> int:
    """DataFusion, in a partition for each core."""
    import datafusion as fusion  # pyright: ignore[reportMissingImports]

    chosen = out / "chosen"
    chosen.mkdir()
    for file in files:
        (chosen / file.key).symlink_to(folder / file.key)
    config = fusion.SessionConfig().with_target_partitions(os.cpu_count() or 1)
    context = fusion.SessionContext(config)
    context.register_json(
        "lines",
        f"{chosen}/",
        schema=pa.schema([("Item", _arrow_struct())]),
        file_extension=".gz",
        file_compression_type="gzip",
    )
    columns = ", ".join(
        f"\"Item\"['{name}']['{tag}'] AS \"{name}\"" for name, (tag, _) in _TYPES.items()
    )
    context.sql(
        f"COPY (SELECT {columns} FROM lines) TO '{out}/typed/' STORED AS PARQUET "
        "OPTIONS ('format.compression' 'zstd(1)')"
    ).collect()
    return sum(file.items for file in files)


def _arrow_struct() -> pa.DataType:
    def typed(tag: str, kind: pa.DataType) -> pa.DataType:
        return pa.struct([(tag, kind)])

    text = pa.string()
    string, number = typed("S", text), typed("N", text)
    line = pa.struct([("sku", string), ("qty", number), ("price", number)])
    kinds = {
        "payment": pa.struct([("method", string), ("reference", string), ("fee", number)]),
        "shipping": pa.struct([("street", string), ("city", string), ("zip", string)]),
        "lines": pa.list_(typed("M", line)),
        "version": pa.int64(),
        "total": pa.decimal128(18, 2),
        "gift": pa.bool_(),
        "tags": pa.list_(text),
    }
    return pa.struct(
        [(name, typed(tag, kinds.get(name, text))) for name, (tag, _) in _TYPES.items()]
    )


def spark(folder: Path, files: list[DataFile], out: Path, warm_files: int) -> Cost:
    """Spark when the JVM is warm; the JVM's CPU and memory count."""
    running = session.start(out, memory="3g")
    running.sparkContext.setLogLevel("OFF")
    as_text = {"BIGINT": "STRING", "DECIMAL(18,2)": "STRING"}  # numbers are text in the JSON
    fields = ", ".join(
        f"{name}: STRUCT<{tag} {as_text.get(kind, kind)}>" for name, (tag, kind) in _TYPES.items()
    )
    columns = [
        f"CAST(item.{name}.{tag} AS {kind}) AS {name}" for name, (tag, kind) in _TYPES.items()
    ]

    def write(chosen: list[DataFile]) -> None:
        lines = running.read.text([str(folder / file.key) for file in chosen])
        items = lines.selectExpr(f"from_json(value, 'Item STRUCT<{fields}>').Item AS item")
        items.selectExpr(*columns).write.mode("overwrite").parquet(str(out / "typed"))

    write(files[:warm_files])
    jvm = running.sparkContext._gateway.proc.pid
    before, wall = cpu_of(jvm), time.perf_counter()
    write(files)
    cpu, wall = cpu_of(jvm) - before, time.perf_counter() - wall
    return Cost(cpu, wall, peak_mb(jvm), sum(file.items for file in files))


_PACKAGES = {"chdb": clickhouse, "datafusion": datafusion, "duckdb": duckdb}
NAMES = [work.__name__ for work in _PACKAGES.values()]


def installed() -> dict[str, Callable[[Path, list[DataFile], Path], int]]:
    """Return the engines that are installed, by name; the others are named on standard output."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            print(f"{package} is left out: it is not installed (the extra `bench`)")
    return {
        work.__name__: work for package, work in _PACKAGES.items() if find_spec(package) is not None
    }
