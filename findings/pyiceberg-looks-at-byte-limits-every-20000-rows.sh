#!/usr/bin/env bash
# PyIceberg 0.12.0 on PyArrow 26.0.1: the byte limits of Parquet dictionaries and pages hold only every 20,000 rows.
#
# Guess: `write.parquet.dict-size-bytes` and `write.parquet.page-size-bytes` are limits; Iceberg's `write.parquet.page-row-limit`
# (20,000 by default) is one more, and the first that is reached counts.
# Seen: PyIceberg passes the row limit as PyArrow's `write_batch_size`, the number of rows between two looks at the byte
# limits. With the defaults a dictionary, or a page, may hold 20,000 values of any size before it ends: here 10 MB under a
# limit of 32 kB, 300 times too much, and a reader of one row decompresses all of it. A row limit of 1,024 bounds both
# (0.5 MB here, about 1,024 values), and makes a page end by its bytes.
#
# Output: rows between looks 20000: dictionary 10080022 bytes / 1024: 516115, limit 32768
#
# Needs Python 3.11; takes half a minute. Exits 1 if any of it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'pyiceberg[sql-sqlite]==0.12.0' 'pyarrow==26.0.1'
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

LIMIT = 32 << 10
rows = pa.table({"text": [f"{number:0500d}" for number in range(20_000)]})
catalog = SqlCatalog("local", uri="sqlite:///catalog.db", warehouse=f"file://{Path.cwd()}")
catalog.create_namespace("db")
sizes = {}
for name, more in (("20000", {}), ("1024", {"write.parquet.page-row-limit": "1024"})):
    properties = {
        "write.parquet.dict-size-bytes": str(LIMIT),
        "write.parquet.compression-codec": "uncompressed",
        **more,
    }
    table = catalog.create_table(f"db.rows_{name}", schema=rows.schema, properties=properties)
    table.append(rows)
    (file,) = table.inspect.files()["file_path"].to_pylist()
    column = pq.read_metadata(file.removeprefix("file://")).row_group(0).column(0)
    assert column.has_dictionary_page
    sizes[name] = column.data_page_offset - column.dictionary_page_offset
print(
    f"rows between looks 20000: dictionary {sizes['20000']} bytes / 1024: {sizes['1024']}, limit {LIMIT}"
)
sys.exit(0 if sizes["20000"] > 300 * LIMIT and 10 * LIMIT < sizes["1024"] < 20 * LIMIT else 1)
PYTHON
