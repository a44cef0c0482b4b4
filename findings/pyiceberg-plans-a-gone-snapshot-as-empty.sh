#!/usr/bin/env bash
# PyIceberg 0.12.0: files and rows of a snapshot that the table no longer has are none, without an error.
#
# Guess: `table.scan(snapshot_id=...)` of an id that was expired raises, whatever is asked of the scan.
# Seen: `to_arrow` raises a ValueError, but `plan_files` gives no file and `count` is 0. Who plans with PyIceberg and reads
# with another engine (DuckDB, Daft, a cluster) and keeps ids of snapshots (a baseline, the bookmark of an incremental job)
# reads an expired one as an empty table.
#
# Output: kept: 2 rows / expired: 0 files, count 0, to_arrow ValueError
#
# Needs Python 3.11; takes a minute. Exits 1 if any of it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'pyiceberg[sql-sqlite]==0.12.0' 'pyarrow==26.0.1'
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys

import pyarrow as pa
from pyiceberg.catalog import load_catalog

catalog = load_catalog("local", type="sql", uri=f"sqlite:///{sys.argv[1]}/catalog.db", warehouse=sys.argv[1])
catalog.create_namespace("db")
table = catalog.create_table("db.t", schema=pa.schema([("n", pa.int64())]))
table.append(pa.table({"n": [1, 2]}))
first = table.current_snapshot().snapshot_id
table.append(pa.table({"n": [3]}))
kept = table.scan(snapshot_id=first).to_arrow().num_rows
table.maintenance.expire_snapshots().by_id(first).commit()
table = catalog.load_table("db.t")
scan = table.scan(snapshot_id=first)
files, count = len(list(scan.plan_files())), scan.count()
try:
    rows = f"{scan.to_arrow().num_rows} rows"
except Exception as error:
    rows = type(error).__name__
print(f"kept: {kept} rows / expired: {files} files, count {count}, to_arrow {rows}")
sys.exit(0 if (kept, files, count, rows) == (2, 0, 0, "ValueError") else 1)
PYTHON
