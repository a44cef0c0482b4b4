"""What a fold reads, as views and tables of one DuckDB: base, changes, tombstones, and who wins."""

from collections.abc import Sequence
from itertools import takewhile

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.changes.order import order_key
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.lake.engine.duckdb_session import files_relation, landed_relation, place_in
from cdc_pipeline.lake.engine.masking import (
    masked,
    masking_functions,
    masking_of,
    published_rules,
    require_maskable_keys,
)
from cdc_pipeline.lake.iceberg.tables import data_files
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.model import Table
from cdc_pipeline.transform.shred import NARROW_SCHEMA, typed_schema
from cdc_pipeline.transform.sql import load_sql

TOMBSTONE_SCHEMA = pa.schema(
    [NARROW_SCHEMA.field(name) for name in ("item_key", "order_key", "write_time_us")]
)
_INLINED = 12  # bytes


def create_base(
    connection: duckdb.DuckDBPyConnection, table: Table, files: list[str], masking: Masking
) -> None:
    """View `base`: the items in `files`, to be masked; read it within `masking_functions`.

    `place` tells its rows apart, in every reading of the view.
    """
    items = files_relation(connection, files, typed_schema([]))
    require_maskable_keys(connection, table, masking, f"SELECT _key FROM {items}")
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW base AS SELECT {masked(masking, '_key')} AS item_key, "
        f"_order_key AS order_key, {masked(masking, '_item')} AS item, "
        f"_write_time_us AS write_time_us, {place_in(files)} AS place FROM {items}"
    )


def create_winners(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    delta: Sequence[LandedObject],
    until_us: int | None = None,
) -> IcebergTable | None:
    """View `tombstones`, view `changes` and table `winners`: where each item's last change stands.

    All are masked as the settings say, `changes` has those rows at least. Tombstones that are
    masked otherwise are left out: where they are younger than the base, their delta has them all.
    `until_us`: changes written later do not count. Returns the tombstones' table as it was read.
    """
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    stones = table.iceberg("tombstones")
    files = data_files(stones) if stones and masking.made(published_rules(stones)) else []
    _create_tombstones(connection, files)
    _create_changes(connection, table.lake, delta, until_us)
    require_maskable_keys(connection, table.settings, masking, "SELECT item_key FROM changes")
    find_winners(connection, *_order_keys(delta))
    if masking:
        _mask_winners(connection, masking)
    return stones


def create_exact_winners(
    connection: duckdb.DuckDBPyConnection, lake: Lake, delta: Sequence[LandedObject]
) -> None:
    """As `create_winners`, without tombstones and masking: for what is compared, not shown."""
    _create_tombstones(connection, [])
    _create_changes(connection, lake, delta, None)
    find_winners(connection, *_order_keys(delta))


def _create_tombstones(connection: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    relation = files_relation(connection, files, TOMBSTONE_SCHEMA)
    connection.execute(f"CREATE OR REPLACE TEMP VIEW tombstones AS SELECT * FROM {relation}")


def _create_changes(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    delta: Sequence[LandedObject],
    until_us: int | None,
) -> None:
    conditions = ["true"]
    if any(landed.bare for landed in delta):
        # Such an event says nothing of the item; the read behind it does.
        conditions.append("(op = 'D' OR new_image IS NOT NULL)")
    if until_us is not None:
        conditions.append(f"write_time_us <= {until_us}")
    landed = landed_relation(connection, lake, delta, fold=True)
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW changes AS SELECT keys AS item_key, order_key, op, "
        f"new_image AS item, write_time_us, place FROM {landed} WHERE {' AND '.join(conditions)}"
    )


def _order_keys(delta: Sequence[LandedObject]) -> tuple[str, str]:
    """The least and the greatest, "" of no changes."""
    least = (order_key(landed.generation, landed.min_position) for landed in delta)
    greatest = (order_key(landed.generation, landed.max_position) for landed in delta)
    return min(least, default=""), max(greatest, default="")


def find_winners(connection: duckdb.DuckDBPyConnection, least: str, greatest: str) -> None:
    """Table `winners` from the view `changes`, whose order keys lie between two.

    What these begin with, all begin with, so it orders nothing. DuckDB keeps up to 12 bytes of a
    text within its tables, longer ones beside them, which costs a third more for large deltas.
    That much is left of times within some hours; of sequence numbers more, if there are many
    shards.
    """
    shared = len([*takewhile(lambda at: at[0] == at[1], zip(least, greatest, strict=False))])
    rest = f"substr(order_key, {shared + 1})" if len(greatest) - shared <= _INLINED else "order_key"
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE winners AS "
        f"WITH changes AS (SELECT item_key, {rest} AS order_key, place FROM temp.changes) "
        f"{load_sql('winners')}"
    )


def _mask_winners(connection: duckdb.DuckDBPyConnection, masking: Masking) -> None:
    """Leave the winners of `changes`, each masked once: masking costs more than all else."""
    with masking_functions(connection, masking):
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE masked_changes AS SELECT "
            f"{masked(masking, 'c.item_key')} AS item_key, c.order_key, c.op, "
            f"{masked(masking, 'c.item')} AS item, c.write_time_us, c.place "
            "FROM changes AS c JOIN winners AS w ON w.place = c.place"
        )
    connection.execute("CREATE OR REPLACE TEMP VIEW changes AS SELECT * FROM masked_changes")
    connection.execute("CREATE OR REPLACE TEMP TABLE winners AS SELECT place FROM changes")


def create_effective(connection: duckdb.DuckDBPyConnection) -> None:
    """Table `effective`, which a fold reads beside `base` and `changes`, from `winners`.

    Read it, if `base` is masked, within `masking_functions`. `winners` goes: memory is bounded.
    """
    # Joined as written: DuckDB cannot know that winners are few, and would rather hold the base.
    connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE effective AS {load_sql('effective')}")
    connection.execute("RESET disabled_optimizers")
    connection.execute("DROP TABLE winners")
