"""current_state: the compacted base, its tombstones, and when a state may be published."""

import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.capture_log import Baseline, LandedObject, LogState
from cdc_pipeline.core.columns import Column
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.lake.duck import (
    arrow_table,
    files_relation,
    landed_relation,
    open_duckdb,
)
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.tables import data_files, table_property
from cdc_pipeline.lake.typed import TypedResult, prior_columns, replace_typed
from cdc_pipeline.settings import Table
from cdc_pipeline.transform.shred import NARROW_SCHEMA, typed_schema
from cdc_pipeline.transform.sql import load_sql

_TOMBSTONE_DAYS = 35
_TOMBSTONE_SCHEMA = pa.schema([NARROW_SCHEMA.field(n) for n in ("item_key", "order_key")]).append(
    NARROW_SCHEMA.field("write_time_us")
)


@dataclass(frozen=True)
class Base:
    """Items to fold a delta over: objects of `generation` and later, logged after `after`.

    `over`: the published table that a new base replaces, as it was read; None: there is none.
    """

    table: IcebergTable
    over: IcebergTable | None
    snapshot_id: int | None
    generation: int
    after: int
    items: int


@dataclass(frozen=True)
class PublishResult:
    """A published current state. `watermark`: the last log entry folded into it.

    With an open gap the state stays where the gap begins: behind it some changes are missing.
    """

    items: int
    columns: list[Column]
    generation: int
    watermark: int
    watermark_us: int
    open_gaps: int
    changes_folded: int
    new_baseline: bool
    seconds: float
    table: IcebergTable


def published_base(lake: Lake, table: Table) -> Base | None:
    """The base that readers see now, None before the first publication."""
    found = lake.tables.load(f"{table.safe_name}_current_state")
    if found is None:
        return None
    return Base(
        table=found,
        over=found,
        snapshot_id=None,
        generation=int(table_property(found, "generation") or 0),
        after=int(table_property(found, "watermark") or 0),
        items=int(table_property(found, "items") or 0),
    )


def next_base(lake: Lake, table: Table, state: LogState) -> Base:
    """What the next publication starts from; raises `NotReadyError` when nothing can be.

    A newer baseline takes over as soon as everything written before its export time plus the
    margin has landed: from then on the folded changes no longer show a mixture of times.
    """
    current = published_base(lake, table)
    staged = state.staged
    if staged is not None and (current is None or staged.generation > current.generation):
        landed_us = state.complete_to_us(staged.generation)
        if landed_us >= handover_us(lake, staged) and not state.incomplete:
            return _staged_base(lake, table, staged, current)
        if current is None:
            raise NotReadyError(
                f"{table.safe_name}/current_state: the export shows the table at "
                f"{_time(staged.export_time_us)}, and changes have landed up to "
                f"{_time(landed_us)}; both must meet at "
                f"{_time(handover_us(lake, staged))} before a state can be published",
                fix="run the job `capture` (or materialise raw_stream) once more, then this again",
            )
    if current is None:
        raise NotReadyError(
            f"{table.safe_name}/current_state: there is no export of table {table.name} yet",
            fix=f"materialise {table.safe_name}/pitr_export first",
        )
    return current


def handover_us(lake: Lake, baseline: Baseline) -> int:
    """When a baseline may be published: everything written before this must have landed."""
    return baseline.export_time_us + int(lake.settings.handover_margin_seconds * 1_000_000)


def _staged_base(lake: Lake, table: Table, staged: Baseline, current: Base | None) -> Base:
    found = lake.tables.load(f"{table.safe_name}_snapshot")
    assert found is not None  # the log says that it was committed
    over = current.table if current else None
    return Base(found, over, staged.snapshot_id, staged.generation, 0, staged.items or 0)


