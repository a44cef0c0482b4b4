"""A local lake of made-up orders as the product writes it, and the same rows in no order."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa

from benchmarks.lake_data import SNAPSHOT, START_US, generator
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.items.attributes import plain_json
from cdc_pipeline.core.items.columns import columns_of
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.lake.engine.duckdb_session import files_relation
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.cdc import CDC_SCHEMA
from cdc_pipeline.transform.shred import (
    NARROW_SCHEMA,
    collect_stats,
    shred,
    stats_to_json,
    typed_schema,
)
from cdc_pipeline_tests.lake.builder import LakeBuilder

_BATCH = 20_000
_SAMPLE = 2_000
_DAY_US = 24 * 3600 * 1_000_000

_NARROW = (
    f"SELECT key_of(k) AS item_key, '{SNAPSHOT}' AS order_key, item_of(k, k) AS item, "
    f"CAST({START_US} AS BIGINT) AS write_time_us FROM range({{items}}) AS r(k)"
)
_TYPED = (
    f"SELECT key_of(k) AS _key, '{SNAPSHOT}' AS _order_key, CAST({START_US} AS BIGINT) AS "
    "_write_time_us, item_of(k, k) AS _item, CAST(NULL AS VARCHAR) AS _rescued, "
    "country_of(k) AS country, customer_of(k) AS customer_id, note_of(k) AS note, "
    "order_of(k) AS order_id, status_of(k) AS status, cents_of(k) AS total, k AS version "
    "FROM range({items}) AS r(k)"
)
_CDC = """
SELECT sha256(CAST(i AS VARCHAR)) AS uuid, op, make_timestamp(time_us // 1000 * 1000)::TIMESTAMPTZ
           AS time_stamp,
       CASE WHEN op <> 'D' THEN item_of(k, i) END AS data, key_of(k) AS keys,
       CASE WHEN op <> 'D' THEN item_of(k, i) END AS new_image,
       CASE WHEN op <> 'I' THEN item_of(k, i - 1) END AS old_image, time_us AS write_time_us,
       '000001.' || printf('%040d', i) AS position, printf('%021d', i) AS sequence_number,
       'shard-1' AS shard_id, md5(CAST(i AS VARCHAR)) AS event_id, false AS is_ttl_delete,
       'dynamodb_streams' AS transport, make_timestamp(time_us)::TIMESTAMPTZ AS landed_at,
       1 AS generation, '000001.000001.' || printf('%040d', i) AS order_key,
       CAST(make_timestamp(time_us) AS DATE) AS day
FROM (
    SELECT i, CAST(floor({items} * chance(i, 4)) AS BIGINT) AS k,
           ['I', 'U', 'U', 'U', 'D'][1 + CAST(hash(i + 5) % 5 AS INTEGER)] AS op,
           {start} + i * ({day} // {rows}) AS time_us
    FROM range({first}, {last}) AS r(i)
)
"""


@dataclass(frozen=True)
class OrdersLake:
    """`items` in `orders.current_state`; `cdc` of `days` days with `changes_a_day` each."""

    folder: Path
    items: int
    days: int
    changes_a_day: int

    @property
    def lake(self) -> Lake:
        """The lake itself."""
        return LakeBuilder.at(self.folder).lake

    def key(self, number: int) -> tuple[str, str]:
        """`customer_id` and `order_id` of an item."""
        return f"c-{number // 20:07d}", f"o-{number:010d}"

    def day(self, number: int) -> date:
        """A day of `cdc`."""
        return day_of(START_US) + timedelta(days=number)

    def files(self, name: str) -> str:
        """SQL for the files of a table, without the product's views."""
        table = self.lake.iceberg.load(f"orders_{name}")
        assert table is not None
        return files_relation(duckdb.connect(), data_files(table), pa.schema([]))

    def write(self, *, shuffled: bool = True, key: str | None = None) -> None:
        """Write everything but the delta. `shuffled`: the items in no order, too.

        `key`: a column whose bounds are stored whole, as the product stores those of keys.
        """
        built = LakeBuilder.at(self.folder)
        built.start()
        with generator(self.folder) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            self._write_items(built, connection, shuffled, key)
            if self.days:
                self._write_days(built.lake, connection)

    def _write_items(
        self,
        built: LakeBuilder,
        connection: duckdb.DuckDBPyConnection,
        shuffled: bool,
        key: str | None,
    ) -> None:
        sample = _table(connection, _NARROW.format(items=_SAMPLE)).cast(NARROW_SCHEMA)
        stats = collect_stats(sample.to_batches())
        columns = columns_of(stats)
        schema, sql = typed_schema(columns), _TYPED.format(items=self.items)
        ours = pa.Table.from_batches(shred(sample.to_batches(), columns))
        assert ours.equals(_table(connection, f"{sql} LIMIT {_SAMPLE}").cast(schema))
        described = {
            "generation": "1",
            "watermark": str(built.state.n),
            "items": str(self.items),
            "columns": json.dumps([asdict(column) for column in columns]),
            "statistics": stats_to_json(stats),
            "max_order_key": json.dumps(SNAPSHOT),
        }
        statements = {"current_state": sql}
        if shuffled:
            statements["shuffled"] = f"SELECT * FROM ({sql}) ORDER BY hash(version)"
        for name, statement in statements.items():
            rows = _reader(connection, statement, schema)
            built.lake.iceberg.replace(f"orders_{name}", rows, described, over=None, key=key)
            (found,) = connection.sql(f"SELECT sum(version) FROM {self.files(name)}").fetchall()
            assert found == (self.items * (self.items - 1) // 2,)

    def _write_days(self, lake: Lake, connection: duckdb.DuckDBPyConnection) -> None:
        table = None
        for number in range(self.days):
            sql = f"{self._cdc(number, number + 1)} ORDER BY keys, order_key"
            chunks = [_table(connection, sql).cast(CDC_SCHEMA)]
            day = self.day(number)
            table = lake.iceberg.replace_days(
                "orders_cdc", [day], CDC_SCHEMA, chunks, {}, over=table
            )
        rows = _reader(
            connection, f"{self._cdc(0, self.days)} ORDER BY hash(write_time_us)", CDC_SCHEMA
        )
        lake.iceberg.replace("orders_cdc_shuffled", rows, {}, over=None)

    def _cdc(self, first_day: int, end_day: int) -> str:
        return _CDC.format(
            items=self.items,
            start=START_US // _DAY_US * _DAY_US,
            day=_DAY_US,
            rows=self.changes_a_day,
            first=first_day * self.changes_a_day,
            last=end_day * self.changes_a_day,
        )

    def land(self, changes: int, turn: int = 0) -> None:
        """One log entry with changes of that many items, a tenth of them deleted.

        `turn`: number of earlier calls, so that other items change, later.
        """
        built = LakeBuilder.at(self.folder)
        built.table_lake.log.catch_up(built.state)
        with generator(self.folder) as connection:
            rows = connection.execute(
                "SELECT key_of(k), item_of(k, k + 1000000000), i "
                f"FROM (SELECT i + {turn * changes} AS i, "
                f"i * {self.items // changes} + 3 + {turn * 7} AS k "
                f"FROM range({changes}) AS r(i)) ORDER BY i"
            ).fetchall()
        built.land(_changes(rows))


def _changes(rows: Iterable[tuple[str, str, int]]) -> Iterable[Change]:
    for keys, item, number in rows:
        new = None if number % 10 == 0 else item
        yield Change(
            uuid=f"{number:064x}",
            op="D" if new is None else "U",
            write_time_us=START_US + number,
            data=None if new is None else plain_json(json.loads(new)),
            keys=keys,
            new_image=new,
            old_image=None,
            position=position(1, number),
            sequence_number=str(number),
            shard_id="shard-1",
            event_id=str(number),
            is_ttl_delete=False,
            transport=DYNAMODB_STREAMS,
        )


def _table(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    return cast(pa.Table, connection.sql(sql).to_arrow_table())


def _reader(
    connection: duckdb.DuckDBPyConnection, sql: str, schema: pa.Schema
) -> pa.RecordBatchReader:
    batches: Any = connection.sql(sql).to_arrow_reader(_BATCH)
    return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in batches))
