"""Rewrites of a published state's files, dead rows included, without some items."""

import tempfile
from collections.abc import Collection
from pathlib import Path

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.lake.engine.duckdb_session import FILE_ROWS, literal, open_duckdb
from cdc_pipeline.lake.engine.item_table import (
    max_order_key,
    prior_columns,
    prior_stats,
    size_properties,
    sorted_batches,
    typed_reader,
)
from cdc_pipeline.lake.engine.live_rows import dead_rows, dead_sql, placed_relation
from cdc_pipeline.lake.engine.place_index import forget_places
from cdc_pipeline.lake.iceberg.files import LiveFiles, live_files
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.iceberg.row_delta import RowDelta
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.transform.shred import typed_schema


def rewrite_without(lake: Lake, table: IcebergTable, keys: Collection[str]) -> int:
    """Commit the table without the items of `keys`, live or dead; return the number of live ones.

    Only files that hold such a row are written again. Raises `CommitConflictError`, `LakeError`.
    """
    live = live_files(table)
    with tempfile.TemporaryDirectory() as folder, open_duckdb(lake, Path(folder)) as connection:
        listed = ", ".join(map(literal, keys))
        # Dead rows, too: the files as they are, without their delete files.
        stored = placed_relation(connection, table, LiveFiles(live.data, []))
        found = connection.execute(
            f"SELECT DISTINCT place // {FILE_ROWS} FROM {stored} WHERE _key IN ({listed})"
        ).fetchall()
        touched = sorted(index for (index,) in found)
        rows = placed_relation(connection, table, live, touched)
        removed = f"SELECT count(*) FROM {rows} WHERE _key IN ({listed})"
        ((count,),) = connection.execute(removed).fetchall() if touched else ((0,),)
        kept = (
            "SELECT _key AS item_key, _order_key AS order_key, _item AS item, "
            f"_write_time_us AS write_time_us FROM {rows} WHERE _key NOT IN ({listed})"
        )
        indexes = ", ".join(map(str, touched)) or "-1"
        dead = (
            f"SELECT DISTINCT place FROM ({dead_sql(live)}) "
            f"WHERE place // {FILE_ROWS} NOT IN ({indexes})"
        )
        columns, stats = prior_columns(table), prior_stats(table)
        leaving = [live.data[index] for index in touched] + live.deletes
        items = int(table_property(table, "items") or 0) - count
        lake.iceberg.change_rows(
            table,
            RowDelta(
                typed_reader(sorted_batches(connection, kept), columns, stats),
                dead_rows(connection, dead, live),
                live,
                {entry.data_file.file_path for entry in leaving},
                forgets=True,
            ),
            typed_schema(columns),
            size_properties(items, max_order_key(table)),
        )
    forget_places(table)
    return count
