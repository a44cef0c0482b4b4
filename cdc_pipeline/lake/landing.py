"""Landing objects: changes as Parquet in the landing columns, by write day."""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cdc_pipeline.core.changes import Change
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.landing import LANDING_COLUMNS
from cdc_pipeline.core.log_parts import LandedObject, QuarantinedObject
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.transports import BY_TIME
from cdc_pipeline.lake.store import Store

_ARROW_TYPES = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "bigint": pa.int64(),
    "timestamp": pa.timestamp("ms", "UTC"),
}
LANDING_SCHEMA = pa.schema([(c.name, _ARROW_TYPES[c.type]) for c in LANDING_COLUMNS])
"""The landing columns in Arrow. Athena reads no timestamps finer than milliseconds."""

# Worth a dictionary; the other columns hold a new value in each row.
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
    """Write one object per write day; they count only once log entry `n` names them."""
    keys = partial(paths.landed, n=n, nonce=nonce)
    return write_days(store, changes, keys, generation, landed_us)


def write_days(
    store: Store,
    changes: Iterable[Change],
    key_of: Callable[[date], str],
    generation: int,
    landed_us: int,
) -> list[LandedObject]:
    """Write one object per write day; `key_of` gives the key of a day's."""
    ordered = sorted(changes, key=_day_and_place)
    objects = []
    for day, group in groupby(ordered, key=_day):
        key = key_of(day_of(day * DAY_US))
        objects.append(_write_day(store, key, list(group), generation, landed_us))
    # Arrow's pool keeps what it freed, and a backlog is landed object after object.
    pa.default_memory_pool().release_unused()
    return objects


DAY_US = 24 * 3600 * 1_000_000
_ROW_GROUP = 20_000
_ROW_GROUP_BY_TIME = 5_000
"""Of changes in the order of their times: `landed_rows` looks for times, group by group."""


def _day(change: Change) -> int:
    return change.write_time_us // DAY_US


def _day_and_place(change: Change) -> tuple[int, str, str]:
    """By shard and position, or by position alone, which is the time then."""
    shard_id = "" if change.transport in BY_TIME else change.shard_id
    return change.write_time_us // DAY_US, shard_id, change.position


def _write_day(
    store: Store,
    key: str,
    rows: Sequence[Change],
    generation: int,
    landed_us: int,
) -> LandedObject:
    sink = pa.BufferOutputStream()
    pq.write_table(
        landing_table(rows, landed_us),
        sink,
        compression="zstd",
        use_dictionary=_REPEATING,  # type: ignore[arg-type]
        row_group_size=_ROW_GROUP_BY_TIME if rows[0].transport in BY_TIME else None,
    )
    data = sink.getvalue().to_pybytes()
    store.write(key, data)
    times = [row.write_time_us for row in rows]
    positions = [row.position for row in rows]
    return LandedObject(
        key=key,
        day=day_of(times[0]).isoformat(),
        rows=len(rows),
        bytes=len(data),
        generation=generation,
        min_write_us=min(times),
        max_write_us=max(times),
        min_position=min(positions),
        max_position=max(positions),
        shards=tuple(sorted({row.shard_id for row in rows})),
        bare=any(row.new_image is None and row.op != "D" for row in rows),
        crc32=zlib.crc32(data),
    )


