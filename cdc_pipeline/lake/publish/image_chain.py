"""The chain of images: each change's old image must equal the new image of the change before.

A missed change is a break, found without reading the source. Images need not match where an item
was read because the order of changes of one time is unknown.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import BASELINE
from cdc_pipeline.lake.engine.duckdb_session import files_relation, open_duckdb
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.cdc import CDC_SCHEMA
from cdc_pipeline.transform.sql import load_sql

_EXAMPLES = 20
# A tie of unknown order (`capture.landing.ties`): the item as read after it may be newer.
_IN_A_READ_TIE = (
    "EXISTS (SELECT 1 FROM cdc WHERE cdc.keys = links.keys AND cdc.transport = 'read' "
    "AND cdc.event_id <> '' AND cdc.sequence_number = '' "
    "AND cdc.write_time_us IN (links.write_time_us, links.previous_write_time_us))"
)


@dataclass(frozen=True)
class Break:
    """Two neighbouring changes whose images do not match. `key`: a digest of the item's key."""

    key: str
    from_us: int
    to_us: int
    order_key: str


@dataclass(frozen=True)
class ChainCheck:
    """Result of a check. `in_gaps`: breaks across a recorded gap, which are expected.

    `breaks`, `examples`: the number of breaks that no gap explains, and the first of them.
    """

    links: int
    breaks: int
    in_gaps: int
    examples: list[Break]


def check_chain(table: TableLake, since: date) -> ChainCheck:
    """Compare neighbouring changes of each item in `<table>_cdc`, from the day `since` on."""
    cdc = table.iceberg("cdc")
    if cdc is None:
        return ChainCheck(0, 0, 0, [])
    state = table.log.load()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_duckdb(table.lake, Path(folder)) as connection,
    ):
        files = files_relation(connection, data_files(cdc), CDC_SCHEMA)
        connection.execute(
            f"CREATE TEMP VIEW cdc AS SELECT * FROM {files} WHERE day >= DATE '{since}' "
            f"AND transport IS DISTINCT FROM '{BASELINE}'"  # these rows are no changes
        )
        connection.execute(f"CREATE TEMP TABLE links AS {load_sql('breaks')}")
        ((links,),) = connection.execute("SELECT count(*) FROM links").fetchall()
        rows = connection.execute(
            "SELECT keys, previous_write_time_us, write_time_us, order_key, previous_generation, "
            f"generation FROM links WHERE is_break AND NOT ({_IN_A_READ_TIE}) ORDER BY order_key"
        )
        breaks, in_gaps, examples = 0, 0, []
        while batch := rows.fetchmany(10_000):
            for keys, from_us, to_us, order_key, before, after in batch:
                if _in_gap(state, (before, after), (from_us, to_us)):
                    in_gaps += 1
                    continue
                breaks += 1
                if len(examples) < _EXAMPLES:
                    examples.append(Break(_digest(keys), from_us, to_us, order_key))
    return ChainCheck(links, breaks, in_gaps, examples)


def _in_gap(state: LogState, generations: tuple[int, int], times_us: tuple[int, int]) -> bool:
    """Whether a recorded gap lies between two changes; in a gap, single changes are not seen.

    A gap moves the table to later generations. One that a backfill healed did not: it is matched by
    its time.
    """
    (before, after), (from_us, to_us) = generations, times_us
    return any(
        before <= gap.heal_generation <= after
        and (before != after or (gap.from_us <= to_us and from_us < gap.to_us))
        for gap in state.gaps.values()
    )


def _digest(keys: str) -> str:
    return hashlib.sha256(keys.encode()).hexdigest()[:16]
