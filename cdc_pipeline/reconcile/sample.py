"""Sampled comparison with the source: items read consistently, judged when capture has passed.

An item that differs from the lake may only be ahead of it. So it counts as different when it still
differs after everything written before the read has landed, and no later change of it has. One
that changed meanwhile is read again.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cdc_pipeline.aws.table import TableDescription, describe_table, scan_some, wire_form
from cdc_pipeline.capture.catch_up import capture_to
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.entries import LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.lake.engine.duckdb_session import (
    connect_duckdb,
    files_relation,
    identifier,
    landed_relation,
    literal,
)
from cdc_pipeline.lake.engine.masking import masking_of
from cdc_pipeline.lake.iceberg.tables import data_files
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.current_state import Base, published_base
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.upkeep.verify import readable_files
from cdc_pipeline.transform.shred import typed_schema

_ROUNDS = 3
_KEYS_AT_ONCE = 500
_READ_UNIT_BYTES = 4096  # one read unit, consistent (AWS docs, HowItWorks.ReadWriteCapacityMode)
_ROUNDED_US = 1_000_000
"""Times of DynamoDB Streams are whole seconds."""
"""How far our clock and DynamoDB's, whose times are whole seconds, may be apart."""

Kind = Literal["missing in the lake", "not in the source", "different"]


@dataclass(frozen=True)
class Difference:
    """An item that is not the same on both sides.

    `key`: as it is published, hashed where the table's column rules hash it. `order_key`: of the
    lake's version, None where it has none.
    """

    kind: Kind
    key: str
    order_key: str | None


@dataclass
class Sample:
    """What a comparison of some items found.

    `unsettled`: items that changed whenever they were read; nothing can be said of them.
    """

    compared: int = 0
    origins: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    unsettled: int = 0
    seconds: float = 0


@dataclass(frozen=True)
class SampleCost:
    """Read units that a sample takes at most, about."""

    items: int
    read_units: int


def sample_cost(described: TableDescription, items: int) -> SampleCost:
    """Estimate from the table's average item size; each item is read twice at most, usually."""
    average = described.bytes / described.item_count if described.item_count else 0
    per_item = max(1, math.ceil(average / _READ_UNIT_BYTES))
    scanned = math.ceil(_share(items) * average / _READ_UNIT_BYTES / 2)
    return SampleCost(items, items * per_item + scanned)


def compare_sample(
    table: TableLake,
    items: int,
    *,
    context: RunContext = SILENT,
) -> Sample:
    """Compare about `items` items of `current_state` with the source by consistent reads.

    A third each: any items of the lake, those that changed last, and any items of the source, so
    that items which the lake lacks are found. Raises `NotReadyError` before the first publication
    and while a gap is open, `LakeError`, `SourceError`.
    """
    started = time.monotonic()
    base = require_comparable(table, table.log.load())
    described = describe_table(table.source, table.name)
    origins = {
        "any of the lake": _any_of_lake(table, base, _share(items)),
        "changed last": _changed_last(table, _share(items)),
        "any of the source": [
            _key(item, described) for item in scan_some(table.source, described, _share(items))
        ],
    }
    found = Sample(origins={origin: len(keys) for origin, keys in origins.items()})
    keys = list(dict.fromkeys(key for some in origins.values() for key in some))
    context.progress(f"comparing {len(keys)} items")
    settle(table, described, keys, found, context)
    found.seconds = time.monotonic() - started
    return found


def require_comparable(table: TableLake, state: LogState) -> Base:
    """The published base; raises `NotReadyError` when it cannot equal the source."""
    base = published_base(table)
    if base is None:
        raise NotReadyError(
            f"{table.safe_name}/current_state was not published yet",
            fix=f"materialise {table.safe_name}/current_state first",
        )
    if state.open_gaps(base.generation):
        raise NotReadyError(
            f"{table.safe_name}/current_state stands at the beginning of an open gap, so it cannot "
            "equal the source",
            fix=f"cdc-pipeline heal {table.safe_name}",
        )
    return base


