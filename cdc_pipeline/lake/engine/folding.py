"""Inputs of a fold as views and tables of one DuckDB: base, changes, tombstones, and winners."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.lake.engine.duckdb_session import files_relation, landed_relation, literal
from cdc_pipeline.lake.engine.masking import (
    masked_column,
    masking_functions,
    masking_of,
    published_rules,
    require_maskable_keys,
)
from cdc_pipeline.lake.engine.place_index import PlaceIndex
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.shred import NARROW_SCHEMA
from cdc_pipeline.transform.sql import load_sql

TOMBSTONE_SCHEMA = pa.schema(
    [NARROW_SCHEMA.field(name) for name in ("item_key", "order_key", "write_time_us")]
)
CHANGED = (
    "SELECT c.item_key, c.order_key, c.item, c.write_time_us FROM changes AS c "
    "JOIN effective AS e ON e.place = c.place WHERE e.op <> 'D'"
)
"""The items after the effective changes, without deleted ones."""

REPLACED = "SELECT replaces AS place FROM effective WHERE replaces IS NOT NULL"
"""The places of the rows that the effective changes replace or delete."""

_INLINED = 12  # bytes
FEW_KEYS = 200
"""Keys up to which row groups of the base are skipped by their bounds."""


def create_base(
    connection: duckdb.DuckDBPyConnection, table: Table, rows: str, masking: Masking
) -> None:
    """Create view `base`: items, masked; read it within `masking_functions`.

    `rows`: SQL of `live_rows.placed_relation`, whose `place` is the same in every read.
    """
    require_maskable_keys(connection, table, masking, f"SELECT _key FROM {rows}")
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW base AS SELECT {masked_column(masking, '_key')} AS item_key, "
        f"_order_key AS order_key, {masked_column(masking, '_item')} AS item, "
        f"_write_time_us AS write_time_us, place FROM {rows}"
    )


def create_touched_base(connection: duckdb.DuckDBPyConnection, rows: str) -> None:
    """Create table `base`: keys, order keys and places of the items that the winners touch.

    It takes the place of the whole base in `create_effective`. `rows`: SQL with `_key`,
    `_order_key` and `place`, which may include dead rows: those in table `dead_places` are dropped.
    """
    _start_touched_base(connection)
    _join_touched(connection, rows, "touched")
    _finish_touched_base(connection)


def create_indexed_base(
    connection: duckdb.DuckDBPyConnection, rows: str, others: str, index: PlaceIndex, newest: str
) -> None:
    """Do `create_touched_base` with an index of the large files.

    `others`: SQL of the rows of all other files. `newest`: an order key that no row exceeds. Later
    changes replace whatever row their item has, so they need its place only, and have `newest` as
    its order key; for others the row is read.
    """
    _start_touched_base(connection)
    late = f"order_key <= {literal(newest)}"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE late AS FROM touched WHERE {late}")
    connection.execute(f"DELETE FROM touched WHERE {late}")
    _join_touched(connection, rows, "late")
    _join_touched(connection, others, "touched")
    index.create_found(connection, "SELECT item_key FROM touched")
    connection.execute(
        f"INSERT INTO base SELECT item_key, {literal(newest)} AS order_key, place FROM found"
    )
    connection.execute("DROP TABLE late; DROP TABLE found")
    _finish_touched_base(connection)


def _start_touched_base(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE touched AS SELECT c.item_key, c.order_key "
        "FROM changes AS c JOIN winners AS w ON w.place = c.place"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE base (item_key VARCHAR, order_key VARCHAR, place BIGINT)"
    )


def _join_touched(connection: duckdb.DuckDBPyConnection, rows: str, touched: str) -> None:
    keys = connection.execute(f"SELECT item_key FROM {touched} LIMIT {FEW_KEYS + 1}").fetchall()
    if not keys:
        return
    joined = f"JOIN {touched} AS k ON k.item_key = b._key"
    if len(keys) <= FEW_KEYS:
        # With the keys as literals, DuckDB reads only row groups whose bounds include one.
        joined = f"WHERE b._key IN ({', '.join(literal(key) for (key,) in keys)})"
    with written_join_order(connection):
        connection.execute(
            "INSERT INTO base SELECT b._key AS item_key, b._order_key AS order_key, b.place "
            f"FROM {rows} AS b {joined}"
        )


def _finish_touched_base(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("DELETE FROM base WHERE place IN (SELECT place FROM dead_places)")
    connection.execute("DROP TABLE touched")


@contextmanager
def written_join_order(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Keep the order of joins as written, the small side on the right.

    DuckDB cannot know that winners are few: it estimates one row for the base, and would hold all
    of it in memory.
    """
    connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    yield
    connection.execute("RESET disabled_optimizers")


def create_winners(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    delta: Sequence[LandedObject],
    until_us: int | None = None,
    *,
    touched_only: bool = False,
) -> IcebergTable | None:
    """Create views `tombstones` and `changes`, and table `winners` with each item's last change.

    All are masked by the settings' rules; `changes` has at least the winners' rows. Tombstones
    under other rules are left out: those newer than the base are in their delta as well.
    `until_us`: later changes are ignored. `touched_only`: `tombstones` has only those of the
    winners' items. Returns the Iceberg table of tombstones as loaded.
    """
    tombstones = table.iceberg("tombstones")
    create_delta_winners(connection, table, delta, until_us)
    create_tombstones(connection, usable_tombstones(table, tombstones), touched_only=touched_only)
    return tombstones