def landing_table(rows: Sequence[Change], landed_us: int) -> pa.Table:
    """Changes in the landing columns."""
    columns: dict[str, Sequence[Any]] = dict(
        zip(Change._fields, zip(*rows, strict=True), strict=True)
    )
    columns["time_stamp"] = [time_us // 1000 for time_us in columns["write_time_us"]]
    columns["landed_at"] = [landed_us // 1000] * len(rows)
    arrays = [pa.array(columns[field.name], field.type) for field in LANDING_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=LANDING_SCHEMA)


def rewrite_object(store: Store, key: str, landed: LandedObject, rows: pa.Table) -> LandedObject:
    """Write some rows of a landing object as one of their own, which takes its place in the log."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.cast(LANDING_SCHEMA),
        sink,
        compression="zstd",
        use_dictionary=_REPEATING,  # type: ignore[arg-type]
    )
    data = sink.getvalue().to_pybytes()
    store.write(key, data)
    times, positions = (rows[name].to_pylist() for name in ("write_time_us", "position"))
    images = zip(rows["op"].to_pylist(), rows["new_image"].is_null().to_pylist(), strict=True)
    return LandedObject(
        key=key,
        day=landed.day,
        rows=rows.num_rows,
        bytes=len(data),
        generation=landed.generation,
        min_write_us=min(times),
        max_write_us=max(times),
        min_position=min(positions),
        max_position=max(positions),
        shards=tuple(sorted(set(rows["shard_id"].to_pylist()))),
        bare=any(absent and op != "D" for op, absent in images),
        through=landed.entry,
        crc32=zlib.crc32(data),
    )


def read_landing(store: Store, key: str) -> list[Change]:
    """The changes of a landing object; raises `LakeError` when it is gone."""
    data = store.read(key)
    if data is None:
        raise LakeError(f"landing object {key} is in the capture log but not in the lake")
    rows = pq.read_table(pa.BufferReader(data), columns=list(Change._fields))
    return [Change(**row) for row in rows.to_pylist()]


def merge_landing(store: Store, objects: Sequence[LandedObject]) -> bytes:
    """The rows of some objects, as one Parquet file; raises `LakeError` if rows are missing."""
    sink = pa.BufferOutputStream()
    rows = 0
    with pq.ParquetWriter(
        sink,
        LANDING_SCHEMA,
        compression="zstd",
        use_dictionary=_REPEATING,  # type: ignore[arg-type]
    ) as writer:
        for group in _groups(objects):
            table = pa.concat_tables([read_object(store, landed) for landed in group])
            rows += table.num_rows
            writer.write_table(table)
    if rows != sum(landed.rows for landed in objects):
        raise LakeError(f"{rows} rows in {len(objects)} landing objects, the log says otherwise")
    return sink.getvalue().to_pybytes()


def _groups(objects: Sequence[LandedObject]) -> Iterator[list[LandedObject]]:
    """Neighbours that make a row group together."""
    group: list[LandedObject] = []
    for landed in objects:
        group.append(landed)
        if sum(o.rows for o in group) >= _ROW_GROUP:
            yield group
            group = []
    if group:
        yield group


def read_object(store: Store, landed: LandedObject) -> pa.Table:
    """A landing object in the landing columns; raises `LakeError` when it is gone."""
    data = store.read(landed.key)
    if data is None:
        raise LakeError(
            f"landing object {landed.key} is in the capture log but not in the lake",
            fix="cdc-pipeline reconcile TABLE --full --repair",
        )
    return pq.read_table(pa.BufferReader(data)).cast(LANDING_SCHEMA)


def write_quarantine(
    store: Store,
    paths: TablePaths,
    records: Sequence[tuple[str, bytes]],
    *,
    n: int,
    nonce: str,
    landed_us: int,
) -> list[QuarantinedObject]:
    """Write records that could not be read, as `(reason, their bytes)`, one JSON per line."""
    if not records:
        return []
    key = paths.quarantined("unreadable-record", day_of(landed_us), n, nonce)
    reasons: dict[str, int] = {}
    for reason, _ in records:
        reasons[reason] = reasons.get(reason, 0) + 1
    # The record may be anything, valid JSON in the best case: it is kept as base64 of its bytes.
    body = "".join(_quarantine_line(reason, record) for reason, record in records)
    store.write(key, body.encode())
    return [QuarantinedObject(key=key, rows=len(records), reasons=reasons)]


def count_reasons(lines: bytes) -> dict[str, int]:
    """Quarantined records by reason, of the lines of a quarantine object."""
    return dict(Counter(json.loads(line)["reason"] for line in lines.splitlines()))


def _quarantine_line(reason: str, record: bytes) -> str:
    line = {"reason": reason, "record_base64": base64.b64encode(record).decode()}
    return json.dumps(line) + "\n"
