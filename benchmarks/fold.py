"""Folding changes into a base: the product's SQL, a naive window function, and Spark.

Every contender reads the same Parquet files. "Folded" is the result alone, which every column of
every row goes into; "folded and sorted" is written to Parquet in the order of keys, as the first
step of a publication does. The product folds ten times the rows, too. Sorted, these cost about
fifteen times as much: what goes beyond the memory limit is sorted on disk.

What the product runs has its memory limit of 1 GB; its peers may take what they want. Spark takes
part where Java and the extra `spark` are (`make test-spark` installs it), warm, on two cores; some
minutes more.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from benchmarks.lake_data import Inputs, write_inputs
from benchmarks.measure import (
    Cost,
    Row,
    Target,
    cheaper,
    cpu_of,
    in_own_process,
    measure,
    peak_mb,
    report,
)
from cdc_pipeline.lake.engine.duckdb_session import literal, open_duckdb, row_number_sql
from cdc_pipeline.lake.engine.folding import create_effective, find_winners
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.transform.sql import load_sql
from cdc_pipeline_tests.spark import session

_ROWS = 1_000_000
_LARGE = 10_000_000
_CHECKED = 20_000
_FOLDED, _SORTED = "folded", "folded and sorted"
_RUNS = {_FOLDED: 5, _SORTED: 2}  # the machine's noise is as large as what is looked for
_WRITE = "write"

_NAIVE = """
SELECT item_key, order_key, item, write_time_us
FROM (
    SELECT *, ROW_NUMBER() OVER (PARTITION BY item_key ORDER BY order_key DESC) AS place
    FROM (
        SELECT item_key, order_key, 'U' AS op, item, write_time_us FROM base
        UNION ALL SELECT item_key, order_key, op, item, write_time_us FROM changes
        UNION ALL SELECT item_key, order_key, 'D', NULL, write_time_us FROM tombstones
    )
)
WHERE place = 1 AND op <> 'D'
"""


@contextmanager
def _ours(inputs: Inputs) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """As the product publishes a current state."""
    with tempfile.TemporaryDirectory(dir=inputs.folder) as scratch:
        lake = Lake.open(
            parse_settings({"lake": "lake", "tables": [{"name": "orders"}]}, Path(scratch) / "s")
        )
        with open_duckdb(lake, Path(scratch)) as connection:
            _create_inputs(connection, inputs)
            find_winners(connection, *inputs.order_keys())
            create_effective(connection)
            yield connection, load_sql("fold")


@contextmanager
def _window(inputs: Inputs) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """As one would write it first."""
    with tempfile.TemporaryDirectory(dir=inputs.folder) as scratch, duckdb.connect() as connection:
        connection.execute(f"SET temp_directory = {literal(scratch)}")
        connection.execute("SET preserve_insertion_order = false")
        _create_inputs(connection, inputs)
        yield connection, _NAIVE


def _create_inputs(connection: duckdb.DuckDBPyConnection, inputs: Inputs) -> None:
    for name in ("base", "changes", "tombstones"):
        place = row_number_sql([inputs.path(name)])
        connection.execute(
            f"CREATE TEMP VIEW {name} AS SELECT *, {place} AS place FROM {inputs.relation(name)}"
        )


CONTENDERS = {"ours": _ours, "window function": _window}


def _consume(contender: str, inputs: Inputs, into: str) -> int:
    """Fold, and write the rows in order or, without `into`, look at every value; how many."""
    with CONTENDERS[contender](inputs) as (connection, folded):
        if not into:
            sums = "sum(strlen(item_key) + strlen(item) + write_time_us), max(order_key)"
            row = connection.execute(f"SELECT count(*), {sums} FROM ({folded})").fetchone()
        else:
            row = connection.execute(
                f"COPY (SELECT * FROM ({folded}) ORDER BY item_key) TO {literal(into)} "
                "(FORMAT parquet, ROW_GROUP_SIZE 20480)"
            ).fetchone()
    assert row is not None  # both statements answer one
    return row[0]


def _spark(inputs: Inputs, into: str) -> Cost:
    """The product's SQL on Spark, when the JVM is warm; the JVM's CPU and memory count."""
    with tempfile.TemporaryDirectory(dir=inputs.folder) as scratch:
        spark = session.start(Path(scratch), memory="3g")
        spark.sparkContext.setLogLevel("OFF")
        for name in ("base", "changes", "tombstones"):
            rows = spark.read.parquet(inputs.path(name)).selectExpr(
                "*", "_metadata.row_index AS place"
            )
            rows.createOrReplaceTempView(name)
        for name in ("winners", "effective"):
            spark.sql(load_sql(name)).createOrReplaceTempView(name)
        folded = spark.sql(load_sql("fold")).orderBy("item_key")
        jvm = spark.sparkContext._gateway.proc.pid
        folded.write.mode("overwrite").parquet(into)
        before, wall = cpu_of(jvm), time.perf_counter()
        folded.write.mode("overwrite").parquet(into)
        cpu, wall = cpu_of(jvm) - before, time.perf_counter() - wall
        rows = spark.read.parquet(into).count()
        return Cost(cpu, wall, peak_mb(jvm), rows)


def check_equal() -> None:
    """All contenders come to the same rows, before anything is timed."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder), _CHECKED, _CHECKED)
        paths = [f"{folder}/{name}.out.parquet" for name in CONTENDERS]
        for name, path in zip(CONTENDERS, paths, strict=True):
            _consume(name, inputs, path)
        if session.has_spark():
            paths.append(f"{folder}/spark")
            _in_own_process("spark", folder, paths[-1])
            paths[-1] += "/*.parquet"
        ours, *others = (f"(SELECT * FROM read_parquet({literal(path)}))" for path in paths)
        for other in others:
            for one, two in ((ours, other), (other, ours)):
                assert not duckdb.execute(f"{one} EXCEPT ALL {two}").fetchall()


