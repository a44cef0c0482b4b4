#!/usr/bin/env bash
# PySpark 4.1.4 with PyArrow 26.0.1: DataFrame.mapInArrow, whose functions see Arrow batches alone, needs pandas.
#
# Guess: it needs PyArrow and no pandas; its documentation names PyArrow's batches as input and output.
# Seen: defining the DataFrame raises PySparkImportError for pandas >= 2.2.0 before any task runs. The RDD of the same
# numbers does its work without either.
#
# Output: mapInArrow: PySparkImportError names pandas: True; RDD: [0, 2, 4]
#
# Needs Python 3.11 and Java 17. Exits 1 if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'pyspark==4.1.4' 'pyarrow==26.0.1'

cat >"$work/map.py" <<'PYTHON'
from pyspark.sql import SparkSession

options = {
    "spark.master": "local[1]",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.log.level": "OFF",
}
spark = SparkSession.builder.config(map=options).getOrCreate()
try:
    rows = spark.range(3).mapInArrow(lambda batches: batches, "id long")
    shown = f"{rows.count()} rows"
except Exception as error:
    shown = f"{type(error).__name__} names pandas: {'Pandas' in str(error)}"
doubled = spark.sparkContext.parallelize(range(3), 3).map(lambda n: 2 * n).collect()
print(f"RESULT mapInArrow: {shown}; RDD: {doubled}")
spark.stop()
PYTHON
export PYSPARK_PYTHON="$work/venv/bin/python"
told=$("$PYSPARK_PYTHON" "$work/map.py" 2>/dev/null | sed -n 's/^RESULT //p')
echo "$told"
[ "$told" = "mapInArrow: PySparkImportError names pandas: True; RDD: [0, 2, 4]" ]
