"""Comparison of a sample with the source, by consistent reads.

An item that differs may have changes that have not landed yet. So it counts as different only if it
still differs after everything written before the read has landed, and no later change of it has
landed. Items that changed meanwhile are read again.
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
    identifier,
    landed_relation,
    literal,
)
from cdc_pipeline.lake.engine.live_rows import version_relation
from cdc_pipeline.lake.engine.masking import masking_of
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.state.base import Base, published_base
from cdc_pipeline.lake.upkeep.verify import readable_files

_ROUNDS = 3
_KEYS_PER_QUERY = 500
_READ_UNIT_BYTES = 4096  # one read unit, consistent (AWS docs, HowItWorks.ReadWriteCapacityMode)
_ROUNDED_US = 1_000_000
"""Rounding of times in DynamoDB Streams, which are whole seconds."""

Kind = Literal["missing in the lake", "not in the source", "different"]


@dataclass(frozen=True)
class Difference:
    """An item that differs between the lake and the source.

    `key`: as published, hashed if the table's column rules hash it. `order_key`: of the lake's
    version; None: the lake has none.
    """

    kind: Kind
    key: str
    order_key: str | None


@dataclass
class Sample:
    """Result of a comparison of some items.

    `origins`: number of keys by origin. `unsettled`: number of items that changed each time they
    were read; they are neither equal nor different.
    """

    compared: int = 0
    origins: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    unsettled: int = 0
    seconds: float = 0


@dataclass(frozen=True)
class SampleCost:
    """Approximate upper bound of the read units of a sample."""

    items: int
    read_units: int


def sample_cost(described: TableDescription, items: int) -> SampleCost:
    """Estimate the cost from the average item size; an item is usually read at most twice."""
    average = described.bytes / described.item_count if described.item_count else 0
    per_item = max(1, math.ceil(average / _READ_UNIT_BYTES))
    scanned = math.ceil(_share(items) * average / _READ_UNIT_BYTES / 2)
    return SampleCost(items, items * per_item + scanned)


def compare_sample(
    table: TableLake,
    items: int,
    *,
    described: TableDescription | None = None,
    context: RunContext = SILENT,
) -> Sample:
    """Compare about `items` items of `current_state` with the source by consistent reads.

    One third each: random items of the lake, the items changed last, and items of the source, to
    find those missing in the lake. Raises `NotReadyError` before the first publication and while a
    gap is open, `LakeError`, `SourceError`. `described`: the table, if it was described before.
    """
    started = time.monotonic()
    base = require_comparable(table, table.log.load())
    described = described or describe_table(table.source, table.name)
    origins = {
        "any of the lake": _any_of_lake(table, base, _share(items)),
        "changed last": _changed_last(table, _share(items)),
        "any of the source": [
            _key(item, described) for item in scan_some(table.source, described, _share(items))
        ],
    }
    sample = Sample(origins={origin: len(keys) for origin, keys in origins.items()})
    keys = list(dict.fromkeys(key for some in origins.values() for key in some))
    context.progress(f"comparing {len(keys)} items")
    compare_until_settled(table, described, keys, sample, context)
    sample.seconds = time.monotonic() - started
    return sample


def require_comparable(table: TableLake, state: LogState) -> Base:
    """Return the published base; raises `NotReadyError` if it cannot equal the source."""
    base = published_base(table)
    if base is None:
        raise NotReadyError(
            f"{table.safe_name}/current_state was not published yet",
            fix=f"materialise {table.safe_name}/current_state first",
        )
    if state.open_gaps(base.generation):
        raise NotReadyError(
            f"{table.safe_name}/current_state is as of the beginning of an open gap, so it cannot "
            "equal the source",
            fix=f"cdc-pipeline heal {table.safe_name}",
        )
    return base


def compare_until_settled(
    table: TableLake,
    described: TableDescription,
    keys: Sequence[str],
    sample: Sample,
    context: RunContext,
) -> None:
    """Compare the items of these exact keys and add the result to `sample`."""
    log = table.log
    reader = ItemReader(
        table.source,
        table.name,
        described.key_names,
        table.lake.settings.reconcile.reads_per_second,
        context.sleep,
    )
    sample.compared += len(keys)
    clock_us = table.lake.settings.clock_margin_us
    margin_us = int(table.lake.settings.handover_margin_seconds * 1_000_000) + clock_us
    pending = list(keys)
    for _ in range(_ROUNDS):
        begun_us = log.now_us()
        source = reader.read(pending)
        ended_us = log.now_us()
        suspects = _differing(table, source)
        if not suspects:
            return
        context.progress(
            f"{len(suspects)} items differ so far; waiting until capture has passed the reads"
        )
        state = capture_to(table, ended_us + margin_us, context=context)
        suspects = _differing(table, {key: source[key] for key in suspects})
        pending = _changed_since(table.lake, state, suspects, begun_us - clock_us - _ROUNDED_US)
        sample.differences += [suspects[key] for key in suspects if key not in pending]
        if not pending:
            return
        context.progress(f"{len(pending)} items changed meanwhile; reading them again")
    sample.compared -= len(pending)
    sample.unsettled += len(pending)


def _share(items: int) -> int:
    return max(1, items // 3)


def _key(item: dict[str, Any], described: TableDescription) -> str:
    canonical = canonical_item(wire_form(item))
    return to_json({name: canonical[name] for name in sorted(described.key_names)})


def _any_of_lake(table: TableLake, base: Base, count: int) -> list[str]:
    """Return random exact keys; of the live baseline if those of current_state are masked."""
    built, snapshot_id = base.table, None
    state = table.log.load()
    if masking_of(table.lake.settings, table.settings, writing=True):
        snapshot = table.iceberg("snapshot")
        assert snapshot is not None  # current_state was made from it
        built, snapshot_id = snapshot, state.baselines[base.generation].snapshot_id
    with readable_files(table.settings), connect_duckdb(table.lake) as connection:
        files = version_relation(connection, built, snapshot_id)
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
    """Return the differences of items read from the source, by exact key."""
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    published = {key: masking.item(key) for key in source}
    lake_rows = _published(table, published.values())
    differing: dict[str, Difference] = {}
    for key, item in source.items():
        expected = None if item is None else masking.item(to_json(item))
        order_key, lake_item = lake_rows.get(published[key], (None, None))
        if lake_item != expected:
            kind: Kind = "missing in the lake" if lake_item is None else "different"
            kind = "not in the source" if expected is None else kind
            differing[key] = Difference(kind, published[key], order_key)
    return differing


def _published(table: TableLake, keys: Iterable[str]) -> dict[str, tuple[str | None, str | None]]:
    """Return order keys and items of `current_state` by key, as a query shows them now."""
    listed_keys, rows = list(keys), {}
    view = f"{identifier(table.safe_name)}.current_state"
    with (
        readable_files(table.settings),
        connect_lake(table.lake, [table.settings.label], aggregates=False) as connection,
    ):
        for start in range(0, len(listed_keys), _KEYS_PER_QUERY):
            # With literals, DuckDB skips row groups that cannot have the keys.
            literals = ", ".join(map(literal, listed_keys[start : start + _KEYS_PER_QUERY]))
            sql = f"SELECT _key, _order_key, _item FROM {view} WHERE _key IN ({literals})"
            for key, order_key, item in connection.execute(sql).fetchall():
                rows[key] = (order_key, item)
    return rows


def _changed_since(lake: Lake, state: LogState, keys: Iterable[str], since_us: int) -> list[str]:
    """Return the exact keys with a landed change written at `since_us` or later."""
    candidates = list(keys)
    later = [landed for landed in state.objects.values() if landed.max_write_us >= since_us]
    if not later or not candidates:
        return []
    with connect_duckdb(lake) as connection:
        landed = landed_relation(connection, lake, later, fold=True)
        rows = connection.execute(
            f"SELECT DISTINCT keys FROM {landed} WHERE write_time_us >= {since_us} "
            f"AND keys IN (SELECT unnest(?))",
            [candidates],
        ).fetchall()
    return [key for (key,) in rows]