def create_delta_winners(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    delta: Sequence[LandedObject],
    until_us: int | None = None,
) -> None:
    """Do `create_winners` without tombstones."""
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    _create_changes(connection, table.lake, delta, until_us)
    require_maskable_keys(connection, table.settings, masking, "SELECT item_key FROM changes")
    find_winners(connection, *_order_keys(delta))
    if masking:
        _mask_winners(connection, masking)


def usable_tombstones(table: TableLake, tombstones: IcebergTable | None) -> list[str]:
    """Return the files of tombstones that are masked by the settings' rules."""
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    is_usable = tombstones is not None and masking.made(published_rules(tombstones))
    return data_files(tombstones) if tombstones and is_usable else []


def create_exact_winners(
    connection: duckdb.DuckDBPyConnection, lake: Lake, delta: Sequence[LandedObject]
) -> None:
    """Do `create_winners` without tombstones and masking, for rows that are only compared."""
    create_tombstones(connection, [])
    _create_changes(connection, lake, delta, None)
    find_winners(connection, *_order_keys(delta))


def create_tombstones(
    connection: duckdb.DuckDBPyConnection,
    files: list[str],
    *,
    touched_only: bool = False,
    where: str = "true",
) -> None:
    """Create view `tombstones` with one for each item; publications append newer ones.

    `where`: a condition for their rows. `touched_only`: of the winners' items; the table `winners`
    must exist when the view is read.
    """
    relation = f"{files_relation(connection, files, TOMBSTONE_SCHEMA)} WHERE {where}"
    if touched_only:
        relation += (
            " AND item_key IN (SELECT c.item_key FROM changes AS c "
            "JOIN winners AS w ON w.place = c.place)"
        )
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW tombstones AS SELECT item_key, max(order_key) AS order_key, "
        "max_by(write_time_us, order_key) AS write_time_us "
        f"FROM {relation} GROUP BY item_key"
    )


def _create_changes(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    delta: Sequence[LandedObject],
    until_us: int | None,
) -> None:
    conditions = ["true"]
    if any(landed.bare for landed in delta):
        # An event without images has no item; the read that follows it does.
        conditions.append("(op = 'D' OR new_image IS NOT NULL)")
    if until_us is not None:
        conditions.append(f"write_time_us <= {until_us}")
    landed = landed_relation(connection, lake, delta, fold=True)
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW changes AS SELECT keys AS item_key, order_key, op, "
        f"new_image AS item, write_time_us, place FROM {landed} WHERE {' AND '.join(conditions)}"
    )


def _order_keys(delta: Sequence[LandedObject]) -> tuple[str, str]:
    """Return the minimum and maximum order key; "" without changes."""
    min_keys = (order_key(landed.generation, landed.min_position) for landed in delta)
    max_keys = (order_key(landed.generation, landed.max_position) for landed in delta)
    return min(min_keys, default=""), max(max_keys, default="")


def find_winners(connection: duckdb.DuckDBPyConnection, min_key: str, max_key: str) -> None:
    """Create table `winners` from the view `changes`, given the bounds of its order keys.

    The common prefix of the bounds is common to all keys, so it can be cut off. DuckDB stores up to
    12 bytes of a text within its tables and longer texts beside them, which costs a third more for
    large deltas. Of times within some hours, at most 12 bytes remain; of sequence numbers more, if
    there are many shards.
    """
    shared = len([*takewhile(lambda pair: pair[0] == pair[1], zip(min_key, max_key, strict=False))])
    rest = f"substr(order_key, {shared + 1})" if len(max_key) - shared <= _INLINED else "order_key"
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE winners AS "
        f"WITH changes AS (SELECT item_key, {rest} AS order_key, place FROM temp.changes) "
        f"{load_sql('winners')}"
    )


def _mask_winners(connection: duckdb.DuckDBPyConnection, masking: Masking) -> None:
    """Reduce `changes` to the winners, each masked once: masking is the most expensive step."""
    with masking_functions(connection, masking):
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE masked_changes AS SELECT "
            f"{masked_column(masking, 'c.item_key')} AS item_key, c.order_key, c.op, "
            f"{masked_column(masking, 'c.item')} AS item, c.write_time_us, c.place "
            "FROM changes AS c JOIN winners AS w ON w.place = c.place"
        )
    connection.execute("CREATE OR REPLACE TEMP VIEW changes AS SELECT * FROM masked_changes")
    connection.execute("CREATE OR REPLACE TEMP TABLE winners AS SELECT place FROM changes")


def create_effective(connection: duckdb.DuckDBPyConnection) -> None:
    """Create table `effective` from `winners`; a fold reads it beside `base` and `changes`.

    If `base` is masked, call it within `masking_functions`. Drops `winners` to save memory.
    """
    with written_join_order(connection):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE effective AS {load_sql('effective')}")
    connection.execute("DROP TABLE winners")