def settle(
    table: TableLake,
    described: TableDescription,
    keys: Sequence[str],
    found: Sample,
    context: RunContext,
) -> None:
    """Compare items by their exact keys; what is found is added to `found`."""
    log = table.log
    reader = ItemReader(
        table.source,
        table.name,
        described.key_names,
        table.lake.settings.reconcile.reads_per_second,
        context.sleep,
    )
    found.compared += len(keys)
    clock_us = table.lake.settings.clock_margin_us
    margin_us = int(table.lake.settings.handover_margin_seconds * 1_000_000) + clock_us
    todo = list(keys)
    for _ in range(_ROUNDS):
        begun_us = log.now_us()
        source = reader.read(todo)
        ended_us = log.now_us()
        suspects = _differing(table, source)
        if not suspects:
            return
        context.progress(
            f"{len(suspects)} items differ for now; capture must pass the time of reading"
        )
        state = capture_to(table, ended_us + margin_us, context=context)
        suspects = _differing(table, {key: source[key] for key in suspects})
        todo = _changed_since(table.lake, state, suspects, begun_us - clock_us - _ROUNDED_US)
        found.differences += [suspects[key] for key in suspects if key not in todo]
        if not todo:
            return
        context.progress(f"{len(todo)} items changed meanwhile and are read again")
    found.compared -= len(todo)
    found.unsettled += len(todo)


def _share(items: int) -> int:
    return max(1, items // 3)


def _key(item: dict[str, Any], described: TableDescription) -> str:
    canonical = canonical_item(wire_form(item))
    return to_json({name: canonical[name] for name in sorted(described.key_names)})


def _any_of_lake(table: TableLake, base: Base, count: int) -> list[str]:
    """Exact keys; of the live baseline where those of current_state are hashed."""
    found, snapshot_id = base.table, None
    state = table.log.load()
    if masking_of(table.lake.settings, table.settings, writing=True):
        snapshot = table.iceberg("snapshot")
        assert snapshot is not None  # current_state was made of it
        found, snapshot_id = snapshot, state.baselines[base.generation].snapshot_id
    with readable_files(table.settings), connect_duckdb(table.lake) as connection:
        files = files_relation(connection, data_files(found, snapshot_id), typed_schema([]))
        rows = connection.execute(
            f"SELECT _key FROM (SELECT _key FROM {files}) USING SAMPLE reservoir({count} ROWS)"
        ).fetchall()
    return [key for (key,) in rows]


def _changed_last(table: TableLake, count: int) -> list[str]:
    newest: list[LandedObject] = []
    objects = table.log.load().objects.values()
    for landed in sorted(objects, key=lambda landed: landed.entry, reverse=True):
        newest.append(landed)
        if sum(o.rows for o in newest) >= count:
            break
    with readable_files(table.settings), connect_duckdb(table.lake) as connection:
        rows = connection.execute(
            f"SELECT keys FROM {landed_relation(connection, table.lake, newest, fold=True)} "
            f"GROUP BY keys ORDER BY max(order_key) DESC LIMIT {count}"
        ).fetchall()
    return [key for (key,) in rows]


def _differing(table: TableLake, source: dict[str, dict[str, Any] | None]) -> dict[str, Difference]:
    """What differs of items read from the source, by exact key."""
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    published = {key: masking.item(key) for key in source}
    lake_rows = _published(table, published.values())
    differing: dict[str, Difference] = {}
    for key, item in source.items():
        expected = None if item is None else masking.item(to_json(item))
        order_key, found = lake_rows.get(published[key], (None, None))
        if found != expected:
            kind: Kind = "missing in the lake" if found is None else "different"
            kind = "not in the source" if expected is None else kind
            differing[key] = Difference(kind, published[key], order_key)
    return differing


def _published(table: TableLake, keys: Iterable[str]) -> dict[str, tuple[str | None, str | None]]:
    """Order keys and items of `current_state`, as a query shows them now, by key."""
    wanted, rows = list(keys), {}
    view = f"{identifier(table.safe_name)}.current_state"
    with (
        readable_files(table.settings),
        connect_lake(table.lake, [table.settings.label], aggregates=False) as connection,
    ):
        for start in range(0, len(wanted), _KEYS_AT_ONCE):
            # Literals: with them DuckDB leaves out row groups that cannot have the keys.
            listed = ", ".join(map(literal, wanted[start : start + _KEYS_AT_ONCE]))
            sql = f"SELECT _key, _order_key, _item FROM {view} WHERE _key IN ({listed})"
            for key, order_key, item in connection.execute(sql).fetchall():
                rows[key] = (order_key, item)
    return rows


def _changed_since(lake: Lake, state: LogState, keys: Iterable[str], since_us: int) -> list[str]:
    """Those of the (exact) keys of which a change written at that time or later has landed."""
    wanted = list(keys)
    later = [landed for landed in state.objects.values() if landed.max_write_us >= since_us]
    if not later or not wanted:
        return []
    with connect_duckdb(lake) as connection:
        landed = landed_relation(connection, lake, later, fold=True)
        rows = connection.execute(
            f"SELECT DISTINCT keys FROM {landed} WHERE write_time_us >= {since_us} "
            f"AND keys IN (SELECT unnest(?))",
            [wanted],
        ).fetchall()
    return [key for (key,) in rows]
