"""What it takes to begin: the command line, the code location in a run, an export of one item.

Run by `make bench`. Each call is a process of its own, with its import of everything and without
Numba's cache; "before" is the version that the issue about these costs measured. A row is a call.
The figures of the code location are beyond what Dagster takes to load one without definitions.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.earlier import checked_out
from benchmarks.measure import Cost, Row, Target, cheapest
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change

_ROOT = Path(__file__).resolve().parents[1]
_COMMIT = "f5fdea5"
_BEFORE = "before"
_TABLES = 100
_RUNS = 3

_CLI = """
from cdc_pipeline.cli import main
main(sys.argv[1:], standalone_mode=False)
"""
_RUN = """
import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository as Repository
empty = __import__("types").ModuleType("empty_location")
empty.defs = dg.Definitions(assets=[dg.AssetSpec("a")])
sys.modules["empty_location"] = empty
Repository.for_module("empty_location", "defs").get_definition()
wall, cpu = time.perf_counter(), time.process_time()
job = Repository.for_module("cdc_pipeline.definitions", "defs").get_reconstructable_job(sys.argv[1])
if sys.argv[2:]:
    job = job.get_subset(asset_selection={dg.AssetKey(sys.argv[2:])})
assert job.get_definition().name == sys.argv[1]
"""
_EXPORT = """
from pathlib import Path
from benchmarks import export
from benchmarks.export_data import write_export
folder = Path(sys.argv[1])
assert export.ours(folder, write_export(folder, 1, 1), folder) == 1
"""
_BEGIN = "import json, sys, time\nwall, cpu = time.perf_counter(), 0\n"
_END = """
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
from benchmarks.measure import peak_mb
print("\\n" + json.dumps({"cpu": cpu, "wall": wall, "peak_mb": peak_mb(), "rows": 1}))
"""

_HELP = "cdc-pipeline --help"
_STATUS = "cdc-pipeline status, one table"
_LIST = f"cdc-pipeline tables list, {_TABLES} tables"
_CAPTURE = f"definitions of {_TABLES} tables for a run of capture"
_ASSET = f"definitions of {_TABLES} tables for a run of one asset"
_CONVERT = "export of one item → typed Parquet, nothing compiled"

# Code, arguments and tables in the settings.
_WORKS = {
    _HELP: (_CLI, ["--help"], 1),
    _STATUS: (_CLI, ["status"], 1),
    _LIST: (_CLI, ["tables", "list"], _TABLES),
    _CAPTURE: (_RUN, ["capture"], _TABLES),
    _ASSET: (_RUN, ["__ASSET_JOB", "orders_042", "cdc"], _TABLES),
    _CONVERT: (_EXPORT, [], 1),
}


def run() -> list[Row]:
    """Each contender and each run of it in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch, checked_out(_COMMIT) as earlier:
        folder = Path(scratch).resolve()
        _write_lake(folder)
        trees = {"ours": _ROOT} | ({_BEFORE: earlier} if earlier else {})
        return [
            (work, name, cheapest(_RUNS, partial(_call, folder, tree, work)))
            for work in _WORKS
            for name, tree in trees.items()
        ]


def _write_lake(folder: Path) -> None:
    """A small lake with a published table, and settings of one table and of many."""
    built = LakeBuilder.at(folder)
    built.start()
    built.stage({"a": {"n": {"N": "1"}}})
    built.land([change("b", 1, {"n": {"N": "2"}})])
    built.read_to(START_US + 60_000_000)
    publish_current_state(built.table_lake)
    for count in (1, _TABLES):
        names = ["orders"] if count == 1 else [f"orders_{n:03}" for n in range(count)]
        lines = [f"  - name: {name}" for name in names]
        text = "\n".join([f"lake: {folder / 'lake'}", "region: us-east-1", "tables:", *lines])
        _settings(folder, count).write_text(text + "\n", "utf-8")


def _settings(folder: Path, tables: int) -> Path:
    return folder / f"settings-{tables}.yaml"


def _call(folder: Path, tree: Path, work: str) -> Cost:
    code, arguments, tables = _WORKS[work]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "PYTHONPATH": str(tree),
            "CDC_PIPELINE_CONFIG": str(_settings(folder, tables)),
            "NUMBA_CACHE_DIR": f"{scratch}/numba",
        }
        done = subprocess.run(
            [sys.executable, "-c", _BEGIN + code + _END, *(arguments or [scratch])],
            cwd=scratch,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        sys.exit(f"{work} failed:\n{done.stderr}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _at_most(claim: str, bound: float, work: str) -> Target:
    return Target(claim, False, bound, lambda costs: costs[work, "ours"].per_row)


TARGETS = [
    _at_most("showing the help: CPU s", 0.5, _HELP),
    _at_most("status of a table: CPU s", 0.5, _STATUS),
    _at_most(f"list of {_TABLES} tables: CPU s", 0.5, _LIST),
    _at_most(f"definitions of {_TABLES} tables for a run of capture: CPU s", 1, _CAPTURE),
    _at_most(f"definitions of {_TABLES} tables for a run of one asset: CPU s", 1, _ASSET),
    _at_most("export of one item, nothing compiled: CPU s", 1.5, _CONVERT),
]
