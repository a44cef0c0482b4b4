"""The full difference between a fresh export and current_state, item by item where they differ.

Both sides are first compared as a number per range of hashed keys, in one pass and with bounded
memory; only ranges whose numbers differ are joined by key. The lake's side is what readers see
(published, masked), as of the export's time.
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
from cdc_pipeline.lake.engine.masking import masked, masking_functions, masking_of
from cdc_pipeline.lake.iceberg.tables import data_files
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.current_state import Base
from cdc_pipeline.lake.upkeep.verify import readable_files
from cdc_pipeline.reconcile.sample import Difference
from cdc_pipeline.transform.shred import typed_schema
from cdc_pipeline.transform.sql import load_sql

_ITEMS_PER_RANGE = 10_000
_MOST_RANGES = 1 << 16
MOST_LISTED = 1000


@dataclass(frozen=True)
class FullDifference:
    """What a comparison of all items found.

    `counts`: differences by kind; `differences`: the first of them by key, `MOST_LISTED` at most.
    `moving`: exact keys of items that differ and changed about when the export was taken, or
    later; the export cannot say what they were, so they are left to consistent reads.
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
    """Compare a staged export with `base` and what landed over it up to the export's time.

    `state`: the log when capture has passed the handover of the export. Raises `LakeError` for
    files that cannot be read.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    snapshot = table.iceberg("snapshot")
    assert snapshot is not None  # the log says that it was committed
    with (
        readable_files(table.settings),
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
        masking_functions(connection, masking),
    ):
        _create_ours(connection, table, base, exported, state)
        _create_theirs(connection, snapshot, exported, masking)
        ranges = min(max(1, (exported.items or 0) // _ITEMS_PER_RANGE), _MOST_RANGES)
        items, differing = _compare_ranges(connection, ranges)
        if not differing:
            return FullDifference(items, ranges, 0, {}, [], [])
        _join(connection, ranges, differing)
        moving = _moving(connection, table, exported, state)
        settled = "FROM differences WHERE item_key NOT IN (SELECT item_key FROM moving)"
        counts = connection.execute(f"SELECT kind, count(*) {settled} GROUP BY kind").fetchall()
        rows = connection.execute(
            f"SELECT kind, item_key, order_key {settled} ORDER BY item_key LIMIT {MOST_LISTED}"
        ).fetchall()
        listed = [Difference(*row) for row in rows]
        return FullDifference(items, ranges, len(differing), dict(counts), listed, moving)


def _create_ours(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    base: Base,
    exported: Baseline,
    state: LogState,
) -> None:
    """View `ours`: the published items after the changes up to the export's time."""
    at_us = exported.export_time_us
    delta = state.delta(generation=base.generation, after=base.after)
    past = [landed for landed in delta if landed.min_write_us <= at_us]
    create_base(connection, table.settings, data_files(base.table), Masking())  # it is masked
    create_winners(connection, table, past, at_us)
    create_effective(connection)
    connection.execute(
        f"CREATE TEMP VIEW ours AS SELECT item_key, order_key, item FROM ({load_sql('fold')})"
    )


def _create_theirs(
    connection: duckdb.DuckDBPyConnection,
    snapshot: IcebergTable,
    exported: Baseline,
    masking: Masking,
) -> None:
    """View `theirs`: the exported items, masked as the published ones are."""
    files = files_relation(connection, data_files(snapshot, exported.snapshot_id), typed_schema([]))
    connection.execute(
        f"CREATE TEMP VIEW theirs AS SELECT {masked(masking, '_key')} AS item_key, "
        f"{masked(masking, '_item')} AS item FROM {files}"
    )


def _compare_ranges(connection: duckdb.DuckDBPyConnection, ranges: int) -> tuple[int, list[int]]:
    """How many items the export has, and the ranges in which the two sides are not the same."""

    def summed(side: str) -> str:
        return (
            f"(SELECT hash(item_key) % {ranges} AS place, count(*) AS items, "
            f"bit_xor(hash(item_key, item)) AS digest FROM {side} GROUP BY place)"
        )

    rows = connection.execute(
        "SELECT coalesce(o.place, t.place), coalesce(t.items, 0), "
        "o.items IS DISTINCT FROM t.items OR o.digest IS DISTINCT FROM t.digest "
        f"FROM {summed('ours')} AS o FULL JOIN {summed('theirs')} AS t ON o.place = t.place"
    ).fetchall()
    return sum(items for _, items, _ in rows), sorted(
        place for place, _, differs in rows if differs
    )


def _join(connection: duckdb.DuckDBPyConnection, ranges: int, differing: list[int]) -> None:
    """Table `differences`: items of the differing ranges that are not the same."""
    listed = ", ".join(map(str, differing))
    chosen = f"WHERE hash(item_key) % {ranges} IN ({listed})"
    connection.execute(
        "CREATE TEMP TABLE differences AS SELECT CASE WHEN o.item_key IS NULL "
        "THEN 'missing in the lake' WHEN t.item_key IS NULL THEN 'not in the source' "
        "ELSE 'different' END AS kind, coalesce(o.item_key, t.item_key) AS item_key, o.order_key "
        f"FROM (SELECT * FROM ours {chosen}) AS o FULL JOIN (SELECT * FROM theirs {chosen}) AS t "
        "ON o.item_key = t.item_key WHERE o.item IS DISTINCT FROM t.item"
    )


def _moving(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    exported: Baseline,
    state: LogState,
) -> list[str]:
    """Table `moving`: items that changed about the time of the export or later; their exact keys.

    An export is exact to about a minute (docs/aws_facts.md, exports), which the margin exceeds;
    times of streams are whole seconds.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    margin_us = int((table.lake.settings.handover_margin_seconds + 1) * 1_000_000)
    since_us = exported.export_time_us - margin_us
    later = [landed for landed in state.objects.values() if landed.max_write_us >= since_us]
    connection.execute(
        f"CREATE TEMP TABLE moving AS SELECT keys, {masked(masking, 'keys')} AS item_key FROM "
        f"(SELECT DISTINCT keys FROM {landed_relation(connection, table.lake, later, fold=True)} "
        f"WHERE write_time_us >= {since_us})"
    )
    rows = connection.execute(
        "SELECT keys FROM moving WHERE item_key IN (SELECT item_key FROM differences) ORDER BY keys"
    ).fetchall()
    return [keys for (keys,) in rows]
