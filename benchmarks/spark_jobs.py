"""Work on Spark beside the same work in one process: exports, and full folds.

Run by `python -m benchmarks spark_jobs`; wants Java and the extra `spark`. Both ways read the same
export from the local AWS, or publish copies of one lake, and their rows are compared. The cost of
Spark is that of all processes: driver, executors and Python workers on a cluster of this machine,
and the process that commits. "Without start" is that less the same work on a tiny input.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from benchmarks import full_fold
from benchmarks.export_data import KEY_NAMES, write_export
from benchmarks.lake_data import START_US
from benchmarks.measure import Cost, Row, Target, in_own_process, peak_mb, report
from benchmarks.orders_lake import OrdersLake
from cdc_pipeline.aws.export import DataFile, ExportStatus, Manifest
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.run_context import SILENT
from cdc_pipeline.core.workers import StartWorkers, Workers
from cdc_pipeline.defs.spark import spark_submit
from cdc_pipeline.lake.engine.duckdb_session import files_relation
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.sandbox.demo.spark import local_cluster
from cdc_pipeline.sandbox.process import SandboxProcess, local_client
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.snapshot.parts import stage_by_workers
from cdc_pipeline.snapshot.snapshot import _stage
from cdc_pipeline.spark.exchange import Exchange, setup_of
from cdc_pipeline.spark.job import entry
from cdc_pipeline.spark.session import open_workers
from cdc_pipeline.transform.precompile import precompile
from cdc_pipeline_tests.spark import session

_ITEMS = int(os.environ.get("EXPORT_ITEMS", "1000000"))
_FOLD_ITEMS = int(os.environ.get("FOLD_ITEMS", "1000000"))
_FILES = 16
_BUCKET = "bench"
_OURS, _SPARK, _WARM = "ours", "spark", "spark without start"
_TINY = 5_000


def _export_work(items: int) -> str:
    return f"an export of {items:,} items, sorted and in Iceberg"


def _fold_work(items: int) -> str:
    return f"publish {items:,} changes into {items:,} items"


_TICKS = os.sysconf("SC_CLK_TCK")


class _Job:
    """Runs Spark jobs and counts the CPU seconds of their processes."""

    def __init__(self, master: str) -> None:
        self.master = master
        self.cpu = 0.0
        self._sessions: set[int] = set()

    def __call__(self, table: TableLake) -> StartWorkers:
        """Return how to start workers for a table."""
        where = str(table.lake.settings.lake_folder)

        def start(prefix: str) -> AbstractContextManager[Workers]:
            def run_job(_: int) -> None:
                command = [spark_submit(), "--master", self.master, *_conf(), entry.__file__]
                command += ["--lake", where, "--exchange", prefix]
                environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
                done = subprocess.Popen(command, start_new_session=True, env=environment)
                self._sessions.add(done.pid)
                if done.wait():
                    raise RuntimeError("the job failed")

            exchange = Exchange(table.lake.store, prefix)
            return self._counted(open_workers(exchange, setup_of(table), run_job, SILENT))

        return start

    @contextmanager
    def _counted(self, opened: AbstractContextManager[Workers]) -> Iterator[Workers]:
        with opened as workers:
            before = _cpu_of_sessions(self._cluster())
            yield workers
            self.cpu = _cpu_of_sessions(self._all()) - before

    def _cluster(self) -> set[int]:
        """Sessions of the master and the worker, which start the executors."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if b"org.apache.spark.deploy" in (process / "cmdline").read_bytes():
                    found.add(os.getsid(int(process.name)))
            except OSError:
                continue
        return found

    def _all(self) -> set[int]:
        return self._cluster() | self._sessions


def _conf() -> list[str]:
    options = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.log.level": "ERROR",
        "spark.executor.memory": "1g",
    }
    return [part for name, value in options.items() for part in ("--conf", f"{name}={value}")]


