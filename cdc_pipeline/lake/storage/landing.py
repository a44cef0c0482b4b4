"""Landing objects: changes as Parquet in the landing columns, by write day."""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import LandedObject, QuarantinedObject
from cdc_pipeline.core.names import TablePaths
from cdc_pipeline.core.transports import BY_TIME
from cdc_pipeline.lake.storage.store import Store

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
        key, rows = key_of(day_of(day * DAY_US)), list(group)
        row_group = _ROW_GROUP_BY_TIME if rows[0].transport in BY_TIME else None
        table = landing_table(rows, landed_us)
        objects.append(write_object(store, key, [table], generation, row_group=row_group))
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


def write_object(
    store: Store,
    key: str,
    tables: Iterable[pa.Table],
    generation: int,
    *,
    through: int = 0,
    row_group: int | None = None,
) -> LandedObject:
    """Write rows in the landing columns, of one day, as one object; the one writer of them all.

    `tables`: one or more, each at least a row group of its own. `through`: the last entry whose
    rows it holds, where that is not its own.
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
    """What the log says of some rows; see `LandedObject`."""

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
    absent, ops = rows["new_image"].is_null().to_pylist(), rows["op"].to_pylist()
    return _Span(
        rows.num_rows,
        times["min"].as_py(),
        times["max"].as_py(),
        positions["min"].as_py(),
        positions["max"].as_py(),
        rows["shard_id"].unique().to_pylist(),
        any(no_image and op != "D" for no_image, op in zip(absent, ops, strict=True)),
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


def read_landing(store: Store, key: str) -> list[Change]:
    """The changes of a landing object; raises `LakeError` when it is gone."""
    data = store.read(key)
    if data is None:
        raise LakeError(f"landing object {key} is in the capture log but not in the lake")
    rows = pq.read_table(pa.BufferReader(data), columns=list(Change._fields))
    return [Change(**row) for row in rows.to_pylist()]


def merge_landing(store: Store, key: str, objects: Sequence[LandedObject]) -> LandedObject:
    """Write the rows of some objects as one; raises `LakeError` if rows are missing."""
    groups = (
        pa.concat_tables([read_object(store, landed) for landed in group])
        for group in _groups(objects)
    )
    first, last = objects[0], objects[-1]
    merged = write_object(store, key, groups, first.generation, through=last.entry)
    if merged.rows != sum(landed.rows for landed in objects):
        store.delete([key])
        raise LakeError(
            f"{merged.rows} rows in {len(objects)} landing objects, the log says otherwise"
        )
    return merged


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
