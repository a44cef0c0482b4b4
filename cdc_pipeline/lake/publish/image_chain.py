"""The chain of images: every change's old image must be the new image of the change before.

A missed change shows up as a break, without asking the source. Where an item was read because
changes of one time do not tell their order, images need not meet.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import BASELINE
from cdc_pipeline.lake.engine.duckdb_session import files_relation, open_duckdb
from cdc_pipeline.lake.iceberg.tables import data_files
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.cdc import CDC_SCHEMA
from cdc_pipeline.transform.sql import load_sql

_EXAMPLES = 20
# A tie whose order nobody could tell (`capture.landing.ties`): what was read behind it may be
# newer.
_IN_A_READ_TIE = (
    "EXISTS (SELECT 1 FROM cdc WHERE cdc.keys = links.keys AND cdc.transport = 'read' "
    "AND cdc.event_id <> '' AND cdc.sequence_number = '' "
    "AND cdc.write_time_us IN (links.write_time_us, links.previous_write_time_us))"
)


@dataclass(frozen=True)
class Break:
    """Two neighbouring changes of an item that do not meet. `key`: a digest of the item's key."""

    key: str
    from_us: int
    to_us: int
    order_key: str


@dataclass(frozen=True)
class Chain:
    """What was compared. `in_gaps`: breaks across a recorded gap, which are no news.

    `examples`: the first breaks that no gap explains.
    """

    links: int
    breaks: int
    in_gaps: int
    examples: list[Break]


def check_chain(table: TableLake, since: date) -> Chain:
    """Compare neighbouring changes of each item in `<table>_cdc` from the day `since` on."""
    cdc = table.iceberg("cdc")
    if cdc is None:
        return Chain(0, 0, 0, [])
    state = table.log.load()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
    ):
        files = files_relation(connection, data_files(cdc), CDC_SCHEMA)
        connection.execute(
            f"CREATE TEMP VIEW cdc AS SELECT * FROM {files} WHERE day >= DATE '{since}' "
            f"AND transport IS DISTINCT FROM '{BASELINE}'"  # no change
        )
        connection.execute(f"CREATE TEMP TABLE links AS {load_sql('breaks')}")
        ((links,),) = connection.execute("SELECT count(*) FROM links").fetchall()
        rows = connection.execute(
            "SELECT keys, previous_write_time_us, write_time_us, order_key, previous_generation, "
            f"generation FROM links WHERE is_break AND NOT ({_IN_A_READ_TIE}) ORDER BY order_key"
        )
        breaks, in_gaps, examples = 0, 0, []
        while found := rows.fetchmany(10_000):
            for keys, from_us, to_us, order_key, before, after in found:
                if _in_gap(state, (before, after), (from_us, to_us)):
                    in_gaps += 1
                    continue
                breaks += 1
                if len(examples) < _EXAMPLES:
                    examples.append(Break(_digest(keys), from_us, to_us, order_key))
    return Chain(links, breaks, in_gaps, examples)


def _in_gap(state: LogState, generations: tuple[int, int], times_us: tuple[int, int]) -> bool:
    """A gap moves the table to later generations; what changed in it was not seen one by one.

    One that a backfill healed did not, but its time tells.
    """
    (before, after), (from_us, to_us) = generations, times_us
    return any(
        before <= gap.heal_generation <= after
        and (before != after or (gap.from_us <= to_us and from_us < gap.to_us))
        for gap in state.gaps.values()
    )


def _digest(keys: str) -> str:
    return hashlib.sha256(keys.encode()).hexdigest()[:16]
