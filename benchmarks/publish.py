"""Publishing few changes of a large table, beside the version that rewrote the whole state.

Each version writes a lake of its own, lands the same changes of random keys and publishes them. The
other version runs from a worktree of its commit, so a clone with its history is needed. Then the
state is published again and again and read by DuckDB, beside the state right after a fold.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import duckdb

from benchmarks.lake_data import generator
from benchmarks.measure import Cost, Row, Target, measure, peak_mb
from benchmarks.orders_lake import OrdersLake, changes_of

ITEMS = int(os.environ.get("PUBLISH_ITEMS", "10000000"))
CHANGES = 10_000
PUBLICATIONS = 60
BEFORE = "f5fdea5"
_PUBLISH = f"publish {CHANGES:,} changes into {ITEMS:,} items"
_BYTES = f"{_PUBLISH}: new files, bytes for CPU seconds"
_GROUP = f"group {ITEMS:,} items by a column, after {PUBLICATIONS} publications"
_ALL = f"read {ITEMS:,} items whole, after {PUBLICATIONS} publications"
_QUERIES = {
    _GROUP: "SELECT country, count(*), sum(total) FROM {} GROUP BY country",
    _ALL: "SELECT sum(strlen(_item)), max(_order_key) FROM {}",
}
OURS, FOLDED, EARLIER = "ours", "right after a fold", f"build {BEFORE}"

_EARLIER_SCRIPT = """
import sys
from pathlib import Path
from benchmarks.measure import measure, report
from benchmarks.orders_lake import OrdersLake
from cdc_pipeline.lake.current_state import publish_current_state
from cdc_pipeline_tests.lake.builder import LakeBuilder

folder, items = Path(sys.argv[1]), int(sys.argv[2])
lake = LakeBuilder.at(folder)
report(measure(lambda: publish_current_state(lake.lake, lake.table).changes_folded))
"""
