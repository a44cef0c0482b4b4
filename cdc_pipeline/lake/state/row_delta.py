"""Publication of few changes: a row delta over the published files, which stay as they are.

Its cost follows the changes: the items after them become one data file, and the places of the rows
that they replace one delete file. With other columns or too many dead rows, the whole state is
folded instead (`lake.publish.current_state`).
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import log
from pathlib import Path

import duckdb
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.items.columns import Column
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.duckdb_session import FILE_ROWS, literal, open_duckdb
from cdc_pipeline.lake.engine.folding import (
    CHANGED,
    FEW_KEYS,
    REPLACED,
    create_effective,
    create_indexed_base,
    create_tombstones,
    create_touched_base,
    create_winners,
)
from cdc_pipeline.lake.engine.item_table import (
    TypedResult,
    description_text,
    max_order_key,
    prior_columns,
    prior_misfits,
    prior_stats,
    size_properties,
    sorted_batches,
    spool_narrow,
    spooled,
    typed_reader,
)
from cdc_pipeline.lake.engine.live_rows import create_dead_places, dead_rows, placed_relation
from cdc_pipeline.lake.engine.masking import masking_functions, masking_of
from cdc_pipeline.lake.engine.place_index import place_index
from cdc_pipeline.lake.iceberg.evolution import holds
from cdc_pipeline.lake.iceberg.files import LiveFiles, data_files, live_files
from cdc_pipeline.lake.iceberg.row_delta import RowDelta
from cdc_pipeline.lake.iceberg.tables import delta_snapshots
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.base import Base, is_typed_alike, require_whole, watermarks
from cdc_pipeline.lake.state.columns import plan_columns
from cdc_pipeline.lake.state.tombstones import append_tombstones, can_append, replace_tombstones
from cdc_pipeline.transform.pinned_types import count_misfits
from cdc_pipeline.transform.shred import merge_stats, typed_schema

SMALL_ITEMS = 20_000
"""Items up to which a whole fold costs no more than a row delta, and reads faster."""

_TIER_FILES = 8
_FULL_FILE_BYTES = 64 << 20
_DELETE_FILES = 8
_KEPT = timedelta(hours=1)
"""How long snapshots of row deltas are kept; engines that began to read them go on, because files
stay longer (`maintenance.unreferenced_hours`)."""


@dataclass(frozen=True)
class _Effect:
    """What the changes do to the published rows: numbers of rows."""

    added: int
    replaced: int
    deletes: int


def publish_row_delta(
    table: TableLake, state: LogState, base: Base, delta: list[LandedObject]
) -> TypedResult | None:
    """Publish the changes as a row delta; None: the whole state must be folded instead.

    Tombstones are committed first, as by a fold. Raises `CommitConflictError`, `LakeError`,
    `SchemaContractError`, `SettingsError`.
    """
    if (
        base.table is not base.over
        or base.items <= SMALL_ITEMS
        or not base.is_counted
        # So many seldom touch few items, and a row delta would look for their places in vain.
        or sum(landed.rows for landed in delta) >= base.items
        or not is_typed_alike(table.settings, base)
    ):
        return None
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    live = live_files(base.table)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
        masking_functions(connection, masking),
    ):
        alive = create_dead_places(connection, live)
        require_whole(table.settings, base, alive)
        tombstones = create_winners(connection, table, delta, touched_only=True)
        _create_base(connection, base, live, delta)
        create_effective(connection)
        effect = _effect(connection)
        most = live.rows * table.lake.settings.current_state.fold_percent / 100
        if live.rows - alive + effect.replaced > most:
            return None
        spool = Path(folder) / "changed.parquet"
        changed = spool_narrow(connection, CHANGED, spool)
        stats = merge_stats(prior_stats(base.table), changed.stats)
        columns, properties = plan_columns(table, base.table, masking, beside=True)(stats)
        if not _fit_beside(base, columns):
            return None
        _commit_tombstones(connection, table, tombstones, effect, masking, base)
        properties |= watermarks(base, state)
        if not effect.added and not effect.replaced:
            committed = table.lake.iceberg.set_properties(base.table, properties)
            return TypedResult(committed, prior_columns(base.table), base.items)
        rows, places, removed = _with_merges(connection, base, live, effect, spool)
        misfits = Counter(prior_misfits(base.table))
        misfits.update(count_misfits(spooled(spool), columns, stats))
        items = base.items + effect.added - effect.replaced
        newest = _greater(max_order_key(base.table), changed.max_order_key)
        committed = table.lake.iceberg.change_rows(
            base.table,
            RowDelta(
                typed_reader(sorted_batches(connection, rows), columns, stats),
                dead_rows(connection, places, live),
                live,
                removed,
            ),
            typed_schema(columns),
            properties | size_properties(items, newest),
            described=description_text(stats, columns, misfits),
            expired=_expired(base.table),
        )
    return TypedResult(committed, columns, items)


def _create_base(
    connection: duckdb.DuckDBPyConnection, base: Base, live: LiveFiles, delta: list[LandedObject]
) -> None:
    stored = LiveFiles(live.data, [])  # the dead rows of the touched items are dropped later
    rows = placed_relation(connection, base.table, stored)
    are_many = sum(landed.rows for landed in delta) > FEW_KEYS
    index = place_index(base.table, live) if are_many else None
    newest = max_order_key(base.table)
    if index is None or newest is None:
        create_touched_base(connection, rows)
        return
    others = [number for number in range(len(live.data)) if number not in index.files]
    rest = placed_relation(connection, base.table, stored, others)
    create_indexed_base(connection, rows, rest, index, newest)


def _with_merges(
    connection: duckdb.DuckDBPyConnection,
    base: Base,
    live: LiveFiles,
    effect: _Effect,
    spool: Path,
) -> tuple[str, str, set[str]]:
    """Return SQL for the rows of the new file and for the new dead places, and the files to drop.

    The live rows of merged files move into the new file, and the places in them are not needed any
    more. Delete files are merged with the data files, or when there are eight of them.
    """
    merged = merged_files(live, effect.added)
    rows = f"SELECT * FROM read_parquet({literal(str(spool))})"
    places = REPLACED
    removed = {live.data[index].data_file.file_path for index in merged}
    if merged or len(live.deletes) >= _DELETE_FILES - 1:
        removed |= {entry.data_file.file_path for entry in live.deletes}
        places = f"{places} UNION ALL SELECT place FROM dead_places"
    if merged:
        kept = placed_relation(connection, base.table, live, merged)
        rows += (
            " UNION ALL SELECT _key, _order_key, _item, _write_time_us "
            f"FROM {kept} WHERE place NOT IN ({REPLACED})"
        )
        listed = ", ".join(map(str, merged))
        places = f"SELECT place FROM ({places}) WHERE place // {FILE_ROWS} NOT IN ({listed})"
    return rows, places, removed


def _effect(connection: duckdb.DuckDBPyConnection) -> _Effect:
    (row,) = connection.execute(
        "SELECT count(*) FILTER (op <> 'D'), count(replaces), count(*) FILTER (op = 'D') "
        "FROM effective"
    ).fetchall()
    return _Effect(*row)


def _fit_beside(base: Base, columns: list[Column]) -> bool:
    """Whether the published rows can stay as they are beside rows with these columns.

    A column of an attribute that published items have already would be empty in their rows.
    """
    known = {column.attribute: column.name for column in prior_columns(base.table)}
    return holds(base.table, typed_schema(columns)) and all(
        known.get(column.attribute, column.name) == column.name
        and (column.attribute in known or column.attribute not in prior_stats(base.table))
        for column in columns
    )


def _commit_tombstones(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    tombstones: IcebergTable | None,
    effect: _Effect,
    masking: Masking,
    base: Base,
) -> None:
    if not effect.deletes:
        return
    if tombstones is not None and can_append(tombstones):
        append_tombstones(connection, table, tombstones)
        return
    create_tombstones(connection, data_files(tombstones) if tombstones else [])
    replace_tombstones(connection, table, tombstones, masking, base.generation)


def merged_files(live: LiveFiles, added: int) -> list[int]:
    """Return the indexes of the small files that a publication of `added` rows merges with its own.

    Files of about the same size are merged once there are eight with the new one, so that a row is
    written again once for each power of eight, and readers open few files.
    """
    small = {
        index: entry.data_file.record_count
        for index, entry in enumerate(live.data)
        if entry.data_file.file_size_in_bytes < _FULL_FILE_BYTES
    }
    merged: list[int] = []
    rows = added
    while True:
        peers = [i for i in small if i not in merged and _tier(small[i]) <= _tier(rows)]
        if len(peers) + 1 < _TIER_FILES:
            return sorted(merged)
        merged += peers
        rows += sum(small[index] for index in peers)


def _tier(rows: int) -> int:
    return int(log(max(rows, 1), _TIER_FILES))


def _greater(one: str | None, other: str | None) -> str | None:
    """Return the greater order key; None: one of them is unknown."""
    return None if one is None or other is None else max(one, other)


def _expired(table: IcebergTable) -> list[int]:
    until = datetime.now(UTC) - _KEPT
    return delta_snapshots(table, until)
