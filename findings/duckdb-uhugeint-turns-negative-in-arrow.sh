#!/usr/bin/env bash
# DuckDB 2.0.0: a UHUGEINT of 2^127 or more is a negative number in Arrow, without an error.
#
# Guess: Arrow has no unsigned 128-bit integer, so such a column comes out as text or as decimal256, or the export raises.
# Seen: the column is decimal128(38, 0), and the 128 bits are taken for signed ones: the largest value becomes -1, 2^127
# becomes -2^127. Python's fetchall has the right numbers. HUGEINT is exact up to its largest value, although that has 39
# digits and the Arrow type says 38. Whoever keeps counters, hashes or numbers of 38 digits as UHUGEINT and goes on in Arrow
# (Polars, PyIceberg, Flight) gets other numbers.
#
# Output: rows: 2^128-1 2^127 2^127-1 / arrow: decimal128(38, 0) -1 -2^127 2^127-1
#
# Needs Python 3.11; takes half a minute. Exits 1 if any of it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'duckdb==2.0.0' 'pyarrow==26.0.1'
"$work/venv/bin/python" - <<'PYTHON'
import sys

import duckdb

HALF = 2**127
spelled = {2 * HALF - 1: "2^128-1", HALF: "2^127", HALF - 1: "2^127-1", -1: "-1", -HALF: "-2^127"}
query = f"SELECT {2 * HALF - 1}::UHUGEINT AS most, {HALF}::UHUGEINT AS half, {HALF - 1}::HUGEINT AS signed"
rows = duckdb.sql(query).fetchall()[0]
table = duckdb.sql(query).to_arrow_table()
arrow = [int(column[0].as_py()) for column in table.columns]
types = {str(field.type) for field in table.schema}
print("rows:", *(spelled[n] for n in rows), "/ arrow:", *types, *(spelled.get(n, n) for n in arrow))
wanted = [-1, -HALF, HALF - 1]
sys.exit(0 if list(rows) == [2 * HALF - 1, HALF, HALF - 1] and arrow == wanted and types == {"decimal128(38, 0)"} else 1)
PYTHON
