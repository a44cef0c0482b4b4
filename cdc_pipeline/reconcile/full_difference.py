"""The full difference between a new export and current_state, by item.

Both sides are first compared by one digest per range of hashed keys, in one pass and with bounded
memory; only ranges with different digests are joined by key. The lake's side is the published,
masked state as of the export's time.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import duckdb
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.duckdb_session import files_relation, landed_relation, open_duckdb
from cdc_pipeline.lake.engine.folding import create_base, create_effective, create_winners
from cdc_pipeline.lake.engine.live_rows import version_relation
from cdc_pipeline.lake.engine.masking import masked_column, masking_functions, masking_of
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.base import Base
from cdc_pipeline.lake.upkeep.verify import readable_files
from cdc_pipeline.reconcile.sample import Difference
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline.transform.sql import load_sql

_ITEMS_PER_RANGE = 10_000
_MAX_RANGES = 1 << 16
MOST_LISTED = 1000


@dataclass(frozen=True)
class FullDifference:
    """Result of a comparison of all items.

    `counts`: differences by kind; `differences`: the first of them by key, at most `MOST_LISTED`.
    `moving`: exact keys of items that differ and changed about the export's time or later. The
    export does not prove their state, so consistent reads decide.
    """

    items: int
    ranges: int
    ranges_joined: int
    counts: dict[str, int]
    differences: list[Difference]
    moving: list[str]


def compare_with_export(
    table: TableLake, base: Base, exported: Baseline, state: LogState
) -> FullDifference:
    """Compare a staged export with `base` and the changes landed up to the export's time.

    `state`: the log's state after capture has passed the handover of the export. Raises `LakeError`
    for unreadable files.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    snapshot = table.iceberg("snapshot")
    assert snapshot is not None  # committed, by the log
    with (
        readable_files(table.settings),
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
        masking_functions(connection, masking),
    ):
        _create_lake_items(connection, table, base, exported, state)
        _create_export_items(connection, snapshot, exported, masking)
        ranges = min(max(1, (exported.items or 0) // _ITEMS_PER_RANGE), _MAX_RANGES)
        items, differing = _compare_ranges(connection, ranges)
        if not differing:
            return FullDifference(items, ranges, 0, {}, [], [])
        _join(connection, ranges, differing)
        moving = _create_moving(connection, table, exported, state)
        settled = "FROM differences WHERE item_key NOT IN (SELECT item_key FROM moving)"
        counts = connection.execute(f"SELECT kind, count(*) {settled} GROUP BY kind").fetchall()
        rows = connection.execute(
            f"SELECT kind, item_key, order_key {settled} ORDER BY item_key LIMIT {MOST_LISTED}"
        ).fetchall()
        listed = [Difference(*row) for row in rows]
        return FullDifference(items, ranges, len(differing), dict(counts), listed, moving)


def _create_lake_items(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    base: Base,
    exported: Baseline,
    state: LogState,
) -> None:
    """Create view `lake_items`: published items after the changes up to the export's time."""
    at_us = exported.export_time_us
    delta = state.delta(generation=base.generation, after=base.after)
    past = [landed for landed in delta if landed.min_write_us <= at_us]
    rows = version_relation(connection, base.table, None)
    create_base(connection, table.settings, rows, Masking())  # masked already
    create_winners(connection, table, past, at_us)
    create_effective(connection)
    connection.execute(
        f"CREATE TEMP VIEW lake_items AS SELECT item_key, order_key, item FROM ({load_sql('fold')})"
    )


def _create_export_items(
    connection: duckdb.DuckDBPyConnection,
    snapshot: IcebergTable,
    exported: Baseline,
    masking: Masking,
) -> None:
    """Create view `export_items`: the exported items, masked by the rules of the published ones."""
    files = files_relation(connection, data_files(snapshot, exported.snapshot_id), typed_schema([]))
    connection.execute(
        f"CREATE TEMP VIEW export_items AS SELECT {masked_column(masking, '_key')} AS item_key, "
        f"{masked_column(masking, '_item')} AS item FROM {files}"
    )


def _compare_ranges(connection: duckdb.DuckDBPyConnection, ranges: int) -> tuple[int, list[int]]:
    """Return the number of exported items, and the key ranges in which the two sides differ."""

    def digests(side: str) -> str:
        return (
            f"(SELECT hash(item_key) % {ranges} AS key_range, count(*) AS items, "
            f"bit_xor(hash(item_key, item)) AS digest FROM {side} GROUP BY key_range)"
        )

    rows = connection.execute(
        "SELECT coalesce(l.key_range, e.key_range), coalesce(e.items, 0), "
        "l.items IS DISTINCT FROM e.items OR l.digest IS DISTINCT FROM e.digest "
        f"FROM {digests('lake_items')} AS l FULL JOIN {digests('export_items')} AS e "
        "ON l.key_range = e.key_range"
    ).fetchall()
    items = sum(items for _, items, _ in rows)
    return items, sorted(key_range for key_range, _, differs in rows if differs)


def _join(connection: duckdb.DuckDBPyConnection, ranges: int, differing: list[int]) -> None:
    """Create table `differences`: items of the differing ranges that are not equal."""
    listed = ", ".join(map(str, differing))
    chosen = f"WHERE hash(item_key) % {ranges} IN ({listed})"
    connection.execute(
        "CREATE TEMP TABLE differences AS SELECT CASE WHEN l.item_key IS NULL "
        "THEN 'missing in the lake' WHEN e.item_key IS NULL THEN 'not in the source' "
        "ELSE 'different' END AS kind, coalesce(l.item_key, e.item_key) AS item_key, l.order_key "
        f"FROM (SELECT * FROM lake_items {chosen}) AS l "
        f"FULL JOIN (SELECT * FROM export_items {chosen}) AS e "
        "ON l.item_key = e.item_key WHERE l.item IS DISTINCT FROM e.item"
    )


def _create_moving(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    exported: Baseline,
    state: LogState,
) -> list[str]:
    """Create table `moving`: items that changed about the export's time or later; return the keys.

    The keys are exact, and those of differing items only.

    An export is exact to about a minute (docs/aws_facts.md, exports), which the margin exceeds;
    times of DynamoDB Streams are whole seconds.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    margin_us = int((table.lake.settings.handover_margin_seconds + 1) * 1_000_000)
    since_us = exported.export_time_us - margin_us
    later = [landed for landed in state.objects.values() if landed.max_write_us >= since_us]
    connection.execute(
        f"CREATE TEMP TABLE moving AS SELECT keys, {masked_column(masking, 'keys')} AS item_key "
        "FROM (SELECT DISTINCT keys "
        f"FROM {landed_relation(connection, table.lake, later, fold=True)} "
        f"WHERE write_time_us >= {since_us})"
    )
    rows = connection.execute(
        "SELECT keys FROM moving WHERE item_key IN (SELECT item_key FROM differences) ORDER BY keys"
    ).fetchall()
    return [keys for (keys,) in rows]
