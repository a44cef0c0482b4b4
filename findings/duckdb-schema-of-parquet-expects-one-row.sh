#!/usr/bin/env bash
# DuckDB 2.0.0: `read_parquet` with `schema` expects one row, whatever the files hold, so joins build on the large side.
#
# Guess: telling the columns by field id (`schema = MAP {...}`, as one reads the files of an Iceberg table) changes names and
# types only; the number of rows comes from the footers as ever, or from `explicit_cardinality`.
# Seen: the plan expects ~1 row with `schema`, also with `explicit_cardinality`, which is accepted. A join with a small table
# then puts the hash table over the Parquet files and probes it with the small table: over ten million rows in place of ten
# thousand, four times the CPU time and memory for every key. Without `schema`, also with `union_by_name`, the plan is right.
#
# Output: plain: 200000 rows expected / schema: 1 / schema and explicit_cardinality: 1 / union_by_name: 200000
#
# Needs Python 3.11; takes half a minute. Exits 1 if any of it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'duckdb==2.0.0'
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import json
import sys

import duckdb

connection = duckdb.connect()
connection.execute(
    "COPY (SELECT i AS n, 'key ' || i AS key FROM range(200000) AS r(i)) TO 'rows.parquet' (FIELD_IDS {n: 1, key: 2})"
)
schema = (
    "schema = MAP {1: {name: 'n', type: 'BIGINT', default_value: NULL}, "
    "2: {name: 'key', type: 'VARCHAR', default_value: NULL}}"
)
ways = {
    "plain": "",
    "schema": f", {schema}",
    "schema and explicit_cardinality": f", {schema}, explicit_cardinality = 200000",
    "union_by_name": ", union_by_name = true",
}
expected = {}
for name, options in ways.items():
    query = f"EXPLAIN (FORMAT json) SELECT key FROM read_parquet('rows.parquet'{options})"
    node = json.loads(connection.execute(query).fetchall()[0][1])[0]
    while node["children"]:
        node = node["children"][0]
    expected[name] = int(node["extra_info"]["Estimated Cardinality"])
print(" / ".join(f"{name}: {rows}" for name, rows in expected.items()).replace("200000", "200000 rows expected", 1))
sys.exit(0 if [*expected.values()] == [200000, 1, 1, 200000] else 1)
PYTHON
