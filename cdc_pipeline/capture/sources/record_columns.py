"""Columns of changes from scanned records: many at once, compiled. Needs the extra `fast`.

Must return the same as the definitions, `core.changes.change.from_stream_record` and
`core.changes.forwarded.from_record`. What it leaves out goes to them, one by one, because they know
the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc_pipeline.core.changes.change import (
    OPS,
    Change,
    by_ttl,
    content_identities,
    stream_identities,
)
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.changes.write_times import EARLIEST_US, US_PER_UNIT, latest_us
from cdc_pipeline.core.log.entries import ShardState, StreamRef
from cdc_pipeline.core.transports import DYNAMODB_STREAMS, KINESIS
from cdc_pipeline.lake.storage.changes import CHANGE_SCHEMA, Changes
from cdc_pipeline.transform.fast.stream.records import Envelopes

_Array = np.ndarray[Any, Any]
_OP_NAMES = list(OPS.values())
_REMOVE = _OP_NAMES.index("D")
_SECOND_US = 1_000_000
_MOST_UNITS = 10**12
"""Times beyond it, in s or ms, are impossible, and may be too large for 64 bits in µs."""


@dataclass(frozen=True)
class ChangeColumns:
    """Changes of some records of a page. `is_read`: whether `table` has a row of the record.

    `is_of_another`: whether a record is of another table.
    """

    table: pa.Table
    is_read: _Array
    is_of_another: _Array

    @property
    def others(self) -> list[int]:
        """Numbers of the records that are neither."""
        return np.flatnonzero(~(self.is_read | self.is_of_another)).tolist()

    @property
    def skipped(self) -> int:
        """Number of records of other tables."""
        return int(np.count_nonzero(self.is_of_another))

    def woven(self, others: Mapping[int, Change]) -> pa.Table:
        """Return all changes in the order of their records; `others`: by number of record."""
        if not others:
            return self.table
        places = np.concatenate((np.flatnonzero(self.is_read), list(others)))
        both = Changes([self.table, list(others.values())]).table()
        return both.take(pa.array(np.argsort(places)))


def stream_columns(
    found: Envelopes, stream: StreamRef, shard: ShardState, target: Target | None
) -> ChangeColumns | None:
    """Return the changes of records of DynamoDB Streams; None: take the exact path for all."""
    is_read = found.have("SequenceNumber") & (found.times < _MOST_UNITS)
    if stream.full_images:
        is_read &= _has_fitting_image(found)
    times_us = found.times * _SECOND_US
    scanned = _Scanned(found, times_us, target)
    is_ttl_delete = scanned.settle(is_read)

    def more(chosen: Envelopes, times_us: _Array) -> dict[str, Any]:
        numbers = chosen.text("SequenceNumber")
        return {
            "uuid": stream_identities(stream.table_id, chosen.pieces("eventID")),
            "position": _positions(shard.depth, numbers),
            "sequence_number": numbers,
            **_repeated(len(times_us), shard_id=shard.shard_id, transport=DYNAMODB_STREAMS),
        }

    table = scanned.table(is_read, is_ttl_delete, more)
    return None if table is None else ChangeColumns(table, is_read, np.zeros_like(is_read))


def envelope_columns(
    found: Envelopes, numbers: Sequence[str], target: Target, shard_id: str, encodings: int
) -> ChangeColumns | None:
    """Return the changes of records of Kinesis; None: take the exact path for all.

    `numbers`: the sequence number of each record. `encodings`: how many times binary is
    base64-encoded.
    """
    is_usual = found.understood & found.have("recordFormat") & found.have("tableName")
    for of_stream in ("eventVersion", "SequenceNumber", "StreamViewType"):
        is_usual &= ~found.have(of_stream)
    names = pc.equal(found.text("tableName"), target.name)  # type: ignore[attr-defined]
    is_ours = pc.fill_null(names, False).to_numpy(zero_copy_only=False)  # type: ignore[attr-defined]
    units = pc.fill_null(  # type: ignore[attr-defined]
        found.text("ApproximateCreationDateTimePrecision"), "MILLISECOND"
    )
    places = pc.index_in(units, pa.array([*US_PER_UNIT]))  # type: ignore[attr-defined]
    unit_us = pa.array([*US_PER_UNIT.values()]).take(places).fill_null(0).to_numpy()
    is_read = is_usual & is_ours & found.have_whole_times & _has_fitting_image(found)
    is_read &= (unit_us > 0) & ((unit_us == 1) | (found.times < 10 * _MOST_UNITS))
    if encodings > 1:
        is_read &= ~found.have_binaries()
    times_us = found.times * unit_us
    scanned = _Scanned(found, times_us, target)
    is_ttl_delete = scanned.settle(is_read)

    def more(chosen: Envelopes, times_us: _Array) -> dict[str, Any]:
        texts = pa.array(times_us).cast(pa.string())
        parts = (
            chosen.pieces("Keys"),
            [str(us).encode() for us in times_us.tolist()],
            [_OP_NAMES[op].encode() for op in chosen.ops.tolist()],
            chosen.pieces("NewImage"),
            chosen.pieces("OldImage"),
        )
        return {
            "uuid": content_identities(target.table_id, zip(*parts, strict=True)),
            "position": _positions(0, texts),
            "sequence_number": pa.array(numbers, pa.string()).filter(pa.array(is_read)),
            **_repeated(len(times_us), shard_id=shard_id, transport=KINESIS),
        }

    table = scanned.table(is_read, is_ttl_delete, more)
    return None if table is None else ChangeColumns(table, is_read, is_usual & ~is_ours)


def _has_fitting_image(found: Envelopes) -> _Array:
    return found.have("NewImage") == (found.ops != _REMOVE)


def _repeated(rows: int, **texts: str) -> dict[str, pa.Array]:
    return {name: pa.repeat(text, rows) for name, text in texts.items()}


class _Scanned:
    """What both transports have in common."""

    def __init__(self, found: Envelopes, times_us: _Array, target: Target | None) -> None:
        self._found, self._times_us, self._target = found, times_us, target

    def settle(self, is_read: _Array) -> _Array:
        """Clear what is no change in `is_read`, and return which records are TTL deletes."""
        found = self._found
        is_read &= found.understood & found.is_filled("Keys")
        is_read &= (self._times_us >= EARLIEST_US) & (self._times_us <= latest_us())
        if self._target is not None and self._target.key_types:
            is_read &= found.have_keys(self._target.key_types)
        deletes = np.zeros(len(is_read), np.bool_)
        for place in np.flatnonzero(is_read & found.have("userIdentity")).tolist():
            try:
                identity = msgspec.json.decode(found.piece("userIdentity", place))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                is_read[place] = False
            else:
                deletes[place] = found.ops[place] == _REMOVE and by_ttl(identity)
        return deletes

    def table(self, is_read: _Array, is_ttl_delete: _Array, more: Any) -> pa.Table | None:
        """Return the columns, `more` of them by the transport; None: take the exact path."""
        found, times_us = self._found.choose(is_read), self._times_us[is_read]
        if not len(times_us):
            return CHANGE_SCHEMA.empty_table()
        try:
            columns = {
                "op": pa.array(_OP_NAMES).take(pa.array(found.ops)),
                "write_time_us": times_us,
                "data": found.plain("NewImage"),
                "keys": found.text("Keys"),
                "new_image": found.text("NewImage"),
                "old_image": found.text("OldImage"),
                "event_id": found.text("eventID"),
                "is_ttl_delete": is_ttl_delete[is_read],
                **more(found, times_us),
            }
        except pa.ArrowInvalid:  # text that is not Unicode
            return None
        if columns["data"] is None:
            return None
        return pa.table([columns[n] for n in CHANGE_SCHEMA.names], schema=CHANGE_SCHEMA)


def _positions(depth: int, numbers: pa.Array) -> pa.Array:
    """Return the `position` of each number, given as text."""
    first = position(depth, 0)
    digits = first.rpartition(".")[2]
    padded = pc.utf8_lpad(numbers, len(digits), "0")  # type: ignore[attr-defined]
    prefix = first.removesuffix(digits)
    return pc.binary_join_element_wise(prefix, padded, "")  # type: ignore[attr-defined]
