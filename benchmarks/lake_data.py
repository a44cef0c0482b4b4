"""Big made-up tables of orders, quickly: items, changes and tombstones as Parquet, by DuckDB."""

from dataclasses import dataclass
from pathlib import Path

import duckdb

from cdc_pipeline.core.changes.order import SNAPSHOT_POSITION, order_key, position
from cdc_pipeline.lake.engine.duckdb_session import literal

START_US = 1_763_712_000_000_000
"""When the base was exported."""

SNAPSHOT = order_key(1, SNAPSHOT_POSITION)
_CHANGE_PREFIX = order_key(1, position(1, 0))[:-16]
"""An order key of a change without its last digits: its time in microseconds, as Kinesis has it."""

# Hashes instead of random(): the same rows on every run, whatever the threads do.
_MACROS = """
CREATE OR REPLACE MACRO chance(i, salt) AS
    CAST(hash(i * 16 + salt) AS DOUBLE) / 18446744073709551616.0;
CREATE OR REPLACE MACRO customer_of(k) AS printf('c-%07d', k // 20);
CREATE OR REPLACE MACRO order_of(k) AS printf('o-%010d', k);
CREATE OR REPLACE MACRO status_of(v) AS
    ['new', 'paid', 'packed', 'shipped', 'returned'][1 + CAST(hash(v) % 5 AS INTEGER)];
CREATE OR REPLACE MACRO country_of(k) AS
    ['DE', 'FR', 'IN', 'US', 'BR', 'JP', 'KE'][1 + CAST(hash(k) % 7 AS INTEGER)];
CREATE OR REPLACE MACRO cents_of(v) AS CAST(hash(v + 1) % 5000000 AS BIGINT);
CREATE OR REPLACE MACRO note_of(v) AS
    md5(CAST(v AS VARCHAR)) || repeat(' gift wrap', CAST(hash(v) % 45 AS INTEGER));
CREATE OR REPLACE MACRO key_of(k) AS
    '{"customer_id":{"S":"' || customer_of(k) || '"},"order_id":{"S":"' || order_of(k) || '"}}';
CREATE OR REPLACE MACRO item_of(k, v) AS
    '{"country":{"S":"' || country_of(k) || '"},"customer_id":{"S":"' || customer_of(k)
    || '"},"note":{"S":"' || note_of(v) || '"},"order_id":{"S":"' || order_of(k)
    || '"},"status":{"S":"' || status_of(v) || '"},"total":{"N":"' || cents_of(v)
    || '"},"version":{"N":"' || v || '"}}';
"""

_BASE = f"""
SELECT key_of(k) AS item_key, '{SNAPSHOT}' AS order_key, item_of(k, k) AS item,
       CAST({START_US} AS BIGINT) AS write_time_us
FROM range({{items}}) AS r(k)
"""

# Keys are drawn from a Zipf distribution over more keys than the base has, hot ones everywhere;
# some changes are delivered twice.
CHANGED_KEYS = """
SELECT i, CAST(floor(power({keys}, chance(i, 1))) AS BIGINT) * 7919 % {keys} AS k
FROM (SELECT CASE WHEN i % 50 = 49 THEN i - 49 ELSE i END AS i FROM range({changes}) AS r(i))
"""
_CHANGES = f"""
SELECT key_of(k) AS item_key, '{_CHANGE_PREFIX}' || ({START_US} + i * 1000) AS order_key,
       CASE WHEN chance(i, 2) < 0.03 THEN 'D' ELSE 'U' END AS op,
       CASE WHEN chance(i, 2) < 0.03 THEN NULL ELSE item_of(k, i + 1000000000) END AS item,
       {START_US} + i * 1000 AS write_time_us
FROM ({CHANGED_KEYS})
"""

# Of items that the base does not have: some changes are older, some newer.
_TOMBSTONES = f"""
SELECT key_of(k) AS item_key,
       '{_CHANGE_PREFIX}' || ({START_US} + CAST(chance(k, 3) * {{changes}} AS BIGINT) * 1000)
           AS order_key,
       CAST({START_US} AS BIGINT) AS write_time_us
FROM range({{items}}, {{keys}}, 10) AS r(k)
"""


@dataclass(frozen=True)
class Inputs:
    """Parquet files of what a fold reads: `base`, `changes`, `tombstones`."""

    folder: Path

    def path(self, name: str) -> str:
        """The file of one of them."""
        return str(self.folder / f"{name}.parquet")

    def relation(self, name: str) -> str:
        """SQL for one of them."""
        return f"read_parquet({literal(self.path(name))})"

    def order_keys(self) -> tuple[str, str]:
        """Of the changes, the least and the greatest."""
        found = duckdb.sql(f"SELECT min(order_key), max(order_key) FROM {self.relation('changes')}")
        (keys,) = found.fetchall()
        return keys


def write_inputs(folder: Path, items: int, changes: int) -> Inputs:
    """A base of `items` items in the order of their keys, and that many changes, by time."""
    sizes = {"items": items, "changes": changes, "keys": items + items // 10}
    inputs = Inputs(folder)
    with generator(folder) as connection:
        for name, sql in (("base", _BASE), ("changes", _CHANGES), ("tombstones", _TOMBSTONES)):
            connection.execute(
                f"COPY ({sql.format(**sizes)}) TO {literal(inputs.path(name))} "
                "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20480)"
            )
    return inputs


def generator(folder: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB that knows the macros above."""
    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '4GB'; SET temp_directory = {literal(str(folder))}")
    connection.execute(_MACROS)
    return connection
