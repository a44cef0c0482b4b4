"""Time travel: the state of a table as of a second, from a baseline and the changes up to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from cdc_pipeline.core.clock import utc
from cdc_pipeline.core.errors import QueryError
from cdc_pipeline.core.items.columns import columns_of
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.duckdb_session import literal
from cdc_pipeline.lake.engine.folding import create_base, create_effective, create_winners
from cdc_pipeline.lake.engine.item_table import column_names
from cdc_pipeline.lake.engine.live_rows import version_relation
from cdc_pipeline.lake.engine.masking import masking_functions, masking_of
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.state.base import handover_us
from cdc_pipeline.lake.state.schema_contract import pinned_types
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.pinned_types import shred_pinned
from cdc_pipeline.transform.shred import NARROW_SCHEMA, collect_stats, typed_schema
from cdc_pipeline.transform.sql import load_sql

_BATCH_ROWS = 4_000  # items are up to 400 kB
_SECOND_US = 1_000_000


def parse_moment(text: str | datetime) -> datetime:
    """Parse an ISO 8601 text, in UTC without an offset; raises `QueryError`."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else text
    except ValueError:
        raise QueryError(
            f"{text!r} is not a time", fix="use ISO 8601, in UTC: 2026-11-20T12:00Z"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True)
class AsOf:
    """Sources of a past state. `warnings`: why it may be inexact.

    `until_us`: last µs, included, whose changes belong to the state.
    """

    baseline: Baseline
    until_us: int
    warnings: list[str]


def find_sources(table: TableLake, state: LogState, at: datetime) -> AsOf:
    """Find the newest baseline from which the state at `at` can be made; raises `QueryError`.

    Times of DynamoDB Streams are rounded down to seconds, so a state is as of the end of a second,
    although other transports and exports have finer times. In a gap that was healed it is exact
    only from the end of the heal on: an export has an item's last change in its window. An
    export is exact to about a minute (docs/aws_facts.md, exports): one that is younger than the
    handover margin is used only if there is no older one, and with a warning.
    """
    at_us = int(at.timestamp()) * _SECOND_US
    until_us = at_us + _SECOND_US - 1
    staged = sorted(
        (b for b in state.baselines.values() if b.is_staged),
        key=lambda b: b.generation,
    )
    if not staged or at_us < staged[0].export_time_us:
        first = _utc(staged[0].export_time_us) if staged else None
        raise QueryError(
            f"{table.safe_name}: there is no baseline as old as {_utc(at_us)}"
            + (f"; the first one is of {first}" if first else ""),
            fix=f"use {first} or later"
            if first
            else f"materialise {table.safe_name}/pitr_export first",
        )
    settled = [b for b in staged if handover_us(table.lake, b) <= at_us]
    chosen = settled[-1] if settled else staged[0]
    # The time up to which a quiet shard was read comes from our clock.
    complete_us = state.complete_to_us(chosen.generation) - table.lake.settings.clock_margin_us
    # Changes up to the end of the requested second must have landed.
    if until_us >= complete_us:
        raise QueryError(
            f"{table.safe_name} is complete up to {_utc(complete_us)} only, "
            f"{_utc(at_us)} is later" + _gap_note(state, chosen, at_us),
            fix=f"use an earlier time, or run the job `capture` for {table.safe_name}",
        )
    warnings = []
    if not settled:
        warnings.append(
            f"{table.safe_name}: {_utc(at_us)} is within "
            f"{table.lake.settings.handover_margin_seconds:g} seconds of the first export, "
            "which by AWS's documentation is exact to about a minute only"
        )
    warnings += _heal_warnings(table.settings, state, chosen, at_us)
    lost = [
        landed.rows
        for landed in state.lost.values()
        if landed.generation >= chosen.generation and landed.min_write_us <= until_us
    ]
    if lost:
        warnings.append(
            f"{table.safe_name}: {sum(lost)} changes before {_utc(at_us)} are missing: their "
            "landing objects were damaged and could not be restored"
        )
    return AsOf(chosen, until_us, warnings)


def _heal_warnings(table: Table, state: LogState, baseline: Baseline, at_us: int) -> Iterator[str]:
    """Yield a warning for each healed gap around that second, with the end of the inexact span.

    The span is from the beginning of the gap to the end of the last window of its heal: of an item
    changed in the gap and again later in the window, the export has the last change only, and an
    item that was created and deleted is removed at the end of the last window.
    """
    for n, gap in state.gaps.items():
        heal = state.heal_of(n)
        if heal is None or not heal.healed or gap.heal_generation < baseline.generation:
            continue
        exact_us = -(-max(gap.to_us, *(w.to_us for w in heal.windows)) // _SECOND_US) * _SECOND_US
        if gap.from_us < at_us + _SECOND_US and at_us < exact_us:
            yield (
                f"{table.safe_name}: {_utc(at_us)} is in a gap that was healed, from "
                f"{_utc(gap.from_us)} to {_utc(gap.to_us)}: items may lack changes made in the "
                f"gap; states are exact from {_utc(exact_us)} on"
            )


def write_state(
    connection: duckdb.DuckDBPyConnection,
    table: TableLake,
    state: LogState,
    as_of: AsOf,
    path: Path,
) -> None:
    """Write the typed items of a past state to the Parquet file `path`.

    `connection`: a scratch connection with bounded memory. Memory use does not depend on the
    table's size.
    """
    snapshot = table.iceberg("snapshot")
    assert snapshot is not None  # committed, by the log
    delta = state.delta(generation=as_of.baseline.generation, after=0)
    past = [landed for landed in delta if landed.min_write_us <= as_of.until_us]
    spool = path.with_suffix(".narrow")
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    with masking_functions(connection, masking):
        rows = version_relation(connection, snapshot, as_of.baseline.snapshot_id)
        create_base(connection, table.settings, rows, masking)
        create_winners(connection, table, past, as_of.until_us)
        connection.execute(
            "CREATE OR REPLACE TEMP VIEW tombstones AS SELECT * FROM base WHERE false"
        )
        create_effective(connection)
        connection.execute(
            f"COPY (SELECT item_key, order_key, item, write_time_us FROM ({load_sql('fold')})) "
            f"TO {literal(str(spool))} (FORMAT parquet, ROW_GROUP_SIZE 20480)"
        )
    with pq.ParquetFile(spool, pre_buffer=False) as narrow:  # pre_buffer keeps the whole file
        # Present names of columns, types by the items of the past state.
        rows = narrow.metadata.num_rows
        stats = collect_stats(narrow.iter_batches(_BATCH_ROWS, columns=["item"]), rows)
        names = column_names(table.lake.iceberg, table.safe_name)
        columns = columns_of(
            stats, pins=pinned_types(table.settings), limit=table.settings.max_columns, names=names
        )
        batches = (batch.cast(NARROW_SCHEMA) for batch in narrow.iter_batches(_BATCH_ROWS))
        with pq.ParquetWriter(path, typed_schema(columns), compression="zstd") as writer:
            for batch in shred_pinned(batches, columns, stats, rows):
                writer.write_batch(batch)
    spool.unlink()


def _gap_note(state: LogState, baseline: Baseline, at_us: int) -> str:
    gaps = [g for g in state.open_gaps(baseline.generation) if g.from_us <= at_us]
    if not gaps:
        return ""
    return f"; a gap is open since {_utc(gaps[0].from_us)} ({gaps[0].cause})"


def _utc(time_us: int) -> str:
    return f"{utc(time_us):%Y-%m-%dT%H:%M:%SZ}"
