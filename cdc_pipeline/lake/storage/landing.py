"""Landing objects: Parquet files of changes in the landing columns, one write day each."""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import LandedObject, QuarantinedObject
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.transports import BY_TIME
from cdc_pipeline.lake.storage.changes import LANDING_SCHEMA, Changes
from cdc_pipeline.lake.storage.store import Store

# Dictionary-encoded columns; the others have a new value in each row.
_REPEATING = ["op", "time_stamp", "shard_id", "transport", "landed_at"]


def write_landing(
    store: Store,
    paths: TablePaths,
    changes: Iterable[Change],
    *,
    n: int,
    nonce: str,
    generation: int,
    landed_us: int,
) -> list[LandedObject]:
    """Write one object per write day. Readers use them from log entry `n` on, which names them."""
    key_of = partial(paths.landed, n=n, nonce=nonce)
    return write_days(store, changes, key_of, generation, landed_us)


def write_days(
    store: Store,
    changes: Iterable[Change],
    key_of: Callable[[date], str],
    generation: int,
    landed_us: int,
) -> list[LandedObject]:
    """Write one object per write day; `key_of` returns the object key of a day."""
    rows, objects, start = _in_order(Changes.of(changes)), [], 0
    counts = Counter(time_us // DAY_US for time_us in rows["write_time_us"].to_pylist())
    for day, count in sorted(counts.items()):
        of_day = rows.slice(start, count)
        start += count
        key, transport = key_of(day_of(day * DAY_US)), of_day["transport"][0].as_py()
        row_group = _ROW_GROUP_BY_TIME if transport in BY_TIME else None
        table = _landing_columns(of_day, landed_us)
        objects.append(write_object(store, key, [table], generation, row_group=row_group))
    # Arrow's pool keeps freed memory, and a backlog lands object after object.
    pa.default_memory_pool().release_unused()
    return objects


DAY_US = 24 * 3600 * 1_000_000
_ROW_GROUP = 20_000
_ROW_GROUP_BY_TIME = 5_000
"""For changes sorted by time: `landed_rows` searches for times, row group by row group."""


def _in_order(changes: Changes) -> pa.Table:
    """Sort by day, shard, position; not by shard where the position is the time."""
    if not changes.has_columns:
        return Changes([sorted(changes, key=_day_shard_position)]).table()
    rows = changes.table(key=_shard_of)
    by_time = pc.is_in(rows["transport"], pa.array(sorted(BY_TIME)))  # type: ignore[attr-defined]
    columns = {
        "day": pc.divide(rows["write_time_us"], DAY_US),  # type: ignore[attr-defined]
        "shard": pc.if_else(by_time, "", rows["shard_id"]),  # type: ignore[attr-defined]
        "position": rows["position"],
    }
    keys = pa.table(columns).combine_chunks()
    if _is_sorted(keys):  # as the records of a shard are
        return rows
    by = [(name, "ascending") for name in columns]
    return rows.take(pc.sort_indices(keys, sort_keys=by))  # type: ignore[attr-defined]


def _shard_of(change: Change) -> str:
    return "" if change.transport in BY_TIME else change.shard_id


def _day_shard_position(change: Change) -> tuple[int, str, str]:
    return change.write_time_us // DAY_US, _shard_of(change), change.position


def _is_sorted(keys: pa.Table) -> bool:
    before, after = keys.slice(0, max(len(keys) - 1, 0)), keys.slice(1)
    equal = pa.repeat(True, len(after))
    for name in keys.column_names:
        pair = (before[name], after[name])
        if pc.any(pc.and_(equal, pc.greater(*pair))).as_py():  # type: ignore[attr-defined]
            return False
        equal = pc.and_(equal, pc.equal(*pair))  # type: ignore[attr-defined]
    return True


def write_object(
    store: Store,
    key: str,
    tables: Iterable[pa.Table],
    generation: int,
    *,
    through: int = 0,
    row_group: int | None = None,
) -> LandedObject:
    """Write one day's rows in the landing columns as one object: the only writer of such objects.

    `tables`: one or more; each starts a new row group. `through`: the last log entry whose rows
    the object holds; 0: its own entry.
    """
    sink, spans = pa.BufferOutputStream(), []
    with pq.ParquetWriter(
        sink,
        LANDING_SCHEMA,
        compression="zstd",
        use_dictionary=_REPEATING,  # type: ignore[arg-type]
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group)
            spans.append(_span(table))
    data = sink.getvalue().to_pybytes()
    store.write(key, data)
    return LandedObject(
        key=key,
        day=day_of(spans[0].min_write_us).isoformat(),
        rows=sum(span.rows for span in spans),
        bytes=len(data),
        generation=generation,
        min_write_us=min(span.min_write_us for span in spans),
        max_write_us=max(span.max_write_us for span in spans),
        min_position=min(span.min_position for span in spans),
        max_position=max(span.max_position for span in spans),
        shards=tuple(sorted({shard for span in spans for shard in span.shards})),
        bare=any(span.bare for span in spans),
        through=through,
        crc32=zlib.crc32(data),
    )


class _Span(NamedTuple):
    """Log fields of some rows; see `LandedObject`."""

    rows: int
    min_write_us: int
    max_write_us: int
    min_position: str
    max_position: str
    shards: list[str]
    bare: bool


def _span(rows: pa.Table) -> _Span:
    times, positions = (
        pc.min_max(rows[name])  # type: ignore[attr-defined]
        for name in ("write_time_us", "position")
    )
    is_bare = pc.and_(  # type: ignore[attr-defined]
        rows["new_image"].is_null(),
        pc.not_equal(rows["op"], "D"),  # type: ignore[attr-defined]
    )
    return _Span(
        rows.num_rows,
        times["min"].as_py(),
        times["max"].as_py(),
        positions["min"].as_py(),
        positions["max"].as_py(),
        rows["shard_id"].unique().to_pylist(),
        pc.any(is_bare).as_py(),  # type: ignore[attr-defined]
    )


def landing_table(changes: Iterable[Change], landed_us: int) -> pa.Table:
    """Return the changes in the landing columns."""
    return _landing_columns(Changes.of(changes).table(), landed_us)


def _landing_columns(rows: pa.Table, landed_us: int) -> pa.Table:
    """Add the columns that a `Change` lacks."""
    times_ms = pc.divide(rows["write_time_us"], 1000)  # type: ignore[attr-defined]
    columns = {name: rows[name] for name in rows.column_names}
    columns["time_stamp"] = times_ms.cast(LANDING_SCHEMA.field("time_stamp").type)
    landed_at = pa.scalar(landed_us // 1000, LANDING_SCHEMA.field("landed_at").type)
    columns["landed_at"] = pa.repeat(landed_at, len(rows))
    return pa.table([columns[name] for name in LANDING_SCHEMA.names], schema=LANDING_SCHEMA)


def read_landing(store: Store, key: str) -> list[Change]:
    """Read the changes of a landing object; raises `LakeError` if it is missing or damaged."""
    rows = _read_parquet(store, key, list(Change._fields))
    return [Change(**row) for row in rows.to_pylist()]


def merge_landing(store: Store, key: str, objects: Sequence[LandedObject]) -> LandedObject:
    """Write the rows of several objects as one object; raises `LakeError` if rows are missing."""
    groups = (
        pa.concat_tables([read_object(store, landed) for landed in group])
        for group in _groups(objects)
    )
    first, last = objects[0], objects[-1]
    merged = write_object(store, key, groups, first.generation, through=last.entry)
    if merged.rows != sum(landed.rows for landed in objects):
        store.delete([key])
        raise LakeError(
            f"{len(objects)} landing objects have {merged.rows} rows; the capture log has "
            f"{sum(landed.rows for landed in objects)} ({first.key} to {last.key})",
            fix=_repair_command(first.key),
        )
    return merged


def _groups(objects: Sequence[LandedObject]) -> Iterator[list[LandedObject]]:
    """Yield neighbouring objects that fill a row group together."""
    group: list[LandedObject] = []
    for landed in objects:
        group.append(landed)
        if sum(o.rows for o in group) >= _ROW_GROUP:
            yield group
            group = []
    if group:
        yield group


def read_object(store: Store, landed: LandedObject) -> pa.Table:
    """Read a landing object in the landing columns.

    Raises `LakeError` if it is missing or damaged.
    """
    return _read_parquet(store, landed.key).cast(LANDING_SCHEMA)


def _read_parquet(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    data = store.read(key)
    if data is None:
        raise LakeError(
            f"landing object {key} is in the capture log but not in the lake",
            fix=_repair_command(key),
        )
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise LakeError(
            f"landing object {key} ({len(data)} bytes) cannot be read as Parquet: {error}",
            fix=_repair_command(key),
        ) from error


def _repair_command(key: str) -> str:
    """Return the command that repairs the table of a landing object."""
    _zone, _database, table, *_ = key.split("/")
    return f"cdc-pipeline reconcile {table} --full --repair"


def write_quarantine(
    store: Store,
    paths: TablePaths,
    records: Sequence[tuple[str, bytes]],
    *,
    n: int,
    nonce: str,
    landed_us: int,
) -> list[QuarantinedObject]:
    """Write unreadable records, given as `(reason, bytes)`, one JSON object per line."""
    if not records:
        return []
    key = paths.quarantined("unreadable-record", day_of(landed_us), n, nonce)
    reasons: dict[str, int] = {}
    for reason, _ in records:
        reasons[reason] = reasons.get(reason, 0) + 1
    # A record can be any bytes, at best valid JSON: stored as base64.
    body = "".join(_quarantine_line(reason, record) for reason, record in records)
    store.write(key, body.encode())
    return [QuarantinedObject(key=key, rows=len(records), reasons=reasons)]


def count_reasons(lines: bytes) -> dict[str, int]:
    """Count quarantined records by reason, from the lines of a quarantine object."""
    return dict(Counter(json.loads(line)["reason"] for line in lines.splitlines()))


def _quarantine_line(reason: str, record: bytes) -> str:
    line = {"reason": reason, "record_base64": base64.b64encode(record).decode()}
    return json.dumps(line) + "\n"