def _time(time_us: int) -> str:
    if not time_us:
        return "(no time yet)"
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def publish_current_state(lake: Lake, table: Table) -> PublishResult:
    """Fold everything that landed into a new base and commit it with its watermark.

    Raises `NotReadyError`, `CommitConflictError`, `LakeError`. A run that finds nothing new
    leaves the base as it is. Tombstones are committed first: a crash in between leaves readers
    with the old base, and the next fold with tombstones that its own delta explains.
    """
    started = time.monotonic()
    state = lake.log(table).load()
    base = next_base(lake, table, state)
    is_new = base.table is not base.over
    delta = state.delta(generation=base.generation, after=base.after)
    if delta or is_new:
        published = _publish(lake, table, state, base, delta)
        columns, items, committed = published.columns, published.rows, published.table
    else:
        columns, items, committed = prior_columns(base.table), base.items, base.table
    return PublishResult(
        items=items,
        columns=columns,
        generation=base.generation,
        watermark=state.horizon(base.generation),
        watermark_us=state.complete_to_us(base.generation),
        open_gaps=len(state.open_gaps(base.generation)),
        changes_folded=sum(landed.rows for landed in delta),
        new_baseline=is_new,
        seconds=time.monotonic() - started,
        table=committed,
    )


def _publish(
    lake: Lake, table: Table, state: LogState, base: Base, delta: list[LandedObject]
) -> TypedResult:
    with tempfile.TemporaryDirectory() as folder, open_duckdb(lake, Path(folder)) as connection:
        files = files_relation(
            connection, data_files(base.table, base.snapshot_id), typed_schema([])
        )
        connection.execute(
            "CREATE TEMP VIEW base AS SELECT _key AS item_key, _order_key AS order_key, "
            f"_item AS item, _write_time_us AS write_time_us FROM {files}"
        )
        stones = create_winners(connection, lake, table, delta)
        connection.execute(f"CREATE TEMP TABLE effective AS {load_sql('effective')}")
        _replace_tombstones(connection, lake, table, stones)
        return replace_typed(
            lake.tables,
            f"{table.safe_name}_current_state",
            connection,
            load_sql("fold"),
            {
                "generation": str(base.generation),
                "watermark": str(state.horizon(base.generation)),
                "watermark_us": str(state.complete_to_us(base.generation)),
            },
            over=base.over,
            scratch=Path(folder),
        )


def create_winners(
    connection: duckdb.DuckDBPyConnection, lake: Lake, table: Table, delta: list[LandedObject]
) -> IcebergTable | None:
    """View `tombstones` and table `winners`: the last change of each item in the delta.

    Returns the tombstones' table as it was read.
    """
    stones = lake.tables.load(f"{table.safe_name}_tombstones")
    files = data_files(stones) if stones else []
    relation = files_relation(connection, files, _TOMBSTONE_SCHEMA)
    connection.execute(f"CREATE OR REPLACE TEMP VIEW tombstones AS SELECT * FROM {relation}")
    landed = landed_relation(connection, lake, delta)
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW changes AS SELECT keys AS item_key, order_key, op, "
        f"new_image AS item, write_time_us FROM {landed} "
        # Events of streams without new images say nothing of the item; the read behind them does.
        "WHERE op = 'D' OR new_image IS NOT NULL"
    )
    connection.execute(f"CREATE OR REPLACE TEMP TABLE winners AS {load_sql('winners')}")
    return stones


def _replace_tombstones(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    table: Table,
    stones: IcebergTable | None,
) -> None:
    """Commit the tombstones after this fold, those too old to matter left out."""
    kept_from = datetime.now(UTC) - timedelta(days=_TOMBSTONE_DAYS)
    found = arrow_table(
        connection,
        f"SELECT * FROM ({load_sql('tombstones')}) WHERE write_time_us >= ?",
        [int(kept_from.timestamp() * 1_000_000)],
    )
    rows = found.select(_TOMBSTONE_SCHEMA.names).cast(_TOMBSTONE_SCHEMA)
    lake.tables.replace(f"{table.safe_name}_tombstones", rows.to_reader(), {}, over=stones)