def _cpu_of_sessions(sessions: set[int]) -> float:
    """CPU seconds of all living processes of sessions, and of those that they have waited for."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) in sessions:
                fields = (process / "stat").read_text().rpartition(") ")[2].split()
                ticks += sum(map(int, fields[11:15]))
        except OSError:
            continue
    return ticks / _TICKS


def run() -> list[Row]:
    """Each way of each work in a process of its own."""
    if not session.has_spark():
        sys.exit(f"Spark: {session.unavailable()}")
    precompile()
    with tempfile.TemporaryDirectory() as scratch, SandboxProcess() as sandbox:
        sandbox.apply_environment(os.environ)
        s3: Any = local_client("s3")
        s3.create_bucket(Bucket=_BUCKET)
        folder = Path(scratch).resolve()
        rows: list[Row] = []
        for kind, items in (("export", _ITEMS), ("fold", _FOLD_ITEMS)):
            work = _export_work(items) if kind == "export" else _fold_work(items)
            _, start = _run(kind, folder / f"tiny {kind}", _TINY)
            ours, spark = _run(kind, folder / kind, items)
            warm = replace(spark, cpu=spark.cpu - start.cpu, wall=spark.wall - start.wall)
            rows += [(work, _OURS, ours), (work, _SPARK, spark), (work, _WARM, warm)]
    return rows


def _run(kind: str, folder: Path, items: int) -> list[Cost]:
    """Do one work both ways, each in a process of its own."""
    (_write_export if kind == "export" else _write_lake)(folder, items)
    costs = [
        in_own_process("benchmarks.spark_jobs", kind, way, str(folder), str(items))
        for way in (_OURS, _SPARK)
    ]
    _require_equal(kind, folder, items)
    return costs


def _write_export(exported: Path, items: int) -> None:
    exported.mkdir()
    files = write_export(exported, items, _FILES)
    s3: Any = local_client("s3")
    for file in files:
        s3.upload_file(str(exported / file.key), _BUCKET, file.key)
    (exported / "files.json").write_text(json.dumps([asdict(file) for file in files]))


def _write_lake(made: Path, items: int) -> None:
    """Write a lake with a state, land the changes, and copy it."""
    (made / _OURS).mkdir(parents=True)
    OrdersLake(made / _OURS, items, 0, 0).write()
    in_own_process("benchmarks.full_fold", full_fold._LAND, str(made / _OURS), str(items))
    shutil.copytree(made / _OURS, made / _SPARK)


def _lake(folder: Path, engine: str) -> Lake:
    raw = {
        "lake": str(folder / "lake"),
        "region": "us-east-1",
        "export": {"bucket": _BUCKET},
        "engine": engine,
        "tables": [{"name": "orders"}],
    }
    return Lake.open(parse_settings(raw, folder / "settings.yaml"))


def _export(folder: Path, lake: Lake) -> int:
    files = [DataFile(**file) for file in json.loads((folder.parent / "files.json").read_text())]
    table = lake.table(lake.settings.tables[0])
    status = ExportStatus("arn:export/1", "COMPLETED", _BUCKET, "", None, "")
    manifest = Manifest(_BUCKET, sum(file.items for file in files), "", files)
    baseline = Baseline(1, START_US, START_US)
    arguments = (table, status, manifest, baseline, KEY_NAMES, list, SILENT)
    start = table.start_workers(0)
    if start is None:
        return _stage(*arguments)[0].rows
    with start("staging/spark/") as workers:
        return stage_by_workers(*arguments, workers)[0].rows


def _contend(kind: str, way: str, folder: Path, items: int) -> None:
    own = folder / way
    own.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, _cluster(way, Path(scratch)) as job:
        started, before = time.perf_counter(), time.process_time()
        rows = _do(kind, own, items, job)
        cpu, wall = time.process_time() - before, time.perf_counter() - started
    report(Cost(cpu + (job.cpu if job else 0), wall, peak_mb(), rows))


@contextmanager
def _cluster(way: str, folder: Path) -> Iterator[_Job | None]:
    if way == _OURS:
        yield None
        return
    with local_cluster(folder) as master:
        yield _Job(master)


def _do(kind: str, folder: Path, items: int, job: _Job | None) -> int:
    engine = "local" if job is None else "spark"
    if kind == "export":
        lake = _lake(folder, engine)
        lake.workers_of = job
        return _export(folder, lake)
    lake = OrdersLake(folder, items, 0, 0).lake
    lake.settings = lake.settings.model_copy(update={"engine": engine})
    lake.workers_of = job
    return publish_current_state(lake.table(lake.settings.tables[0])).changes_folded


def _require_equal(kind: str, folder: Path, items: int) -> None:
    """Every column of every row of both ways."""
    states = []
    for way in (_OURS, _SPARK):
        is_export = kind == "export"
        own = folder / way
        lake = _lake(own, "local") if is_export else OrdersLake(own, items, 0, 0).lake
        name = "orders_snapshot" if is_export else "orders_current_state"
        table = lake.iceberg.load(name)
        assert table is not None
        with duckdb.connect() as connection:
            files = files_relation(connection, data_files(table), pa.schema([]))
            columns = ", ".join(sorted(field.name for field in table.schema().fields))
            sql = f"SELECT count(*), sum(hash({columns})), count(DISTINCT _key) FROM {files}"
            states += connection.execute(sql).fetchall()
    assert states[0] == states[1], "the two ways give different rows"


def _target(work: str, way: str) -> Target:
    return Target(
        f"{work}: CPU time of {way}, in one process = 1",
        False,
        2.2,
        lambda costs: costs[work, way].per_row / costs[work, _OURS].per_row,
    )


TARGETS = [_target(_export_work(_ITEMS), _SPARK), _target(_export_work(_ITEMS), _WARM)]


if __name__ == "__main__":
    _contend(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
