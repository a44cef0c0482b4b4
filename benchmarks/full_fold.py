"""Publishing a state after as many changes as it has items: the full fold.

The earlier build, checked out of git, writes a lake and the present one lands changes in it, keys
drawn from a Zipf distribution (`benchmarks.lake_data`). Each build publishes a copy of that lake.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.earlier import checked_out, run_earlier
from benchmarks.lake_data import CHANGED_KEYS, START_US, generator
from benchmarks.measure import Row, Target, in_own_process, measure, report
from benchmarks.orders_lake import OrdersLake
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, files_relation
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.storage.changes import LANDING_SCHEMA
from cdc_pipeline.lake.storage.landing import write_object
from cdc_pipeline.lake.storage.log import new_nonce
from cdc_pipeline_tests.lake.builder import LakeBuilder

_LARGE = int(os.environ.get("FOLD_ITEMS", "10000000"))
_SMALL = _LARGE // 10
_BATCH = 1_000_000
_COMMIT = "f5fdea5"
_OURS, _BEFORE = "ours", f"build {_COMMIT}"
_LAND = "land"

_LANDED = f"""
SELECT sha256(CAST(i AS VARCHAR)) AS uuid, op,
       make_timestamp({START_US} + i * 1000)::TIMESTAMPTZ AS time_stamp,
       CASE WHEN op <> 'D' THEN item_of(k, i) END AS data, key_of(k) AS keys,
       CASE WHEN op <> 'D' THEN item_of(k, i + 1000000000) END AS new_image,
       NULL AS old_image, {START_US} + i * 1000 AS write_time_us,
       '000001.' || printf('%040d', i) AS position, printf('%021d', i) AS sequence_number,
       'shard-1' AS shard_id, md5(CAST(i AS VARCHAR)) AS event_id, false AS is_ttl_delete,
       '{DYNAMODB_STREAMS}' AS transport,
       make_timestamp({START_US} + i * 1000)::TIMESTAMPTZ AS landed_at
FROM (SELECT *, CASE WHEN chance(i, 2) < 0.03 THEN 'D' ELSE 'U' END AS op FROM ({CHANGED_KEYS}))
ORDER BY i
"""

_EARLIER = """
import sys
from pathlib import Path
from benchmarks.measure import measure, report
from benchmarks.orders_lake import OrdersLake
from cdc_pipeline.lake.current_state import publish_current_state

lake = OrdersLake(Path(sys.argv[2]), int(sys.argv[3]), 0, 0)
if sys.argv[1] == "write":
    lake.write()
else:
    table = lake.lake.settings.tables[0]
    report(measure(lambda: publish_current_state(lake.lake, table).changes_folded))
"""


def run() -> list[Row]:
    """Each step in a process of its own; the rows of both builds are compared."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, checked_out(_COMMIT) as earlier:
        if earlier is None:
            sys.exit(f"{_COMMIT} is missing: run it in a clone with the history of the project")
        for items in (10_000, _SMALL, _LARGE):  # the first compiles what the others run
            folder = Path(scratch).resolve() / str(items)
            folder.mkdir()
            run_earlier(earlier, _EARLIER, "write", folder, items)
            in_own_process("benchmarks.full_fold", _LAND, str(folder), str(items))
            copy = Path(shutil.copytree(folder, f"{folder}_copy"))
            ours = in_own_process("benchmarks.full_fold", _OURS, str(folder), str(items))
            before = run_earlier(earlier, _EARLIER, "publish", copy, items)
            _require_equal(folder, copy, items)
            shutil.rmtree(folder)
            shutil.rmtree(copy)
            rows += [(_work(items), _OURS, ours), (_work(items), _BEFORE, before)]
    return rows[2:]


def _work(items: int) -> str:
    return f"publish {items:,} changes into {items:,} items"


def _land(folder: Path, items: int) -> int:
    """Add one log entry with that many changes, in objects of a million."""
    lake = OrdersLake(folder, items, 0, 0)
    built = LakeBuilder.at(folder)
    table = built.table_lake
    table.log.catch_up(built.state)
    nonce = new_nonce()
    sql = _LANDED.format(keys=items + items // 10, changes=items)
    with generator(folder) as connection:
        connection.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = true")
        batches = arrow_batches(connection, sql, min(_BATCH, items))
        key = table.paths.landed(day_of(START_US), n=built.state.n + 1, nonce=nonce)
        objects = tuple(
            write_object(
                lake.lake.store,
                key.replace(".parquet", f"-{number}.parquet") if number else key,
                [pa.Table.from_batches([batch]).cast(LANDING_SCHEMA)],
                1,
                row_group=20_000,
            )
            for number, batch in enumerate(batches)
        )
    built.append(objects=objects, nonce=nonce)
    return sum(landed.rows for landed in objects)


def _publish(folder: Path, items: int) -> int:
    lake = OrdersLake(folder, items, 0, 0).lake
    return publish_current_state(lake.table(lake.settings.tables[0])).changes_folded


def _require_equal(one: Path, other: Path, items: int) -> None:
    """Every column of every row, and the number of rows."""
    states = []
    for folder in (one, other):
        table = OrdersLake(folder, items, 0, 0).lake.iceberg.load("orders_current_state")
        assert table is not None
        with duckdb.connect() as connection:
            files = files_relation(connection, data_files(table), pa.schema([]))
            columns = ", ".join(sorted(table.schema().column_names))
            sql = f"SELECT count(*), sum(hash({columns})), count(DISTINCT _key) FROM {files}"
            states += connection.execute(sql).fetchall()
    assert states[0] == states[1], "the two builds publish different rows"


TARGETS = [
    Target(
        f"{_work(_LARGE)}: CPU time of the build {_COMMIT}",
        True,
        2,
        lambda costs: costs[_work(_LARGE), _BEFORE].cpu / costs[_work(_LARGE), _OURS].cpu,
    ),
    Target(
        f"{_work(_LARGE)}: CPU time of a tenth of it",
        False,
        11,
        lambda costs: costs[_work(_LARGE), _OURS].cpu / costs[_work(_SMALL), _OURS].cpu,
    ),
    Target(
        f"{_work(_LARGE)}: peak memory in GB",
        False,
        1.2,
        lambda costs: costs[_work(_LARGE), _OURS].peak_mb / 1000,
    ),
]


if __name__ == "__main__":
    step, place, size = sys.argv[1:]
    steps = {_LAND: _land, _OURS: _publish}
    report(measure(lambda: steps[step](Path(place), int(size))))