def run() -> list[Row]:
    """Each contender and each run of it in a process of its own."""
    check_equal()
    with tempfile.TemporaryDirectory() as folder:
        for size in (_ROWS, _LARGE):
            in_own_process("benchmarks.fold", _WRITE, _folder(folder, size), str(size))
        return _race(_FOLDED, folder, "") + _race(_SORTED, folder, f"{folder}/out")


def _race(work: str, folder: str, into: str) -> list[Row]:
    """In turns: what else the machine does meets all alike."""
    lanes = [*((_ROWS, name) for name in CONTENDERS), (_LARGE, "ours")]
    costs: dict[tuple[int, str], list[Cost]] = {lane: [] for lane in lanes}
    for _ in range(_RUNS[work]):
        for size, name in lanes:
            costs[size, name].append(_in_own_process(name, _folder(folder, size), into))
    if into and session.has_spark():  # it warms up by itself
        costs[_ROWS, "spark"] = [_in_own_process("spark", _folder(folder, _ROWS), into)]
    return [
        (_work(size, work), name, min(found, key=lambda cost: cost.cpu))
        for (size, name), found in costs.items()
    ]


def _folder(folder: str, size: int) -> str:
    return f"{folder}/{size}"


def _work(size: int, work: str) -> str:
    return f"{size:,} changes {work} into {size:,} items"


def _growth(name: str, figure: Callable[[Cost], float]) -> Target:
    one, ten = ((_work(size, _FOLDED), "ours") for size in (_ROWS, _LARGE))
    claim = f"10M changes folded into 10M items, in {name} of 1M into 1M"
    return Target(claim, False, 11, lambda costs: figure(costs[ten]) / figure(costs[one]))


TARGETS = [
    cheaper(
        "1M changes folded into 1M items: CPU time of a naive window function",
        1.5,
        _work(_ROWS, _FOLDED),
        "ours",
        "window function",
    ),
    _growth("CPU time", lambda cost: cost.cpu),
    _growth("wall clock time", lambda cost: cost.wall),
    Target(
        "10M changes folded into 10M items: peak memory in GB",
        False,
        1.2,
        lambda costs: costs[_work(_LARGE, _FOLDED), "ours"].peak_mb * (1 << 20) / 1e9,
    ),
]


def _in_own_process(contender: str, folder: str, into: str) -> Cost:
    return in_own_process("benchmarks.fold", contender, folder, into)


def _write(folder: str, size: int) -> int:
    Path(folder).mkdir()
    write_inputs(Path(folder), size, size)
    return size


def _contend(contender: str, folder: str, into: str) -> None:
    inputs = Inputs(Path(folder))
    if contender == _WRITE:
        report(measure(lambda: _write(folder, int(into))))
    elif contender == "spark":
        report(_spark(inputs, into))
    else:
        report(measure(lambda: _consume(contender, inputs, into)))


if __name__ == "__main__":
    _contend(*sys.argv[1:])
